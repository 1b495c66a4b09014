"""Videos that crash, hang or bloat their decoder: counted with a reason, and nobody else notices."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from video_papr.data import workers
from video_papr.data.annotations import VideoList, read_folder
from video_papr.data.datasets import VideoDataset, VideoSample, in_groups
from video_papr.data.loader import iter_samples
from video_papr.data.sampling import dense_clips, uniform_segments
from video_papr.data.workers import SupervisedDecoder

TIMEOUT_S = 4.0  # ample for these videos on a busy machine
SAMPLER = partial(dense_clips, num_frames=4, frame_stride=2, num_clips=2)

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the faults below travel to workers by fork")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, write_video: Callable[..., Path]) -> VideoList:
    root = tmp_path_factory.mktemp("videos")
    for number in range(6):
        write_video(root / "a" / f"{number}.mp4", 8 + number, size=(32 + 2 * number, 64), seed=number)
    found = read_folder(root)
    assert (
        VideoDataset(found, SAMPLER)[0].error is None
    )  # the libraries are loaded now, before the workers' time runs
    return found


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave() -> None:
    os._exit(3)


def hang() -> None:
    while True:  # in C, where no Python signal handler runs
        ctypes.CDLL(None).usleep(10_000_000)


def bloat() -> None:
    raise AssertionError(f"{len(bytearray(2**30))} bytes were given")


REASONS = {
    crash: "its process died of SIGSEGV",
    die: "its process died of SIGKILL",
    leave: "its process ended with status 3",
    hang: f"no answer within dataset.decode_timeout_s={TIMEOUT_S:g}",
    bloat: "out of memory (dataset.memory_mb=512)",
}


class Noted(VideoDataset):
    """Leaves a file behind for each video that was decoded."""

    notes: Path

    def read(self, index: int, max_bytes: int | None = None) -> VideoSample:
        found = super().read(index)
        (self.notes / str(index)).touch()
        return found


@pytest.mark.parametrize(("prefetch", "expected"), [(0, 2), (1, 2), (4, 5)])
def test_decoders_go_on_while_the_reader_works(
    videos: VideoList, tmp_path: Path, prefetch: int, expected: int
) -> None:
    """As far as it was told to: the reader then finds a whole batch ready, and memory stays bounded."""
    dataset = Noted(videos, SAMPLER)
    dataset.notes = tmp_path
    samples = iter_samples(dataset, workers=1, prefetch=prefetch)
    next(samples)  # nobody asks for a second one
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < expected and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    assert len(list(tmp_path.iterdir())) == expected
    assert [batch[0].index for batch in samples] == list(range(1, 6))


def test_decoders_stand_still_in_turn(videos: VideoList, tmp_path: Path) -> None:
    """The reader works with all cores on what it took; whatever it takes next was not begun before."""
    dataset = Noted(videos, SAMPLER)
    dataset.notes = tmp_path
    seen = []
    for sample in (one for batch in iter_samples(dataset, workers=2, turns=4) for one in batch):
        time.sleep(0.5 if sample.index in (3, 5) else 0)
        if sample.index in (3, 5):
            seen.append(len(list(tmp_path.iterdir())))
    assert seen == [4, 6]  # of six


class Faulty(VideoDataset):
    """Some videos take their process down."""

    faults: dict[int, Callable[[], None]]

    def read(self, index: int, max_bytes: int | None = None) -> VideoSample:
        if index in self.faults:
            self.faults[index]()
        return super().read(index, max_bytes)


def faulty(videos: VideoList, faults: dict[int, Callable[[], None]]) -> Faulty:
    dataset = Faulty(videos, SAMPLER, memory_mb=512)
    dataset.faults = faults
    return dataset


def read(dataset: VideoDataset, workers: int) -> list[VideoSample]:
    batches = iter_samples(dataset, workers=workers, timeout_s=TIMEOUT_S)
    return [sample for batch in batches for sample in batch]


@pytest.fixture(autouse=True)
def no_traces() -> None:
    """pytest prints where a process crashed; these crash on purpose."""
    import faulthandler

    faulthandler.disable()


@pytest.mark.parametrize("workers", [1, 2])
def test_each_fault_is_a_failed_sample_with_its_reason(videos: VideoList, workers: int) -> None:
    before = set(multiprocessing.active_children())  # another test's library may keep some of its own
    found = read(faulty(videos, dict(enumerate(REASONS))), workers)
    assert [sample.index for sample in found] == list(range(6))
    for sample, reason in zip(found, REASONS.values(), strict=False):
        assert sample.error == f"cannot decode {sample.name} ({reason}; tried twice)"
        assert sample.frames is None
    healthy = VideoDataset(videos, SAMPLER)[5]
    assert found[5].error is None
    assert found[5].frames is not None and torch.equal(found[5].frames, healthy.frames)
    assert set(multiprocessing.active_children()) <= before


@settings(deadline=None, max_examples=5)
@given(
    faults=st.dictionaries(st.integers(0, 5), st.sampled_from([crash, die, leave]), max_size=3),
    workers=st.integers(1, 3),
)
def test_healthy_videos_do_not_notice(
    videos: VideoList, faults: dict[int, Callable[[], None]], workers: int
) -> None:
    found = read(faulty(videos, faults), workers)
    whole = VideoDataset(videos, SAMPLER)
    assert [sample.index for sample in found] == list(range(6))
    for sample in found:
        assert (sample.error is not None) == (sample.index in faults)
        assert sample.error or torch.equal(sample.frames, whole[sample.index].frames)


def test_a_second_try_may_succeed(videos: VideoList, tmp_path: Path) -> None:
    def crash_once() -> None:
        if not (tmp_path / "crashed").exists():
            (tmp_path / "crashed").touch()
            crash()

    found = read(faulty(videos, {2: crash_once}), workers=1)
    assert [sample.error for sample in found] == [None] * 6


def test_frames_without_shared_memory(videos: VideoList, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "TAKES_MEMFD", False)
    whole = VideoDataset(videos, SAMPLER)
    assert all(torch.equal(sample.frames, whole[i].frames) for i, sample in enumerate(read(whole, workers=1)))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_no_file_and_no_memory_stays(videos: VideoList) -> None:
    def held() -> int:
        gc.collect()
        return sum(
            "video_papr_frames" in line for line in Path("/proc/self/maps").read_text().splitlines()
        ) + len(os.listdir("/proc/self/fd"))

    dataset = faulty(videos, {1: die, 3: leave})
    read(dataset, workers=2)  # what is opened once and for all
    before = held()
    read(dataset, workers=2)
    stopped = iter_samples(dataset, workers=2, timeout_s=TIMEOUT_S)
    next(stopped)
    stopped.close()
    assert held() <= before


def test_frames_stay_readable_after_the_processes_are_gone(videos: VideoList) -> None:
    found = read(VideoDataset(videos, SAMPLER), workers=1)
    whole = VideoDataset(videos, SAMPLER)
    for sample in found:
        sample.frames += 0  # may be written to, as any tensor
        assert torch.equal(sample.frames, whole[sample.index].frames)


def test_a_hung_video_costs_two_tries_and_no_more(videos: VideoList) -> None:
    begin = time.monotonic()
    found = read(faulty(videos, {0: hang}), workers=1)
    assert [sample.error is None for sample in found] == [False] + [True] * 5
    assert time.monotonic() - begin >= 2 * TIMEOUT_S


@pytest.mark.parametrize("workers", [0, 2])
def test_decoded_frames_stay_within_their_memory(
    tmp_path: Path, write_video: Callable[..., Path], workers: int
) -> None:
    """Small files may hold enormous frames: what waits is counted in bytes, not in videos."""
    for number in range(8):  # 256 kB a frame, 8 frames: 2 MiB
        write_video(tmp_path / f"a/{number}.mp4", 8, size=(256, 342), seed=number)
    write_video(tmp_path / "a/large.mp4", 8, size=(600, 800))  # 11 MiB
    write_video(tmp_path / "a/small.mp4", 8)
    sampler = partial(uniform_segments, num_frames=8, num_clips=1)
    videos = read_folder(tmp_path)
    dataset = VideoDataset(videos, sampler, memory_mb=16)
    batches = list(iter_samples(dataset, videos_per_batch=4, workers=workers, prefetch=8))
    samples = {sample.name: sample for batch in batches for sample in batch}
    assert list(samples) == [record.name for record in videos.records]
    assert "of 800x600 take 10 MiB, dataset.memory_mb allows 8 for one video" in str(
        samples["a/large.mp4"].error
    )
    assert [sample.name for sample in samples.values() if sample.error] == ["a/large.mp4"]
    assert max(sum(sample.num_bytes for sample in batch) for batch in batches) < 6 * 2**20
    assert [len(batch) for batch in batches][:2] == [2, 2]
    assert [len(group) for group in in_groups(iter(samples.values()), 4, 2**22)][:2] == [2, 2]
    assert [len(group) for group in in_groups(iter(samples.values()), 4)] == [4, 4, 2]
    whole = VideoDataset(videos, sampler)
    assert whole.read(8).error is None
    assert torch.equal(samples["a/0.mp4"].frames, whole.read(0).frames)  # type: ignore[arg-type]


def test_fewer_videos_are_on_the_way_when_they_are_large(
    tmp_path: Path, write_video: Callable[..., Path]
) -> None:
    for number in range(6):
        write_video(tmp_path / f"a/{number}.mp4", 8, size=(256, 342), seed=number)
    dataset = VideoDataset(
        read_folder(tmp_path), partial(uniform_segments, num_frames=8, num_clips=1), memory_mb=10
    )
    with SupervisedDecoder(dataset, workers=2, timeout_s=60, start_method="fork", prefetch=8) as decoder:
        assert decoder._room == decoder.room == 10
        found = []
        for sample in decoder.samples(range(6)):
            assert sample.error is None
            found.append(decoder._room)
    assert found == [1] * 6  # 2 MiB of the 2.5 that are a quarter
