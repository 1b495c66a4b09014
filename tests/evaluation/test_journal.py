"""The journal: what is read back is what was written, whatever was cut off, flipped or refused."""

from __future__ import annotations

import errno
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from video_papr.core.errors import ConfigError, DataError, StorageError
from video_papr.evaluation import journal as journal_module
from video_papr.evaluation.answers import Evaluation, Example, VideoAnswer
from video_papr.evaluation.cost import StageTimes
from video_papr.evaluation.journal import (
    Journal,
    Stamps,
    join_journal,
    open_journal,
    read_finished,
    stamp_files,
)
from video_papr.evaluation.lock import hold
from video_papr.evaluation.records import Record, batch_record, line_of, read_records

IDENTITY = {"pruner.keep_ratio": 0.3, "dataset.root": "videos", "weights": "abc", "views": (5, 3)}
SESSION = {"device": "cpu (test)"}

times = st.floats(0, 1e6)
runs = st.lists(st.tuples(times, st.integers(1, 99)), max_size=3)
stages = st.builds(StageTimes, runs, runs, runs, runs, times, runs)
ranking = st.none() | st.lists(st.integers(0, 999), min_size=1, max_size=5).map(tuple)
answers = st.builds(
    VideoAnswer,
    name=st.text(),
    label=st.none() | st.integers(0, 999),
    top5=ranking,
    probs_top5=st.none() | st.lists(st.floats(0, 1), max_size=5).map(tuple),
    kept_tokens=st.none() | st.integers(0, 9999) | st.floats(0, 9999),
    baseline_top5=ranking,
    extra=st.dictionaries(st.text(max_size=3), st.none() | st.floats(0, 1), max_size=2),
    error=st.none() | st.text(),
)


@st.composite
def batches(draw: st.DrawFn) -> list[Evaluation]:
    """Batches of the videos 0, 1, ... in order."""
    parts, index = [], 0
    baseline = draw(st.booleans())
    for found in draw(st.lists(st.lists(answers, min_size=1, max_size=3), max_size=5)):
        for answer in found:
            object.__setattr__(answer, "index", index)
            index += 1
        kept = Counter(draw(st.dictionaries(st.integers(1, 3136), st.integers(1, 15), max_size=3)))
        dense = draw(stages) if baseline else None
        parts.append(Evaluation(found, draw(stages), dense, kept=kept))
    return parts


def write(run_dir: Path, parts: list[Evaluation]) -> Path:
    """A run that finished these batches."""
    journal, _ = open_journal(run_dir, IDENTITY, SESSION)
    for part in parts:
        journal.on_batch(part)
    journal.close()
    return journal.path


def read(run_dir: Path) -> journal_module.Finished:
    journal, finished = open_journal(run_dir, IDENTITY, SESSION)
    journal.close()
    return finished


def together(parts: list[Evaluation]) -> Evaluation:
    whole = Evaluation()
    for part in parts:
        whole.extend(part)
    return whole


@settings(deadline=None, max_examples=60)
@given(parts=batches())
def test_what_is_read_is_what_was_written(
    parts: list[Evaluation], tmp_path_factory: pytest.TempPathFactory
) -> None:
    run_dir = tmp_path_factory.mktemp("run")
    write(run_dir, parts)
    finished = read(run_dir)
    assert finished.evaluation == together(parts)
    assert [answer.index for answer in finished.evaluation.answers] == [
        answer.index for part in parts for answer in part.answers
    ]
    videos = sum(len(part.answers) for part in parts)
    assert [session["videos"] for session in finished.sessions] == [videos, 0]


@settings(deadline=None, max_examples=60)
@given(parts=batches(), share=st.floats(0, 1))
def test_a_run_that_is_cut_off_anywhere_keeps_its_whole_batches(
    parts: list[Evaluation], share: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run_dir = tmp_path_factory.mktemp("run")
    path = write(run_dir, parts)
    data = path.read_bytes()
    cut = int(share * len(data))
    path.write_bytes(data[:cut])
    whole = max(data[:cut].count(b"\n") - 2, 0)  # without identity and session
    assert read(run_dir).evaluation == together(parts[:whole])
    more = VideoAnswer("more", 1, index=99)
    journal, _ = open_journal(run_dir, IDENTITY, SESSION)
    journal.on_batch(Evaluation([more]))  # the run goes on in the same file
    journal.close()
    assert read(run_dir).evaluation.answers == [*together(parts[:whole]).answers, more]


@settings(deadline=None, max_examples=60)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_costs_its_own_batch_and_never_changes_an_answer(
    place: float, bit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run_dir = tmp_path_factory.mktemp("run")
    parts = [Evaluation([VideoAnswer(f"{i}.mp4", i, (i,), (0.5,), index=i)]) for i in range(6)]
    path = write(run_dir, parts)
    data = bytearray(path.read_bytes())
    start = data.index(b"\n", data.index(b"\n") + 1) + 1  # behind identity and session
    at = start + int(place * (len(data) - start))
    data[at] ^= 1 << bit
    path.write_bytes(data)
    finished = read(run_dir)
    names = [answer.name for answer in finished.evaluation.answers]
    assert len(names) >= 4  # a line end that is gone joins two records
    originals = {part.answers[0].name: part.answers[0] for part in parts}
    assert all(answer == originals[answer.name] for answer in finished.evaluation.answers)
    assert names == sorted(names)


def test_a_damaged_head_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = write(tmp_path, [])
    data = bytearray(path.read_bytes())
    data[12] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"journal.jsonl:1 is damaged.*resume=false starts over"):
        open_journal(tmp_path, IDENTITY, SESSION)
    journal, finished = open_journal(tmp_path, IDENTITY, SESSION, resume=False)
    journal.close()
    assert finished.evaluation.answers == []


def test_another_configuration_is_refused_key_by_key(tmp_path: Path) -> None:
    path = write(tmp_path, [])
    before = path.read_bytes()
    other = {**IDENTITY, "pruner.keep_ratio": 0.5, "weights": "def", "new": None}
    with pytest.raises(ConfigError) as error:
        open_journal(tmp_path, other, SESSION)
    first, *lines = str(error.value).splitlines()
    assert f"output_dir={tmp_path}" in first and "resume=false" in first
    assert lines == ["  pruner.keep_ratio: 0.3 there, 0.5 now", "  weights: abc there, def now"]
    assert path.read_bytes() == before


def test_starting_over_forgets_everything(tmp_path: Path) -> None:
    write(tmp_path, [Evaluation([VideoAnswer("a", 0, index=0)], examples=[example(0)])])
    (tmp_path / "results.json").write_text("{}")
    journal, finished = open_journal(tmp_path, {"other": 1}, SESSION, resume=False)
    journal.close()
    assert finished.evaluation == Evaluation()
    assert sorted(path.name for path in (tmp_path / "progress").iterdir()) == ["journal.jsonl"]
    assert not (tmp_path / "results.json").exists()


def test_a_record_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "progress").mkdir()
    (tmp_path / "progress/journal.jsonl").write_bytes(line_of({"format": 99, "identity": IDENTITY}))
    with pytest.raises(
        DataError, match="has format 99, from another version of video_papr; this one reads 2"
    ):
        open_journal(tmp_path, IDENTITY, SESSION)


def test_no_video_counts_twice(tmp_path: Path) -> None:
    part = Evaluation([VideoAnswer("a", 0, (0,), index=0)], StageTimes([(1.0, 1)]))
    write(tmp_path, [part, part])
    assert read(tmp_path).evaluation == part


def test_a_batch_that_overlaps_another_is_left_out_whole(tmp_path: Path) -> None:
    """Journals of two numbers of ranks may cut batches differently; half of one would have met other neighbours."""
    answers = [VideoAnswer(name, 0, (0,), index=index) for index, name in enumerate("abc")]
    write(tmp_path, [Evaluation(answers[:2]), Evaluation(answers[1:])])
    assert read(tmp_path).evaluation.answers == answers[:2]


def test_what_a_killed_process_left_half_written_goes(tmp_path: Path) -> None:
    halves = [tmp_path / ".results.json.x.partial", tmp_path / "progress" / ".example_00000.npz.x.partial"]
    for half in halves:
        half.parent.mkdir(exist_ok=True)
        half.touch()
    read(tmp_path)
    assert not any(half.exists() for half in halves)


def test_the_disk_is_waited_for_once_a_second_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, synced = [0.0], []
    monkeypatch.setattr(journal_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_size))
    journal, _ = open_journal(tmp_path, IDENTITY, SESSION)
    for second, expected in ((0.5, 0), (1.0, 1), (1.5, 1), (2.0, 2)):
        now[0] = second
        journal.append({"second": second})
        assert len(synced) == expected
    journal.append({})
    journal.close()
    assert synced[1:] == [synced[1], journal.path.stat().st_size] and synced[0] < synced[1]


def test_only_what_cannot_be_synced_at_all_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pipes and devices have nothing to wait for; a disk that fails does."""
    journal, _ = open_journal(tmp_path, IDENTITY, SESSION)

    def failing(number: int) -> None:
        def fail(handle: int) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", fail)

    failing(errno.EINVAL)
    journal.sync()
    failing(errno.EIO)
    with pytest.raises(StorageError, match="Input/output error"):
        journal.sync()
    failing(errno.EINVAL)
    journal.close()


def test_a_replaced_file_is_answered_anew_with_its_batch(tmp_path: Path) -> None:
    paths = [tmp_path / f"{index}.mp4" for index in range(4)]
    for path in paths:
        path.write_bytes(b"video")
    answers = [VideoAnswer(path.name, 0, (0,), index=index) for index, path in enumerate(paths)]
    run_dir, stamps = tmp_path / "run", stamp_files(paths)

    def session(*parts: Evaluation, stamps: Stamps) -> journal_module.Finished:
        journal, finished = open_journal(run_dir, IDENTITY, SESSION, stamps=stamps)
        for part in parts:
            journal.on_batch(part)
        journal.close()
        return finished

    session(Evaluation(answers[:2]), Evaluation(answers[2:]), stamps=stamps)
    assert session(stamps=stamp_files(paths)).evaluation.answers == answers
    paths[2].write_bytes(b"another")
    paths[3].unlink()
    now = stamp_files(paths)
    assert now[3] is None and now[:2] == stamps[:2]
    finished = session(stamps=now)
    assert (finished.evaluation.answers, finished.changed) == (answers[:2], 2)
    others = [VideoAnswer(answer.name, 0, (1,), index=answer.index) for answer in answers[2:]]
    session(Evaluation(others), stamps=now)
    finished = session(stamps=now)
    assert (finished.evaluation.answers, finished.changed) == ([*answers[:2], *others], 0)
    assert [one["videos"] for one in finished.sessions] == [2, 0, 0, 2, 0]


def example(index: int) -> Example:
    frames = torch.randint(0, 256, (4, 8, 8, 3), dtype=torch.uint8)
    return Example(VideoAnswer("a", 0, (0,), index=index), frames, torch.rand(2, 2, 2) > 0.5)


def test_examples_come_back_and_a_damaged_one_is_left_out(tmp_path: Path) -> None:
    examples = [example(0), example(1)]
    write(tmp_path, [Evaluation([e.answer for e in examples], examples=examples)])
    for found, given_ in zip(read(tmp_path).evaluation.examples, examples, strict=True):
        assert torch.equal(found.frames, given_.frames) and torch.equal(found.mask, given_.mask)
        assert found.answer == given_.answer
    (tmp_path / "progress/example_00000.npz").write_bytes(b"PK nothing")
    (left,) = read(tmp_path).evaluation.examples
    assert torch.equal(left.frames, examples[1].frames)


# a disk that is full


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "full").symlink_to("/dev/full")
    journal = Journal(tmp_path / "full")
    with pytest.raises(
        StorageError, match=r"cannot write .*full: No space left on device. What was finished"
    ) as error:
        journal.on_batch(Evaluation([VideoAnswer("a", 0, index=0)]))
    assert "\n" not in str(error.value)


def test_a_record_that_only_fits_in_part_leaves_no_trace(tmp_path: Path) -> None:
    """The disk takes half of a record: the file is as before, and the run can go on when there is space."""
    parts = [Evaluation([VideoAnswer("x" * 300, 0, index=i)]) for i in range(3)]
    path = write(tmp_path, parts[:1])
    size = path.stat().st_size

    def fill_up() -> None:
        import resource
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 200, size + 200))
        journal = Journal(path)
        with pytest.raises(StorageError, match="File too large"):
            journal.on_batch(parts[1])

    assert in_child(fill_up) == 0
    assert path.stat().st_size == size
    journal, finished = open_journal(tmp_path, IDENTITY, SESSION)
    assert finished.evaluation == parts[0]
    journal.on_batch(parts[1])
    journal.close()
    assert read(tmp_path).evaluation == together(parts[:2])


# two processes


def in_child(work: Callable[[], Any]) -> int:
    """Exit status of a forked process: 0 when `work` returned."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_second_process_is_refused_and_the_next_one_is_not(tmp_path: Path) -> None:
    def second() -> None:
        with (
            pytest.raises(ConfigError, match=rf"output_dir={tmp_path}: process {os.getppid()} is at work"),
            hold(tmp_path),
        ):
            pass

    def third() -> None:
        with hold(tmp_path):
            pass

    with hold(tmp_path):
        assert in_child(second) == 0
    assert in_child(third) == 0


def test_a_killed_process_lets_go_although_its_own_children_live(tmp_path: Path) -> None:
    """Decoding processes are forked while the lock is held, and may outlive a killed run by a moment."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with hold(tmp_path):
            grandchild = os.fork()
            if grandchild == 0:
                os.close(reader)
                import time

                time.sleep(30)
                os._exit(0)
            os.write(writer, f"{grandchild}\n".encode())
            os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    grandchild = int(os.read(reader, 20))
    try:
        with hold(tmp_path):
            pass
    finally:
        os.kill(grandchild, 9)


def test_many_writers_one_after_the_other(tmp_path: Path) -> None:
    """Processes that fight for a directory: each either writes its batch alone or is refused."""

    def work(number: int) -> None:
        import time

        while True:
            try:
                with hold(tmp_path):
                    journal, finished = open_journal(tmp_path, IDENTITY, SESSION)
                    assert number not in [answer.index for answer in finished.evaluation.answers]
                    journal.on_batch(Evaluation([VideoAnswer(f"{number}", number, index=number)]))
                    journal.close()
                    return
            except ConfigError:
                time.sleep(0.001)

    children = []
    for number in range(8):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                work(number)
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 8
    finished = read(tmp_path)
    assert [answer.index for answer in finished.evaluation.answers] == list(range(8))
    assert finished.damaged == 0


def test_records_are_readable_lines(tmp_path: Path) -> None:
    path = write(tmp_path, [Evaluation([VideoAnswer("é\n.mp4", 0, index=0)])])
    lines = path.read_text(encoding="ascii").splitlines()
    assert len(lines) == 3
    records: list[Record] = [json.loads(line[9:]) for line in lines]
    assert [next(iter(record)) for record in records] == ["format", "session", "batch"]
    assert read_records(path) == (records, 0)


# several ranks


@settings(max_examples=30, deadline=None)
@given(parts=batches(), sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3), data=st.data())
def test_ranks_and_sessions_together_make_the_run(
    tmp_path_factory: pytest.TempPathFactory, parts: list[Evaluation], sizes: list[int], data: st.DataObject
) -> None:
    """Sessions of any number of ranks, each of which stores some batches and may die in the middle of a line."""
    run_dir, left = tmp_path_factory.mktemp("run"), list(parts)
    counts = []
    for size in sizes:
        first, finished = open_journal(run_dir, IDENTITY, {**SESSION, "ranks": size}, ranks=size)
        others = [join_journal(run_dir, rank, IDENTITY, finished.session) for rank in range(1, size)]
        counts.append(0)
        for _ in range(data.draw(st.integers(0, len(left)))):
            part = left.pop(data.draw(st.integers(0, len(left) - 1)))
            data.draw(st.sampled_from([first, *others])).on_batch(part)
            counts[-1] += len(part.answers)
        dying = data.draw(st.none() | st.sampled_from([first, *others]))
        for journal in (first, *others):
            journal.close()
        if dying is not None:
            with dying.path.open("ab") as file:
                file.write(line_of({"batch": batch_record(parts[0]), "files": []} if parts else {})[:-3])
    found = read_finished(run_dir, IDENTITY)
    done = together([part for part in parts if part not in left])
    assert found.evaluation.answers == done.answers
    assert [answer.index for answer in found.evaluation.answers] == [answer.index for answer in done.answers]
    assert found.evaluation.kept == done.kept
    assert sorted(found.evaluation.pruned.decode) == sorted(done.pruned.decode)
    assert [session["videos"] for session in found.sessions] == counts
    assert [session["ranks"] for session in found.sessions] == sizes
    assert found.damaged == 0


def test_a_rank_that_would_do_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"journal\.jsonl: No such file.*all machines of a run must share output_dir"
    ):
        join_journal(tmp_path, 1, IDENTITY, 0)
    journal, _ = open_journal(tmp_path, IDENTITY, SESSION, ranks=2)
    with pytest.raises(
        DataError, match="the ranks do not do the same:\n  weights: abc for rank 0, abd here$"
    ):
        join_journal(tmp_path, 1, {**IDENTITY, "weights": "abd"}, 0)
    join_journal(tmp_path, 1, IDENTITY, 0).close()
    journal.close()


def test_a_rank_that_is_left_keeps_the_next_run_out(tmp_path: Path) -> None:
    """Rank 0 is gone, and with it the lock of the run; rank 2 has not noticed yet."""

    def next_run() -> None:
        with pytest.raises(ConfigError, match=f"process {os.getppid()} is at work there"), hold(tmp_path):
            pass

    def next_one_once_it_is_gone() -> None:
        with hold(tmp_path), hold(tmp_path, 1), hold(tmp_path, 2):
            pass

    with hold(tmp_path, 2):
        assert in_child(next_run) == 0
    assert in_child(next_one_once_it_is_gone) == 0


def test_a_run_makes_its_folders_and_goes_on_in_them(tmp_path: Path) -> None:
    run_dir = tmp_path / "not" / "yet"
    for session in range(2):
        with hold(run_dir):
            journal, finished = open_journal(run_dir, IDENTITY, SESSION, ranks=2)
            join_journal(run_dir, 1, IDENTITY, session).close()
            journal.close()
        assert (finished.session, finished.damaged, finished.changed) == (session, 0, 0)
        assert sorted(path.name for path in (run_dir / "progress").iterdir()) == [
            *("journal.1.jsonl", "journal.jsonl", "lock")
        ]
    other = tmp_path / "another"
    with hold(other):
        open_journal(other, IDENTITY, SESSION)[0].close()
    for path in (run_dir / "progress").iterdir():
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask(), path  # for others as the user wants it


def umask() -> int:
    os.umask(mask := os.umask(0))
    return mask


def test_what_belongs_to_no_session_that_is_known_still_counts(tmp_path: Path) -> None:
    """The record of its session is damaged: the answers stay, and the next session gets a number of its own."""
    part = Evaluation([VideoAnswer("a", 0, (0,), index=0)])
    path = write(tmp_path, [part])
    head, session, batch = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(
        head + b"0" + session[1:] + batch if session[:1] != b"0" else head + b"1" + session[1:] + batch
    )
    finished = read(tmp_path)
    assert (finished.evaluation, finished.damaged, finished.session) == (part, 1, 0)
    assert [one["videos"] for one in finished.sessions] == [0]


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"00000000", b"00000000 {}", b"zzzzzzzz {}", line_of({})[:-1], line_of({"format": 2})[:-1]),
        *(
            b"%08x [1]" % zlib.crc32(b"[1]"),
            b"%08x {" % zlib.crc32(b"{"),
            b"x" + line_of({"identity": {}})[:-1],
        ),
    ],
)
def test_a_head_that_says_nothing_is_damage(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "progress/journal.jsonl"
    path.parent.mkdir()
    path.write_bytes(line + b"\n" + line_of({"batch": {}}))
    with pytest.raises(DataError, match=r"journal\.jsonl:1 is damaged, so it cannot be resumed"):
        open_journal(tmp_path, IDENTITY, SESSION)
    with pytest.raises(DataError, match=r"journal\.jsonl:1 is damaged\.$"):
        join_journal(tmp_path, 1, IDENTITY, 0)


@pytest.mark.parametrize(
    ("frames", "mask"),
    [
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros((1, 2, 2), np.uint8)),
        (np.zeros((2, 4, 4, 3), np.float32), np.zeros((1, 2, 2), bool)),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((1, 2, 2), bool)),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros((2, 2), bool)),
        (np.array([[[[{}]]]], object), np.zeros((1, 2, 2), bool)),  # would be unpickled
    ],
)
def test_an_example_of_another_kind_is_left_out(tmp_path: Path, frames: np.ndarray, mask: np.ndarray) -> None:
    write(tmp_path, [Evaluation([VideoAnswer("a", 0, (0,), index=0)])])
    path = tmp_path / "progress/example_00000.npz"
    np.savez(path, frames=frames, mask=mask)
    assert read(tmp_path).evaluation.examples == []
    np.savez(path, frames=np.zeros((2, 4, 4, 3), np.uint8), mask=np.zeros((1, 2, 2), bool))
    assert len(read(tmp_path).evaluation.examples) == 1
