"""From decoded frames to square views: resize and crop, batched, on whatever device the frames are on.

Letters: N clips, T frames per clip, H x W the decoded size, S x S or S x S' the size of a view, R crops per clip.

Frames stay uint8 from the file to the network: each network normalises for itself, and a byte per value is a
quarter of the traffic of a float.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Frames resized at once on an accelerator, which resizes float32: 64 frames of 1080p take 1.6 GB.
_CHUNK_FRAMES = 64


def resize_and_crop(
    frames: Tensor,
    *,
    size: int | tuple[int, int],
    short_side: int | None = None,
    num_crops: int = 1,
    mode: str = "bilinear",
) -> Tensor:
    """Resizes the short side of the frames to `short_side` and cuts square crops of `size`.

    The long side keeps the aspect ratio, rounded down (as in torchvision). One crop is the centre; several
    are spread evenly along the longer side, the outermost flush with the borders, all centred on the shorter
    side:

        +----+--+----+        +----+
        | 0  |  | 2  |        | 0  |
        |   1|  |1   |        +----+
        +----+--+----+        | 1  |
                              +----+
                              | 2  |
                              +----+

    Args:
        frames: (N, T, H, W, 3) uint8, or 4 channels with a motion plane.
        size: S, side of a crop in pixels; or (S, S') for height and width.
        short_side: short side after resizing, at least `size` (the default). For crops that are not square: frames are
            resized until they just cover a crop that is enlarged so that its own short side is this long.
        num_crops: R.
        mode: "bilinear" or "bicubic", both antialiased.

    Returns:
        (N * R, T, S, S', 3 or 4) uint8; the crops of one clip are adjacent.

    Raises ValueError: `frames` has another shape or type, or a size or count is out of range.
    """
    view = (size, size) if isinstance(size, int) else size
    short_side = min(view) if short_side is None else short_side
    if frames.ndim != 5 or frames.shape[-1] not in (3, 4) or frames.dtype != torch.uint8:
        raise ValueError(f"frames must be uint8 (N, T, H, W, 3), got {frames.dtype} {tuple(frames.shape)}")
    if min(view) < 1 or num_crops < 1:
        raise ValueError(f"size and num_crops must be at least 1, got {size} and {num_crops}")
    if short_side < min(view):
        raise ValueError(f"short_side={short_side} is smaller than the crops of size={size}")

    clips, length = frames.shape[:2]
    images = frames.flatten(0, 1).permute(0, 3, 1, 2)  # (N * T, 3, H, W), channels last in memory
    images = _resize(images, _target_size(frames.shape[2], frames.shape[3], view, short_side), mode)
    height, width = images.shape[2:]
    crops = [
        images[:, :, y : y + view[0], x : x + view[1]]
        for y, x in crop_corners(height, width, view, num_crops)
    ]
    views = torch.stack(crops).permute(1, 0, 3, 4, 2)  # (N * T, R, S, S', 3)
    views = views.unflatten(0, (clips, length)).transpose(1, 2)
    return views.reshape(clips * num_crops, length, *view, frames.shape[-1])


def crop_corners(
    height: int, width: int, size: int | tuple[int, int], num_crops: int
) -> list[tuple[int, int]]:
    """Returns the (top, left) corner of every crop, in order along the longer side; half pixels round down."""
    view = (size, size) if isinstance(size, int) else size
    free_y, free_x = height - view[0], width - view[1]
    if num_crops == 1:
        return [(free_y // 2, free_x // 2)]
    along = [(2 * i * max(free_y, free_x) + num_crops - 1) // (2 * (num_crops - 1)) for i in range(num_crops)]
    return [(offset, free_x // 2) if free_y > free_x else (free_y // 2, offset) for offset in along]


def crop_places(
    height: int,
    width: int,
    *,
    size: int | tuple[int, int],
    short_side: int | None = None,
    num_crops: int = 1,
    mode: str = "bilinear",
) -> list[tuple[int, int]]:
    """Where `resize_and_crop`, with the same arguments, cuts frames of this size: corners in the resized frame."""
    return crop_corners(*_target_size(height, width, size, short_side), size, num_crops)


def crop_box(
    height: int, width: int, *, size: int | tuple[int, int], short_side: int | None = None, num_crops: int = 1
) -> tuple[int, int, int, int]:
    """What the middle crop of `resize_and_crop` covers of a frame of this size: top, left, bottom, right in pixels."""
    view = (size, size) if isinstance(size, int) else size
    tall, wide = _target_size(height, width, view, short_side)
    top, left = crop_corners(tall, wide, view, num_crops)[num_crops // 2]
    edges = (
        top * height / tall,
        left * width / wide,
        (top + view[0]) * height / tall,
        (left + view[1]) * width / wide,
    )
    return tuple(map(round, edges))  # type: ignore[return-value]


def reduced_size(
    height: int, width: int, *, size: int | tuple[int, int], short_side: int | None = None
) -> tuple[int, int]:
    """The size in which a video may be decoded: that to which `resize_and_crop`, with the same arguments, resizes it.

    Its own size where either side would not at least be halved: there a decoder that scales gains nothing. Frames are
    never enlarged.
    """
    reduced = _target_size(height, width, size, short_side)
    return reduced if 2 * reduced[0] <= height and 2 * reduced[1] <= width else (height, width)


def _target_size(
    height: int, width: int, size: int | tuple[int, int], short_side: int | None
) -> tuple[int, int]:
    """The smallest size of the same shape that covers the enlarged crop; what is left over rounds down."""
    view = (size, size) if isinstance(size, int) else size
    tall, wide = (side * (short_side or min(view)) // min(view) for side in view)
    if height * wide <= width * tall:  # the height decides
        return tall, max(wide, tall * width // height)
    return max(tall, wide * height // width), wide


def _resize(images: Tensor, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    """Antialiased resize of (N, 3, H, W) uint8 images.

    The processor has a kernel for bytes, several times as fast as floats; the two differ by one grey level at most.
    """
    if tuple(images.shape[2:]) == size:
        return images
    if images.device.type == "cpu":
        return F.interpolate(images, size=size, mode=mode, antialias=True)
    return _resize_as_float(images, size, mode)


def _resize_as_float(images: Tensor, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    resized = []
    for chunk in images.split(_CHUNK_FRAMES):
        floats = F.interpolate(chunk.float(), size=size, mode=mode, antialias=True)
        resized.append(floats.round_().clamp_(0, 255).byte())
    return torch.cat(resized)
