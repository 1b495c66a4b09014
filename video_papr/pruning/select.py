"""From a significance map to the tokens that stay: pure tensor functions.

Letters: B clips, t x h x w the scorer's cells, T' x H' x W' the token grid, N its tokens, K kept tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.errors import ConfigError, check_known
from ..core.types import TokenGrid, TokenSelection
from .budget import check_ratio, keep_count

# The share of an even split over the frames of the grid that each frame is sure of. "place" ranks places, not tokens:
# the mean of the map over time decides which stay, in every frame.
SCOPES = {"global": 0.0, "frame": 1.0, "place": 0.0}
INTERPOLATIONS = ("linear", "bicubic")


def check_resizing(
    *, align_corners: bool = True, cell_center: float = 0.5, interpolation: str = "linear"
) -> dict[str, Any]:
    """The keyword arguments of `resize_map`, or ConfigError where they do not go together."""
    if not 0 <= cell_center <= 1 or (align_corners and cell_center != 0.5):
        raise ConfigError(
            f"pruner.cell_center={cell_center} must be a number from 0 to 1, and 0.5 with pruner.align_corners=true"
        )
    check_known("pruner.interpolation", interpolation, INTERPOLATIONS)
    if interpolation == "bicubic" and cell_center != 0.5:
        raise ConfigError(f"pruner.interpolation=bicubic needs pruner.cell_center=0.5, not {cell_center}")
    return {"align_corners": align_corners, "cell_center": cell_center, "interpolation": interpolation}


def resize_map(
    significance: Tensor,
    grid: TokenGrid,
    *,
    align_corners: bool,
    cell_center: float = 0.5,
    interpolation: str = "linear",
) -> Tensor:
    """Stretches a map (B, t, h, w) over the token grid: (B, T', H', W').

    `align_corners=True` is the paper's choice; it moves the outer cells' centres onto the outer tokens' centres, up to
    half a cell away from the pixels that they saw. False keeps every cell over its own pixels.

    Args:
        cell_center: where in its own square of pixels a cell looks, along height and width: 0.5 is the middle. A
            network whose strided 3 x 3 convolutions pad by one pixel, as X3D's do, looks at the first pixel, 0.0.
            Needs `align_corners=False`.
        interpolation: of `INTERPOLATIONS`, along height and width; "bicubic" needs `cell_center=0.5`.

    Raises ConfigError: `cell_center` lies outside 0 to 1, or is combined with `align_corners=True`.
    """
    check_resizing(align_corners=align_corners, cell_center=cell_center, interpolation=interpolation)
    if interpolation == "bicubic" and significance.shape[2:] != grid.shape[1:]:
        significance = F.interpolate(
            significance.float(), grid.shape[1:], mode="bicubic", align_corners=align_corners
        )
    if cell_center != 0.5:
        _, height, width = significance.shape[1:]
        rows = _stretch(height, grid.height, cell_center).to(significance.device)
        columns = _stretch(width, grid.width, cell_center).to(significance.device)
        significance = rows @ significance.float() @ columns.T  # (B, t, H', W'); time follows below
    if significance.shape[1:] == grid.shape:
        return significance
    return F.interpolate(
        significance[:, None].float(), grid.shape, mode="trilinear", align_corners=align_corners
    ).squeeze(1)


def _stretch(cells: int, tokens: int, cell_center: float) -> Tensor:
    """The matrix (tokens, cells) of linear interpolation; beyond the outer cells' centres their values go on."""
    at = ((torch.arange(tokens) + 0.5) * cells / tokens - cell_center).clamp(0, cells - 1)
    return (1 - (at[:, None] - torch.arange(cells)).abs()).clamp(min=0)


def token_axes(grid: TokenGrid, device: torch.device) -> tuple[Tensor, ...]:
    """Time, row and column of every token, three (T', H', W') float64."""
    return torch.meshgrid(
        *(torch.arange(n, device=device, dtype=torch.float64) for n in grid.shape), indexing="ij"
    )


def lattice(grid: TokenGrid, device: torch.device) -> Tensor:
    """Values (T', H', W') float32 whose largest K lie evenly in space and time for every K.

    The fractional part of a linear form with the powers of the plastic number's 3-D kin (a rank-1 lattice, after
    Roberts' R3 sequence).
    """
    t, y, x = token_axes(grid, device)
    ratio = 1.2207440846057596  # the positive root of g ** 4 = g + 1
    return ((t / ratio + y / ratio**2 + x / ratio**3) % 1).float()


def select_tokens(
    significance: Tensor,
    *,
    keep_ratio: float,
    min_per_frame: float = 0.0,
    uniform_share: float = 0.0,
    counted: int = 0,
) -> TokenSelection:
    """Keeps the K most significant tokens of every clip; of equally significant ones the first come first.

    Args:
        significance: (B, T', H', W') float on the token grid, higher = keep. NaN counts as least significant.
        keep_ratio: share of the grid's tokens to keep; K = `keep_count`.
        min_per_frame: each frame of the grid is sure of this share of K / T' tokens, rounded down; what is left goes to
            the best remaining tokens anywhere. 0 ranks space and time together (the paper), 1 splits K evenly.
        uniform_share: this share of K, rounded down, lies evenly in space and time, whatever the map says: what moves
            is seen against what does not. `min_per_frame` divides the rest. 0 in the paper.
        counted: so many tokens that are not in the grid count in N, and K of the grid's are kept beside them.

    Raises:
        ConfigError: `keep_ratio` is out of range.
    """
    grid = TokenGrid(*significance.shape[1:])
    count = keep_count(check_ratio("keep_ratio", keep_ratio), grid.num_tokens, counted)
    counts = torch.full((significance.shape[0],), count, device=significance.device)
    scores = _promoted(significance, counts, min_per_frame, uniform_share).flatten(1)
    best = scores.argsort(dim=1, descending=True, stable=True)[:, :count]
    return TokenSelection(best.sort(dim=1).values, grid)


def in_every_frame(selection: TokenSelection, frames: int) -> TokenSelection:
    """The places that a selection keeps on a grid of one frame, kept in each of `frames` frames."""
    grid = TokenGrid(frames, selection.grid.height, selection.grid.width)
    if selection.valid is not None:
        return TokenSelection.from_mask(selection.mask().expand(-1, *grid.shape))
    first = torch.arange(frames, device=selection.keep_idx.device) * selection.grid.num_tokens
    return TokenSelection((selection.keep_idx[:, None] + first[:, None]).flatten(1), grid)


def select_counts(
    significance: Tensor, counts: Tensor, *, min_per_frame: float = 0.0, uniform_share: float = 0.0
) -> TokenSelection:
    """Keeps the most significant tokens of every clip, each clip its own number of them.

    Args:
        significance: (B, T', H', W') as for `select_tokens`.
        counts: (B,) int64, 1 to N.
        min_per_frame, uniform_share: as for `select_tokens`, with each clip's own count.
    """
    scores = _promoted(significance, counts, min_per_frame, uniform_share)
    kept = ranks(scores.flatten(1)) < counts[:, None]
    return TokenSelection.from_mask(kept.view_as(scores))


def ranks(scores: Tensor) -> Tensor:
    """Place of each score along the last axis, 0 the highest; of equal ones the first comes first."""
    return scores.argsort(dim=-1, descending=True, stable=True).argsort(-1)


def _promoted(significance: Tensor, counts: Tensor, min_per_frame: float, uniform_share: float) -> Tensor:
    """The map as float32 without NaN, with +inf for tokens that are sure of their place among counts (B,)."""
    # NaN below all numbers, and +inf free for what is promoted.
    scores = significance.float().nan_to_num(nan=float("-inf"))
    if not (min_per_frame or uniform_share):
        return scores
    even = (uniform_share * counts.double() + 1e-9).long()
    sure = (min_per_frame * (counts - even).double() / scores.shape[1] + 1e-9).long()
    grid = TokenGrid(*scores.shape[1:])
    order = ranks(lattice(grid, scores.device).flatten()).view(grid.shape)  # the same for every clip
    spread = order < even[:, None, None, None]
    rest = scores.masked_fill(spread, float("-inf"))
    best = (ranks(rest.flatten(2)) < sure[:, None, None]).view_as(scores)
    return scores.masked_fill(best | spread, float("inf"))


def on_grid(values: Tensor, selection: TokenSelection, *, fill: float) -> Tensor:
    """values (B, K) of the tokens of a selection -> (B, T', H', W'), `fill` where the selection has none."""
    own = values.gather(1, _without_padding(selection))
    grid = values.new_full((len(values), selection.grid.num_tokens), fill)
    return grid.scatter(1, selection.keep_idx, own).view(-1, *selection.grid.shape)


def places_within(keep_idx: Tensor, selection: TokenSelection) -> Tensor:
    """Where tokens keep_idx (B, J) of the grid, all of them kept by `selection`, stand in it: (B, J)."""
    places = keep_idx.new_zeros(len(keep_idx), selection.grid.num_tokens)
    return places.scatter(1, selection.keep_idx, _without_padding(selection)).gather(1, keep_idx)


def _without_padding(selection: TokenSelection) -> Tensor:
    """The places 0 to K - 1 of every clip, (B, K); for padding, which repeats the last token, that token's own."""
    places = torch.arange(selection.num_kept, device=selection.keep_idx.device).expand_as(selection.keep_idx)
    return places if selection.valid is None else places.minimum(selection.counts()[:, None] - 1)


def gather_tokens(tokens: Tensor, keep_idx: Tensor, *, num_prefix: int = 0) -> Tensor:
    """tokens (B, P + N, D), keep_idx (B, K) of the N behind the P class tokens -> (B, P + K, D); the P always stay."""
    prefix, rest = tokens[:, :num_prefix], tokens[:, num_prefix:]
    kept = rest.gather(1, keep_idx[..., None].expand(-1, -1, rest.shape[2]))
    return torch.cat([prefix, kept], dim=1) if num_prefix else kept
