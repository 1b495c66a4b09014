"""From a significance map to the tokens that stay: pure tensor functions.

Letters: B clips, t x h x w the scorer's cells, T' x H' x W' the token grid, N its tokens, K kept tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.errors import ConfigError
from ..core.types import TokenGrid, TokenSelection
from .budget import check_ratio, keep_count
from .scorers.rules import lattice

# The share of an even split over the frames of the grid that each frame is sure of. "place" ranks places, not tokens:
# the mean of the map over time decides which stay, in every frame.
SCOPES = {"global": 0.0, "frame": 1.0, "place": 0.0}


def scope_floor(scope: str) -> float:
    """The floor that a scope stands for; raises ConfigError unless it is one of `SCOPES`."""
    if scope not in SCOPES:
        raise ConfigError(f"pruner.scope={scope!r} is unknown; use one of {', '.join(SCOPES)}")
    return SCOPES[scope]


def check_cell_center(cell_center: float, *, align_corners: bool) -> float:
    """Returns the centre, or raises ConfigError unless it is from 0 to 1, and 0.5 where corners are aligned."""
    if not 0 <= cell_center <= 1 or (align_corners and cell_center != 0.5):
        raise ConfigError(
            f"pruner.cell_center={cell_center} must be a number from 0 to 1, and 0.5 with pruner.align_corners=true"
        )
    return cell_center


def resize_map(
    significance: Tensor, grid: TokenGrid, *, align_corners: bool, cell_center: float = 0.5
) -> Tensor:
    """Stretches a map (B, t, h, w) trilinearly over the token grid: (B, T', H', W').

    `align_corners=True` is the paper's choice; it moves the outer cells' centres onto the outer tokens' centres, up to
    half a cell away from the pixels that they saw. False keeps every cell over its own pixels.

    Args:
        cell_center: where in its own square of pixels a cell looks, along height and width: 0.5 is the middle. A
            network whose strided 3 x 3 convolutions pad by one pixel, as X3D's do, looks at the first pixel, 0.0.
            Needs `align_corners=False`.

    Raises:
        ConfigError: `cell_center` lies outside 0 to 1, or is combined with `align_corners=True`.
    """
    check_cell_center(cell_center, align_corners=align_corners)
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


def select_tokens(
    significance: Tensor, *, keep_ratio: float, floor: float = 0.0, ground: float = 0.0
) -> TokenSelection:
    """Keeps the K most significant tokens of every clip.

    Args:
        significance: (B, T', H', W') float on the token grid, higher = keep. NaN counts as least significant.
        keep_ratio: share of the grid's tokens to keep; K = `keep_count`.
        floor: each frame of the grid is sure of this share of K / T' tokens, rounded down; what is left goes to the
            best remaining tokens anywhere. 0 ranks space and time together (the paper), 1 gives every frame as many.
        ground: this share of K, rounded down, lies evenly in space and time, whatever the map says: what moves is
            seen against what does not. The floor divides the rest. 0 in the paper.

    Raises:
        ConfigError: `keep_ratio` is out of range.
    """
    grid = TokenGrid(*significance.shape[1:])
    count = keep_count(check_ratio("keep_ratio", keep_ratio), grid.num_tokens)
    scores = _rankable(significance)
    even = int(ground * count + 1e-9)
    sure = int(floor * (count - even) / grid.frames + 1e-9)
    if even:
        spread = _lattice_ranks(scores) < even
        scores = _promote_per_frame(scores.masked_fill(spread, float("-inf")), sure)
        scores = scores.masked_fill(spread, float("inf"))
    else:
        scores = _promote_per_frame(scores, sure)
    keep_idx = scores.flatten(1).topk(count, dim=1, sorted=False).indices.sort(dim=1).values
    return TokenSelection(keep_idx, grid)


def in_every_frame(selection: TokenSelection, frames: int) -> TokenSelection:
    """The places that a selection keeps on a grid of one frame, kept in each of `frames` frames."""
    grid = TokenGrid(frames, selection.grid.height, selection.grid.width)
    if selection.valid is not None:
        return TokenSelection.from_mask(selection.mask().expand(-1, *grid.shape))
    first = torch.arange(frames, device=selection.keep_idx.device) * selection.grid.num_tokens
    return TokenSelection((selection.keep_idx[:, None] + first[:, None]).flatten(1), grid)


def select_counts(
    significance: Tensor, counts: Tensor, *, floor: float = 0.0, ground: float = 0.0
) -> TokenSelection:
    """Keeps the most significant tokens of every clip, each clip its own number of them.

    Args:
        significance: (B, T', H', W') as for `select_tokens`.
        counts: (B,) int64, 1 to N.
        floor, ground: as for `select_tokens`, with each clip's own count.
    """
    scores = _rankable(significance)
    even = (ground * counts.double() + 1e-9).long()
    sure = (floor * (counts - even).double() / scores.shape[1] + 1e-9).long()
    spread = _lattice_ranks(scores) < even[:, None, None, None] if ground else None
    rest = scores if spread is None else scores.masked_fill(spread, float("-inf"))
    best = (ranks(rest.flatten(2)) < sure[:, None, None]).view_as(scores)
    scores = scores.masked_fill(best if spread is None else best | spread, float("inf"))
    kept = ranks(scores.flatten(1)) < counts[:, None]
    return TokenSelection.from_mask(kept.view_as(scores))


def ranks(scores: Tensor) -> Tensor:
    """Place of each score along the last axis, 0 the highest; of equal ones the first comes first."""
    return scores.argsort(dim=-1, descending=True, stable=True).argsort(-1)


def _lattice_ranks(scores: Tensor) -> Tensor:
    """Place of each token of the grid in the order of the even lattice, the same for every clip: (T', H', W')."""
    grid = TokenGrid(*scores.shape[1:])
    return ranks(lattice(grid, scores.device).flatten()).view(grid.shape)


def _rankable(significance: Tensor) -> Tensor:
    """float32 without NaN, which counts as least significant, and with +inf free for what is promoted."""
    return significance.float().nan_to_num(nan=float("-inf"), posinf=3e38)


def _promote_per_frame(scores: Tensor, sure: int) -> Tensor:
    """Lifts the best `sure` tokens of each frame above all others. scores (B, T', H', W') -> the same shape."""
    if sure == 0:
        return scores
    flat = scores.flatten(2)
    best = flat.topk(sure, dim=2, sorted=False).indices
    return flat.scatter(2, best, float("inf")).view_as(scores)


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
