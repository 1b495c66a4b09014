"""Hierarchical models: what mixes places sees the whole grid, what works on each place by itself only the kept ones.

A dropped place goes by its shortcut. The map is resized to the grid of each stage.

Letters: B images, H x W places of a stage, N of them in all, K kept ones, C channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .host import Handle, PerThread
from .selector import Selector

# Where places stand in a tensor: (B, N, C), (B, H, W, C) or (B, C, H, W).
LAYOUTS = ("NC", "HWC", "CHW")


def flatten_places(features: Tensor, layout: str) -> Tensor:
    """features in one of `LAYOUTS` -> (B, N, C)."""
    if layout == "CHW":
        return features.flatten(2).transpose(1, 2)
    return features.flatten(1, 2) if layout == "HWC" else features


def unflatten_places(places: Tensor, layout: str, grid: tuple[int, int]) -> Tensor:
    """places (B, N, C) -> features in one of `LAYOUTS`, on a grid of H x W = N."""
    if layout == "CHW":
        return places.transpose(1, 2).unflatten(2, grid)
    return places.unflatten(1, grid) if layout == "HWC" else places


class StageHooks:
    """Hands a thread's choice from the stem, which sees the pixels, to the blocks.

    The stem comes first in every forward pass and replaces the choice: what a pass that failed has left behind never
    reaches another one.

    Args:
        selector: chooses places for each stage.
        stages: the host's own.
    """

    def __init__(self, selector: Selector, stages: Iterable[nn.Module]) -> None:
        self.selector, self.stages = selector, tuple(stages)
        self.chosen = PerThread()

    def attach(self, stem: nn.Module, last: nn.Module) -> list[Handle]:
        """Hooks on what sees the pixels, and on what comes after the last stage."""
        return [
            stem.register_forward_pre_hook(self._check),
            stem.register_forward_hook(self._choose),
            last.register_forward_hook(self._forget),
        ]

    def around(self, stage: int, first: nn.Module, last: nn.Module, layout: str) -> list[Handle]:
        """Hooks on the first and the last module of a block's part that works on each place by itself."""
        part = _Part(self, stage, layout)
        return [first.register_forward_pre_hook(part.gather), last.register_forward_hook(part.scatter)]

    def _check(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if torch.is_grad_enabled() and any(
            getattr(stage, "grad_checkpointing", False) for stage in self.stages
        ):
            raise ValueError(
                "a pruned hierarchical model cannot recompute its blocks in the backward pass; use "
                "set_grad_checkpointing(False)"
            )
        self.selector.check(args[0])

    def _choose(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        selections = self.selector.of_stages(args[0])
        self.chosen.value = {
            stage: (found.keep_idx, (found.grid.height, found.grid.width))
            for stage, found in selections.items()
            if found.drops
        }

    def _forget(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self.chosen.value = None


class _Part:
    """The place-wise part of one block."""

    def __init__(self, hooks: StageHooks, stage: int, layout: str) -> None:
        self.hooks, self.stage, self.layout = hooks, stage, layout

    def gather(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor] | None:
        """All places -> the kept ones, as a grid of K x 1."""
        chosen = self.hooks.chosen.value
        if chosen is None or self.stage not in chosen:
            return None
        keep_idx = chosen[self.stage][0]
        places = flatten_places(args[0], self.layout)
        kept = places.gather(1, keep_idx[..., None].expand(-1, -1, places.shape[2]))
        return (unflatten_places(kept, self.layout, (keep_idx.shape[1], 1)),)

    def scatter(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """The kept places -> all, with zeros for the dropped ones, to which the block adds their shortcut."""
        chosen = self.hooks.chosen.value
        if chosen is None or self.stage not in chosen:
            return None
        keep_idx, grid = chosen[self.stage]
        kept = flatten_places(output, self.layout)
        places = kept.new_zeros(len(kept), grid[0] * grid[1], kept.shape[2])
        places = places.scatter(1, keep_idx[..., None].expand(-1, -1, kept.shape[2]), kept)
        return unflatten_places(places, self.layout, grid)
