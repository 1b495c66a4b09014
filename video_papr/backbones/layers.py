"""Blocks shared by the video transformers: the tubelet embedding and the fixed position tables.

Letters: B clips, C colours, T x H x W pixels, N tokens of the grid, K kept tokens, D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..structures import TokenGrid


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

    def forward(self, pixels: Tensor, keep_idx: Tensor | None = None) -> Tensor:
        """pixels (B, C, T, H, W), keep_idx (B, K) int64 or None for all -> tokens (B, K or N, D)."""
        batch, channels, frames, height, width = pixels.shape
        p, q, r = self.tubelet
        cells = pixels.view(batch, channels, frames // p, p, height // q, q, width // r, r)
        cells = cells.permute(0, 2, 4, 6, 1, 3, 5, 7)  # (B, T', H', W', C, p, q, r), still a view
        if keep_idx is None:
            return self.proj(cells.flatten(4).flatten(1, 3))
        rows = torch.arange(batch, device=pixels.device)[:, None]
        grid_h, grid_w = height // q, width // r
        t, yx = keep_idx // (grid_h * grid_w), keep_idx % (grid_h * grid_w)
        return self.proj(cells[rows, t, yx // grid_w, yx % grid_w].flatten(2))


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
    row apart. `dim` must be a multiple of 6.
    """
    if dim % 6:
        raise ValueError(f"space_time_positions needs a dim divisible by 6, got {dim}")
    part = dim // 3
    frequency = 1.0 / 100 ** (torch.arange(part // 2, dtype=torch.float64) / (part // 2))
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid.shape), indexing="ij")
    codes = [
        torch.cat([(a[..., None] * frequency).sin(), (a[..., None] * frequency).cos()], -1) for a in axes
    ]
    return torch.cat(codes, -1).flatten(0, 2).float()[None]
