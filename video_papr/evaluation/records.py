"""The records of a journal: one line each with a checksum, and the batch that a record stands for."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.errors import DataError
from ..core.files import atomic_write, storing
from .answers import Evaluation, Example, VideoAnswer
from .cost import StageTimes

DIRECTORY = "progress"  # of a run directory

Record = dict[str, Any]


def line_of(record: Record) -> bytes:
    """The line that holds a record."""
    body = json.dumps(record, ensure_ascii=True, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def read_header(path: Path) -> Record:
    """Reads the first record of a journal that somebody else may be writing.

    Raises DataError: there is no such record.
    """
    try:
        with path.open("rb") as file:
            line = file.readline()
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror}, but rank 0 has written it; all machines of a run must share output_dir"
        ) from error
    header = _record(line.removesuffix(b"\n"))
    if header is None or "identity" not in header:
        raise DataError(f"{path}:1 is damaged.")
    return header


def read_records(path: Path) -> tuple[list[Record], int]:
    """Reads a journal, cuts off half a line at its end, and counts the damaged ones.

    Raises DataError: the first record is damaged, so nobody knows what the others are about.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return [], 0
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with storing(path):
            os.truncate(path, whole)
    lines = data[:whole].split(b"\n")[:-1]
    records = [_record(line) for line in lines]
    if records and (records[0] is None or "identity" not in records[0]):
        raise DataError(f"{path}:1 is damaged, so it cannot be resumed; resume=false starts over.")
    good = [record for record in records if record is not None]
    return good, len(records) - len(good)


def _record(line: bytes) -> Record | None:
    try:
        checksum, _, body = line.partition(b" ")
        if int(checksum, 16) != zlib.crc32(body):
            return None
        record = json.loads(body)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


# ---- between a batch and its record ----


def batch_record(part: Evaluation) -> Record:
    """The plain form of a batch; the examples have files of their own."""
    return {
        "answers": [asdict(answer) for answer in part.answers],
        "pruned": asdict(part.pruned),
        "dense": None if part.dense is None else asdict(part.dense),
        "kept": {str(tokens): views for tokens, views in part.kept.items()},
    }


def batch_of(record: Record) -> Evaluation:
    """The batch that `batch_record` made plain."""
    return Evaluation(
        answers=[_answer(values) for values in record["answers"]],
        pruned=_times(record["pruned"]),
        dense=None if record["dense"] is None else _times(record["dense"]),
        kept=Counter({int(tokens): views for tokens, views in record["kept"].items()}),
    )


def _answer(values: Record) -> VideoAnswer:
    lists = ("top5", "probs_top5", "baseline_top5")
    return VideoAnswer(
        **{**values, **{name: None if values[name] is None else tuple(values[name]) for name in lists}}
    )


def _times(values: Record) -> StageTimes:
    runs = {
        name: [(each, views) for each, views in values[name]]
        for name in ("decode", "preprocess", "score", "backbone", "scorer_gmacs")
    }
    return StageTimes(**runs, peak_memory_mb=values["peak_memory_mb"])


# ---- examples ----


def write_example(directory: Path, example: Example) -> None:
    """Writes the frames and the mask of an example. Raises StorageError: the disk is full, or fails."""
    frames, mask = example.frames.numpy(), example.mask.numpy()
    path = directory / f"example_{example.answer.index:05d}.npz"
    atomic_write(path, lambda file: np.savez(file, frames=frames, mask=mask))


def read_examples(directory: Path, answers: Iterable[VideoAnswer]) -> list[Example]:
    """The examples of finished videos. One that is damaged is left out of the picture: no answer depends on it."""
    known = {answer.index: answer for answer in answers if answer.error is None}
    examples = []
    for path in sorted(directory.glob("example_*.npz")):
        with suppress(ValueError, OSError, KeyError, EOFError, zlib.error, zipfile.BadZipFile):
            answer = known[int(path.stem.removeprefix("example_"))]
            with np.load(path, allow_pickle=False) as stored:
                frames, mask = torch.from_numpy(stored["frames"]), torch.from_numpy(stored["mask"])
            if (frames.ndim, frames.dtype, mask.ndim, mask.dtype) == (4, torch.uint8, 3, torch.bool):
                examples.append(Example(answer, frames, mask))
    return examples
