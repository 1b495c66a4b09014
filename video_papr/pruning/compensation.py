"""Compensation for dropped tubelets: none, a weight in the mean pooling, or a token for each region.

A backbone whose answer is a mean over tokens was trained with every tubelet counting once. Drop most of the ground and
the mean shifts to what was kept. Two ways to give the dropped ones their share again, without training:

    pool     every dropped tubelet adds its weight in the mean to the nearest kept token
    merge    the dropped tubelets of a region of the grid become one more token, their mean, which counts as often in
             attention and in the mean as there are tubelets in it

Counting a token as often as it has tubelets is the "proportional attention" of ToMe (Bolya et al., ICLR 2023,
section 3); see `backbones.blocks`. Both are pure functions of a selection, clip by clip.

Letters: B clips, T' x H' x W' the token grid, N its tokens, K kept ones, R regions, P class tokens, D channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..core.types import Cell, TokenGrid, TokenSelection

_CLIPS_AT_ONCE = 8  # distances are clips x N x K


def check_cell(cell: Sequence[int]) -> Cell:
    """Returns the cell, or raises ConfigError unless it is three whole numbers of at least 1."""
    if len(cell) != 3 or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in cell):
        raise ConfigError(
            f"pruner.compensation_cell={list(cell)} must be three whole numbers of at least 1, tokens along time, "
            "height and width"
        )
    frames, height, width = cell
    return frames, height, width


def num_regions(grid: TokenGrid, cell: Cell) -> int:
    """R, the regions of a grid; those at its far borders may be smaller than a cell."""
    return math.prod(-(-side // length) for side, length in zip(grid.shape, cell, strict=True))


def nearest_kept(selection: TokenSelection) -> Tensor:
    """Which kept token is nearest to each tubelet on the grid, by steps along time, height and width squared and added.

    Of equally near ones the first counts. Padding is nobody's neighbour.

    Returns:
        (B, N) int64, places in `keep_idx`; a kept tubelet's own place for itself.
    """
    at = _coordinates(selection.grid, selection.keep_idx.device)
    found = []
    for rows in torch.arange(len(selection.keep_idx), device=at.device).split(_CLIPS_AT_ONCE):
        kept = at[selection.keep_idx[rows]]  # (b, K, 3)
        # Differences, not products: in half precision a product would be too coarse to compare.
        distance = sum((at[:, axis, None] - kept[:, None, :, axis]).square() for axis in range(3))
        assert isinstance(distance, Tensor)
        if selection.valid is not None:
            distance = distance.masked_fill(~selection.valid[rows][:, None], math.inf)
        found.append(distance.argmin(2))
    return torch.cat(found)


def pool_weights(selection: TokenSelection) -> Tensor:
    """How often each kept token counts in the mean: once, and once for every tubelet that has it as its nearest.

    Returns:
        (B, K) float32, each row adding up to N; 0 where `keep_idx` is padding.
    """
    nearest = nearest_kept(selection)
    weights = torch.zeros(selection.keep_idx.shape, device=nearest.device)
    return weights.scatter_add_(1, nearest, torch.ones_like(nearest, dtype=weights.dtype))


def region_shares(selection: TokenSelection, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """What each dropped tubelet gives to the mean of its region, and how many there are.

    Returns:
        shares (B, R, N) of `dtype`: 1 / size for the dropped tubelets of a region, 0 for all others; sizes (B, R)
        float32, 0 for a region of which everything is kept. With the K kept tokens, the sizes add up to N.
    """
    device = selection.keep_idx.device
    cells = torch.tensor(selection.cell, device=device)
    across = -(-torch.tensor(selection.grid.shape, device=device) // cells)
    t, y, x = (_coordinates(selection.grid, device).long() // cells).unbind(1)
    region = (t * across[1] + y) * across[2] + x  # (N,)
    belongs = torch.arange(num_regions(selection.grid, selection.cell), device=device)[:, None] == region
    members = (belongs & ~selection.mask().flatten(1)[:, None]).to(dtype)
    sizes = members.sum(2)
    return members / sizes.clamp(min=1)[..., None], sizes.float()


def compensate(
    selection: TokenSelection, backbone: Any, frames: Tensor, *, padding_last: bool
) -> dict[str, Any]:
    """How a backbone is to read the kept tokens of frames (B, T, H, W, 3) uint8: keyword arguments of its `forward`."""
    options: dict[str, Any] = {}
    if selection.tokens is not None:
        options |= {"tokens": selection.tokens, "block": selection.block}
    if selection.drops and selection.compensation == "merge":
        shares, sizes = region_shares(selection, torch.promote_types(backbone.dtype, torch.float32))
        kept, merged = selection.tokens, selection.merged
        if kept is None:
            pixels = backbone.normalize(frames)
            kept = backbone.embed(pixels, selection.keep_idx)
            merged = backbone.embed_means(pixels, shares)
        assert merged is not None  # the pruner that compared tokens merged them too
        prefix, valid = backbone.num_prefix, selection.valid
        tokens, sizes = append_tokens(
            kept, merged, sizes, valid=valid, num_prefix=prefix, padding_last=padding_last
        )
        return {**options, "tokens": tokens, "sizes": sizes}
    if selection.drops and selection.compensation == "pool":
        options["weights"] = pool_weights(selection)
    options["keep_idx"] = selection.keep_idx
    if selection.stages:
        options["stages"] = selection.stages
    return options if selection.valid is None else {**options, "valid": selection.valid}


def append_tokens(
    kept: Tensor,
    merged: Tensor,
    sizes: Tensor,
    *,
    valid: Tensor | None,
    num_prefix: int,
    padding_last: bool = True,
) -> tuple[Tensor, Tensor]:
    """Puts the tokens of the regions behind the kept ones.

    Args:
        kept: (B, P + K, D), P class tokens first.
        merged, sizes: (B, R, D) and (B, R).
        valid: (B, K) bool, False where a kept token is padding; None: nowhere.
        padding_last: put whatever counts nothing behind all others, as a merger expects it.

    Returns:
        tokens (B, P + K + R, D), and their sizes (B, K + R) float32 without the class tokens.
    """
    count = kept.shape[1] - num_prefix
    own = sizes.new_ones(kept.shape[0], count) if valid is None else valid.to(sizes.dtype)
    sizes = torch.cat([own, sizes], 1)
    tokens = torch.cat([kept, merged.to(kept.dtype)], 1)
    if not padding_last:
        return tokens, sizes
    order = (sizes == 0).byte().argsort(dim=1, stable=True)
    prefix, rest = tokens[:, :num_prefix], tokens[:, num_prefix:]
    rest = rest.gather(1, order[..., None].expand_as(rest))
    return torch.cat([prefix, rest], 1), sizes.gather(1, order)


def _coordinates(grid: TokenGrid, device: torch.device) -> Tensor:
    """Time, row and column of every tubelet, (N, 3) float32."""
    axes = torch.meshgrid(*(torch.arange(n, device=device) for n in grid.shape), indexing="ij")
    return torch.stack(axes, -1).flatten(0, 2).float()
