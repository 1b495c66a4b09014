"""Pure pixel maths that every network shares: normalising, and resampling a clip to another size and frame count.

Letters: B clips, T frames, H x W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# Of ImageNet's colours, RGB in 0..1; VideoMAE and most image models were trained with them.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalize_pixels(
    frames: Tensor, *, mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype = torch.float32
) -> Tensor:
    """frames (B, T, H, W, 3) uint8 -> pixels (B, 3, T, H, W): `(x / 255 - mean) / std`, computed in float32."""
    scale = torch.tensor([1 / (255 * s) for s in std], device=frames.device)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=frames.device)
    return (frames * scale + shift).permute(0, 4, 1, 2, 3).to(dtype).contiguous()


def resample_clip(pixels: Tensor, *, num_frames: int, size: int | tuple[int, int]) -> Tensor:
    """pixels (B, 3, T, H, W) float -> (B, 3, num_frames, size, size), or size = (height, width).

    Trilinear, as in PaPr's published recipe (halving the frames averages neighbours, so every frame is seen). Corners
    are not aligned: a cell keeps its place in the picture.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if pixels.shape[2:] == (num_frames, height, width):
        return pixels
    return F.interpolate(pixels, (num_frames, height, width), mode="trilinear", align_corners=False)
