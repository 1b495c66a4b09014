"""The stem of X3D as one C++ operator on a processor; `x3d_stem.h` says how it goes.

Letters: B clips, T frames, H x W pixels of the input, h x w of the output, C channels.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula


class PackedStem:
    """The weights of a stem as the operator reads them, and the call.

    Args:
        stem: of pytorchvideo, with folded norms, on the processor. Its weights are copied; later changes do not count.
    """

    def __init__(self, stem: Any) -> None:
        space, time = stem.conv.conv_t, stem.conv.conv_xy  # pytorchvideo's names are the wrong way round
        self.channels: int = time.out_channels
        fill = (0, -self.channels % torch.ops.video_papr.x3d_lanes())
        taps = space.weight.detach().float()[:, :, 0].permute(2, 3, 1, 0)  # row, column, colour, C
        self.space = F.pad(taps, fill).contiguous()
        self.time = F.pad(time.weight.detach().float().flatten(1).t(), fill).contiguous()  # (5, C)
        self.bias = F.pad(time.bias.detach().float(), fill)

    def __call__(self, x: Tensor) -> Tensor:
        """x (B, T, H, W, 3) -> (B, T, h, w, C), of x's type: float32 or bfloat16. Autocast makes it bfloat16."""
        if torch.is_autocast_enabled("cpu"):
            x = x.to(torch.get_autocast_dtype("cpu"))
        out: Tensor = torch.ops.video_papr.x3d_stem(x, self.space, self.time, self.bias, self.channels)
        return out


@cache
def register() -> None:
    """Tells torch.compile the operator's shapes, and counters its arithmetic."""

    @torch.library.register_fake("video_papr::x3d_stem")
    def _(x: Tensor, space: Tensor, time: Tensor, bias: Tensor, channels: int) -> Tensor:
        batch, frames, height, width, _ = x.shape
        return x.new_empty(batch, frames, (height - 1) // 2 + 1, (width - 1) // 2 + 1, channels)

    @register_flop_formula(torch.ops.video_papr.x3d_stem)
    def _(x: Any, space: Any, time: Any, *_: Any, out_shape: Any, **__: Any) -> int:
        # Shapes take the places of tensors. The channels that fill up whole vectors do not count.
        return 2 * math.prod(out_shape) * (math.prod(space[:-1]) + time[0])
