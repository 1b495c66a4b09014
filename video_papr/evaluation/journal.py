"""Journal (checkpoint) of an evaluation: what has finished, on disk, so that a run can be resumed after any crash.

    progress/journal.jsonl     one record in each line: CRC-32 of the rest, a blank, JSON
    progress/example_00012.npz frames and mask of one example for the picture
    progress/lock              held while a process writes here; holds its number

With several ranks (see `core.processes`) each writes files of its own: journal.1.jsonl and lock.1 for rank 1. A run is
all of them together, however many ranks began it and however many go on.

The first record says what is evaluated, with what (`identity`); then one for each session (a start of the command)
and one for each finished batch, with size and time of each video's file: where one has changed since, the batch is
evaluated again. A batch is written with a single call once all its videos are answered, so a killed
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
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError, DataError
from ..core.files import remove_partial, storing
from .answers import Evaluation
from .observers import Observer
from .records import (
    DIRECTORY,
    Record,
    batch_of,
    batch_record,
    line_of,
    read_examples,
    read_header,
    read_records,
    write_example,
)

FILE, FILES = "journal.jsonl", "journal*.jsonl"
FORMAT = 2
# A power failure (not a kill) may lose this much more; waiting for the disk costs milliseconds.
SYNC_SECONDS = 1.0
Stamps = Sequence[Sequence[int] | None]
"""Size in bytes and time of change in ns of the file of each video; None where there is none."""


def stamp_files(paths: Iterable[str | Path]) -> list[list[int] | None]:
    """Size and time of change of files, by which a replaced one is recognised."""

    def stamp(path: str | Path) -> list[int] | None:
        with suppress(OSError, ValueError):
            found = os.stat(path)
            return [found.st_size, found.st_mtime_ns]
        return None

    return [stamp(path) for path in paths]


@dataclass
class Finished:
    """What the journal holds: the merged evaluation, its videos in the order of the dataset, and the sessions.

    `damaged` is the number of records that were lost to damage, `changed` that of answered videos in batches of which
    a file has changed since, `session` the number of the session that runs.
    """

    evaluation: Evaluation
    sessions: list[Record]
    damaged: int
    changed: int
    session: int


class Journal(Observer):
    """The open journal of a run; see `open_journal`. As an observer it stores each batch."""

    def __init__(self, path: Path, stamps: Stamps = ()) -> None:
        self.path, self.stamps = path, stamps
        with storing(path):
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._synced = time.monotonic()

    def on_batch(self, part: Evaluation) -> None:
        """Stores a finished batch. Raises StorageError: the disk is full, or fails."""
        for example in part.examples:
            write_example(self.path.parent, example)
        indices = [answer.index for answer in part.answers]
        self.append({"batch": batch_record(part), "files": _stamps_of(self.stamps, indices)})

    def append(self, record: Record) -> None:
        """Adds one record: whole, or not at all."""
        data = line_of(record)
        with storing(self.path):
            size = os.fstat(self._file).st_size
            try:
                while data:  # a disk that is nearly full takes a part, and refuses the next byte
                    data = data[os.write(self._file, data) :]
            except OSError:
                with suppress(OSError):
                    os.ftruncate(self._file, size)
                raise
            if time.monotonic() - self._synced >= SYNC_SECONDS:
                self.sync()

    def sync(self) -> None:
        """Waits until everything is on the disk itself."""
        with storing(self.path):
            try:
                os.fsync(self._file)
            except OSError as error:
                if error.errno != errno.EINVAL:  # pipes and devices cannot be synced
                    raise
        self._synced = time.monotonic()

    def close(self) -> None:
        """Syncs and closes."""
        try:
            self.sync()
        finally:
            os.close(self._file)


def _stamps_of(stamps: Stamps, indices: Iterable[int]) -> list[Sequence[int] | None]:
    return [stamps[index] if index < len(stamps) else None for index in indices]


def open_journal(
    run_dir: Path,
    identity: Mapping[str, Any],
    session: Mapping[str, Any],
    *,
    stamps: Stamps = (),
    resume: bool = True,
    ranks: int = 1,
) -> tuple[Journal, Finished]:
    """Reads what earlier sessions finished, and opens the journal for this one. Call it inside `hold`.

    Args:
        identity: what decides about the answers: flat, plain values.
        session: what is worth knowing about this start of the command.
        stamps: of the videos' files, from `stamp_files`.
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
        remove_partial(run_dir)
        remove_partial(directory)
        if not resume:
            for name in (FILES, "example_*"):
                for old in directory.glob(name):
                    old.unlink()
            (run_dir / "results.json").unlink(missing_ok=True)  # else it would say that the run has ended
    finished = read_finished(run_dir, identity, stamps)
    journal = Journal(path, stamps)
    if not path.stat().st_size:
        journal.append(_header(identity))
    finished.sessions.append({**session, "videos": 0})
    journal.append({"session": dict(session), "number": finished.session})
    with storing(directory):
        for rank in range(1, ranks):
            _of_rank(directory, rank).touch()
    return journal, finished


def join_journal(
    run_dir: Path, rank: int, identity: Mapping[str, Any], number: int, *, stamps: Stamps = ()
) -> Journal:
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
    journal = Journal(path, stamps)
    if not path.stat().st_size:
        journal.append(_header(identity))
    journal.append({"session": {}, "number": number})  # rank 0 describes it
    return journal


def read_finished(run_dir: Path, identity: Mapping[str, Any], stamps: Stamps = ()) -> Finished:
    """What all sessions and ranks have finished. Nobody may be writing.

    Raises ConfigError, DataError, StorageError: as `open_journal`.
    """
    directory = run_dir / DIRECTORY
    ranks, damaged = [], 0
    for path in sorted(directory.glob(FILES), key=lambda path: (path.name != FILE, path.name)):
        records, lost = read_records(path)
        damaged += lost
        if records:
            check_same(records[0], identity, path)
            ranks.append(records[1:])
    finished = merge_records(ranks, damaged, stamps)
    finished.evaluation.examples = read_examples(directory, finished.evaluation.answers)
    return finished


def _of_rank(directory: Path, rank: int) -> Path:
    return directory / FILE.replace(".", f".{rank}.")


def _header(identity: Mapping[str, Any]) -> Record:
    return {"format": FORMAT, "identity": dict(identity)}


def check_same(header: Record, identity: Mapping[str, Any], path: Path) -> None:
    """Raises ConfigError unless the journal belongs to the run that `identity` describes."""
    if header.get("format") != FORMAT:
        raise DataError(
            f"{path} has format {header.get('format')}, from another version of video_papr; this one reads {FORMAT}. "
            "Give another output_dir, or resume=false to start over there."
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


def merge_records(ranks: Sequence[Sequence[Record]], damaged: int, stamps: Stamps = ()) -> Finished:
    """Puts sessions and batches together, of each rank in the order of its file; a video counts once, whatever the
    journals hold, and not at all where a file of its batch is another one now."""
    merged = Evaluation()
    seen: set[int] = set()
    changed: set[int] = set()
    sessions: dict[int, Record] = {}
    for records in ranks:
        number = None
        for record in records:
            if "session" in record:
                number = record["number"]
                sessions.setdefault(number, {**record["session"], "videos": 0})
            elif "batch" in record:
                part = batch_of(record["batch"])
                indices = [answer.index for answer in part.answers]
                if record["files"] != _stamps_of(stamps, indices):
                    changed.update(indices)
                    continue
                if seen.intersection(indices):
                    continue
                seen.update(indices)
                merged.extend(part)
                if number in sessions:
                    sessions[number]["videos"] += len(indices)
    merged.answers.sort(key=lambda answer: answer.index)
    known = [sessions[number] for number in sorted(sessions)]
    return Finished(merged, known, damaged, len(changed - seen), max(sessions, default=-1) + 1)
