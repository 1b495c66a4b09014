"""The pruner protocol: what a pipeline asks of every pruner, and how a pruner describes itself.

Letters: B clips, T frames, H x W pixels, N tokens of the grid, K kept tokens, P class tokens, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError, check_known
from ..core.types import CELL, COMPENSATIONS, Mark, TokenGrid, TokenSelection, unobserved
from .budget import BUDGET_OPTIONS, Budget
from .compensation import check_cell

COMPENSATION_OPTIONS = ("compensation", "compensation_cell")
MAP_OPTIONS = (*BUDGET_OPTIONS, "scope", *COMPENSATION_OPTIONS)  # of pruners that make a map from frames


@dataclass(frozen=True)
class PrunerSpec:
    """A built-in pruner described: help texts, checks and lists of names are derived from these.

    Attributes:
        build: (this spec, **options) -> the pruner.
        reads_tokens: compares tokens of the backbone, not frames; it cannot serve models of other libraries.
        variable: each clip always decides for itself how many tokens it keeps.
        compares_frames: looks at what changes over time, so that it says nothing about an image.
        for_images: one of those that `prune` offers for image models.
        shares_crops: one map may serve overlapping crops: it reads frames of any size, and scores a place by what is
            seen there.
        reads_motion: takes frames with a fourth channel, the motion that the codec's vectors tell, where they have one;
            others never see it.
        trained: has weights; random ones say little.
        published: name of published weights, if there are some.
        not_exportable: why it cannot become part of a graph; empty: it can.
    """

    name: str
    summary: str
    build: Callable[..., Pruner]
    options: tuple[str, ...]
    reads_tokens: bool = False
    variable: bool = False
    compares_frames: bool = False
    for_images: bool = False
    shares_crops: bool = False
    reads_motion: bool = False
    trained: bool = False
    published: str | None = None
    not_exportable: str = ""

    @property
    def has_ratio(self) -> bool:
        """Whether `keep_ratio` says how much is kept."""
        return "keep_ratio" in self.options


class HasGrid(Protocol):
    """A model whose tokens form a grid."""

    @property
    def grid(self) -> TokenGrid: ...


class TokenBackbone(Protocol):
    """What a pruner may use of a backbone; see `backbones.encoder.Encoder`."""

    grid: TokenGrid
    part_grid: TokenGrid
    num_prefix: int
    mean_pooled: bool
    dim: int
    blocks: nn.ModuleList
    patch_embed: Callable[..., Tensor]
    dtype: torch.dtype

    def normalize(self, frames: Tensor) -> Tensor: ...
    def add_pos_embed(self, tokens: Tensor, keep_idx: Tensor | None = None) -> Tensor: ...
    def embed(self, pixels: Tensor, keep_idx: Tensor | None = None) -> Tensor: ...
    def embed_means(self, pixels: Tensor, shares: Tensor) -> Tensor: ...
    def encode(self, tokens: Tensor, **options: Any) -> Tensor: ...


class Pruner(nn.Module):
    """Chooses tokens: the base of all pruners.

    Args:
        compensation, compensation_cell: how dropped tubelets are made up for, see `compensation`.

    Attributes:
        after_blocks: numbers of the backbone's blocks before which it chooses; empty: it reads frames alone.
    """

    after_blocks: tuple[int, ...] = ()
    fixed_by = "pruner.budget=fixed"  # what makes every clip keep as many tokens

    def __init__(
        self,
        spec: PrunerSpec,
        budget: Budget,
        *,
        compensation: str = "none",
        compensation_cell: Sequence[int] = CELL,
    ) -> None:
        super().__init__()
        self.spec, self.name, self.budget = spec, spec.name, budget
        self.compensation = check_known("pruner.compensation", compensation, COMPENSATIONS)
        self.compensation_cell = check_cell(compensation_cell)

    def significance(self, frames: Tensor, backbone: Any) -> Tensor:
        """frames (B, T, H, W, 3) uint8 -> the map that decides, (B, T', H', W') float, higher = keep."""
        raise NotImplementedError

    def select(
        self, frames: Tensor, backbone: Any, *, packed: bool = False, mark: Mark = unobserved
    ) -> TokenSelection:
        """frames (B, T, H, W, 3) uint8 -> the kept tokens of every clip.

        Args:
            backbone: that is to read them, a `TokenBackbone`; its grid is enough for pruners that read frames.
            packed: run blocks of the backbone by sequence packing where clips keep unequal numbers of tokens.
            mark: told where the stages "score" and "select" end.
        """
        raise NotImplementedError

    def selection_of(self, keep_idx: Tensor, frames: Tensor, backbone: Any) -> TokenSelection:
        """The selection that `select` would give if it chose keep_idx (B, K) int64."""
        cell = self.compensation_cell
        return TokenSelection(keep_idx, backbone.grid, compensation=self.compensation, cell=cell)

    def fit(self, backbone: Any) -> None:
        """Takes over what its options ask of a backbone, or another model; see `MapPruner.fit`."""

    def choice_macs(self, num_tokens: int, dim: int) -> int:
        """Multiply-accumulates of one choice among tokens (N, D), beside what makes the map."""
        return 0

    def check_backbone(self, backbone: Any, *, merges: bool) -> None:
        """Raises ConfigError unless the pruner fits a backbone, inside which tokens are merged or not."""
        if closed := getattr(backbone, "closed", ""):
            no = {
                f"pruner={self.name}": self.spec.reads_tokens or self.spec.variable,
                f"pruner.compensation={self.compensation}": self.compensation != "none",
                f"pruner.budget={self.budget.kind}": self.budget.variable,
            }
            found = next((what for what, refused in no.items() if refused), None)
            if found is not None:
                raise ConfigError(
                    f"{found}: {closed}, and a fixed number of its places can be left out; use a pruner that scores "
                    "frames, with pruner.budget=fixed"
                )
        if self.compensation != "pool":
            return
        if not backbone.mean_pooled:
            raise ConfigError(
                "pruner.compensation=pool: this backbone answers from its class token, there is no mean to weigh; "
                "use pruner.compensation=merge or none"
            )
        if merges:
            raise ConfigError(
                "pruner.compensation=pool: cannot be combined with merger=tome, which weighs the mean itself; "
                "use pruner.compensation=merge or none"
            )

    def check_exportable(self) -> None:
        """Raises ConfigError, with what to use instead, unless the pruner can become part of a graph."""
        if self.spec.not_exportable:
            raise ConfigError(f"pruner={self.name} cannot be exported: {self.spec.not_exportable}")
        if self.budget.variable:
            raise ConfigError(
                f"pruner={self.name} with budget {self.budget.kind!r} cannot be exported: clips would keep unequal "
                f"numbers of tokens, and a graph has one; use "
                f"{'another pruner, motion for example' if self.spec.variable else self.fixed_by}"
            )
        if self.compensation == "pool":
            raise ConfigError(
                f"pruner.compensation=pool cannot be exported with pruner={self.name}; use "
                f"pruner.compensation={'none' if self.after_blocks else 'merge or none'}"
            )
