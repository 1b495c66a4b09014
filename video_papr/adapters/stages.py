"""timm's ConvNeXt and Swin, V1 and V2: what mixes places sees the whole grid, what works on each only the kept ones.

A dropped place goes by its shortcut. The choice of each stage waits in a `PerThread` while a pass runs; hooks on the
model's own layers follow it. ConvNeXt V2's global response norm takes its statistics over the kept places.

Letters: B images, H x W places of a stage, N of them in all, K kept ones, C channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..core.threads import PerThread
from ..core.types import TokenGrid
from .host import Family, Handle, Host, image_colors
from .selector import Selector

CONVNEXT, SWIN = ("ConvNeXt",), ("SwinTransformer", "SwinTransformerV2")  # timm's classes


def flatten_places(features: Tensor, layout: str) -> Tensor:
    """features (B, N, C), (B, H, W, C) or (B, C, H, W), as the layout "NC", "HWC" or "CHW" says -> (B, N, C)."""
    if layout == "CHW":
        return features.flatten(2).transpose(1, 2)
    return features.flatten(1, 2) if layout == "HWC" else features


def unflatten_places(places: Tensor, layout: str, grid: tuple[int, int]) -> Tensor:
    """places (B, N, C) -> features in a layout of `flatten_places`, on a grid of H x W = N."""
    if layout == "CHW":
        return places.transpose(1, 2).unflatten(2, grid)
    return places.unflatten(1, grid) if layout == "HWC" else places


def stages_of(model: Any) -> tuple[Any, ...]:
    """The stages of a ConvNeXt or Swin, each with its `blocks`."""
    return tuple(model.stages if hasattr(model, "stages") else model.layers)


def _place_wise(block: Any) -> tuple[nn.Module, nn.Module, str] | None:
    """First and last module of a block's part that works on each place by itself, and the layout of what they see.

    None: depth pruning has merged the block into one convolution, which runs everywhere.
    """
    if isinstance(block, nn.Conv2d):
        return None
    if hasattr(block, "joint"):
        return block.joint, block.joint, "CHW"
    if hasattr(block, "conv_dw"):
        return block.norm, block.mlp, "CHW" if block.use_conv_mlp else "HWC"
    # V1 normalises what goes into the feed-forward part, V2 what comes out of it.
    second = type(block).__name__ == "SwinTransformerV2Block"
    return (block.mlp, block.norm2, "NC") if second else (block.norm2, block.mlp, "NC")


def hook_stages(model: Any, stages: Sequence[int], chosen: PerThread) -> list[RemovableHandle]:
    """Hooks that make the blocks of some stages follow `chosen.value`: stage -> its selection, see `StageHooks`."""
    handles = []
    for stage in stages:
        for block in stages_of(model)[stage].blocks:
            parts = _place_wise(block)
            if parts is None:
                continue
            first, last, layout = parts
            part = _Part(chosen, stage, layout)
            handles += [
                first.register_forward_pre_hook(part.gather),
                last.register_forward_hook(part.scatter),
            ]
    return handles


class _Part:
    """The place-wise part of one block."""

    def __init__(self, chosen: PerThread, stage: int, layout: str) -> None:
        self.chosen, self.stage, self.layout = chosen, stage, layout

    def gather(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor] | None:
        """All places -> the kept ones, as a grid of K x 1."""
        chosen = self.chosen.value
        if chosen is None or self.stage not in chosen:
            return None
        keep_idx = chosen[self.stage].keep_idx
        places = flatten_places(args[0], self.layout)
        kept = places.gather(1, keep_idx[..., None].expand(-1, -1, places.shape[2]))
        return (unflatten_places(kept, self.layout, (keep_idx.shape[1], 1)),)

    def scatter(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """The kept places -> all, with zeros for the dropped ones, to which the block adds their shortcut."""
        chosen = self.chosen.value
        if chosen is None or self.stage not in chosen:
            return None
        keep_idx, grid = chosen[self.stage].keep_idx, chosen[self.stage].grid
        kept = flatten_places(output, self.layout)
        places = kept.new_zeros(len(kept), grid.num_tokens, kept.shape[2])
        places = places.scatter(1, keep_idx[..., None].expand(-1, -1, kept.shape[2]), kept)
        return unflatten_places(places, self.layout, (grid.height, grid.width))


class StageHooks:
    """Hands a thread's choice from the stem, which sees the pixels, to the blocks.

    The stem comes first in every forward pass and replaces the choice: what a pass that failed has left behind never
    reaches another one.
    """

    def __init__(self, selector: Selector, stages: Iterable[nn.Module]) -> None:
        self.selector, self.stages = selector, tuple(stages)
        self.chosen = PerThread()

    def attach(self, stem: nn.Module, last: nn.Module) -> list[Handle]:
        """Hooks on what sees the pixels, and on what comes after the last stage."""
        return [stem.register_forward_pre_hook(self._choose), last.register_forward_hook(self._forget)]

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
        self.chosen.value = {stage: found for stage, found in selections.items() if found.drops}
        for selection in selections.values():
            pixels = selection.blank(pixels)
        return (pixels,)

    def _forget(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self.chosen.value = None


def open_model(model: Any, name: str) -> Host:
    """Describes a ConvNeXt or Swin.

    Raises ConfigError: the model does not read RGB.
    """
    colors = image_colors(model, model.in_chans, name)
    steps = tuple(info["reduction"] for info in model.feature_info)
    if name in CONVNEXT:  # reads images of any size
        stem, last = model.stem, model.norm_pre
        _, height, width = (getattr(model, "pretrained_cfg", None) or {}).get("input_size") or (3, 224, 224)
    else:
        stem, last = model.patch_embed, model.norm
        height, width = stem.img_size

    def attach(selector: Selector) -> list[Handle]:
        hooks = StageHooks(selector, stages_of(model))
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
