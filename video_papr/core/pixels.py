"""Pure pixel maths that every network shares: normalising, and resampling a clip to another size and frame count.

Letters: B clips, T frames, H x W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

Colors = tuple[float, float, float]  # one value for R, G and B each
# Of ImageNet's colours, RGB in 0..1; VideoMAE and most image models were trained with them.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Values of the motion plane, the fourth channel of frames that were read with the codec's vectors: from 0 to the
# largest, or unknown for the whole frame. Resizing may round by a level.
LARGEST_MOTION, MOTION_UNKNOWN = 200, 255


def motion_unknown(planes: Tensor) -> Tensor:
    """Motion planes (..., H, W) uint8 -> (...) bool, whether the codec had no vectors for the frame."""
    return planes.flatten(-2).amax(-1) > (LARGEST_MOTION + MOTION_UNKNOWN) // 2


def frames_without_vectors(views: Tensor) -> float | None:
    """views (V, T, H, W, 4) uint8 -> how many frames of a view the codec had no motion vectors for, the mean over V.

    None for frames without a motion plane.
    """
    return None if views.shape[-1] == 3 else float(motion_unknown(views[..., 3]).sum()) / len(views)


def normalize_pixels(
    frames: Tensor, *, mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype = torch.float32
) -> Tensor:
    """frames (B, T, H, W, 3) uint8 -> pixels (B, 3, T, H, W): `(x / 255 - mean) / std`, computed in float32."""
    # The colours are parted while a pixel is one byte.
    return normalize_planes(frames.permute(0, 4, 1, 2, 3), mean=mean, std=std, dtype=dtype)


def normalize_planes(
    planes: Tensor, *, mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype = torch.float32
) -> Tensor:
    """planes (..., 3, T, H, W) from 0 to 255, of any type -> the same shape: `(x / 255 - mean) / std`, in float32."""
    # One copy, of bytes where they are bytes; what follows reads and writes the same memory.
    return normalize_in_place(planes.contiguous().to(torch.float32, copy=True), mean=mean, std=std).to(dtype)


def normalize_in_place(values: Tensor, *, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """values (..., 3, T, H, W) float32 from 0 to 255 -> the same memory: `(x / 255 - mean) / std`."""
    scale, shift = (part[:, None, None, None] for part in scale_and_shift(mean, std, values.device))
    return values.mul_(scale).add_(shift)


def scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """What a colour from 0 to 255 is multiplied by, and what is added then: (3,) float32 each."""
    scale = _constants([1 / (255 * s) for s in std], device)
    return scale, _constants([-m / s for m, s in zip(mean, std, strict=True)], device)


def _constants(values: list[float], device: torch.device) -> Tensor:
    """`torch.tensor(values)`, filled in on the device: a copy would wait until a GPU has emptied its queue."""
    return torch.stack([torch.full((), value, device=device) for value in values])


def resample_clip(
    pixels: Tensor, *, num_frames: int, size: int | tuple[int, int], align_corners: bool = False
) -> Tensor:
    """pixels (B, 3, T, H, W) float -> (B, 3, num_frames, size, size), or size = (height, width).

    Trilinear; halving the frames averages neighbours, so every frame is seen.

    Args:
        align_corners: the first and last frame, row and column stay what they are, as in PaPr's published recipe;
            False: a cell keeps its place in the picture.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if pixels.shape[2:] == (num_frames, height, width):
        return pixels
    return F.interpolate(pixels, (num_frames, height, width), mode="trilinear", align_corners=align_corners)


def resample_frames(frames: Tensor, *, num_frames: int, size: tuple[int, int]) -> Tensor:
    """frames (B, T, H, W, 3) uint8 -> (B, 3, num_frames, *size) float32 from 0 to 255, as `resample_clip` does it.

    Where T is a multiple of `num_frames`, linear interpolation in time is the frame in the middle of each
    group, or the mean of the two that lie there; the others are never turned into floats.
    """
    batch, length, height, width, _ = frames.shape
    group, rest = divmod(length, num_frames)
    if rest or not group:
        clip = frames.movedim(-1, 1).float()
        return F.interpolate(clip, (num_frames, *size), mode="trilinear", align_corners=False)
    groups = frames.unflatten(1, (num_frames, group))
    middle = groups[:, :, group // 2].to(torch.float32, copy=True)
    if group % 2 == 0:
        middle.add_(groups[:, :, group // 2 - 1])
    # Colour by colour: a processor interpolates planes faster than pixels of three values.
    planes = middle.movedim(-1, 1).contiguous()
    if (height, width) != size:
        planes = F.interpolate(planes.flatten(1, 2), size, mode="bilinear", align_corners=False)
    return planes.mul_(1 if group % 2 else 0.5).view(batch, 3, num_frames, *size)
