"""X3D of which depth pruning has merged blocks: rebuilt from a description.

The description is a list with one word for each residual block of the architecture, first to last. It stands in a
checkpoint's metadata under `blocks`; `depth/` makes such checkpoints.

    whole       as it was
    dense       one convolution of 3 x 3 x 3 and the ReLU behind it
    pointwise   one convolution of 1 x 1 x 1 and the ReLU behind it
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...core.errors import CheckpointError
from .x3d_network import DEPTHS

WHOLE, DENSE, POINTWISE = X3D_KINDS = ("whole", "dense", "pointwise")
X3D_BLOCKS = sum(DEPTHS.values())


class MergedBlock(nn.Module):
    """A residual block that is one convolution, with the activation that stood behind the sum."""

    def __init__(self, conv: nn.Conv3d) -> None:
        super().__init__()
        self.conv, self.activation = conv, nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        """features (B, C, T, h, w) -> (B, C', T, h', w')."""
        return self.activation(self.conv(features))


def residual_blocks(net: nn.Module) -> Iterator[tuple[str, nn.ModuleList, int]]:
    """The residual blocks of an X3D or its trunk: name ("res3.0"), the list that holds it, and its place there."""
    stages: Any = net.blocks
    for name, stage in zip(DEPTHS, list(stages)[1:], strict=False):
        if not hasattr(stage, "res_blocks"):  # the head of a whole network
            return
        for place in range(len(stage.res_blocks)):
            yield f"{name}.{place}", stage.res_blocks, place


def check_blocks(blocks: Any, *, source: str) -> tuple[str, ...]:
    """A description, checked; `source` names the option and its value in the error.

    Raises CheckpointError: it is no list of one known word for each block.
    """
    right = isinstance(blocks, (list, tuple)) and all(kind in X3D_KINDS for kind in blocks)
    if not right or len(blocks) != X3D_BLOCKS:
        raise CheckpointError(
            f"{source} describes its blocks as {blocks}; expected {X3D_BLOCKS} of {', '.join(X3D_KINDS)}"
        )
    return tuple(blocks)


def depth_prune_x3d(net: nn.Module, kinds: Sequence[str]) -> None:
    """Gives an X3D, or its trunk, the blocks of a description, in place, for weights to be loaded.

    A trunk may end early; what is described behind its end is not used.
    """
    for (_, blocks, place), kind in zip(residual_blocks(net), kinds, strict=False):
        if kind == WHOLE:
            continue
        block: Any = blocks[place]
        first, last, middle = block.branch2.conv_a, block.branch2.conv_c, block.branch2.conv_b
        size = middle.kernel_size if kind == DENSE else (1, 1, 1)
        with torch.random.fork_rng(devices=[]):  # what is drawn here is overwritten by the weights
            conv = nn.Conv3d(
                first.in_channels,
                last.out_channels,
                size,
                stride=middle.stride,
                padding=(size[0] // 2, size[1] // 2, size[2] // 2),
            )
        blocks[place] = MergedBlock(conv.to(memory_format=torch.channels_last_3d))
    if not net.training:
        net.eval()
