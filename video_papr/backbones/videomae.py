"""VideoMAE's encoder as a classifier (Tong et al., NeurIPS 2022), able to run on a subset of its tubelets.

The way through: `embed` (kept tubelets and their positions) -> `encode` (blocks) -> `classify` (mean, norm, linear).
"""

from __future__ import annotations

from timm.models.vision_transformer import Block
from torch import Tensor, nn

from .blocks import Merger, pooled, run_blocks
from .layers import LayerNorm, TubeletEmbed, clip_grid, flat_positions, init_weights, space_time_positions

POSITIONS = {"flat": flat_positions, "space_time": space_time_positions}


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
        num_prefix: class tokens in front of the tubelets' tokens; VideoMAE has none.
    """

    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)
    num_prefix = 0
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
        self.grid = clip_grid(num_frames, input_size, tubelet)
        self.num_classes, self.num_frames, self.input_size = num_classes, num_frames, input_size
        self.class_names: tuple[str, ...] | None = None
        self.patch_embed = TubeletEmbed(tubelet, dim)
        self.register_buffer("positions", POSITIONS[positions](self.grid, dim), persistent=False)
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, qkv_bias=True, norm_layer=LayerNorm) for _ in range(depth)
        )
        self.fc_norm = LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)
        self.apply(init_weights)

    def embed(self, pixels: Tensor, keep_idx: Tensor | None = None) -> Tensor:
        """pixels (B, 3, T, S, S) normalised, keep_idx (B, K) or None -> tokens (B, K or N, D) with positions added."""
        self._check_pixels(pixels)
        return self.place(self.patch_embed(pixels, keep_idx), keep_idx)

    def place(self, tokens: Tensor, keep_idx: Tensor | None = None) -> Tensor:
        """Adds the positions that `keep_idx` (B, K) names to tokens (B, K, D); None: to all N tokens."""
        positions = self.positions.to(tokens.dtype)
        return tokens + (positions if keep_idx is None else positions[0, keep_idx])

    def encode(self, tokens: Tensor, *, stop: int | None = None) -> Tensor:
        """tokens (B, K, D) -> (B, K, D) after every block, or after the first `stop` of them."""
        return run_blocks(self.blocks, tokens, stop=stop)[0]

    def classify(self, tokens: Tensor, sizes: Tensor | None = None) -> Tensor:
        """tokens (B, K, D) -> logits (B, classes): `head(fc_norm(mean over the kept tokens))`.

        `sizes` (B, K) says how often each token counts in the mean; None: once.
        """
        return self.head(self.fc_norm(pooled(tokens, sizes)))

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
            tokens, block: (B, K, D) kept tokens that have come as far as this block; pixels are not read then.
        """
        if tokens is None:
            assert pixels is not None, "either pixels or tokens"
            tokens = self.embed(pixels, keep_idx)
        return self.classify(*run_blocks(self.blocks, tokens, valid=valid, merger=merger, first=block))

    def _check_pixels(self, pixels: Tensor) -> None:
        expected = (3, self.num_frames, self.input_size, self.input_size)
        if pixels.ndim != 5 or tuple(pixels.shape[1:]) != expected:
            raise ValueError(
                f"pixels must be (B, {', '.join(map(str, expected))}), got {tuple(pixels.shape)}"
            )
