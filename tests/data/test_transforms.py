"""Resizing against PIL, crops against plain slices, batches against single clips."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from video_papr.data import transforms
from video_papr.data.transforms import crop_corners, resize_and_crop


def random_frames(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(
        0, 256, (*shape, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def resized_by_pil(frame: Tensor, height: int, width: int, mode: str) -> np.ndarray:
    return np.asarray(Image.fromarray(frame.numpy()).resize((width, height), Image.Resampling[mode.upper()]))


@pytest.mark.parametrize(
    ("height", "width", "short_side", "resized"),
    [
        (256, 340, 224, (224, 297)),  # landscape, down
        (340, 256, 224, (297, 224)),  # portrait
        (47, 63, 32, (32, 42)),  # odd
        (63, 47, 33, (44, 33)),
        (20, 31, 50, (50, 77)),  # up
        (64, 64, 40, (40, 40)),
        (1, 3, 8, (8, 24)),
        (240, 426, 112, (112, 198)),
    ],
)
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_resize_matches_pil(
    height: int, width: int, short_side: int, resized: tuple[int, int], mode: str
) -> None:
    frames = random_frames(1, 2, height, width)
    views = resize_and_crop(frames, size=short_side, mode=mode)
    assert views.shape == (1, 2, short_side, short_side, 3) and views.dtype == torch.uint8
    top, left = (resized[0] - short_side) // 2, (resized[1] - short_side) // 2
    for view, frame in zip(views[0], frames[0], strict=True):
        expected = resized_by_pil(frame, *resized, mode)[top : top + short_side, left : left + short_side]
        assert np.abs(view.numpy().astype(int) - expected).max() <= 1


@pytest.mark.parametrize(("height", "width"), [(32, 60), (60, 32), (33, 70), (32, 32), (35, 33)])
@pytest.mark.parametrize("num_crops", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [32, 25, 1])
def test_crops_are_slices(height: int, width: int, num_crops: int, size: int) -> None:
    """Without resizing, a crop is a slice: centred on the short side, evenly spread over the long one."""
    frames = random_frames(2, 3, height, width)
    short = min(height, width)
    views = resize_and_crop(frames, size=size, short_side=short, num_crops=num_crops)
    assert views.shape == (2 * num_crops, 3, size, size, 3)
    free = max(height, width) - size
    for clip in range(2):
        for crop in range(num_crops):
            exact = free / 2 if num_crops == 1 else free * crop / (num_crops - 1)
            along = int(exact) if num_crops == 1 else int(exact + 0.5)
            across = (short - size) // 2
            y, x = (along, across) if height > width else (across, along)
            expected = frames[clip, :, y : y + size, x : x + size]
            assert torch.equal(views[clip * num_crops + crop], expected)


def test_three_crops_touch_both_ends() -> None:
    assert crop_corners(224, 300, 224, 3) == [(0, 0), (0, 38), (0, 76)]
    assert crop_corners(301, 224, 224, 3) == [(0, 0), (39, 0), (77, 0)]
    assert crop_corners(256, 340, 224, 3) == [(16, 0), (16, 58), (16, 116)]


def test_batch_equals_single_clips() -> None:
    frames = random_frames(4, 5, 46, 61)
    together = resize_and_crop(frames, size=28, short_side=32, num_crops=3)
    alone = [resize_and_crop(clip[None], size=28, short_side=32, num_crops=3) for clip in frames]
    assert torch.equal(together, torch.cat(alone))
    frame_by_frame = [resize_and_crop(frames[:1, t : t + 1], size=28, short_side=32) for t in range(5)]
    assert torch.equal(together[1], torch.cat(frame_by_frame, 1)[0])


def test_float_path_agrees_with_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerators resize floats in chunks; the processor resizes bytes. Both agree to one grey level."""
    frames = random_frames(3, 5, 50, 70)
    images = frames.flatten(0, 1).permute(0, 3, 1, 2)
    monkeypatch.setattr(transforms, "_CHUNK_FRAMES", 4)
    floats = transforms._resize_as_float(images, (32, 44))
    whole = transforms._resize_as_float(images[:4], (32, 44))
    assert torch.equal(floats[:4], whole)
    assert (floats.int() - transforms._resize(images, (32, 44)).int()).abs().max() <= 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_device_of_the_input() -> None:
    frames = random_frames(2, 3, 48, 65)
    on_gpu = resize_and_crop(frames.cuda(), size=32, num_crops=3)
    assert on_gpu.is_cuda
    assert (on_gpu.cpu().int() - resize_and_crop(frames, size=32, num_crops=3).int()).abs().max() <= 1


def test_black_and_white_stay() -> None:
    for value in (0, 255):
        frames = torch.full((1, 1, 37, 91, 3), value, dtype=torch.uint8)
        assert (resize_and_crop(frames, size=24) == value).all()


def test_noncontiguous_frames() -> None:
    frames = random_frames(2, 6, 40, 50)
    every_second = frames[:, ::2]
    assert torch.equal(
        resize_and_crop(every_second, size=24), resize_and_crop(every_second.contiguous(), size=24)
    )


@pytest.mark.parametrize(
    ("frames", "options", "message"),
    [
        (torch.zeros(1, 2, 8, 8, 3), {"size": 4}, "must be uint8"),
        (torch.zeros(2, 8, 8, 3, dtype=torch.uint8), {"size": 4}, r"\(N, T, H, W, 3\)"),
        (torch.zeros(1, 2, 3, 8, 8, dtype=torch.uint8), {"size": 4}, r"got torch.uint8 \(1, 2, 3, 8, 8\)"),
        (torch.zeros(1, 2, 8, 8, 3, dtype=torch.uint8), {"size": 4, "short_side": 3}, "short_side=3"),
        (torch.zeros(1, 2, 8, 8, 3, dtype=torch.uint8), {"size": 0}, "at least 1"),
        (torch.zeros(1, 2, 8, 8, 3, dtype=torch.uint8), {"size": 4, "num_crops": 0}, "at least 1"),
    ],
)
def test_wrong_input(frames: Tensor, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resize_and_crop(frames, **options)
