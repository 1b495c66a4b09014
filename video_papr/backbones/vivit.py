"""ViViT's joint space-time encoder as a classifier (Arnab et al., ICCV 2021, model 1), on a subset of its tubelets.

`forward_features`: class token, kept tubelets, learned positions, blocks. `forward_head`: norm, and a linear layer on
the class token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .encoder import Encoder
from .layers import LayerNorm, init_weights


class ViViT(Encoder):
    """A plain vision transformer over tubelets with a class token and learned positions.

    The class token is no tubelet: it is never dropped, and neither `keep_idx` nor a keep ratio counts it.

    Args:
        num_frames, activation, transformer: of `Encoder`.
    """

    # ViViT was trained on pixels in -1..1. (transformers' VivitImageProcessor normalises once more after that, unless
    # told do_normalize=False.)
    mean = std = (0.5, 0.5, 0.5)
    num_prefix = 1
    mean_pooled = False

    def __init__(self, *, num_frames: int = 32, activation: str = "gelu_fast", **transformer: Any) -> None:
        # The published weights were trained with GELU's tanh approximation ("gelu_fast").
        super().__init__(num_frames=num_frames, activation=activation, **transformer)
        dim = self.dim
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.zeros(1, 1 + self.grid.num_tokens, dim))  # class token's first
        self.norm = LayerNorm(dim)
        self.head = nn.Linear(dim, self.num_classes)
        self.apply(init_weights)
        nn.init.trunc_normal_(self.positions, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    def add_pos_embed(self, tokens: Tensor, keep_idx: Tensor | None = None) -> Tensor:
        """Puts the class token before tokens (B, K, D), adds the positions that `keep_idx` (B, K) names; None: all."""
        positions = self.positions.to(tokens.dtype)
        first = self.cls_token.to(tokens.dtype) + positions[:, :1]
        rest = positions[:, 1:] if keep_idx is None else positions[0, 1:][keep_idx]
        return torch.cat([first.expand(tokens.shape[0], -1, -1), tokens + rest], 1)

    def forward_head(self, tokens: Tensor, sizes: Tensor | None = None) -> Tensor:
        """tokens (B, 1 + K, D) -> logits (B, classes): `head(norm(class token))`.

        `sizes` (B, 1 + K) is here for the sake of VideoMAE's mean; the class token counts once.
        """
        return self.head(self.norm(tokens[:, 0]))
