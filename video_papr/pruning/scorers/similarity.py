"""Patch similarity: a token that resembles all the others says little that they do not say.

After "Efficient Patch Pruning for Vision Transformers via Patch Similarity". The tokens compared are the backbone's own
tubelet embeddings before positions are added, or its features after some blocks; nothing is trained.

Letters: B clips, P class tokens, N tokens of the grid, K kept tokens, D channels, T' x H' x W' the token grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ...core.errors import ConfigError, check_known
from ...core.types import Mark, TokenGrid, TokenSelection, unobserved
from ..budget import Budget, check_number, check_ratio
from ..compensation import region_shares
from ..protocol import COMPENSATION_OPTIONS, Pruner, PrunerSpec, TokenBackbone
from ..select import gather_tokens, on_grid, places_within, ranks, select_counts, select_tokens
from .token_similarity import best_of_cells, mean_similarity, representatives

DIVERSITY = ("none", "cluster", "grid")
Arrival = tuple[Tensor, Tensor, TokenSelection | None]
"""Tokens (B, P + K, D) that come to a place where they are chosen from, what is compared of them (B, K, D), and which
of the grid's tokens these K are; None: all."""


class SimilarityPruner(Pruner):
    """Keeps the tokens that resemble the others least. It reads tokens of the backbone, not frames.

    At several places it prunes step by step: the tokens that are left are compared with each other again. "ratio" drops
    an equal share at each of S places, so that after the s-th `keep_ratio` ** (s / S) of the grid's tokens are left;
    the other modes apply their rule at each, and `max_keep` counts as `keep_ratio` does there.

    Args:
        mode: "ratio" keeps `keep_ratio` of the tokens; "threshold" drops those with a mean similarity above `tau`;
            "adaptive" those above mean + `deviations` standard deviations of their clip.
        diversity: "none"; "cluster": see `representatives`; "grid": see `best_of_cells`. "threshold" and "adaptive"
            keep these tokens beside their own choice; "ratio" puts them first, and its count stays exact.
        after_block: blocks of the backbone that read all tokens before the choice; 0: the embeddings before positions.
            Several numbers, ascending, are several places.
        min_keep, max_keep: bounds for "threshold" and "adaptive", as shares of the grid's tokens.

    Raises ConfigError: a value is out of range, or several places are combined with compensation="merge".
    """

    fixed_by = "pruner.mode=ratio"

    def __init__(
        self,
        spec: PrunerSpec | None = None,
        *,
        mode: str = "ratio",
        keep_ratio: float = 0.3,
        tau: float = 0.5,
        deviations: float = 0.0,
        diversity: str = "none",
        cluster_tau: float = 0.9,
        after_block: int | Sequence[int] = 0,
        min_keep: float = 0.05,
        max_keep: float = 1.0,
        **compensation: Any,
    ) -> None:
        values = {
            "ratio": ("fixed", check_ratio("keep_ratio", keep_ratio)),
            "threshold": ("level", -check_number("tau", tau, -1, 1)),  # the map is minus the similarity
            "adaptive": ("deviation", check_number("deviations", deviations)),
        }
        budget = Budget(*values[check_known("pruner.mode", mode, values)], min_keep, max_keep)
        super().__init__(SPECS[0] if spec is None else spec, budget, **compensation)
        self.diversity = check_known("pruner.diversity", diversity, DIVERSITY)
        self.after_blocks = check_places(after_block)
        self.cluster_tau = check_number("cluster_tau", cluster_tau, -1, 1)
        if self.compensation == "merge" and len(self.after_blocks) > 1:
            raise ConfigError(
                f"pruner.compensation=merge: cannot be combined with pruner.after_block={list(self.after_blocks)}, "
                "whose dropped tokens leave at different blocks; use one place, or pruner.compensation=pool or none"
            )

    def significance(self, frames: Tensor, backbone: TokenBackbone) -> Tensor:
        """frames (B, T, H, W, 3) uint8 -> the map that decides, (B, T', H', W').

        Where several places decide, a token has the value of the last one that it came to, less 2 for each place behind
        that: the map is minus a mean cosine, from -1 to 1, so what came further is always higher.
        """
        found: Tensor | None = None
        for _, features, present in self.arrivals(frames, backbone):
            scores = self.score(features, backbone.part_grid, present)
            found = scores if found is None or present is None else scores.where(present.mask(), found - 2)
        assert found is not None
        return found

    def select(
        self, frames: Tensor, backbone: TokenBackbone, *, packed: bool = False, mark: Mark = unobserved
    ) -> TokenSelection:
        """The kept tokens of every clip, as far as they have been computed for the choice; see `Pruner.select`."""
        arrived: list[Tensor] = []
        for tokens, features, present in self.arrivals(frames, backbone, packed):  # noqa: B007
            if present is not None and self.budget.variable:
                arrived.append(present.counts())
        last = len(self.after_blocks) - 1
        selection = self.choose(features, backbone.part_grid, present=present, place=last)
        merged = None
        if selection.compensation == "merge":
            exact = torch.promote_types(tokens.dtype, torch.float32)
            merged = region_shares(selection, exact)[0] @ tokens[:, backbone.num_prefix :].to(exact)
        selection = replace(
            selection,
            tokens=_kept(tokens, selection, present, backbone.num_prefix),
            block=self.after_blocks[-1],
            merged=merged,
            arrived=torch.stack(arrived, 1) if arrived else None,
        )
        mark("select")
        return selection

    def selection_of(self, keep_idx: Tensor, frames: Tensor, backbone: TokenBackbone) -> TokenSelection:
        """Of one place; see `Pruner.selection_of`."""
        tokens, _, _ = next(self.arrivals(frames, backbone))
        kept = gather_tokens(tokens, keep_idx, num_prefix=backbone.num_prefix)
        return TokenSelection(keep_idx, backbone.part_grid, tokens=kept, block=self.after_blocks[0])

    def arrivals(self, frames: Tensor, backbone: TokenBackbone, packed: bool = False) -> Iterator[Arrival]:
        """Place by place, what comes to it after the choices before it: see `Arrival`."""
        prefix = backbone.num_prefix
        features = backbone.patch_embed(backbone.normalize(frames))
        tokens = backbone.add_pos_embed(features)
        if self.after_blocks[0] > 0:  # otherwise the embeddings before positions are compared
            tokens = backbone.encode(tokens, stop=self.after_blocks[0])
            features = tokens[:, prefix:]
        present: TokenSelection | None = None
        yield tokens, features, present
        for place, (first, stop) in enumerate(pairwise(self.after_blocks)):
            chosen = self.choose(features, backbone.part_grid, present=present, place=place)
            tokens, present = _kept(tokens, chosen, present, prefix), chosen
            tokens = backbone.encode(tokens, first=first, stop=stop, valid=chosen.valid, packed=packed)
            features = tokens[:, prefix:]
            yield tokens, features, present

    def score(self, tokens: Tensor, grid: TokenGrid, present: TokenSelection | None = None) -> Tensor:
        """tokens (B, N, D) -> minus their mean similarity (B, T', H', W').

        `present` says which tokens of the grid these are, (B, K, D) then, None: all; -inf where there is none.
        """
        if present is None:
            return -mean_similarity(tokens).view(-1, *grid.shape)
        scores = -mean_similarity(tokens, present.valid)
        # NaN is no reason to rank a token below those that are gone.
        scores = scores.nan_to_num(nan=torch.finfo(scores.dtype).min)
        return on_grid(scores, present, fill=float("-inf"))

    def choose(
        self, tokens: Tensor, grid: TokenGrid, *, present: TokenSelection | None = None, place: int = 0
    ) -> TokenSelection:
        """tokens (B, N, D) of the whole grid -> the kept tokens of every clip.

        Args:
            present: the tokens (B, K, D) are these of the grid; None: all.
            place: number of the place, in `after_blocks`.
        """
        budget = self._budget(place)
        scores = self.score(tokens, grid, present)
        if self.diversity == "none" and not budget.variable:
            selection = select_tokens(scores, keep_ratio=budget.value)
        else:
            selection = self._select(tokens, scores, budget, present)
        return replace(selection, compensation=self.compensation, cell=self.compensation_cell)

    def choice_macs(self, num_tokens: int, dim: int) -> int:
        """All pairs of tokens, with diversity=cluster; see `Pruner.choice_macs`."""
        return num_tokens**2 * dim if self.diversity == "cluster" else 0

    def check_backbone(self, backbone: TokenBackbone, *, merges: bool) -> None:
        """Raises ConfigError unless the backbone has blocks left behind the last place; see `Pruner`."""
        super().check_backbone(backbone, merges=merges)
        depth, places = len(backbone.blocks), list(self.after_blocks)
        if places[-1] >= depth:
            raise ConfigError(
                f"pruner.after_block={places if len(places) > 1 else places[0]} must be below the backbone's {depth} "
                "blocks"
            )

    def check_exportable(self) -> None:
        """Raises ConfigError unless the choice is made at one place, by tensor operations alone; see `Pruner`."""
        super().check_exportable()
        if self.compensation == "merge":
            raise ConfigError(
                "pruner.compensation=merge cannot be exported with pruner=similarity; use pruner.compensation=none"
            )
        if len(self.after_blocks) > 1:
            raise ConfigError(
                f"pruner.after_block={list(self.after_blocks)} cannot be exported: a graph says what is kept in the "
                "end, and its check would have to know each place's choice; use one place"
            )
        if self.diversity != "none":
            raise ConfigError(
                f"pruner.diversity={self.diversity} cannot be exported: it goes from token to token outside of torch's "
                "graph; use pruner.diversity=none"
            )

    def _budget(self, place: int) -> Budget:
        """What may be left behind a place: of S places, each drops an equal share."""
        part = (place + 1) / len(self.after_blocks)
        if self.budget.variable:
            return replace(self.budget, max_keep=self.budget.max_keep**part)
        return replace(self.budget, value=self.budget.value**part)

    def _select(
        self, tokens: Tensor, scores: Tensor, budget: Budget, present: TokenSelection | None
    ) -> TokenSelection:
        def at_most_present(counts: Tensor) -> Tensor:
            return counts if present is None else counts.minimum(present.counts())

        counts = at_most_present(budget.counts(scores, None if present is None else present.mask()))
        if self.diversity != "none":
            kept = torch.zeros_like(scores, dtype=torch.bool)
            if budget.variable:
                kept = select_counts(scores, counts).mask()
            wanted = self._wanted(tokens, scores, kept, present)
            num_tokens = scores[0].numel()
            # Ranks instead of scores: those that are wanted come first and keep their order.
            flat = wanted.flatten(1) * num_tokens - ranks(scores.flatten(1))
            scores = flat.view_as(scores)
            if budget.variable:  # what the mode keeps, and what diversity adds to it
                counts = at_most_present(budget.bounded(wanted.flatten(1).sum(1), num_tokens))
        return select_counts(scores, counts)

    def _wanted(self, tokens: Tensor, scores: Tensor, kept: Tensor, present: TokenSelection | None) -> Tensor:
        """The tokens that come before all others, beside those that the mode keeps: bool (B, T', H', W')."""
        if self.diversity == "grid":
            return kept | best_of_cells(scores)
        flat, own = scores.flatten(1), kept.flatten(1)
        if present is None:
            return representatives(tokens, flat, own, tau=self.cluster_tau).view_as(scores)
        flat, own = (values.gather(1, present.keep_idx) for values in (flat, own))
        if present.valid is not None:  # padding comes last, when nothing depends on it any more
            flat, own = flat.masked_fill(~present.valid, float("-inf")), own & present.valid
        return on_grid(representatives(tokens, flat, own, tau=self.cluster_tau), present, fill=False)


def check_places(after_block: object) -> tuple[int, ...]:
    """One whole number, or several that ascend, as a tuple.

    Raises ConfigError: it is neither.
    """
    several = isinstance(after_block, (list, tuple))
    places: list[Any] = list(after_block) if isinstance(after_block, (list, tuple)) else [after_block]
    natural = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in places)
    if not natural or not places or any(one >= two for one, two in pairwise(places)):
        right = (
            "ascending whole numbers of at least 0, as in [3,6,9]"
            if several
            else "a whole number of at least 0"
        )
        raise ConfigError(f"pruner.after_block={places if several else after_block} must be {right}")
    return tuple(places)


def _kept(tokens: Tensor, chosen: TokenSelection, present: TokenSelection | None, num_prefix: int) -> Tensor:
    """tokens (B, P + K, D), the K of `present`, None: all of the grid -> those that are chosen of them."""
    places = chosen.keep_idx if present is None else places_within(chosen.keep_idx, present)
    return gather_tokens(tokens, places, num_prefix=num_prefix)


SPECS = (
    PrunerSpec(
        "similarity",
        "Keeps what resembles the rest of the clip least, in the model's own embedding.",
        SimilarityPruner,
        (
            *("mode", "keep_ratio", "tau", "deviations", "diversity", "cluster_tau", "after_block"),
            *("min_keep", "max_keep", *COMPENSATION_OPTIONS),
        ),
        reads_tokens=True,
    ),
)
