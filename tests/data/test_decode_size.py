"""Frames that are scaled while they are decoded: the size that the crop needs, nearly the same pixels, or untouched."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from video_papr.data.annotations import read_folder
from video_papr.data.datasets import VideoDataset
from video_papr.data.decoding import decode_clips
from video_papr.data.loader import iter_samples
from video_papr.data.sampling import dense_clips
from video_papr.data.transforms import reduced_size, resize_and_crop

VideoWriter = Callable[..., Path]
SAMPLER = partial(dense_clips, num_frames=3, frame_stride=2, num_clips=1)
QUARTER_TURN = (0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000)


def smooth_frames(height: int, width: int, count: int = 6) -> np.ndarray:
    """(count, height, width, 3) uint8: slow waves of all colours, which no filter can spoil."""
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    waves = [
        127 + 100 * np.sin(3 * rows + number / 3 + 4 * columns * (1 + channel))
        for number in range(count)
        for channel in range(3)
    ]
    return np.stack(waves).reshape(count, 3, height, width).transpose(0, 2, 3, 1).astype(np.uint8)


@given(st.integers(1, 900), st.integers(1, 900), st.integers(1, 300), st.integers(0, 60))
def test_a_reduced_video_needs_no_more_resizing(height: int, width: int, size: int, margin: int) -> None:
    options = {"size": size, "short_side": size + margin}
    reduced = reduced_size(height, width, **options)
    assert reduced == reduced_size(width, height, **options)[::-1]  # a turned video
    if reduced == (height, width):
        return
    assert 2 * reduced[0] <= height and 2 * reduced[1] <= width and min(reduced) == size + margin
    long, short = max(height, width), min(height, width)
    assert max(reduced) == (size + margin) * long // short  # as torchvision rounds
    whole = resize_and_crop(torch.zeros(1, 1, *reduced, 3, dtype=torch.uint8), **options)
    assert whole.shape == (1, 1, size, size, 3)
    assert reduced_size(*reduced, **options) == reduced


@pytest.mark.parametrize("size", [(122, 214), (123, 215), (301, 99), (96, 96)])
@pytest.mark.parametrize("turned", [False, True])
def test_pixels_are_nearly_those_of_the_plain_way(
    tmp_path: Path, write_video: VideoWriter, size: tuple[int, int], turned: bool
) -> None:
    path = write_video(tmp_path / "a.mp4", smooth_frames(*size), pix_fmt="yuv444p")
    if turned:
        content = bytearray(path.read_bytes())
        start = content.index(b"tkhd") + 44
        content[start : start + 36] = struct.pack(">9i", *QUARTER_TURN)
        path.write_bytes(content)
    upright = size[::-1] if turned else size
    full = decode_clips(path, SAMPLER, decoder="pyav").frames
    small = decode_clips(path, SAMPLER, reduce=partial(reduced_size, size=48)).frames
    assert full.shape[2:4] == upright
    assert small.shape[2:4] == reduced_size(*upright, size=48)
    views = [resize_and_crop(torch.from_numpy(frames.copy()), size=48).int() for frames in (full, small)]
    gap = (views[0] - views[1]).abs()
    assert gap.float().mean() < 1.0 and gap.max() <= 6


@pytest.mark.parametrize("decoder", ["auto", "pyav"])
def test_what_would_not_be_halved_stays_as_it_is(
    tmp_path: Path, write_video: VideoWriter, decoder: str
) -> None:
    path = write_video(tmp_path / "a.mp4", 8, size=(94, 120))
    asked = partial(reduced_size, size=48)
    found = decode_clips(path, SAMPLER, decoder=decoder, reduce=asked)
    assert found.decoder == "pyav"
    np.testing.assert_array_equal(found.frames, decode_clips(path, SAMPLER, decoder="pyav").frames)


@pytest.mark.parametrize("workers", [0, 1])
def test_less_travels_from_the_workers(tmp_path: Path, write_video: VideoWriter, workers: int) -> None:
    for number in range(2):
        write_video(tmp_path / "ab"[number] / "0.mp4", smooth_frames(96, 160))
    dataset = VideoDataset(read_folder(tmp_path), SAMPLER, reduce=partial(reduced_size, size=48))
    for [sample] in iter_samples(dataset, workers=workers):
        assert sample.error is None and sample.frames is not None
        assert sample.size == sample.frames.shape[2:4] == (48, 80)
