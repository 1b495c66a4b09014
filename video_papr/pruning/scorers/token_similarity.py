"""What patch similarity computes of tokens: how much each resembles the others, and which stand for the rest.

Letters: B clips, N tokens of the grid, D channels, T' x H' x W' the token grid.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

CELL = (2, 4, 4)  # tokens of the grid that `diversity=grid` represents by one


def mean_similarity(tokens: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean cosine similarity of every token to all others of its clip: (B, N, D) -> (B, N).

    Exact in O(N D): the mean over j != i of x_i . x_j, for unit vectors x, is (x_i . sum_j x_j - x_i . x_i) / (N - 1).
    A zero vector resembles nothing (0), and so does a token that is alone. Where `valid` (B, N) is False there is no
    token.
    """
    unit = _unit(tokens)
    others: Tensor | int = max(tokens.shape[1] - 1, 1)
    if valid is not None:
        unit = unit * valid[..., None]
        others = (valid.sum(1, keepdim=True) - 1).clamp(min=1)
    together = (unit * unit.sum(1, keepdim=True)).sum(-1)
    return (together - unit.square().sum(-1)) / others


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


def _unit(tokens: Tensor) -> Tensor:
    """Vectors of length 1 in at least float32; zero stays zero."""
    return F.normalize(tokens.to(torch.promote_types(tokens.dtype, torch.float32)), dim=-1)
