"""Puts the Triton kernel in the place of X3D's depthwise convolutions. Away from a GPU they stay torch's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..scorers.x3d import X3DTrunk


class Depthwise(nn.Module):
    """A depthwise 3 x 3 x 3 convolution, with the swish behind it if `swish`; on a GPU by Triton.

    Args:
        conv: with bias and padding 1; its weights are shared.
    """

    def __init__(self, conv: Any, *, swish: bool) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.stride, self.padding, self.groups, self.swish = conv.stride, conv.padding, conv.groups, swish

    def forward(self, features: Tensor) -> Tensor:
        """features (B, C, T, H, W) -> (B, C, T, h, w)."""
        if features.is_cuda:  # by its name, which torch knows since `use_kernels` has imported the kernel
            operator = torch.ops.video_papr.depthwise
            done: Tensor = operator(features, self.weight, self.bias, self.stride[1], self.swish)
            return done
        out = F.conv3d(features, self.weight, self.bias, self.stride, self.padding, groups=self.groups)
        return F.silu(out, inplace=True) if self.swish else out


def fuse_depthwise(trunk: X3DTrunk) -> None:
    """Puts `Depthwise` in the place of every depthwise 3 x 3 x 3 convolution; weights keep their names."""
    for stage in list(trunk.blocks)[1:]:
        for block in stage.res_blocks:  # type: ignore[union-attr]
            branch: Any = getattr(block, "branch2", None)  # none where depth pruning has merged the block
            if branch is not None and not isinstance(branch.conv_b, Depthwise):
                swish = isinstance(branch.norm_b[1], nn.Identity)  # else squeeze-and-excitation comes between
                branch.conv_b = Depthwise(branch.conv_b, swish=swish)
                if swish:
                    branch.act_b = nn.Identity()
