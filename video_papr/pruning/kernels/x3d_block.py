"""A residual block of X3D as one C++ operator on a processor; `x3d.cpp` says what it does and why it is faster.

Letters: B clips, T frames, H x W pixels of the input, h x w of the output, K channels of the input, C of the middle,
D of the output, L lanes of the processor's vectors.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula


class PackedBlock:
    """The weights of a residual block as the operator reads them, and the call.

    Args:
        block: of pytorchvideo, with folded norms, on the processor. Its weights are copied; later changes do not count.
    """

    def __init__(self, block: Any) -> None:
        lanes = torch.ops.video_papr.x3d_lanes()
        branch = block.branch2
        self.channels: int = branch.conv_b.out_channels
        self.stride: int = branch.conv_b.stride[1]
        fill = -self.channels % lanes
        taps = F.pad(branch.conv_b.weight.detach().float().flatten(1), (0, 0, 0, fill))  # (C, 27)
        self.fixed: list[Tensor] = [
            F.pad(branch.conv_a.bias.detach().float(), (0, fill)),
            taps.unflatten(0, (-1, lanes)).movedim(1, 2).contiguous(),  # (C / L, 27, L)
            F.pad(branch.conv_b.bias.detach().float(), (0, fill)),
        ]
        self.squeeze = _squeeze(branch.norm_b[1], fill)
        expand = F.pad(_matrix(branch.conv_a), (0, fill))
        project = F.pad(_matrix(branch.conv_c), (0, 0, 0, fill))
        shortcut: Any = block.branch1_conv
        bias = branch.conv_c.bias.detach().float()
        if shortcut is not None and shortcut.bias is not None:
            bias = bias + shortcut.bias.detach().float()
        self.bias = bias
        products = [expand, project, None if shortcut is None else _matrix(shortcut)]
        # Autocast hands over bfloat16 although the weights are float32, so both are at hand.
        self.exact = products
        self.rounded = [None if value is None else value.bfloat16() for value in products]

    def __call__(self, x: Tensor) -> Tensor:
        """x (B, T, H, W, K) -> (B, T, h, w, D), of x's type: float32 or bfloat16."""
        expand, project, shortcut = self.rounded if x.dtype == torch.bfloat16 else self.exact
        operator = torch.ops.video_papr.x3d_block
        out: Tensor = operator(
            *(x, expand, *self.fixed, self.squeeze, project, self.bias, shortcut, self.stride, self.channels)
        )
        return out


def _matrix(conv: Any) -> Tensor:
    """The weights of a 1 x 1 x 1 convolution, (inputs, outputs) float32."""
    weight: Tensor = conv.weight.detach().float().flatten(1).t()
    return weight.contiguous()


def _squeeze(gate: Any, fill: int) -> list[Tensor]:
    """Weights and biases of squeeze-and-excitation, (C, R), (R), (R, C), (C) float32; none where there is no gate."""
    if isinstance(gate, nn.Identity):
        return []
    reduce, _, expand, _ = gate.block
    return [
        F.pad(_matrix(reduce), (0, 0, 0, fill)),
        reduce.bias.detach().float(),
        F.pad(_matrix(expand), (0, fill)),
        F.pad(expand.bias.detach().float(), (0, fill)),
    ]


@cache
def register() -> None:
    """Tells torch.compile the operator's shapes, and counters its arithmetic."""

    @torch.library.register_fake("video_papr::x3d_block")
    def _(x: Tensor, *packed: Any) -> Tensor:
        *_, project, _, _, stride, _ = packed
        batch, frames, height, width, _ = x.shape
        return x.new_empty(
            batch, frames, (height - 1) // stride + 1, (width - 1) // stride + 1, project.shape[1]
        )

    @register_flop_formula(torch.ops.video_papr.x3d_block)
    def _(x: Any, *packed: Any, out_shape: Any, **__: Any) -> int:
        # Shapes take the places of tensors. What fills the middle up to whole vectors does not count.
        *_, squeeze, project, _, shortcut, _, channels = packed
        places, seen = math.prod(out_shape[:-1]), math.prod(x[:-1])
        products = seen * x[-1] * channels + places * channels * (27 + project[1])
        if shortcut is not None:
            products += places * x[-1] * project[1]
        if squeeze:
            products += 2 * out_shape[0] * channels * squeeze[0][1]
        return int(2 * products)
