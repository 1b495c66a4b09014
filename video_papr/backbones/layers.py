"""Parts shared by the video transformers: the tubelet embedding, the fixed position tables, norm and start values.

Letters: B clips, C colours, T x H x W pixels, N tokens of the grid, K kept tokens, D channels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.errors import ConfigError
from ..core.types import TokenGrid
from .blocks import joined, projected

SPAN = (4, 8, 8)  # what a whole clip counts as along time, height and width in `space_time_positions`


class LayerNorm(nn.LayerNorm):
    """LayerNorm with the epsilon that VideoMAE and ViViT were trained with."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=1e-6)


class QuickGELU(nn.Module):
    """The approximation of GELU that CLIP was trained with."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same."""
        return x * torch.sigmoid(1.702 * x)


# transformers' names (hidden_act) -> layers
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    **dict.fromkeys(("gelu_fast", "gelu_new", "gelu_pytorch_tanh"), partial(nn.GELU, approximate="tanh")),
    "quick_gelu": QuickGELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "swish": nn.SiLU,
}


class Attention(nn.Module):
    """Self-attention with timm's names, of which `blocks.run_blocks` knows every part."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.q_norm, self.k_norm = nn.Identity(), nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, K, D) -> the same."""
        mixed = F.scaled_dot_product_attention(*projected(self, tokens))
        return joined(self, mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """The feed-forward part of a block."""

    def __init__(self, dim: int, inner: int, act: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, inner), act(), nn.Linear(inner, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, K, D) -> the same."""
        return self.fc2(self.act(self.fc1(tokens)))


class Block(nn.Module):
    """A transformer block with its norms in front; timm's, whose import takes seconds, has the same parts and names."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, act: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.norm1, self.attn, self.ls1 = LayerNorm(dim), Attention(dim, num_heads), nn.Identity()
        self.norm2, self.mlp, self.ls2 = LayerNorm(dim), Mlp(dim, mlp_dim, act), nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, K, D) -> the same."""
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens)))
        return tokens + self.ls2(self.mlp(self.norm2(tokens)))


def init_weights(module: nn.Module) -> None:
    """Start values of a linear layer; to be given to `nn.Module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def frame_size(input_size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of frames whose size is given as one number when they are square."""
    return (input_size, input_size) if isinstance(input_size, int) else input_size


def clip_grid(num_frames: int, input_size: int | tuple[int, int], tubelet: tuple[int, int, int]) -> TokenGrid:
    """The token grid of a clip of T frames of S x S, or H x W, pixels.

    Raises ConfigError: the tubelets do not divide the clip.
    """
    _check_divides("backbone.num_frames", num_frames, tubelet[0])
    height, width = frame_size(input_size)
    _check_divides("backbone.input_size", height, tubelet[1])
    _check_divides("backbone.input_size", width, tubelet[2])
    return TokenGrid(num_frames // tubelet[0], height // tubelet[1], width // tubelet[2])


def _check_divides(key: str, value: int, tubelet: int) -> None:
    if value < tubelet or value % tubelet:
        raise ConfigError(f"{key}={value} must be a positive multiple of the tubelet's {tubelet}")


class TubeletEmbed(nn.Module):
    """Cuts a clip into tubelets and projects each to a token, for the kept tubelets only.

    Equal to a Conv3d whose kernel and stride are the tubelet, but pixels are gathered first, so that a dropped tubelet
    costs neither multiplications nor memory traffic.
    """

    def __init__(self, tubelet: tuple[int, int, int], dim: int, in_channels: int = 3) -> None:
        super().__init__()
        self.tubelet = tubelet
        frames, height, width = tubelet
        self.proj = nn.Linear(in_channels * frames * height * width, dim)

    def forward(
        self,
        pixels: Tensor,
        keep_idx: Tensor | None = None,
        clips: Tensor | None = None,
        *,
        prepare: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """pixels (B, C, T, H, W), keep_idx (B, K) int64 or None for all -> tokens (B, K or N, D).

        Args:
            clips: (1, S) int64, of which clip each of keep_idx (1, S) is; then tokens (1, S, D).
            prepare: applied to the kept tubelets (B, K or N, C, p, q, r); None: they are taken as they are.
        """
        tubelets = self.gather(pixels, keep_idx, clips)
        return self.proj((tubelets if prepare is None else prepare(tubelets)).flatten(2))

    def gather(self, pixels: Tensor, keep_idx: Tensor | None = None, clips: Tensor | None = None) -> Tensor:
        """Arguments as of `forward`, pixels of any type -> the tubelets (B, K or N, C, p, q, r), of that type."""
        cells = self._cells(pixels)
        if keep_idx is None:
            return cells.flatten(1, 3)
        rows = torch.arange(pixels.shape[0], device=pixels.device)[:, None] if clips is None else clips
        grid_h, grid_w = cells.shape[2:4]
        t, yx = keep_idx // (grid_h * grid_w), keep_idx % (grid_h * grid_w)
        return cells[rows, t, yx // grid_w, yx % grid_w]

    def means(self, pixels: Tensor, shares: Tensor) -> Tensor:
        """pixels (B, C, T, H, W), shares (B, R, N) -> means of tokens (B, R, D).

        A linear layer's mean is that of the mean tubelet, so R tubelets are projected, not N. The layer's bias counts
        once, so the shares of a mean should add up to 1.
        """
        return self.proj(shares.to(pixels.dtype) @ self._cells(pixels).flatten(4).flatten(1, 3))

    def _cells(self, pixels: Tensor) -> Tensor:
        """The tubelets (B, T', H', W', C, p, q, r) of pixels (B, C, T, H, W), still a view."""
        batch, channels, frames, height, width = pixels.shape
        p, q, r = self.tubelet
        cells = pixels.view(batch, channels, frames // p, p, height // q, q, width // r, r)
        return cells.permute(0, 2, 4, 6, 1, 3, 5, 7)


def flat_positions(grid: TokenGrid, dim: int) -> Tensor:
    """VideoMAE's position table: one sine-cosine code of the row-major token number (Vaswani et al., section 3.5).

    Returns (1, N, D) float32; even channels are sines, odd channels cosines of the same angle.
    """
    token = torch.arange(grid.num_tokens, dtype=torch.float64)[:, None]
    channel = torch.arange(dim, dtype=torch.float64)
    angle = token / 10000 ** (2 * (channel // 2) / dim)
    return torch.where(channel.long() % 2 == 0, angle.sin(), angle.cos()).float()[None]


def space_time_positions(grid: TokenGrid, dim: int) -> Tensor:
    """Separate sine-cosine codes of time, row and column, side by side: (1, N, D) float32.

    Small models learn motion far faster from it than from `flat_positions`, where neighbours in a column lie a whole
    row apart. Places are shares of the clip, in units of `SPAN`, so that larger frames divide the same codes more
    finely: weights serve other sizes than those that they were trained on. `dim` must be a multiple of 6.
    """
    if dim % 6:
        raise ValueError(f"space_time_positions needs a dim divisible by 6, got {dim}")
    part = dim // 3
    frequency = 1.0 / 100 ** (torch.arange(part // 2, dtype=torch.float64) / (part // 2))
    places = [
        (torch.arange(n, dtype=torch.float64) + 0.5) * span / n - 0.5
        for n, span in zip(grid.shape, SPAN, strict=True)
    ]
    codes = [
        torch.cat([(a[..., None] * frequency).sin(), (a[..., None] * frequency).cos()], -1)
        for a in torch.meshgrid(*places, indexing="ij")
    ]
    return torch.cat(codes, -1).flatten(0, 2).float()[None]


def interpolate_positions(positions: Tensor, old: TokenGrid, new: TokenGrid) -> Tensor:
    """Learned positions (1, 1 + N, D) of `old` -> (1, 1 + M, D) of `new`, trilinearly; the class token's stays."""
    dim = positions.shape[-1]
    table = positions[:, 1:].transpose(1, 2).reshape(1, dim, *old.shape)
    table = F.interpolate(table, new.shape, mode="trilinear", align_corners=False)
    return torch.cat([positions[:, :1], table.flatten(2).transpose(1, 2)], 1)
