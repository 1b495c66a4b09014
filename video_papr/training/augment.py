"""Augmentation of uint8 clips; the labels move with the picture where a flip changes the action.

Letters: B clips, T frames, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..pruning.selection import keep_count
from .store import Batch

Augment = Callable[[Batch, torch.Generator], Batch]

# Mirror, flip, reversal and transposition: of frames (B, T, H, W, 3) and of their tokens (B, T', H', W') alike.
MOVES: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: x.flip(3),
    lambda x: x.flip(2),
    lambda x: x.flip(1),
    lambda x: x.transpose(2, 3),
)
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
        self.tables = [label_table(class_names, swaps) for swaps in (MIRROR, FLIP, REVERSE, TRANSPOSE)]

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Returns a batch of the same shapes."""
        for move, table in zip(MOVES, self.tables, strict=True):
            batch = _moved(batch, move, table, generator)
        return batch


def mirror(batch: Batch, generator: torch.Generator) -> Batch:
    """Left-right flips for half of the clips; the labels stay."""
    return _moved(batch, MOVES[0], None, generator)


def unchanged(batch: Batch, generator: torch.Generator) -> Batch:
    """No augmentation."""
    return batch


def _moved(
    batch: Batch, move: Callable[[Tensor], Tensor], table: Tensor | None, generator: torch.Generator
) -> Batch:
    """Moves half of the clips, their actors' tokens alike, and renames their labels by `table`."""
    chosen = torch.rand(len(batch.labels), generator=generator) < 0.5

    def some(x: Tensor) -> Tensor:
        return torch.where(chosen.view(-1, *[1] * (x.ndim - 1)), move(x), x)

    labels = batch.labels if table is None else torch.where(chosen, table[batch.labels], batch.labels)
    return Batch(some(batch.frames), labels, None if batch.actors is None else some(batch.actors))


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
