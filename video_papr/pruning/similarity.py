"""Patch similarity: a token that resembles all the others says little that they do not say.

After "Efficient Patch Pruning for Vision Transformers via Patch Similarity". The tokens compared are the backbone's own
tubelet embeddings before positions are added, or its features after some blocks; nothing is trained.

Letters: B clips, N tokens of the grid, D channels, T' x H' x W' the token grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ConfigError
from ..structures import CELL as CARRY_CELL
from ..structures import TokenGrid, TokenSelection
from .budget import Budget, check_number, check_ratio
from .carrying import check_carry, check_cell
from .selection import ranks, select_counts, select_tokens

MODES = ("ratio", "threshold", "adaptive")
DIVERSITY = ("none", "cluster", "grid")
CELL = (2, 4, 4)  # tokens of the grid that `diversity=grid` represents by one


def mean_similarity(tokens: Tensor) -> Tensor:
    """Mean cosine similarity of every token to all others of its clip: (B, N, D) -> (B, N).

    Exact in O(N D): the mean over j != i of x_i . x_j, for unit vectors x, is (x_i . sum_j x_j - x_i . x_i) / (N - 1).
    A zero vector resembles nothing (0), and so does a token that is alone.
    """
    unit = _unit(tokens)
    together = (unit * unit.sum(1, keepdim=True)).sum(-1)
    return (together - unit.square().sum(-1)) / max(tokens.shape[1] - 1, 1)


def representatives(tokens: Tensor, significance: Tensor, kept: Tensor, *, tau: float) -> Tensor:
    """Adds tokens to those that are kept until every other one has a kept neighbour.

    The most significant token comes first; it is kept only if no kept token is closer than `tau` (cosine similarity
    above it).

    Cost per clip, on top of the O(N D) of `mean_similarity`: N² D multiply-accumulates for all pairs, N² bytes, and a
    pass over N bytes for each token that is added. With D = 768 on one CPU thread that is 40 ms of processor time per
    clip of 1568 tokens and 170 ms of 3136, where the mean similarity takes 1 and 3 ms (benchmarks/cluster_cost.py).

    Args:
        tokens: (B, N, D).
        significance: (B, N), higher = first.
        kept: (B, N) bool, kept in any case.
        tau: neighbours are more similar than this.

    Returns:
        (B, N) bool, `kept` and what was added.
    """
    with torch.autocast(tokens.device.type, enabled=False):  # choices should not depend on half precision
        unit = _unit(tokens)
        return torch.stack([_cover(*clip, tau) for clip in zip(unit, significance, kept, strict=True)])


def _cover(unit: Tensor, significance: Tensor, kept: Tensor, tau: float) -> Tensor:
    """One clip: unit (N, D), significance (N,), kept (N,) bool -> (N,) bool."""
    order = significance.argsort(descending=True, stable=True)
    near = unit[order] @ unit[order].T > tau
    ranked = kept[order]
    # Bytes in the processor's memory: a step per kept token is far too small a job for a GPU, and even for torch.
    pairs, chosen = near.cpu().numpy(), ranked.cpu().numpy().copy()
    covered = (ranked | near[:, ranked].any(1)).cpu().numpy().copy()
    for token in range(len(order)):
        if not covered[token]:
            chosen[token] = True
            covered |= pairs[token]
    return torch.empty_like(kept).scatter_(0, order, torch.from_numpy(chosen).to(kept.device))


def best_of_cells(significance: Tensor) -> Tensor:
    """The most significant token of every block of `CELL` tokens: (B, T', H', W') -> bool of the same shape.

    Blocks at the far edges are cut off where `CELL` does not divide the grid.
    """
    batch, *shape = significance.shape
    spare = [-n % c for n, c in zip(shape, CELL, strict=True)]
    padded = F.pad(significance, (0, spare[2], 0, spare[1], 0, spare[0]), value=float("-inf"))
    best, at = F.max_pool3d(padded[:, None], CELL, CELL, return_indices=True)
    chosen = torch.zeros(batch, padded[0].numel(), dtype=torch.bool, device=significance.device)
    chosen.scatter_(1, at.flatten(1), best.flatten(1) > float("-inf"))
    return chosen.view(padded.shape)[:, : shape[0], : shape[1], : shape[2]]


class SimilarityPruner(nn.Module):
    """Keeps the tokens that resemble the others least. It reads tokens of the backbone, not frames.

    Args:
        mode: "ratio" keeps `keep_ratio` of the tokens; "threshold" drops those with a mean similarity above `tau`;
            "adaptive" those above mean + `deviations` standard deviations of their clip.
        diversity: "none"; "cluster": see `representatives`; "grid": see `best_of_cells`. "threshold" and "adaptive"
            keep these tokens beside their own choice; "ratio" puts them first, and its count stays exact.
        cluster_tau: of `representatives`.
        after_block: blocks of the backbone that read all tokens before the choice; 0: the embeddings before positions.
        min_keep, max_keep: bounds for "threshold" and "adaptive", as shares of the grid's tokens.

    Attributes:
        name: "similarity".

    Raises:
        ConfigError: a value is out of range.
    """

    name = "similarity"

    def __init__(
        self,
        *,
        mode: str = "ratio",
        keep_ratio: float = 0.3,
        tau: float = 0.5,
        deviations: float = 0.0,
        diversity: str = "none",
        cluster_tau: float = 0.9,
        after_block: int = 0,
        min_keep: float = 0.05,
        max_keep: float = 1.0,
        carry: str = "none",
        carry_cell: Sequence[int] = CARRY_CELL,
    ) -> None:
        super().__init__()
        values = {
            "ratio": ("fixed", check_ratio("keep_ratio", keep_ratio)),
            "threshold": ("level", -check_number("tau", tau, -1, 1)),  # the map is minus the similarity
            "adaptive": ("deviation", check_number("deviations", deviations)),
        }
        for key, value, known in (("mode", mode, MODES), ("diversity", diversity, DIVERSITY)):
            if value not in known:
                raise ConfigError(f"pruner.{key}={value!r} is unknown; use one of {', '.join(known)}")
        if isinstance(after_block, bool) or not isinstance(after_block, int) or after_block < 0:
            raise ConfigError(f"pruner.after_block={after_block} must be a whole number of at least 0")
        self.budget = Budget(*values[mode], min_keep, max_keep)
        self.diversity, self.after_block = diversity, after_block
        self.cluster_tau = check_number("cluster_tau", cluster_tau, -1, 1)
        self.carry, self.carry_cell = check_carry(carry), check_cell(carry_cell)

    def significance(self, tokens: Tensor, grid: TokenGrid) -> Tensor:
        """tokens (B, N, D) -> minus their mean similarity (B, T', H', W')."""
        return -mean_similarity(tokens).view(-1, *grid.shape)

    def forward(self, tokens: Tensor, grid: TokenGrid) -> TokenSelection:
        """tokens (B, N, D) of the whole grid -> the kept tokens of every clip."""
        return replace(self._select(tokens, grid), carry=self.carry, cell=self.carry_cell)

    def _select(self, tokens: Tensor, grid: TokenGrid) -> TokenSelection:
        scores = self.significance(tokens, grid)
        if self.diversity == "none" and not self.budget.variable:
            return select_tokens(scores, keep_ratio=self.budget.value)
        counts = self.budget.counts(scores)
        if self.diversity != "none":
            wanted = self._wanted(tokens, scores)
            # Ranks instead of scores: those that are wanted come first and keep their order.
            flat = wanted.flatten(1) * grid.num_tokens - ranks(scores.flatten(1))
            scores = flat.view_as(scores)
            if self.budget.variable:  # what the mode keeps, and what diversity adds to it
                counts = self.budget.bounded(wanted.flatten(1).sum(1), grid.num_tokens)
        return select_counts(scores, counts)

    def _wanted(self, tokens: Tensor, scores: Tensor) -> Tensor:
        """The tokens that come before all others: bool (B, T', H', W')."""
        kept = torch.zeros_like(scores, dtype=torch.bool)
        if self.budget.variable:
            kept = select_counts(scores, self.budget.counts(scores)).mask()
        if self.diversity == "grid":
            return kept | best_of_cells(scores)
        flat = representatives(tokens, scores.flatten(1), kept.flatten(1), tau=self.cluster_tau)
        return flat.view_as(scores)


def _unit(tokens: Tensor) -> Tensor:
    """Vectors of length 1 in at least float32; zero stays zero."""
    return F.normalize(tokens.to(torch.promote_types(tokens.dtype, torch.float32)), dim=-1)
