"""Frozen, validated values that cross the borders between stages.

Letters: B clips in a batch, N tokens of the grid, K kept tokens, D channels, T' x H' x W' the token grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

Mark = Callable[[str], None]
"""An observer of a run: called with a stage's name when that stage has just ended."""


def unobserved(stage: str) -> None:
    """The `Mark` of a run that nobody observes."""


COMPENSATIONS = ("none", "pool", "merge")  # for the dropped tubelets, see `pruning.compensation`
Cell = tuple[int, int, int]
CELL: Cell = (2, 2, 2)  # tokens of the grid, along time, height and width


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

    Clips that keep fewer tokens than the longest one of their batch are padded at their end.

    Attributes:
        keep_idx: (B, K) int64, each row sorted ascending without repeats, row-major over `grid`. Padding repeats the
            row's last token.
        valid: (B, K) bool, False where `keep_idx` is padding; None when every clip keeps K tokens.
        tokens: (B, P + K, D) what the backbone has made of the kept tokens, its P class tokens first, when choosing
            them took the backbone's own features; None when nothing has been computed yet.
        block: number of the block that `tokens` enter next.
        compensation: how the dropped tubelets are made up for, one of `COMPENSATIONS`.
        cell: size of the regions of "merge", in tokens of the grid along time, height and width.
        merged: (B, R, D) where `tokens` are given and `compensation` is "merge": the dropped ones' means by region.
        arrived: (B, S - 1) int64, how many tokens of each clip came to every place of the choice but the first, where
            there are S of them and the clip decides; None otherwise. (B, U, S - 1) where each of U parts decides.
        stages: of a hierarchical backbone, what each stage keeps; `keep_idx` and `grid` are those of the first.
        scored: (B,) bool, False where nothing of the map that decides is finite, so that the choice means nothing and
            logits become NaN; None where no map decides.
        parts: what the backbone's parts of the clips keep, one row for each, where they have chosen by themselves; see
            `core.parts`. None otherwise.
    """

    keep_idx: Tensor
    grid: TokenGrid
    valid: Tensor | None = None
    tokens: Tensor | None = None
    block: int = 0
    compensation: str = "none"
    cell: Cell = CELL
    merged: Tensor | None = None
    arrived: Tensor | None = None
    scored: Tensor | None = None
    parts: TokenSelection | None = None
    stages: tuple[TokenSelection, ...] = ()

    def __post_init__(self) -> None:
        idx, valid = self.keep_idx, self.valid
        if idx.ndim != 2 or idx.dtype != torch.int64:
            raise ValueError(f"keep_idx must be int64 of shape (B, K), got {idx.dtype} {tuple(idx.shape)}")
        if not 1 <= idx.shape[1] <= self.grid.num_tokens:
            raise ValueError(f"keep_idx keeps {idx.shape[1]} of {self.grid.num_tokens} tokens")
        if valid is not None and (valid.shape != idx.shape or valid.dtype != torch.bool):
            raise ValueError(
                f"valid must be bool of shape {tuple(idx.shape)}, got {valid.dtype} {tuple(valid.shape)}"
            )
        if self.compensation not in COMPENSATIONS:
            raise ValueError(
                f"compensation must be one of {', '.join(COMPENSATIONS)}, got {self.compensation!r}"
            )

    @classmethod
    def from_mask(cls, mask: Tensor) -> TokenSelection:
        """Keeps the tubelets where mask (B, T', H', W') bool is True: at least one in every clip.

        Raises ValueError: a clip keeps nothing.
        """
        kept = mask.flatten(1)
        counts = kept.sum(1)
        shortest, longest = (int(bound) for bound in counts.aminmax())
        if shortest == 0:
            raise ValueError("every clip must keep at least one token")
        # Kept ones, ascending; the others would follow.
        order = kept.byte().argsort(dim=1, descending=True, stable=True)[:, :longest]
        if shortest == longest:
            return cls(order, TokenGrid(*mask.shape[1:]))
        valid = torch.arange(longest, device=mask.device) < counts[:, None]
        keep_idx = torch.where(valid, order, order.gather(1, counts[:, None] - 1))
        return cls(keep_idx, TokenGrid(*mask.shape[1:]), valid)

    @property
    def num_kept(self) -> int:
        """K, the tokens that the longest clip of the batch keeps; all of them when `valid` is None."""
        return self.keep_idx.shape[1]

    @property
    def drops(self) -> bool:
        """Whether some clip may drop something; False only when every clip keeps its whole grid."""
        return self.valid is not None or self.num_kept < self.grid.num_tokens

    def counts(self) -> Tensor:
        """Returns (B,) int64, the tokens that each clip keeps."""
        if self.valid is not None:
            return self.valid.sum(1)
        return torch.full((len(self.keep_idx),), self.num_kept, device=self.keep_idx.device)

    def mask(self) -> Tensor:
        """Returns (B, T', H', W') bool, True where the tubelet is kept."""
        shape = self.keep_idx.shape[0], self.grid.num_tokens
        kept = torch.zeros(shape, dtype=torch.bool, device=self.keep_idx.device)
        return kept.scatter_(1, self.keep_idx, True).view(-1, *self.grid.shape)

    def blank(self, values: Tensor) -> Tensor:
        """values (B, ...), or several rows for each clip -> the same, NaN for clips whose map is not finite.

        Nothing says what such a clip should keep, so what comes of it must not look like an answer.
        """
        if self.scored is None:
            return values
        scored = self.scored.repeat_interleave(len(values) // max(1, len(self.scored)))
        return values.masked_fill(~scored.view(-1, *[1] * (values.ndim - 1)), torch.nan)

    def rows(self, index: Tensor) -> TokenSelection:
        """The selection of some clips, index (n,) int64, without the padding that only the others needed."""
        each = {name: getattr(self, name) for name in ("merged", "arrived", "scored")}
        own: dict[str, Any] = {name: None if part is None else part[index] for name, part in each.items()}
        assert self.parts is None or self.parts.tokens is None, "tokens of parts are read together"
        if self.valid is None:
            tokens = None if self.tokens is None else self.tokens[index]
            return replace(self, keep_idx=self.keep_idx[index], tokens=tokens, **own, parts=None)
        counts = self.valid.sum(1)[index]
        shortest, longest = (int(bound) for bound in counts.aminmax())
        tokens = self.tokens
        if tokens is not None:
            tokens = tokens[index, : tokens.shape[1] - self.num_kept + longest]
        return replace(
            self,
            keep_idx=self.keep_idx[index, :longest],
            valid=None if shortest == longest else self.valid[index, :longest],
            tokens=tokens,
            **own,
            parts=None,
        )
