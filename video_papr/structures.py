"""Frozen, validated values that cross the borders between stages.

Letters: B clips in a batch, N tokens of the grid, K kept tokens, T' x H' x W' the token grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenGrid:
    """The tubelets of one clip, counted along time, height and width."""

    frames: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if min(self.shape) < 1:
            raise ValueError(f"a token grid needs at least one token along each axis, got {self.shape}")

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.frames, self.height, self.width)

    @property
    def num_tokens(self) -> int:
        return self.frames * self.height * self.width


@dataclass(frozen=True)
class TokenSelection:
    """Which tubelets of each clip are kept.

    Attributes:
        keep_idx: (B, K) int64, each row sorted ascending without repeats, row-major over `grid`.
        grid: the token grid that the indices refer to.
    """

    keep_idx: Tensor
    grid: TokenGrid

    def __post_init__(self) -> None:
        idx = self.keep_idx
        if idx.ndim != 2 or idx.dtype != torch.int64:
            raise ValueError(f"keep_idx must be int64 of shape (B, K), got {idx.dtype} {tuple(idx.shape)}")
        if not 1 <= idx.shape[1] <= self.grid.num_tokens:
            raise ValueError(f"keep_idx keeps {idx.shape[1]} of {self.grid.num_tokens} tokens")

    @property
    def num_kept(self) -> int:
        """K, the tokens that every clip of the batch keeps."""
        return self.keep_idx.shape[1]

    def mask(self) -> Tensor:
        """Returns (B, T', H', W') bool, True where the tubelet is kept."""
        kept = torch.zeros(
            len(self.keep_idx), self.grid.num_tokens, dtype=torch.bool, device=self.keep_idx.device
        )
        return kept.scatter_(1, self.keep_idx, True).view(-1, *self.grid.shape)
