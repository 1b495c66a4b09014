"""Decoded clips on disk, made from real video files."""

from __future__ import annotations

import errno
import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from video_papr.core.errors import DataError, StorageError
from video_papr.data.annotations import read_folder
from video_papr.data.datasets import VideoDataset
from video_papr.data.sampling import uniform_segments
from video_papr.data.transforms import resize_and_crop
from video_papr.synthetic.tracks import in_view
from video_papr.training import store as store_module
from video_papr.training.store import ClipStore, build_store


@pytest.fixture
def root(tmp_path, video_root):
    """A copy of the two classes of videos that a test may spoil."""
    return Path(shutil.copytree(video_root, tmp_path / "videos"))


def dataset(root, decoder="auto", num_frames=4):
    sampler = partial(uniform_segments, num_frames=num_frames, num_clips=1)
    return VideoDataset(read_folder(root), sampler, decoder=decoder)


def build(root, directory, *, decoder="auto", num_frames=4, size=16, sampling="uniform", workers=0):
    return build_store(
        dataset(root, decoder, num_frames),
        directory,
        sampling=sampling,
        num_frames=num_frames,
        size=size,
        workers=workers,
        progress=False,
    )


def folders(directory):
    return sorted(path.name for path in directory.iterdir())


def test_clips_are_the_centre_crops_of_the_decoded_videos(root, tmp_path):
    store = build(root, tmp_path / "cache")
    source = dataset(root)
    assert (len(store), store.failed) == (5, ())
    frames, labels, actors, _ = store.batch(np.array([4, 0, 0]))
    assert actors is None
    assert (frames.dtype, frames.shape, labels.dtype) == (torch.uint8, (3, 4, 16, 16, 3), torch.int64)
    for clip, label, row in zip(frames, labels, (4, 0, 0), strict=True):
        sample = source[row]
        assert sample.frames is not None
        assert torch.equal(clip, resize_and_crop(sample.frames, size=16)[0])
        assert label == sample.label
    frames.zero_()  # a batch is the caller's own
    assert store.batch(np.array([0]))[0].any()


def test_tracks_are_those_of_the_same_crop_and_frames(root, tmp_path):
    source = dataset(root)
    names = [record.name for record in source.videos.records]
    generator = np.random.default_rng(0)
    # an actor in every frame of every video (they are 48 x 64), each somewhere else
    low, high = (0, 0, 6, 0, 0), (64, 48, 14, 6, 1)
    tracks = {name: generator.uniform(low, high, (40, 5)).astype(np.float32) for name in names}
    (root / "left" / "a.mp4").write_bytes(b"")
    store = build_store(
        dataset(root),
        tmp_path / "cache",
        sampling="uniform",
        num_frames=4,
        size=16,
        workers=0,
        tracks=tracks,
        progress=False,
    )
    batch = store.batch(np.arange(4))
    assert batch.tracks is not None
    assert (batch.tracks.shape, batch.tracks.dtype) == ((4, 4, 5), torch.float32)
    for row, track in enumerate(batch.tracks, start=1):
        indices = source[row].frame_indices
        assert indices is not None
        assert torch.equal(track, in_view(tracks[names[row]][indices[0]], (48, 64)))
    assert build(root, tmp_path / "cache").tracks is None
    assert len(folders(tmp_path / "cache")) == 2


def test_failed_videos_are_counted_and_shift_no_label(root, tmp_path):
    whole = build(root, tmp_path / "cache")
    (root / "left" / "a.mp4").write_bytes(b"")
    (root / "right" / "broken.mp4").write_text("not a video")
    store = build(root, tmp_path / "cache")
    assert len(store) == len(store.frames) == 4
    assert [line.split(":")[0] for line in store.failed] == ["left/a.mp4", "right/broken.mp4"]
    assert not any("\n" in line for line in store.failed)
    rows = np.arange(4)
    assert torch.equal(store.batch(rows)[0], whole.batch(rows + 1)[0])
    assert torch.equal(store.batch(rows)[1], whole.batch(rows + 1)[1])
    again = build(root, tmp_path / "cache")  # opened from the disk
    assert (len(again), again.failed) == (4, store.failed)


def test_same_request_decodes_once(root, tmp_path, monkeypatch):
    first = build(root, tmp_path / "cache")
    monkeypatch.setattr(store_module, "iter_samples", None)  # decoding again would fail
    second = build(root, tmp_path / "cache", workers=3)
    assert np.array_equal(first.frames, second.frames)
    assert np.array_equal(first.labels, second.labels)
    assert len(folders(tmp_path / "cache")) == 1


def test_another_request_is_another_store(root, tmp_path):
    cache = tmp_path / "cache"
    build(root, cache)
    build(root, cache, num_frames=2)
    build(root, cache, size=8)
    build(root, cache, sampling="dense-4")
    build(root, cache, decoder="pyav")
    os.utime(root / "left" / "a.mp4", (1, 1))  # another file of the same name
    build(root, cache)
    (root / "right" / "e.mkv").rename(root / "left" / "e.mkv")  # another label
    build(root, cache)
    (root / "left" / "e.mkv").unlink()
    assert len(build(root, cache)) == 4
    assert len(folders(cache)) == 8


def test_number_of_workers_changes_nothing(root, tmp_path):
    one, two = build(root, tmp_path / "one"), build(root, tmp_path / "two", workers=2)
    assert np.array_equal(one.frames, two.frames)
    assert np.array_equal(one.labels, two.labels)


def test_interrupted_decoding_leaves_nothing(root, tmp_path, monkeypatch):
    def interrupted(self, index):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(VideoDataset, "__getitem__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build(root, tmp_path / "cache")
    assert folders(tmp_path / "cache") == []
    assert len(build(root, tmp_path / "cache")) == 5


def test_two_trainings_may_start_together(root, tmp_path, monkeypatch):
    """While one decodes, another finishes the same store: neither sees the other's half-written files."""
    decode = store_module._decode
    inner: list[ClipStore] = []

    def overtaken(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr(store_module, "_decode", decode)
            inner.append(build(root, tmp_path / "cache"))
        decode(*arguments)

    monkeypatch.setattr(store_module, "_decode", overtaken)
    outer = build(root, tmp_path / "cache")
    assert np.array_equal(inner[0].frames, outer.frames)
    assert len(folders(tmp_path / "cache")) == 1


def test_no_video_can_be_read(tmp_path):
    (tmp_path / "videos" / "a").mkdir(parents=True)
    (tmp_path / "videos" / "a" / "x.mp4").write_text("not a video")
    for _ in range(2):
        with pytest.raises(
            DataError, match=r"^none of the 1 training videos can be read; first reason: a/x\.mp4"
        ):
            build(tmp_path / "videos", tmp_path / "cache")


def test_a_full_disk_is_one_line_before_a_clip_is_written(root, tmp_path, monkeypatch):
    """Memory that is mapped to a file which the disk does not hold would end the process with a signal."""

    def full(handle, start, length):
        assert length == os.fstat(handle).st_size > 5 * 4 * 16 * 16 * 3
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageError, match=r"^cannot write [^\n]+clips-4x16-[^\n]+: No space left on device"):
        build(root, tmp_path / "cache")
    assert folders(tmp_path / "cache") == []
