"""Backbones that read a clip part by part: an image transformer reads every frame by itself.

The parts of all clips are the batch that runs, and what a part keeps is a selection of its own. A part that keeps
nothing does not run, and has no say in the answer.

Letters: B clips, U parts of a clip, R parts that keep something, T frames, H x W pixels, T' x H' x W' the token grid, C
values of an answer.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from .types import TokenSelection

POOLS = ("mean", "max", "concat")


def split_frames(frames: Tensor, parts: int) -> Tensor:
    """frames (B, T, H, W, 3) -> (B U, T / U, H, W, 3); a map or a mask (B, T', H', W') likewise."""
    return frames.unflatten(1, (parts, -1)).flatten(0, 1)


def split_selection(selection: TokenSelection, parts: int) -> tuple[TokenSelection, Tensor]:
    """What each part keeps (R rows), and which of the B U parts these are: (R,) int64, ascending."""
    own = selection.parts
    if own is not None:
        return own, torch.arange(len(own.keep_idx), device=own.keep_idx.device)
    kept = split_frames(selection.mask(), parts)
    rows = kept.flatten(1).any(1).nonzero()[:, 0]
    own = TokenSelection.from_mask(kept[rows])
    return replace(own, compensation=selection.compensation, cell=selection.cell), rows


def join_selection(own: TokenSelection, parts: int) -> TokenSelection:
    """What the clips keep, where each of their B U parts has chosen by itself; it is remembered as `parts`."""
    mask = own.mask().unflatten(0, (-1, parts)).flatten(1, 2)
    joined = TokenSelection.from_mask(mask)
    arrived = None if own.arrived is None else own.arrived.unflatten(0, (-1, parts))
    scored = None if own.scored is None else own.scored.unflatten(0, (-1, parts)).all(1)
    joined = replace(joined, compensation=own.compensation, cell=own.cell)
    return replace(joined, parts=own, arrived=arrived, scored=scored)


def pool_parts(answers: Tensor, rows: Tensor, parts: int, clips: int, pool: str) -> Tensor:
    """The answers (R, C) of the parts `rows` (R,) of so many clips -> (B, C), or (B, U C) where `pool` is "concat"."""
    by_clip = answers.new_zeros(clips * parts, answers.shape[1]).index_copy(0, rows, answers)
    by_clip = by_clip.unflatten(0, (clips, parts))
    if pool == "concat":
        return by_clip.flatten(1)
    ran = torch.zeros(clips * parts, dtype=torch.bool, device=rows.device).index_fill(0, rows, True)
    ran = ran.view(clips, parts, 1)
    return by_clip.masked_fill(~ran, -math.inf).amax(1) if pool == "max" else by_clip.sum(1) / ran.sum(1)
