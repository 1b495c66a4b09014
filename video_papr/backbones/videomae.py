"""VideoMAE's encoder as a classifier (Tong et al., NeurIPS 2022), able to run on a subset of its tubelets.

`forward_features`: kept tubelets, fixed positions, blocks. `forward_head`: mean, norm, linear.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..core.pixels import IMAGENET_MEAN, IMAGENET_STD
from .blocks import pooled
from .encoder import Encoder
from .layers import LayerNorm, flat_positions, init_weights, space_time_positions

POSITIONS = {"flat": flat_positions, "space_time": space_time_positions}


class VideoMAE(Encoder):
    """A plain vision transformer over tubelets with fixed positions and a mean-pooled head.

    There is no class token.

    Args:
        positions: "flat" (VideoMAE's own table) or "space_time".
        transformer: of `Encoder`.
    """

    mean, std = IMAGENET_MEAN, IMAGENET_STD
    positions: Tensor

    def __init__(self, *, positions: str = "flat", **transformer: Any) -> None:
        super().__init__(**transformer)
        with torch.device("cpu"):  # arithmetic on the meta device would import torch's compiler
            table = POSITIONS[positions](self.grid, self.dim)
        self.register_buffer("positions", table.to(torch.get_default_device()), persistent=False)
        self.fc_norm = LayerNorm(self.dim)
        self.head = nn.Linear(self.dim, self.num_classes)
        self.apply(init_weights)

    def add_pos_embed(self, tokens: Tensor, keep_idx: Tensor | None = None) -> Tensor:
        """Adds the positions that `keep_idx` (B, K) names to tokens (B, K, D); None: to all N tokens."""
        positions = self.positions.to(tokens.dtype)
        return tokens + (positions if keep_idx is None else positions[0, keep_idx])

    def forward_head(self, tokens: Tensor, sizes: Tensor | None = None) -> Tensor:
        """tokens (B, K, D) -> logits (B, classes): `head(fc_norm(mean over the kept tokens))`.

        `sizes` (B, K) says how often each token counts in the mean; None: once.
        """
        return self.head(self.fc_norm(pooled(tokens, sizes)))
