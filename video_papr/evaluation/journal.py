"""What a run has finished, on disk, so that the next one goes on after a crash at any moment.

    progress/journal.jsonl     one record in each line: CRC-32 of the rest, a blank, JSON
    progress/example_00012.npz frames and mask of one example for the picture
    progress/lock              held while a process writes here; holds its number

The first record says what is evaluated, with what (`identity`); then one for each session (a start of the command)
and one for each finished batch. A batch is written with a single call once all its videos are answered, so a killed
run loses the batch in flight and nothing else. Half a line at the end is what was being written: it is cut off. A
whole line whose checksum is wrong is damage: its videos are evaluated again.

Lines only ever get added, which every file system can do, network ones too; the file says nothing about the machine's
number formats and can be read by eye.
"""

from __future__ import annotations

import errno
import json
import os
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import ConfigError, DataError, StorageError
from .cost import StageTimes
from .runner import Evaluation, Example, VideoAnswer

DIRECTORY, FILE = "progress", "journal.jsonl"
FORMAT = 1
SYNC_SECONDS = (
    1.0  # a power failure (not a kill) may lose this much more; waiting for the disk costs milliseconds
)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Record = dict[str, Any]


@contextmanager
def hold(run_dir: Path) -> Iterator[None]:
    """Keeps every other process out of `run_dir` for as long as the body runs; a killed process lets go at once.

    Raises:
        ConfigError: another process is at work there.
    """
    try:
        import fcntl
    except ImportError:  # Windows: no lock there
        yield
        return
    path = run_dir / DIRECTORY / "lock"
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            # Not flock: its locks pass on to decoding processes, which may outlive a killed run by a moment.
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            holder = os.pread(handle, 20, 0).decode("ascii", "replace").strip() or "unknown"
            raise ConfigError(
                f"output_dir={run_dir}: process {holder} is at work there; wait for it, or give another output_dir."
            ) from None
        with suppress(OSError):  # a full disk shows where it matters
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turns a full disk, and other errors of writing `path`, into one line.

    Raises:
        StorageError: the system could not write.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        hint = (
            "free some space and run the same command again" if error.errno in _FULL else "run it again then"
        )
        raise StorageError(
            f"cannot write {path}: {reason}. What was finished before is kept; {hint}."
        ) from error


@dataclass
class Finished:
    """What the journal holds: the merged evaluation, its videos in the order of the dataset, and the sessions.

    `damaged` is the number of records that were lost to damage.
    """

    evaluation: Evaluation
    sessions: list[Record] = field(default_factory=list)
    damaged: int = 0


class Journal:
    """The open journal of a run; see `open_journal`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with storing(path):
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._synced = time.monotonic()

    def add(self, part: Evaluation) -> None:
        """Stores a finished batch.

        Raises:
            StorageError: the disk is full, or fails.
        """
        for example in part.examples:
            self._add_example(example)
        self.append({"batch": batch_record(part)})

    def append(self, record: Record) -> None:
        """Adds one record: whole, or not at all."""
        data = line_of(record)
        with storing(self.path):
            size = os.fstat(self._file).st_size
            try:
                written = os.write(self._file, data)
                if written < len(data):  # a disk that is nearly full takes a part, and refuses the next byte
                    os.write(self._file, data[written:])
            except OSError:
                with suppress(OSError):
                    os.ftruncate(self._file, size)
                raise
            if time.monotonic() - self._synced >= SYNC_SECONDS:
                self.sync()

    def sync(self) -> None:
        """Waits until everything is on the disk itself."""
        with storing(self.path), _syncable():
            os.fsync(self._file)
        self._synced = time.monotonic()

    def close(self) -> None:
        """Syncs and closes."""
        try:
            self.sync()
        finally:
            os.close(self._file)

    def _add_example(self, example: Example) -> None:
        path = example_file(self.path.parent, example.answer.index)
        half = path.with_suffix(".part")
        with storing(path):
            with half.open("wb") as file:
                np.savez(file, frames=example.frames.numpy(), mask=example.mask.numpy())
            half.replace(path)


@contextmanager
def _syncable() -> Iterator[None]:
    """Lets files pass that cannot be synced, such as pipes and devices."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def open_journal(
    run_dir: Path, identity: Mapping[str, Any], session: Mapping[str, Any], *, resume: bool = True
) -> tuple[Journal, Finished]:
    """Reads what earlier sessions finished, and opens the journal for this one. Call it inside `hold`.

    Args:
        run_dir: of the run.
        identity: what decides about the answers: flat, plain values.
        session: what is worth knowing about this start of the command.
        resume: False forgets what is there.

    Raises:
        ConfigError: the run that was begun there is another one; a line for each key that differs.
        DataError: the journal cannot be used.
        StorageError: it cannot be written.
    """
    directory = run_dir / DIRECTORY
    path = directory / FILE
    with storing(path):
        directory.mkdir(parents=True, exist_ok=True)
        for half in (*run_dir.glob(".results.json.*"), *run_dir.glob(".predictions.jsonl.*")):
            half.unlink()  # a run was killed while it wrote them
        if not resume:
            for name in (FILE, "example_*"):
                for old in directory.glob(name):
                    old.unlink()
            (run_dir / "results.json").unlink(
                missing_ok=True
            )  # its presence would say that the run has ended
    records, damaged = read_records(path)
    if records:
        check_same(records[0], identity, path)
    journal = Journal(path)
    if not records:
        journal.append({"format": FORMAT, "identity": dict(identity)})
    finished = merge_records(records[1:])
    finished.damaged = damaged
    finished.evaluation.examples = _read_examples(directory, finished.evaluation.answers)
    finished.sessions.append({**session, "videos": 0})
    journal.append({"session": dict(session)})
    return journal, finished


def line_of(record: Record) -> bytes:
    """The line that holds a record."""
    body = json.dumps(record, ensure_ascii=True, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def read_records(path: Path) -> tuple[list[Record], int]:
    """Reads a journal, cuts off half a line at its end, and counts the damaged ones.

    Raises:
        DataError: the first record is damaged, so nobody knows what the others are about.
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
        if int(line[:8], 16) != zlib.crc32(line[9:]):
            return None
        record = json.loads(line[9:])
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def check_same(header: Record, identity: Mapping[str, Any], path: Path) -> None:
    """Raises ConfigError unless the journal belongs to the run that `identity` describes."""
    if header.get("format") != FORMAT:
        raise DataError(
            f"{path} has format {header.get('format')}, this version reads {FORMAT}; resume=false starts over."
        )
    old, new = header["identity"], json.loads(json.dumps(dict(identity)))
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if keys:
        lines = [f"  {key}: {_shown(old.get(key))} there, {_shown(new.get(key))} now" for key in sorted(keys)]
        raise ConfigError(
            f"output_dir={path.parent.parent} holds a run with another configuration; give another output_dir, "
            "or resume=false to start over there:\n" + "\n".join(lines)
        )


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


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
        **{
            **values,
            **{name: None if values[name] is None else tuple(values[name]) for name in lists},
        }
    )


def _times(values: Record) -> StageTimes:
    peak = values["peak_memory_mb"]
    runs = {
        name: [(ms, views) for ms, views in values[name]]
        for name in ("decode", "preprocess", "score", "backbone")
    }
    scored = [(each, views) for each, views in values.get("scorer_gmacs", [])]  # since crops share maps
    return StageTimes(**runs, scorer_gmacs=scored, peak_memory_mb=peak)


def merge_records(records: list[Record]) -> Finished:
    """Puts sessions and batches together; a video counts once, whatever the journal holds."""
    found = Finished(Evaluation())
    seen: set[int] = set()
    for record in records:
        if "session" in record:
            found.sessions.append({**record["session"], "videos": 0})
        elif "batch" in record:
            part = batch_of(record["batch"])
            indices = {answer.index for answer in part.answers}
            if seen & indices:
                continue
            seen |= indices
            found.evaluation.extend(part)
            if found.sessions:
                found.sessions[-1]["videos"] += len(indices)
    found.evaluation.answers.sort(key=lambda answer: answer.index)
    return found


def example_file(directory: Path, index: int) -> Path:
    return directory / f"example_{index:05d}.npz"


def _read_examples(directory: Path, answers: list[VideoAnswer]) -> list[Example]:
    """The examples of finished videos. One that is damaged is left out of the picture: no answer depends on it."""
    known = {answer.index: answer for answer in answers}
    examples = []
    for path in sorted(directory.glob("example_*.npz")):
        with suppress(ValueError, OSError, KeyError, EOFError, zlib.error, zipfile.BadZipFile):
            answer = known[int(path.stem.removeprefix("example_"))]
            with np.load(path, allow_pickle=False) as stored:
                frames, mask = torch.from_numpy(stored["frames"]), torch.from_numpy(stored["mask"])
            if (
                frames.ndim == 4
                and frames.dtype == torch.uint8
                and mask.ndim == 3
                and mask.dtype == torch.bool
            ):
                examples.append(Example(answer, frames, mask))
    return examples
