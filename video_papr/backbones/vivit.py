"""ViViT's joint space-time encoder as a classifier (Arnab et al., ICCV 2021, model 1), on a subset of its tubelets.

`forward_features`: class token, kept tubelets, learned positions, blocks. `forward_head`: norm, and a linear layer on
the class token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .encoder import Encoder
from .layers import LayerNorm, init_weights


class ViViT(Encoder):
    """A plain vision transformer over tubelets with a class token and learned positions.

    The class token is no tubelet: it is never dropped, and neither `keep_idx` nor a keep ratio counts it.

    Args:
        num_classes: size of the logits.
        num_frames, input_size: the clip that the model reads, T frames of S x S pixels.
        tubelet: (frames, height, width) of a token in pixels; must divide the clip.
        dim, depth, num_heads, mlp_dim, activation: of the transformer, see `Encoder`.

    Attributes: see `Encoder`.
    """

    # ViViT was trained on pixels in -1..1. (transformers' VivitImageProcessor normalises once more after that, unless
    # told do_normalize=False.)
    mean = (0.5, 0.5, 0.5)
    std = (0.5, 0.5, 0.5)
    num_prefix = 1
    mean_pooled = False

    def __init__(
        self,
        *,
        num_classes: int,
        num_frames: int = 32,
        input_size: int = 224,
        tubelet: tuple[int, int, int] = (2, 16, 16),
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_dim: int | None = None,
        activation: str = "gelu_fast",
    ) -> None:
        # The published weights were trained with GELU's tanh approximation ("gelu_fast").
        super().__init__(
            num_classes=num_classes,
            num_frames=num_frames,
            input_size=input_size,
            tubelet=tubelet,
            dim=dim,
            depth=depth,
            num_heads=num_heads,
            mlp_dim=mlp_dim,
            activation=activation,
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.zeros(1, 1 + self.grid.num_tokens, dim))  # class token's first
        self.norm = LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)
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
