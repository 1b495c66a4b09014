"""VideoMAE's encoder as a classifier (Tong et al., NeurIPS 2022), able to run on a subset of its tubelets.

The way through: `embed` (kept tubelets and their positions) -> `encode` (blocks) -> `head` (mean, norm, linear).
"""

from __future__ import annotations

from typing import Any

from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ..errors import ConfigError
from ..structures import TokenGrid
from .layers import TubeletEmbed, flat_positions, space_time_positions

POSITIONS = {"flat": flat_positions, "space_time": space_time_positions}


class LayerNorm(nn.LayerNorm):
    """LayerNorm with VideoMAE's epsilon."""

    def __init__(self, dim: int, **options: Any) -> None:  # newer timm also passes device and dtype
        super().__init__(dim, eps=1e-6, **options)


class VideoMAE(nn.Module):
    """A plain vision transformer over tubelets with fixed positions and a mean-pooled head.

    Args:
        num_classes: size of the logits.
        num_frames, input_size: the clip that the model reads, T frames of S x S pixels.
        tubelet: (frames, height, width) of a token in pixels; must divide the clip.
        dim, depth, num_heads: of the transformer.
        positions: "flat" (VideoMAE's own table) or "space_time".

    Attributes:
        mean, std: of the pixels that `forward` expects, RGB in 0..1.
        class_names: names of the logits, or None.
    """

    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)
    positions: Tensor

    def __init__(
        self,
        *,
        num_classes: int,
        num_frames: int = 16,
        input_size: int = 224,
        tubelet: tuple[int, int, int] = (2, 16, 16),
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        positions: str = "flat",
    ) -> None:
        super().__init__()
        _check_divides("backbone.num_frames", num_frames, tubelet[0])
        _check_divides("backbone.input_size", input_size, tubelet[1])
        _check_divides("backbone.input_size", input_size, tubelet[2])
        self.num_classes, self.num_frames, self.input_size = num_classes, num_frames, input_size
        self.class_names: tuple[str, ...] | None = None
        self.grid = TokenGrid(num_frames // tubelet[0], input_size // tubelet[1], input_size // tubelet[2])
        self.patch_embed = TubeletEmbed(tubelet, dim)
        self.register_buffer("positions", POSITIONS[positions](self.grid, dim), persistent=False)
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, qkv_bias=True, norm_layer=LayerNorm) for _ in range(depth)
        )
        self.fc_norm = LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)
        self.apply(_init_weights)

    def embed(self, pixels: Tensor, keep_idx: Tensor | None = None) -> Tensor:
        """pixels (B, 3, T, S, S) normalised, keep_idx (B, K) or None -> tokens (B, K or N, D) with positions added."""
        self._check_pixels(pixels)
        tokens = self.patch_embed(pixels, keep_idx)
        positions = self.positions.to(tokens.dtype)
        return tokens + (positions if keep_idx is None else positions[0, keep_idx])

    def encode(self, tokens: Tensor) -> Tensor:
        """tokens (B, K, D) -> (B, K, D) after every block."""
        for block in self.blocks:
            tokens = block(tokens)
        return tokens

    def classify(self, tokens: Tensor) -> Tensor:
        """tokens (B, K, D) -> logits (B, classes): `head(fc_norm(mean over the kept tokens))`."""
        return self.head(self.fc_norm(tokens.mean(1)))

    def forward(self, pixels: Tensor, keep_idx: Tensor | None = None) -> Tensor:
        """pixels (B, 3, T, S, S) normalised, keep_idx (B, K) int64 or None for all tubelets -> logits (B, classes)."""
        return self.classify(self.encode(self.embed(pixels, keep_idx)))

    def _check_pixels(self, pixels: Tensor) -> None:
        expected = (3, self.num_frames, self.input_size, self.input_size)
        if pixels.ndim != 5 or tuple(pixels.shape[1:]) != expected:
            raise ValueError(
                f"pixels must be (B, {', '.join(map(str, expected))}), got {tuple(pixels.shape)}"
            )


def _check_divides(key: str, value: int, tubelet: int) -> None:
    if value < tubelet or value % tubelet:
        raise ConfigError(f"{key}={value} must be a positive multiple of the tubelet's {tubelet}")


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
