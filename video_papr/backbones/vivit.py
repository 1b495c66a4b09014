"""ViViT's joint space-time encoder as a classifier (Arnab et al., ICCV 2021, model 1), on a subset of its tubelets.

The way through: `embed` (class token, kept tubelets, learned positions) -> `encode` (blocks) -> `classify` (norm, and a
linear layer on the class token).
"""

from __future__ import annotations

import torch
from timm.layers import GELUTanh
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from .blocks import Merger, run_blocks
from .layers import LayerNorm, TubeletEmbed, clip_grid, init_weights


class ViViT(nn.Module):
    """A plain vision transformer over tubelets with a class token and learned positions.

    The class token is no tubelet: it is never dropped, and neither `keep_idx` nor a keep ratio counts it.

    Args:
        num_classes: size of the logits.
        num_frames, input_size: the clip that the model reads, T frames of S x S pixels.
        tubelet: (frames, height, width) of a token in pixels; must divide the clip.
        dim, depth, num_heads: of the transformer.

    Attributes:
        grid: the tokens of a clip, without the class token.
        mean, std: of the pixels that `forward` expects, RGB in 0..1.
        class_names: names of the logits, or None.
        num_prefix: class tokens in front of the tubelets' tokens.
    """

    # ViViT was trained on pixels in -1..1. (transformers' VivitImageProcessor normalises once more after that, unless
    # told do_normalize=False.)
    mean = (0.5, 0.5, 0.5)
    std = (0.5, 0.5, 0.5)
    num_prefix = 1

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
    ) -> None:
        super().__init__()
        self.grid = clip_grid(num_frames, input_size, tubelet)
        self.num_classes, self.num_frames, self.input_size = num_classes, num_frames, input_size
        self.class_names: tuple[str, ...] | None = None
        self.patch_embed = TubeletEmbed(tubelet, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(
            torch.zeros(1, 1 + self.grid.num_tokens, dim)
        )  # the class token's first
        # The published weights were trained with GELU's tanh approximation.
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, qkv_bias=True, norm_layer=LayerNorm, act_layer=GELUTanh)
            for _ in range(depth)
        )
        self.norm = LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)
        self.apply(init_weights)
        nn.init.trunc_normal_(self.positions, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    def embed(self, pixels: Tensor, keep_idx: Tensor | None = None) -> Tensor:
        """pixels (B, 3, T, S, S) normalised, keep_idx (B, K) or None -> tokens (B, 1 + K or N, D), class first."""
        self._check_pixels(pixels)
        return self.place(self.patch_embed(pixels, keep_idx), keep_idx)

    def place(self, tokens: Tensor, keep_idx: Tensor | None = None) -> Tensor:
        """Puts the class token before tokens (B, K, D), adds the positions that `keep_idx` (B, K) names; None: all."""
        positions = self.positions.to(tokens.dtype)
        first = self.cls_token.to(tokens.dtype) + positions[:, :1]
        rest = positions[:, 1:] if keep_idx is None else positions[0, 1:][keep_idx]
        return torch.cat([first.expand(len(tokens), -1, -1), tokens + rest], 1)

    def encode(self, tokens: Tensor, *, stop: int | None = None) -> Tensor:
        """tokens (B, 1 + K, D) -> (B, 1 + K, D) after every block, or after the first `stop` of them."""
        return run_blocks(self.blocks, tokens, num_prefix=self.num_prefix, stop=stop)[0]

    def classify(self, tokens: Tensor, sizes: Tensor | None = None) -> Tensor:
        """tokens (B, 1 + K, D) -> logits (B, classes): `head(norm(class token))`.

        `sizes` (B, 1 + K) is here for the sake of VideoMAE's mean; the class token counts once.
        """
        return self.head(self.norm(tokens[:, 0]))

    def forward(
        self,
        pixels: Tensor | None,
        keep_idx: Tensor | None = None,
        *,
        valid: Tensor | None = None,
        merger: Merger | None = None,
        tokens: Tensor | None = None,
        block: int = 0,
    ) -> Tensor:
        """pixels (B, 3, T, S, S) normalised, keep_idx (B, K) int64 or None for all tubelets -> logits (B, classes).

        Args:
            valid: (B, K) bool, False where `keep_idx` is padding; None: nowhere.
            merger: merges tokens inside the blocks; None: nothing does.
            tokens, block: (B, 1 + K, D) class and kept tokens that have come as far as this block; pixels are not read
                then.
        """
        if tokens is None:
            assert pixels is not None, "either pixels or tokens"
            tokens = self.embed(pixels, keep_idx)
        prefix = self.num_prefix
        return self.classify(
            *run_blocks(self.blocks, tokens, valid=valid, merger=merger, num_prefix=prefix, first=block)
        )

    def _check_pixels(self, pixels: Tensor) -> None:
        expected = (3, self.num_frames, self.input_size, self.input_size)
        if pixels.ndim != 5 or tuple(pixels.shape[1:]) != expected:
            raise ValueError(
                f"pixels must be (B, {', '.join(map(str, expected))}), got {tuple(pixels.shape)}"
            )
