"""timm's ConvNeXt and Swin, V1 and V2: each stage keeps places of its own, see `backbones.stages`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones.stages import (
    CONVNEXT,
    SWIN,
    hook_stages,
    image_size,
    kept_places,
    reductions,
    stages_of,
    stem_of,
)
from ..core.threads import PerThread
from ..core.types import TokenGrid
from .host import Family, Handle, Host, image_colors
from .selector import Selector


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
            stem.register_forward_pre_hook(self._choose),
            last.register_forward_hook(self._forget),
        ]

    def _choose(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
        if torch.is_grad_enabled() and any(
            getattr(stage, "grad_checkpointing", False) for stage in self.stages
        ):
            raise ValueError(
                "a pruned hierarchical model cannot recompute its blocks in the backward pass; use "
                "set_grad_checkpointing(False)"
            )
        pixels: Tensor = args[0]
        selections = self.selector.of_stages(pixels)
        self.chosen.value = kept_places(selections)
        for selection in selections.values():
            pixels = selection.blank(pixels)
        return (pixels,)

    def _forget(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self.chosen.value = None


def open_model(model: Any, name: str) -> Host:
    """Describes a ConvNeXt or Swin.

    Raises:
        ConfigError: the model does not read RGB.
    """
    colors = image_colors(model, model.in_chans, name)
    steps, (height, width), stem = reductions(model), image_size(model), stem_of(model)

    def attach(selector: Selector) -> list[Handle]:
        hooks = StageHooks(selector, stages_of(model))
        last = model.norm_pre if name in CONVNEXT else model.norm
        return [*hooks.attach(stem, last), *hook_stages(model, tuple(selector.reductions), hooks.chosen)]

    return Host(
        name=name,
        home=stem,
        grid=TokenGrid(1, height // steps[0], width // steps[0]),
        clip=(1, height, width),
        **colors,
        attach=attach,
        reductions=steps,
    )


def _family(classes: tuple[str, ...], drops: str, checked: str) -> Family:
    return Family("timm", classes, drops, checked, open_model, reads_images=True, keep_ratio=0.65)


FAMILIES = (
    _family(
        CONVNEXT,
        "places of each stage: norm and feed-forward part of its blocks",
        "all places computed, the blocks' output times the same masks",
    ),
    _family(
        SWIN,
        "places of each stage: the feed-forward part of its blocks",
        "all places computed, the feed-forward part's output times the same masks",
    ),
)
