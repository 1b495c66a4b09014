"""One map for all crops of a clip: the part of the frame that they cover together is scored once, and the map is cut.

The crops of a view setting overlap (three of 224 pixels in a frame of 398 x 224 see most of it twice), so a scorer that
reads each of them sees the same pixels again and again. Rules that look at one tubelet at a time give a crop the same
map either way, where the crop's corner falls on the token grid; between its lines the map is interpolated. A ConvNet
sees beyond the border of the crop here, which a crop of its own does not show it, so its maps differ a little.

Letters: N clips, R crops of a clip, T frames, S x S' pixels of a crop, T' x H' x W' the token grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ..core.types import TokenGrid

Corner = tuple[int, int]
Score = Callable[[Tensor, TokenGrid], Tensor]


def join_crops(views: Tensor, corners: Sequence[Corner]) -> Tensor | None:
    """Puts crops back where they were cut.

    Args:
        views: (N * R, T, S, S', 3), the crops of one clip adjacent.
        corners: (top, left) of the R crops in the frame, ascending along one side.

    Returns:
        the part of the frame that they cover, (N, T, H, W, 3); None where they leave a gap.
    """
    clips = views.unflatten(0, (-1, len(corners)))
    height, width = views.shape[2:4]
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(corners)]
    if any(down > height or right > width for down, right in steps):
        return None
    (top, left), (bottom, right) = corners[0], corners[-1]
    joined = views.new_empty(
        len(clips), views.shape[1], bottom - top + height, right - left + width, views.shape[-1]
    )
    for number, (y, x) in enumerate(corners):
        joined[:, :, y - top : y - top + height, x - left : x - left + width] = clips[:, number]
    return joined


def shared_maps(score: Score, views: Tensor, corners: Sequence[Corner], grid: TokenGrid) -> Tensor | None:
    """The maps of all crops from one pass over each clip.

    Args:
        score: (frames (N, T, H, W, 3) uint8, grid) -> (N, T', H', W'), for frames of any height and width.
        views, corners: see `join_crops`.
        grid: of one crop.

    Returns:
        (N * R, T', H', W') float, the crops of one clip adjacent; None where the crops leave a gap.
    """
    joined = join_crops(views, corners)
    if joined is None:
        return None
    cell = views.shape[2] // grid.height, views.shape[3] // grid.width
    sides = [-(-length // pixels) for length, pixels in zip(joined.shape[2:4], cell, strict=True)]
    rows, columns = (  # whole tokens: the last row and column of pixels go on
        torch.arange(count * pixels, device=views.device).clamp(max=length - 1)
        for count, pixels, length in zip(sides, cell, joined.shape[2:4], strict=True)
    )
    maps = score(joined[:, :, rows][:, :, :, columns], TokenGrid(grid.frames, *sides))
    top, left = corners[0]
    windows = [
        _window(_window(maps, 2, (y - top) / cell[0], grid.height), 3, (x - left) / cell[1], grid.width)
        for y, x in corners
    ]
    return torch.stack(windows, 1).flatten(0, 1)


def _window(maps: Tensor, axis: int, start: float, length: int) -> Tensor:
    """`length` values along an axis from a place between the tokens, linearly interpolated."""
    first, part = int(start), start - int(start)
    near = maps.narrow(axis, first, length)
    return near if part == 0 else (1 - part) * near + part * maps.narrow(axis, first + 1, length)
