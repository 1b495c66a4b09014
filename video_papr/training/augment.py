"""Augmentation of uint8 clips; the labels move with the picture where a flip changes the action.

Letters: B clips, T frames, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.tracks import TRACK
from ..pruning.budget import keep_count
from .store import Batch

Augment = Callable[[Batch, torch.Generator], Batch]


@dataclass(frozen=True)
class Move:
    """A symmetry of clips: what it does to frames (B, T, H, W, 3) and to the tracks (B, T, 5) of their actors."""

    frames: Callable[[Tensor], Tensor]
    tracks: Callable[[Tensor], Tensor]


def _changed(tracks: Tensor, **columns: Tensor) -> Tensor:
    """tracks (B, T, 5) with some columns replaced by (B, T)."""
    return torch.stack([columns.get(name, tracks[..., i]) for i, name in enumerate(TRACK)], -1)


# The actor's look is symmetric about the axis that its angle points along: a reflection reflects that axis.
MOVES = {
    "mirror": Move(lambda x: x.flip(3), lambda t: _changed(t, x=1 - t[..., 0], angle=math.pi - t[..., 3])),
    "flip": Move(lambda x: x.flip(2), lambda t: _changed(t, y=1 - t[..., 1], angle=-t[..., 3])),
    "reverse": Move(lambda x: x.flip(1), lambda t: t.flip(1)),
    "transpose": Move(
        lambda x: x.transpose(2, 3),
        lambda t: _changed(t, x=t[..., 1], y=t[..., 0], angle=math.pi / 2 - t[..., 3]),
    ),
}
# What the class of a synthetic action becomes under each symmetry, for the classes that it changes.
MIRROR = {"move_left": "move_right", "rotate_cw": "rotate_ccw", "circle_cw": "circle_ccw"}
FLIP = {"move_up": "move_down", "rotate_cw": "rotate_ccw", "circle_cw": "circle_ccw"}
REVERSE = {**MIRROR, "move_up": "move_down", "zoom_in": "zoom_out"}
TRANSPOSE = {
    "move_left": "move_up",
    "move_right": "move_down",
    "rotate_cw": "rotate_ccw",
    "circle_cw": "circle_ccw",
}


def label_table(class_names: tuple[str, ...], swaps: dict[str, str]) -> Tensor:
    """The permutation of labels (classes,) int64 that exchanges the two names of every swap that is present."""
    table = torch.arange(len(class_names))
    for one, other in swaps.items():
        if one in class_names and other in class_names:
            a, b = class_names.index(one), class_names.index(other)
            table[a], table[b] = b, a
    return table


class ActionSymmetries:
    """Mirror, flip, time reversal and transposition, each for half of the clips, with the labels they imply.

    For datasets whose classes are the synthetic actions; on others use `mirror`.
    """

    def __init__(self, class_names: tuple[str, ...]) -> None:
        swaps = (MIRROR, FLIP, REVERSE, TRANSPOSE)
        self.tables = [label_table(class_names, names) for names in swaps]

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Returns a batch of the same shapes."""
        for move, table in zip(MOVES.values(), self.tables, strict=True):
            batch = _moved(batch, move, table, generator)
        return batch


def mirror(batch: Batch, generator: torch.Generator) -> Batch:
    """Left-right flips for half of the clips; the labels stay."""
    return _moved(batch, MOVES["mirror"], None, generator)


def natural(batch: Batch, generator: torch.Generator) -> Batch:
    """For small sets of real videos: flips, a part of the picture enlarged, other light. Each clip has its own.

    A part has 0.6 to 1 times the picture's width and height; contrast changes by up to 30 %, brightness by up to 40
    grey levels. All frames of a clip change alike, so motion stays motion. Labels stay.

    Raises:
        ValueError: the batch has tracks, which these changes would leave behind.
    """
    if batch.tracks is not None:
        raise ValueError("natural() leaves tracks behind; use ActionSymmetries")
    batch = mirror(batch, generator)
    clips = len(batch.labels)
    sides = 0.6 + 0.4 * torch.rand(clips, 2, generator=generator)
    corners = (1 - sides) * torch.rand(clips, 2, generator=generator)
    light = torch.rand(clips, 2, generator=generator) * 2 - 1
    frames = enlarge(batch.frames, corners, sides)
    return batch._replace(frames=relight(frames, 1 + 0.3 * light[:, 0], 40 * light[:, 1]))


def enlarge(frames: Tensor, corners: Tensor, sides: Tensor) -> Tensor:
    """A part of each clip, stretched over the whole picture: frames (B, T, H, W, 3) uint8 -> the same shape.

    Args:
        corners: (B, 2) left and top of the part, as shares of width and height.
        sides: (B, 2) its width and height, likewise; corners + sides <= 1.
    """
    length = frames.shape[1]
    shift = 2 * corners + sides - 1  # of the middle, where the picture goes from -1 to 1
    theta = torch.cat([torch.diag_embed(sides), shift[..., None]], 2)  # (B, 2, 3)
    images = frames.permute(0, 1, 4, 2, 3).flatten(1, 2).float()  # (B, T * 3, H, W)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    drawn = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return drawn.round().clamp(0, 255).byte().unflatten(1, (length, 3)).permute(0, 1, 3, 4, 2)


def relight(frames: Tensor, contrast: Tensor, brightness: Tensor) -> Tensor:
    """frames (B, T, H, W, 3) uint8, contrast (B,) around middle grey, brightness (B,) grey levels -> the same shape."""
    factor, offset = (value.view(-1, 1, 1, 1, 1) for value in (contrast, brightness))
    return ((frames.float() - 128) * factor + 128 + offset).round().clamp(0, 255).byte()


def unchanged(batch: Batch, generator: torch.Generator) -> Batch:
    """No augmentation."""
    return batch


def _moved(batch: Batch, move: Move, table: Tensor | None, generator: torch.Generator) -> Batch:
    """Moves half of the clips, their actors with them, and renames their labels by `table`."""
    chosen = torch.rand(len(batch.labels), generator=generator) < 0.5

    def some(moved: Tensor, still: Tensor) -> Tensor:
        return torch.where(chosen.view(-1, *[1] * (still.ndim - 1)), moved, still)

    labels = batch.labels if table is None else some(table[batch.labels], batch.labels)
    tracks = None if batch.tracks is None else some(move.tracks(batch.tracks), batch.tracks)
    return Batch(some(move.frames(batch.frames), batch.frames), labels, tracks)


def jitter_colors(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Permutes the colour channels of each clip and inverts a quarter of them. frames (B, T, H, W, 3) uint8."""
    order = torch.rand(len(frames), 3, generator=generator).argsort(1)
    frames = frames.gather(-1, order[:, None, None, None, :].expand_as(frames))
    inverted = torch.rand(len(frames), generator=generator) < 0.25
    return torch.where(inverted[:, None, None, None, None], 255 - frames, frames)


def random_tokens(batch: int, num_tokens: int, keep_ratio: float, generator: torch.Generator) -> Tensor:
    """A random subset of tokens for each clip: (B, K) int64, sorted; K = `keep_count`."""
    kept = keep_count(keep_ratio, num_tokens)
    return torch.rand(batch, num_tokens, generator=generator).argsort(1)[:, :kept].sort(1).values
