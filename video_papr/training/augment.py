"""Augmentation of uint8 clips; the labels move with the picture where a flip changes the action.

Letters: B clips, T frames, H x W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

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

    For datasets whose classes are the synthetic actions; on others use `Mirror`.
    """

    def __init__(self, class_names: tuple[str, ...]) -> None:
        self.tables = [label_table(class_names, swaps) for swaps in (MIRROR, FLIP, REVERSE, TRANSPOSE)]

    def __call__(self, frames: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """frames (B, T, S, S, 3) uint8, labels (B,) -> the same shapes."""
        moves = (lambda x: x.flip(3), lambda x: x.flip(2), lambda x: x.flip(1), lambda x: x.transpose(2, 3))
        for move, table in zip(moves, self.tables, strict=True):
            chosen = torch.rand(len(frames), generator=generator) < 0.5
            frames = torch.where(chosen[:, None, None, None, None], move(frames), frames)
            labels = torch.where(chosen, table[labels], labels)
        return frames, labels


class Mirror:
    """Left-right flips for half of the clips; the labels stay."""

    def __call__(self, frames: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.rand(len(frames), generator=generator) < 0.5
        return torch.where(chosen[:, None, None, None, None], frames.flip(3), frames), labels


def jitter_colors(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Permutes the colour channels of each clip and inverts a quarter of them. frames (B, T, H, W, 3) uint8."""
    order = torch.rand(len(frames), 3, generator=generator).argsort(1)
    frames = frames.gather(-1, order[:, None, None, None, :].expand_as(frames))
    inverted = torch.rand(len(frames), generator=generator) < 0.25
    return torch.where(inverted[:, None, None, None, None], 255 - frames, frames)


def random_tokens(batch: int, num_tokens: int, keep_ratio: float, generator: torch.Generator) -> Tensor:
    """A random subset of tokens for each clip: (B, K) int64, sorted; K = max(1, floor(keep_ratio * N))."""
    kept = max(1, int(keep_ratio * num_tokens))
    return torch.rand(batch, num_tokens, generator=generator).argsort(1)[:, :kept].sort(1).values
