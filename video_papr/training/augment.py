"""Augmentation of uint8 clips; the labels move with the picture where a flip changes the action.

Letters: B clips, T frames, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

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
