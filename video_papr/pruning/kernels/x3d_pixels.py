"""The pixels that X3D reads, made of frames by one C++ operator on a processor: see `x3d_pixels.h`."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from ...core.pixels import Colors, scale_and_shift
from ..scorers.x3d import MEAN, STD, clip_of


def fast_clip_of(
    frames: Tensor,
    *,
    num_frames: int,
    size: tuple[int, int],
    align_corners: bool = False,
    mean: Colors = MEAN,
    std: Colors = STD,
) -> Tensor:
    """`x3d.clip_of`; by the operator where whole groups of frames become one, on a processor."""
    group, rest = divmod(frames.shape[1], num_frames)
    if align_corners or rest or not group or frames.device.type != "cpu":
        return clip_of(
            frames, num_frames=num_frames, size=size, align_corners=align_corners, mean=mean, std=std
        )
    colors = _colors(2 - group % 2, mean, std)
    clip: Tensor = torch.ops.video_papr.x3d_pixels(frames, num_frames, *size, *colors)
    return clip.movedim(-1, 1)


@cache
def _colors(frames: int, mean: Colors, std: Colors) -> tuple[Tensor, Tensor]:
    """What the sum of so many frames is multiplied by, and what is added then: (3,) float32 each."""
    scale, shift = scale_and_shift(mean, std, torch.device("cpu"))
    return scale / frames, shift
