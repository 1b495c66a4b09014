"""Where the actor of a synthetic video is, and how it moves.

A track is (..., T, 5), the columns of `TRACK` at T frames. On disk x, y and radius are in pixels of the video; in a
view they are in units of its side, x to the right and y downwards from its upper left corner.

Letters: B clips, T frames, T' x H' x W' the token grid.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..core.types import TokenGrid

TRACK = ("x", "y", "radius", "angle", "visible")  # angle in radians, clockwise; visible 0 or 1
MOTION = ("x", "y", "angle", "growth", "turn", "visible")
# A tubelet belongs to the actor when the actor covers at least this share of its pixels. (Our choice.)
COVERAGE = 0.2
FINE = 8  # samples per token along each axis
# What counts as 1 over a whole clip: sides of the view, radians, logarithm of the size, and velocity x acceleration.
SCALES = {"travel": 0.5, "angle": 4.0, "growth": 0.6, "turn": 1.2}
LIMIT = 3.0  # of every motion, so that the jitter of a camera does not outweigh the actors


def in_view(track: np.ndarray, frame_size: tuple[int, int]) -> Tensor:
    """A track (T, 5) in pixels of a video -> the same in its central square, float32.

    Args:
        frame_size: (height, width) of the video.
    """
    height, width = frame_size
    side = min(height, width)
    view = torch.from_numpy(np.array(track, np.float32))
    view[:, 0] = (view[:, 0] - (width - side) / 2) / side
    view[:, 1] = (view[:, 1] - (height - side) / 2) / side
    view[:, 2] /= side
    return view


def actor_tokens(tracks: Tensor, grid: TokenGrid) -> Tensor:
    """Marks the tubelets that belong to the actor.

    Args:
        tracks: (..., T, 5) in a view; T must be a multiple of the grid's frames.

    Returns:
        (..., T', H', W') bool: the actor covers at least `COVERAGE` of the tubelet. It counts while it blinks, because
        the place where something vanishes belongs to the action.
    """
    x, y, radius = (tracks[..., i, None, None] for i in range(3))
    at_x = (torch.arange(grid.width * FINE, device=tracks.device) + 0.5) / (grid.width * FINE)
    at_y = (torch.arange(grid.height * FINE, device=tracks.device) + 0.5) / (grid.height * FINE)
    inside = (at_x - x).square() + (at_y[:, None] - y).square() < radius.square()
    cells = inside.unflatten(-1, (grid.width, FINE)).unflatten(-3, (grid.height, FINE))
    covered = cells.float().mean((-3, -1)).unflatten(-3, (grid.frames, -1)).mean(-3)
    return covered >= COVERAGE - 1e-6


def actor_motion(tracks: Tensor, steps: int) -> Tensor:
    """How the actor moves in each of `steps` equal parts of a clip.

    Args:
        tracks: (B, T, 5) in a view; T must be a multiple of `steps`.

    Returns:
        (B, steps, 6) float32, the columns of `MOTION`: velocity in x and y, turning of the actor, its growth, how its
        path bends (velocity x acceleration, positive when clockwise), each in units of `SCALES` and at most `LIMIT`;
        and 1 where it is visible, -1 where not.
    """
    frames = tracks.shape[1]
    x, y, radius, angle, visible = tracks.unbind(-1)

    def rate(values: Tensor) -> Tensor:  # change per clip; the last frame repeats the one before
        change = values.diff(dim=1) * frames
        return torch.cat([change, change[:, -1:]], 1)

    vx, vy = rate(x), rate(y)
    turn = vx * rate(vy) - vy * rate(vx)
    columns = [
        vx / SCALES["travel"],
        vy / SCALES["travel"],
        rate(angle) / SCALES["angle"],
        rate(radius.log()) / SCALES["growth"],
        turn / SCALES["turn"],
    ]
    moving = torch.stack(columns, -1).unflatten(1, (steps, -1)).mean(2).clamp(-LIMIT, LIMIT)
    seen = 2 * visible.unflatten(1, (steps, -1)).mean(2) - 1
    return torch.cat([moving, seen[..., None]], -1)
