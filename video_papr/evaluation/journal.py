"""What a run has finished, on disk, so that the next one goes on after a crash at any moment.

    progress/journal.jsonl     one record in each line: CRC-32 of the rest, a blank, JSON
    progress/example_00012.npz frames and mask of one example for the picture
    progress/lock              held while a process writes here; holds its number

With several ranks (see `distributed`) each writes files of its own: journal.1.jsonl and lock.1 for rank 1. A run is all
of them together, however many ranks began it and however many go on.

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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.errors import ConfigError, DataError
from .answers import Evaluation, Example, VideoAnswer
from .records import Record, batch_of, batch_record, line_of, read_header, read_records, storing

DIRECTORY, FILE, FILES = "progress", "journal.jsonl", "journal*.jsonl"
FORMAT = 1
SYNC_SECONDS = (
    1.0  # a power failure (not a kill) may lose this much more; waiting for the disk costs milliseconds
)


@contextmanager
def hold(run_dir: Path, rank: int = 0) -> Iterator[None]:
    """Keeps every other process out of `run_dir` for as long as the body runs; a killed process lets go at once.

    Args:
        rank: those above 0 come in when rank 0 is there. It sees to it that none of an earlier run is left.

    Raises:
        ConfigError: another process is at work there.
    """
    try:
        import fcntl
    except ImportError:  # Windows: no lock there
        yield
        return

    def lock(handle: int) -> None:
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

    path = run_dir / DIRECTORY / (f"lock.{rank}" if rank else "lock")
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        lock(handle)
        for other in () if rank else path.parent.glob("lock.*"):
            with other.open("r+b") as file:  # closing it lets go
                lock(file.fileno())
        with suppress(OSError):  # a full disk shows where it matters
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


@dataclass
class Finished:
    """What the journal holds: the merged evaluation, its videos in the order of the dataset, and the sessions.

    `damaged` is the number of records that were lost to damage, `session` the number of the session that runs.
    """

    evaluation: Evaluation
    sessions: list[Record] = field(default_factory=list)
    damaged: int = 0
    session: int = 0


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
    run_dir: Path,
    identity: Mapping[str, Any],
    session: Mapping[str, Any],
    *,
    resume: bool = True,
    ranks: int = 1,
) -> tuple[Journal, Finished]:
    """Reads what earlier sessions finished, and opens the journal for this one. Call it inside `hold`.

    Args:
        run_dir: of the run.
        identity: what decides about the answers: flat, plain values.
        session: what is worth knowing about this start of the command.
        resume: False forgets what is there.
        ranks: how many will write. Their files are made here: a network disk may show other machines' new ones late.

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
            for name in (FILES, "example_*"):
                for old in directory.glob(name):
                    old.unlink()
            (run_dir / "results.json").unlink(
                missing_ok=True
            )  # its presence would say that the run has ended
    finished = read_finished(run_dir, identity)
    journal = Journal(path)
    if not path.stat().st_size:
        journal.append(_header(identity))
    finished.sessions.append({**session, "videos": 0})
    journal.append({"session": dict(session), "number": finished.session})
    with storing(directory):
        for rank in range(1, ranks):
            _of_rank(directory, rank).touch()
    return journal, finished


def join_journal(run_dir: Path, rank: int, identity: Mapping[str, Any], number: int) -> Journal:
    """Opens the journal of a rank above 0, once rank 0 has opened its own. Call it inside `hold`.

    Args:
        number: of the session, from rank 0.

    Raises:
        DataError: this rank would answer something else than rank 0, or does not see the directory of rank 0.
        StorageError: the journal cannot be written.
    """
    header = read_header(run_dir / DIRECTORY / FILE)
    different = differences(header["identity"], identity, "for rank 0", "here")
    if different:
        raise DataError("the ranks do not do the same:\n" + "\n".join(different))
    path = _of_rank(run_dir / DIRECTORY, rank)
    journal = Journal(path)
    if not path.stat().st_size:
        journal.append(_header(identity))
    journal.append({"session": {}, "number": number})  # rank 0 describes it
    return journal


def read_finished(run_dir: Path, identity: Mapping[str, Any]) -> Finished:
    """What all sessions and ranks have finished. Nobody may be writing.

    Raises:
        ConfigError, DataError, StorageError: as `open_journal`.
    """
    directory = run_dir / DIRECTORY
    ranks, damaged = [], 0
    for path in sorted(directory.glob(FILES), key=lambda path: (path.name != FILE, path.name)):
        records, lost = read_records(path)
        damaged += lost
        if records:
            check_same(records[0], identity, path)
            ranks.append(records[1:])
    finished = merge_records(ranks)
    finished.damaged = damaged
    finished.evaluation.examples = _read_examples(directory, finished.evaluation.answers)
    return finished


def _of_rank(directory: Path, rank: int) -> Path:
    return directory / FILE.replace(".", f".{rank}.")


def _header(identity: Mapping[str, Any]) -> Record:
    return {"format": FORMAT, "identity": dict(identity)}


def check_same(header: Record, identity: Mapping[str, Any], path: Path) -> None:
    """Raises ConfigError unless the journal belongs to the run that `identity` describes."""
    if header.get("format") != FORMAT:
        raise DataError(
            f"{path} has format {header.get('format')}, this version reads {FORMAT}; resume=false starts over."
        )
    lines = differences(header["identity"], identity, "there", "now")
    if lines:
        raise ConfigError(
            f"output_dir={path.parent.parent} holds a run with another configuration; give another output_dir, "
            "or resume=false to start over there:\n" + "\n".join(lines)
        )


def differences(old: Mapping[str, Any], new: Mapping[str, Any], there: str, here: str) -> list[str]:
    """One line for each key of two identities that differs, with both values and where they are found."""
    new = json.loads(json.dumps(dict(new)))
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return [f"  {key}: {_shown(old.get(key))} {there}, {_shown(new.get(key))} {here}" for key in sorted(keys)]


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def merge_records(ranks: Sequence[Sequence[Record]]) -> Finished:
    """Puts sessions and batches together, of each rank in the order of its file; a video counts once, whatever the
    journals hold."""
    found = Finished(Evaluation())
    seen: set[int] = set()
    sessions: dict[int, Record] = {}
    for records in ranks:
        number = -1
        for record in records:
            if "session" in record:
                number = record.get("number", number + 1)
                sessions.setdefault(number, {**record["session"], "videos": 0})
            elif "batch" in record:
                part = batch_of(record["batch"])
                indices = {answer.index for answer in part.answers}
                if seen & indices:
                    continue
                seen |= indices
                found.evaluation.extend(part)
                if number in sessions:
                    sessions[number]["videos"] += len(indices)
    found.evaluation.answers.sort(key=lambda answer: answer.index)
    found.sessions = [sessions[number] for number in sorted(sessions)]
    found.session = max(sessions, default=-1) + 1
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
