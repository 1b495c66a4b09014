"""Samples of a dataset, and the loader that decodes them in other processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from video_papr.core.errors import ConfigError
from video_papr.data import loader as loader_module
from video_papr.data.annotations import VideoList, VideoRecord, read_folder
from video_papr.data.datasets import VideoDataset, VideoSample, build_video_list, limit_videos
from video_papr.data.decoding import decode_clips
from video_papr.data.loader import iter_samples
from video_papr.data.sampling import dense_clips, uniform_segments

SAMPLER = partial(dense_clips, num_frames=4, frame_stride=2, num_clips=2)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, write_video: Callable[..., Path]) -> VideoList:
    """Nine videos of several sizes, two of them bad."""
    root = tmp_path_factory.mktemp("mixed")
    for number in range(9):
        size = (32 + 2 * number, 48)
        write_video(root / "ab"[number % 2] / f"{number}.mp4", 6 + 3 * number, size=size, seed=number)
    (root / "a" / "4.mp4").write_bytes(b"")
    (root / "b" / "5.mp4").write_text("no video")
    return read_folder(root)


# dataset


def test_sample(video_root: Path) -> None:
    videos = read_folder(video_root)
    dataset = VideoDataset(videos, SAMPLER)
    assert len(dataset) == len(videos) == 5
    for index, record in enumerate(videos.records):
        sample = dataset[index]
        reference = decode_clips(record.path, SAMPLER)
        assert (sample.index, sample.name, sample.label) == (index, record.name, record.label)
        assert sample.error is None and sample.decode_ms > 0
        assert sample.frames is not None and sample.frame_indices is not None
        assert sample.frames.dtype == torch.uint8 and sample.frames.shape == (2, 4, 48, 64, 3)
        np.testing.assert_array_equal(sample.frames.numpy(), reference.frames)
        np.testing.assert_array_equal(sample.frame_indices, SAMPLER(sample.num_video_frames))
        assert sample.fps == 25.0
    assert [dataset[i].num_video_frames for i in range(5)] == [40, 12, 5, 25, 30]


def test_bad_videos_are_samples_too(mixed: VideoList) -> None:
    dataset = VideoDataset(mixed, SAMPLER)
    errors = {sample.name: sample.error for sample in (dataset[i] for i in range(9)) if sample.error}
    assert set(errors) == {"a/4.mp4", "b/5.mp4"}
    assert "is empty (0 bytes)" in errors["a/4.mp4"] and "is a text" in errors["b/5.mp4"]
    bad = dataset[[record.name for record in mixed.records].index("a/4.mp4")]
    assert bad.frames is None and bad.frame_indices is None and bad.num_video_frames == 0
    assert bad.label == 0 and bad.decode_ms > 0
    assert bad.pin_memory() == bad


def test_video_deleted_during_the_run(tmp_path: Path, write_video: Callable[..., Path]) -> None:
    for name in ("a/0.mp4", "a/1.mp4"):
        write_video(tmp_path / name, 5)
    dataset = VideoDataset(read_folder(tmp_path), SAMPLER)
    (tmp_path / "a" / "1.mp4").unlink()
    assert dataset[0].error is None
    assert "no such file" in str(dataset[1].error)


def test_a_mistake_in_the_sampler_is_not_hidden(video_root: Path) -> None:
    with pytest.raises(ValueError, match="leave the video"):
        VideoDataset(read_folder(video_root), lambda n: np.array([[n]]))[0]
    with pytest.raises(ConfigError, match="dataset.decoder='best' is unknown"):
        VideoDataset(read_folder(video_root), SAMPLER, decoder="best")


def test_decoder_is_passed_on(video_root: Path) -> None:
    videos = read_folder(video_root)
    samples = [VideoDataset(videos, SAMPLER, decoder=decoder)[0] for decoder in ("auto", "decord", "pyav")]
    assert all(torch.equal(sample.frames, samples[0].frames) for sample in samples)


# lists


def test_build_video_list(video_root: Path, tmp_path: Path) -> None:
    annotations = tmp_path / "list.csv"
    annotations.write_text("left/a.mp4,0\nright/d.mp4,1\nright/gone.mp4,1\n")
    assert len(build_video_list("folder", root=video_root)) == 5
    from_csv = build_video_list("csv", root=video_root, annotations=annotations)
    assert len(from_csv) == 2 and from_csv.missing == ("right/gone.mp4",)
    assert len(build_video_list("k400", root=video_root, annotations=annotations)) == 2


def test_build_video_list_errors(video_root: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="dataset='imagenet' is unknown; use one of folder, csv, k400, ssv2,"
    ):
        build_video_list("imagenet", root=video_root)
    with pytest.raises(ConfigError, match=r"dataset.annotations is not set"):
        build_video_list("csv", root=video_root)
    with pytest.raises(ConfigError, match=r"dataset.annotations=.* has no use with dataset=folder"):
        build_video_list("folder", root=video_root, annotations=tmp_path / "list.csv")


def test_limit_is_a_sample_in_order() -> None:
    records = tuple(VideoRecord(Path(f"{i}.mp4"), i // 100, f"{i}.mp4") for i in range(1000))
    videos = VideoList(records, None, ("gone.mp4",))
    some = limit_videos(videos, 200)
    assert len(some) == 200 and some.missing == ("gone.mp4",)
    places = [records.index(record) for record in some.records]
    assert places == sorted(set(places))
    assert some == limit_videos(videos, 200)
    with pytest.raises(ConfigError, match=r"dataset.limit=0 must be at least 1"):
        limit_videos(videos, 0)
    per_class = Counter(record.label for record in some.records)
    assert len(per_class) == 10 and max(per_class.values()) < 40  # a list sorted by class keeps all classes
    assert set(limit_videos(videos, 50).records) <= set(some.records)  # a larger limit adds to a smaller one
    assert limit_videos(videos, 1000) is limit_videos(videos, 5000) is videos


# loader


def same(first: VideoSample, second: VideoSample) -> bool:
    return (
        (first.index, first.name, first.label, first.error, first.num_video_frames, first.fps)
        == (second.index, second.name, second.label, second.error, second.num_video_frames, second.fps)
        and (first.frames is None) == (second.frames is None)
        and (first.frames is None or torch.equal(first.frames, second.frames))
        and np.array_equal(first.frame_indices, second.frame_indices)
    )


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("videos_per_batch", [1, 4])
def test_samples_in_order_for_any_number_of_workers(
    mixed: VideoList, workers: int, videos_per_batch: int
) -> None:
    dataset = VideoDataset(mixed, SAMPLER)
    batches = list(iter_samples(dataset, videos_per_batch=videos_per_batch, workers=workers, timeout_s=30))
    assert [len(batch) for batch in batches] == ([1] * 9 if videos_per_batch == 1 else [4, 4, 1])
    samples = [sample for batch in batches for sample in batch]
    assert [sample.index for sample in samples] == list(range(9))
    assert all(same(sample, dataset[i]) for i, sample in enumerate(samples))


def test_spawned_workers(mixed: VideoList, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no fork, dataset and sampler travel to the worker by pickling."""
    monkeypatch.setattr(loader_module, "start_method", lambda: "spawn")
    dataset = VideoDataset(mixed, partial(uniform_segments, num_frames=3, num_clips=1))
    (batch,) = iter_samples(dataset, videos_per_batch=16, workers=1)
    assert all(same(sample, dataset[i]) for i, sample in enumerate(batch))


def test_workers_after_decoding_in_this_process(mixed: VideoList) -> None:
    """A reader has run here; readers are still opened in the workers, after the fork."""
    dataset = VideoDataset(mixed, SAMPLER)
    assert dataset[0].error is None
    for _ in range(2):
        assert sum(len(batch) for batch in iter_samples(dataset, videos_per_batch=2, workers=2)) == 9


def test_empty_dataset() -> None:
    assert list(iter_samples(VideoDataset(VideoList((), None), SAMPLER), workers=1)) == []


def test_wrong_counts(mixed: VideoList) -> None:
    dataset = VideoDataset(mixed, SAMPLER)
    with pytest.raises(ConfigError, match=r"runtime.batch_size=0 must be at least 1"):
        iter_samples(dataset, videos_per_batch=0)
    with pytest.raises(ConfigError, match=r"runtime.workers=-1 must be at least 0"):
        iter_samples(dataset, workers=-1)


def kill_this_process(num_frames: int) -> np.ndarray:
    os.kill(os.getpid(), signal.SIGKILL)
    return np.zeros((1, num_frames), dtype=np.int64)


def raise_in_worker(_: int) -> np.ndarray:
    raise ZeroDivisionError("mistake in the sampler")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX signals")
def test_a_video_that_kills_its_process_is_a_failed_sample(mixed: VideoList) -> None:
    before = set(multiprocessing.active_children())  # another test's library may keep some of its own
    handler = signal.getsignal(signal.SIGCHLD)
    dataset = VideoDataset(mixed, kill_this_process)
    ((sample,),) = iter_samples(dataset, indices=[0], workers=1)
    assert sample.frames is None and sample.name == mixed.records[0].name
    assert sample.error == f"cannot decode {sample.name} (its process died of SIGKILL; tried twice)"
    assert signal.getsignal(signal.SIGCHLD) == handler
    assert set(multiprocessing.active_children()) <= before


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX signals")
def test_worker_killed_while_the_consumer_works(mixed: VideoList) -> None:
    """Nothing is lost, and nothing shows: another process takes the place."""
    before = set(multiprocessing.active_children())
    dataset = VideoDataset(mixed, SAMPLER)
    samples = iter_samples(dataset, workers=1)
    first = next(samples)
    (worker,) = set(multiprocessing.active_children()) - before
    os.kill(worker.pid, signal.SIGKILL)
    time.sleep(0.3)  # the consumer's own code: undisturbed
    found = [*first, *(sample for batch in samples for sample in batch)]
    assert all(same(sample, dataset[i]) for i, sample in enumerate(found)) and len(found) == 9


def test_mistakes_in_workers_keep_their_kind(mixed: VideoList) -> None:
    with pytest.raises(ZeroDivisionError, match="mistake in the sampler"):
        list(iter_samples(VideoDataset(mixed, raise_in_worker), workers=1))


def test_stopping_early_leaves_no_process(mixed: VideoList) -> None:
    before = set(multiprocessing.active_children())
    samples = iter_samples(VideoDataset(mixed, SAMPLER), workers=2)
    next(samples)
    samples.close()
    assert set(multiprocessing.active_children()) <= before


def test_workers_use_one_thread(mixed: VideoList) -> None:
    def threads(_: int) -> np.ndarray:
        return np.full((1, 1), torch.get_num_threads() - 1)

    batches = iter_samples(VideoDataset(mixed, threads), workers=1)
    assert next(batches)[0].frame_indices.tolist() == [[0]]
    batches.close()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("workers", [0, 2])
def test_pinned_memory(mixed: VideoList, workers: int) -> None:
    for batch in iter_samples(VideoDataset(mixed, SAMPLER), workers=workers, pin_memory=True):
        assert all(sample.frames is None or sample.frames.is_pinned() for sample in batch)


def test_real_clips(clips_dir: Path) -> None:
    """All 44 videos of clips/fight/val decode."""
    dataset = VideoDataset(build_video_list("folder", root=clips_dir / "fight" / "val"), SAMPLER)
    samples = [sample for batch in iter_samples(dataset, videos_per_batch=4, workers=2) for sample in batch]
    assert [sample.error for sample in samples] == [None] * 44
