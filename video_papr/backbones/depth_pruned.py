"""Transformers whose depth was pruned, with blocks removed or merged: rebuilt from a description.

The description is a list with one word for each block of the architecture. It stands in a checkpoint's metadata under
`blocks`; `depth/` makes such checkpoints.

    whole     as it was
    linear    attention as it was; the feed-forward part, with its shortcut, is one linear layer
    removed   gone; the blocks behind it move up, also in the names of the weights
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..core.errors import CheckpointError

WHOLE, LINEAR, REMOVED = BLOCK_KINDS = ("whole", "linear", "removed")


class ShortBlock(nn.Module):
    """A transformer block whose feed-forward part, with its shortcut, is one module.

    Args:
        block: of timm; its norm, attention and layer scale are taken over, not copied.
        joint: (B, K, D) -> (B, K, D).
    """

    def __init__(self, block: Any, joint: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attn, self.ls1 = block.norm1, block.attn, block.ls1
        self.joint = joint

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, K, D) -> (B, K, D)."""
        return self.joint(tokens + self.ls1(self.attn(self.norm1(tokens))))


def check_blocks(blocks: Any, depth: int, *, source: str) -> tuple[str, ...]:
    """A description, checked.

    Args:
        depth: blocks of the architecture.
        source: the option and its value, for the error.

    Raises:
        CheckpointError: it is no list of one known word for each block, or leaves none.
    """
    right = isinstance(blocks, (list, tuple)) and all(kind in BLOCK_KINDS for kind in blocks)
    if not right or len(blocks) != depth or all(kind == REMOVED for kind in blocks):
        raise CheckpointError(
            f"{source} describes its blocks as {blocks}; expected {depth} of {', '.join(BLOCK_KINDS)}, not all removed"
        )
    return tuple(blocks)


def depth_prune_backbone(backbone: nn.Module, kinds: Sequence[str]) -> None:
    """Gives a backbone of the whole architecture the blocks of a description, in place, for weights to be loaded."""
    blocks: Any = backbone.blocks
    kept: list[nn.Module] = []
    for block, kind in zip(blocks, kinds, strict=True):
        if kind == LINEAR:
            width = block.norm1.weight.shape[0]
            kept.append(ShortBlock(block, nn.Linear(width, width)))
        elif kind == WHOLE:
            kept.append(block)
    backbone.blocks = nn.ModuleList(kept)
