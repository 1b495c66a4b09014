"""Augmentation of uint8 clips; the labels move with the picture where a flip changes the action.

Letters: B clips, T frames, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .store import Batch

Augment = Callable[[Batch, torch.Generator], Batch]


# What the class of a synthetic action becomes in the mirror, for the classes that it changes.
MIRRORED = {"move_left": "move_right", "rotate_cw": "rotate_ccw", "circle_cw": "circle_ccw"}


def label_table(class_names: tuple[str, ...], swaps: dict[str, str]) -> Tensor:
    """The permutation of labels (classes,) int64 that exchanges the two names of every swap that is present."""
    table = torch.arange(len(class_names))
    for one, other in swaps.items():
        if one in class_names and other in class_names:
            a, b = class_names.index(one), class_names.index(other)
            table[a], table[b] = b, a
    return table


class MirrorActions:
    """Left-right flips for half of the clips, with the labels that they imply.

    For datasets whose classes are the synthetic actions; on others use `mirror`. Turning a scene over or playing it
    backwards would rename its action as well, but circles start at their top and rotations upright: such clips would
    not be of this world.
    """

    def __init__(self, class_names: tuple[str, ...]) -> None:
        self.table = label_table(class_names, MIRRORED)

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Returns a batch of the same shapes."""
        return _mirrored(batch, self.table, generator)


def mirror(batch: Batch, generator: torch.Generator) -> Batch:
    """Left-right flips for half of the clips; the labels stay."""
    return _mirrored(batch, None, generator)


def natural(batch: Batch, generator: torch.Generator) -> Batch:
    """For small sets of real videos: flips, a part of the picture enlarged, other light. Each clip has its own.

    A part has 0.6 to 1 times the picture's width and height; contrast changes by up to 30 %, brightness by up to 40
    grey levels. All frames of a clip change alike, so motion stays motion. Labels stay.

    Raises ValueError: the batch has tracks, which these changes would leave behind.
    """
    if batch.tracks is not None:
        raise ValueError("natural() leaves tracks behind; use MirrorActions")
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


def mirrored_tracks(tracks: Tensor) -> Tensor:
    """tracks (..., T, 5) as `data.tracks` has them -> the same actors in the mirror.

    The look of an actor is symmetric about the axis that its angle points along, so its mirror image is a turned actor.
    """
    x, y, radius, angle, visible = tracks.unbind(-1)
    return torch.stack([1 - x, y, radius, math.pi - angle, visible], -1)


def _mirrored(batch: Batch, table: Tensor | None, generator: torch.Generator) -> Batch:
    """Mirrors half of the clips, their actors with them, and renames their labels by `table`."""
    chosen = torch.rand(len(batch.labels), generator=generator) < 0.5

    def some(moved: Tensor, still: Tensor) -> Tensor:
        return torch.where(chosen.view(-1, *[1] * (still.ndim - 1)), moved, still)

    labels = batch.labels if table is None else some(table[batch.labels], batch.labels)
    tracks = None if batch.tracks is None else some(mirrored_tracks(batch.tracks), batch.tracks)
    return Batch(some(batch.frames.flip(3), batch.frames), labels, tracks)


def jitter_colors(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Permutes the colour channels of each clip and inverts a quarter of them. frames (B, T, H, W, 3) uint8."""
    order = torch.rand(len(frames), 3, generator=generator).argsort(1)
    frames = frames.gather(-1, order[:, None, None, None, :].expand_as(frames))
    inverted = torch.rand(len(frames), generator=generator) < 0.25
    return torch.where(inverted[:, None, None, None, None], 255 - frames, frames)
