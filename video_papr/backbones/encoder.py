"""What VideoMAE and ViViT have in common: tubelets become tokens, blocks run over those that are kept.

`forward_features` embeds the kept tubelets, adds their positions (`add_pos_embed`) and runs the blocks; `forward_head`
makes logits of that. Each backbone says what `add_pos_embed` and `forward_head` do.

Letters: B clips of T frames of H x W pixels, P class tokens, N tokens of the grid, K kept tokens, D channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.errors import ConfigError
from ..core.pixels import normalize_pixels, normalize_planes
from ..core.reading import ReadConfig
from ..core.types import Mark, TokenGrid, unobserved
from .blocks import Merger, run_blocks
from .grouping import similar_lengths
from .layers import ACTIVATIONS, Block, TubeletEmbed, clip_grid, frame_size
from .packing import Packing, run_packed


class Encoder(nn.Module):
    """A plain vision transformer over tubelets, able to run on a subset of them.

    Args:
        num_classes: size of the logits; 0: the answers are features.
        num_frames, input_size: the clip that the model reads, T frames of S x S pixels, or of (H, W).
        tubelet: (frames, height, width) of a token in pixels; must divide the clip.
        mlp_dim: hidden channels of the feed-forward part; None: 4 D.
        activation: of the feed-forward part, one of `layers.ACTIVATIONS`.

    Attributes:
        grid: the tokens of a clip, without class tokens.
        parts: U, equal parts of a clip along time that run by themselves, each with its own class tokens. 1: a clip
            runs as a whole. Otherwise the methods here take parts for clips (of T / U frames, on `part_grid`);
            `Pipeline` divides clips, and `pool` says what becomes of the answers, one of `core.parts.POOLS`; the pooled
            ones go through `clip_head`, which changes nothing but in a linear probe.
        usual_sampling, usual_stride: which frames are read where neither the configuration nor the weights say it; None
            is as usual for the dataset.
        mean, std: of the pixels that `forward` expects, RGB in 0..1.
        class_names: names of the logits, or None.
        read: how the weights say that clips are read, or None.
        num_prefix: class tokens in front of the tubelets' tokens.
        mean_pooled: whether the answer is read off the mean of the tokens, not off a class token.
        positions: (1, P + N, D), what `add_pos_embed` adds.
        frame_size: (H, W) of the frames that it reads.
        short_side, interpolation: how frames are resized where the configuration does not say: the shorter side before
            the crop, None: as large as the crop.
        closed: why its tokens are out of reach between pixels and logits, so that nothing but a fixed number of places
            can be left out; empty: they are not.
        same_places: attention over space and over time are apart, so every frame has to keep the same places.
        stage_grids: of a hierarchical backbone, the places of each stage that drops some; `grid` is that of the first.
        replayed: whether CUDA graphs run it, so that the next answer overwrites this one; see `Pipeline`.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    num_prefix = 0
    mean_pooled = True
    positions: Tensor
    short_side: int | None = None
    interpolation = "bilinear"
    replayed = False
    pool = "mean"
    usual_sampling: str | None = None
    usual_stride: int | None = None
    closed = ""
    same_places = False
    name = "this backbone"
    stage_grids: tuple[TokenGrid, ...] = ()
    depth_pruned = False
    read: ReadConfig | None = None

    def __init__(
        self,
        *,
        num_classes: int,
        num_frames: int = 16,
        input_size: int | tuple[int, int] = 224,
        tubelet: tuple[int, int, int] = (2, 16, 16),
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        parts: int = 1,
        mlp_dim: int | None = None,
        activation: str = "gelu",
    ) -> None:
        super().__init__()
        self.grid, self.parts = clip_grid(num_frames, input_size, tubelet), parts
        self.clip_head: nn.Module = nn.Identity()
        self.num_classes, self.num_frames, self.input_size = num_classes, num_frames, input_size
        self.frame_size, self.dim = frame_size(input_size), dim
        self.class_names: tuple[str, ...] | None = None
        self.patch_embed = TubeletEmbed(tubelet, dim)
        act = ACTIVATIONS[activation]
        self.blocks = nn.ModuleList(Block(dim, num_heads, mlp_dim or 4 * dim, act) for _ in range(depth))

    @property
    def part_grid(self) -> TokenGrid:
        """The tokens that run together: those of a clip, or of one of its `parts`."""
        return TokenGrid(self.grid.frames // self.parts, self.grid.height, self.grid.width)

    def check_classifies(self) -> None:
        """Raises ConfigError where the answers are features, not logits."""
        if self.num_classes == 0:
            raise ConfigError(
                "the backbone has no classifier: its weights bring none, or backbone.pool=concat; its answers are "
                "features (Pipeline.features)"
            )

    def add_pos_embed(self, tokens: Tensor, keep_idx: Tensor | None = None) -> Tensor:
        """tokens (B, K, D), keep_idx (B, K) their places in the grid, None: all N -> (B, P + K, D) with positions."""
        raise NotImplementedError

    def forward_head(self, tokens: Tensor, sizes: Tensor | None = None) -> Tensor:
        """tokens (B, P + K, D), sizes (B, P + K) how often each counts, None: once -> logits (B, classes)."""
        raise NotImplementedError

    def embed(self, pixels: Tensor, keep_idx: Tensor | None = None) -> Tensor:
        """pixels (B, 3, T, H, W), keep_idx (B, K) or None for all N -> tokens (B, P + K, D), class first.

        Pixels are normalised; or uint8, and then normalised here, after those of dropped tubelets are gone.

        Raises:
            ValueError: the pixels have another shape.
        """
        self._check_pixels(pixels)
        return self.add_pos_embed(self._project(pixels, keep_idx), keep_idx)

    def _project(self, pixels: Tensor, keep_idx: Tensor | None, clips: Tensor | None = None) -> Tensor:
        """`TubeletEmbed.forward` of pixels that need not be normalised yet, see `embed`."""
        prepare = self._normalize if pixels.dtype == torch.uint8 else None
        tokens: Tensor = self.patch_embed(pixels, keep_idx, clips, prepare=prepare)
        return tokens

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""
        return self.patch_embed.proj.weight.dtype

    def normalize(self, frames: Tensor) -> Tensor:
        """frames (B, T, H, W, 3) uint8 -> pixels (B, 3, T, H, W) as `embed` takes them, in the backbone's precision."""
        return normalize_pixels(frames, mean=self.mean, std=self.std, dtype=self.dtype)

    def _normalize(self, tubelets: Tensor) -> Tensor:
        return normalize_planes(tubelets, mean=self.mean, std=self.std, dtype=self.dtype)

    def _check_pixels(self, pixels: Tensor) -> None:
        expected = (3, self.num_frames // self.parts, *self.frame_size)
        if pixels.ndim != 5 or tuple(pixels.shape[1:]) != expected:
            raise ValueError(
                f"pixels must be (B, {', '.join(map(str, expected))}), got {tuple(pixels.shape)}"
            )

    def embed_means(self, pixels: Tensor, shares: Tensor) -> Tensor:
        """pixels (B, 3, T, H, W) normalised, shares (B, R, N) adding up to 1 or to 0 -> means of tokens (B, R, D).

        Equal to the weighted means of what `embed` gives, positions included, for the arithmetic of R tokens.
        """
        positions = self.positions[0, self.num_prefix :].to(shares.dtype)
        return self.patch_embed.means(pixels, shares) + shares @ positions

    def encode(
        self,
        tokens: Tensor,
        *,
        first: int = 0,
        stop: int | None = None,
        valid: Tensor | None = None,
        packed: bool = False,
    ) -> Tensor:
        """tokens (B, P + K, D) -> (B, P + K, D) after the blocks `first` to `stop` - 1; None: up to the last.

        Where `valid` (B, K) is False a token is padding, which nobody attends to. Such clips run in buckets of similar
        length, or with `packed` in one row without padding; what comes out for padding means nothing.
        """
        if valid is None:
            return run_blocks(self.blocks, tokens, num_prefix=self.num_prefix, first=first, stop=stop)[0]
        if packed:
            packing = Packing.of(valid, self.num_prefix)
            row = run_packed(self.blocks, packing.pack(tokens), packing, first=first, stop=stop)
            return packing.unpack(row)
        encoded = torch.zeros_like(tokens)
        counts = valid.sum(1)
        for rows in similar_lengths(counts):
            longest = int(counts[rows[0]])
            own, length = valid[rows, :longest], self.num_prefix + longest
            sizes = None if own.all() else F.pad(own.float(), (self.num_prefix, 0), value=1.0)
            options: dict[str, Any] = {"num_prefix": self.num_prefix, "first": first, "stop": stop}
            encoded[rows, :length] = run_blocks(self.blocks, tokens[rows, :length], sizes=sizes, **options)[0]
        return encoded

    def forward_features(
        self,
        pixels: Tensor | None,
        keep_idx: Tensor | None = None,
        *,
        valid: Tensor | None = None,
        merger: Merger | None = None,
        tokens: Tensor | None = None,
        block: int = 0,
        sizes: Tensor | None = None,
        mark: Mark = unobserved,
    ) -> tuple[Tensor, Tensor | None]:
        """Arguments as of `forward` -> tokens (B, P + K', D) behind the last block, and what each counts in a mean.

        The counts are (B, P + K') float32, None where every token counts once; see `run_blocks`.
        """
        if tokens is None:
            assert pixels is not None, "either pixels or tokens"
            tokens = self.embed(pixels, keep_idx)
        mark("embed")
        prefix = self.num_prefix
        if sizes is None and valid is not None:
            sizes = valid.float()
        sizes = None if sizes is None else F.pad(sizes, (prefix, 0), value=1.0)
        found = run_blocks(self.blocks, tokens, sizes=sizes, merger=merger, num_prefix=prefix, first=block)
        mark("blocks")
        return found

    def forward(
        self,
        pixels: Tensor | None,
        keep_idx: Tensor | None = None,
        *,
        weights: Tensor | None = None,
        mark: Mark = unobserved,
        **options: Any,
    ) -> Tensor:
        """pixels (B, 3, T, H, W), keep_idx (B, K) int64 or None for all tubelets -> logits (B, classes).

        Args:
            pixels: normalised, or uint8, see `embed`.
            weights: (B, K) float32, how often each token counts in the mean, where that differs; goes with no merger.
            mark: told where the stages "embed", "blocks" and "head" end.
            valid: (B, K) bool, False where `keep_idx` is padding; None: nowhere.
            tokens, block: (B, P + K, D) class and kept tokens that have come as far as this block; pixels are not read
                then.
            sizes: (B, K) float32, how many tubelets each token stands for, in attention and in the mean; 0 is padding.
                None: what `valid` says.
        """
        tokens, counts = self.forward_features(pixels, keep_idx, mark=mark, **options)
        return self._classify(tokens, counts, weights, mark)

    def forward_packed(
        self,
        pixels: Tensor | None,
        keep_idx: Tensor,
        valid: Tensor,
        *,
        tokens: Tensor | None = None,
        block: int = 0,
        weights: Tensor | None = None,
        mark: Mark = unobserved,
    ) -> Tensor:
        """`forward` with the kept tokens of all clips in one row; padding costs nothing but memory before the head.

        Arguments and logits (B, classes) are those of `forward`. There is no merger, and there are no sizes, because
        attention of variable length takes no bias.
        """
        packing = Packing.of(valid, self.num_prefix)
        if tokens is not None:
            row = packing.pack(tokens)
        else:
            assert pixels is not None, "either pixels or tokens"
            self._check_pixels(pixels)
            clips, chosen = valid.nonzero()[None, :, 0], keep_idx[valid][None]
            row = packing.with_prefixes(self.add_pos_embed(self._project(pixels, chosen, clips), chosen))
        mark("embed")
        tokens = packing.unpack(run_packed(self.blocks, row, packing, first=block))
        mark("blocks")
        return self._classify(tokens, packing.mask.float(), weights, mark)

    def _classify(self, tokens: Tensor, counts: Tensor | None, weights: Tensor | None, mark: Mark) -> Tensor:
        """The head on tokens (B, P + K, D), each counted as often as counts (B, P + K), or weights (B, K), say."""
        counts = counts if weights is None else F.pad(weights, (self.num_prefix, 0), value=1.0)
        logits = self.forward_head(tokens, counts)
        mark("head")
        return logits
