"""`prune` and `unprune`: a model of transformers or timm reads only the tokens that matter, in one line.

    from transformers import VideoMAEForVideoClassification
    import video_papr as vp

    model = VideoMAEForVideoClassification.from_pretrained("MCG-NJU/videomae-base-finetuned-kinetics")
    vp.prune(model, pruner="x3d_s", keep_ratio=0.3)  # the same model, called the same way, faster
    vp.unprune(model)                                # as it was

Hooks on that one instance do it. `families` lists the models.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError
from ..core.types import TokenSelection
from ..pruning.builders import SPECS, build_pruner, pruner_names
from ..pruning.map_pruner import MapPruner
from ..pruning.protocol import PrunerSpec
from .families import open_model
from .hooks import Attachment
from .host import Family, Host
from .normalization import given_colors, measure_colors
from .selector import Selector

Model = TypeVar("Model", bound=nn.Module)

NOTE = "video_papr_pruning"  # attribute of the embedding module that holds the Attachment
PUBLISHED = "published"


def prune(
    model: Model,
    /,
    pruner: str | None = None,
    keep_ratio: float | None = None,
    *,
    stages: Sequence[int] | None = None,
    weights: str | Path | None = PUBLISHED,
    processor: Callable[..., Any] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    **options: Any,
) -> Model:
    """Makes a model drop tokens before its first block. The model is changed in place, by hooks, and returned.

    It keeps its class, its call signature, its parameters and its `state_dict`; a classifier also keeps its output
    class and shapes. A bare encoder gives the K kept tokens instead of all N, in the grid's order; `kept_tokens` says
    which. Class tokens are never dropped. A hierarchical model (ConvNeXt, Swin) keeps its grids: in its stages the
    feed-forward part passes by the dropped places. `unprune` takes the hooks away. Models that `torch.compile` has
    compiled so far, this one and others, are compiled again at their next call.

    What comes of a clip whose significance map is not finite is NaN.

    All tokens are embedded before some are dropped, which costs 1 % of a dense VideoMAE-B; `Pipeline` embeds only what
    is kept.

    Args:
        model: of one of `families.FAMILIES`.
        pruner: any that scores frames, not tokens, and keeps as many of each clip (x3d_s by default); for images one
            that is declared `for_images` (image_convnet by default). An unsuitable one is refused with the list.
        keep_ratio: share of the grid's tokens that is kept, 0 < keep_ratio <= 1: 0.3, in every stage of a hierarchical
            model 0.65.
        stages: of a hierarchical model (ConvNeXt, Swin), those that drop places, counted from 0; None: all.
        weights: of an X3D: "published" downloads the Kinetics-400 weights once; a file or bundled name; None: random.
            Of "image_convnet": "published" downloads those that timm names.
        processor: the model's processor; two grey clips tell how it normalises.
        mean, std: the same, said in numbers, RGB in 0..1. Without either, what the published weights were trained with.
        options: more options of the pruner, see `build_pruner`.

    Raises:
        ConfigError: an unsupported model or pruner, one that is pruned already, or an option out of range.
        CheckpointError: the scorer's weights are missing, damaged or of another network.
    """
    family, host = _open(model)
    if NOTE in vars(host.home):
        raise ConfigError(f"this {host.name} is pruned already; call video_papr.unprune(model) first")
    name = pruner or ("image_convnet" if family.reads_images else "x3d_s")
    ratio = family.keep_ratio if keep_ratio is None else keep_ratio
    chosen = _build(family, host, name, weights, keep_ratio=ratio, **options)
    if processor is not None:
        if mean is not None or std is not None:
            raise ConfigError("give processor= or mean= and std=, not both")
        colors = measure_colors(processor, host)
    else:
        colors = given_colors("mean", mean, host.mean), given_colors("std", std, host.std)
    selector = Selector(
        host,
        chosen,
        mean=colors[0],
        std=colors[1],
        reads_images=family.reads_images,
        stages=host.choose_stages(stages),
    )
    setattr(host.home, NOTE, Attachment(selector, host.attach(selector)))
    _trace_anew()
    return model


def unprune(model: Model) -> Model:
    """Takes away what `prune` has added, and returns the model.

    Raises:
        ConfigError: the model is not pruned, or of an unsupported class.
    """
    host = _open(model)[1]
    for handle in _attachment(host).handles:
        handle.remove()
    delattr(host.home, NOTE)
    _trace_anew()
    return model


def kept_tokens(
    model: nn.Module, pixels: Tensor, grid_thw: Tensor | None = None
) -> TokenSelection | dict[int, TokenSelection]:
    """Which tokens a pruned model keeps of these pixels, which are as the model takes them.

    Args:
        grid_thw: (videos, 3), of the vision tower of a Qwen-VL, which takes it too.

    Returns:
        One selection; of a hierarchical model one for each stage that drops places, by its number; of the tower of a
        Qwen-VL one for each video, by its number, over the grid of its features.

    Raises:
        ConfigError: the model is not pruned, or of an unsupported class.
        ValueError: the pixels have another shape than the model reads.
    """
    selector = _attachment(_open(model)[1]).selector
    if selector.unpack is not None:
        return selector.of_videos(pixels, grid_thw)
    return selector.of_stages(pixels) if selector.reductions else selector(pixels)


def _trace_anew() -> None:
    """Makes `torch.compile` trace again: it looks for hooks when it traces, and not at those that come or go later."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


def _open(model: nn.Module) -> tuple[Family, Host]:
    """`open_model`, also of a model that `torch.compile` has wrapped."""
    return open_model(getattr(model, "_orig_mod", model))


def _attachment(host: Host) -> Attachment:
    if NOTE not in vars(host.home):
        raise ConfigError(f"this {host.name} is not pruned; call video_papr.prune(model) first")
    found: Attachment = getattr(host.home, NOTE)
    return found


def _build(family: Family, host: Host, name: str, weights: str | Path | None, **options: Any) -> MapPruner:
    """The pruner, if its kind can serve this host."""
    if name == "none" or name in SPECS:
        _check_suits(family, host, name)
    if weights == PUBLISHED:
        weights = SPECS[name].published if name in SPECS else None
    pruner: Any = build_pruner(name, weights=weights, **options)  # of those that score frames
    if pruner.budget.variable:
        raise ConfigError(
            f"pruner.budget={options['budget']} keeps another number of tokens of each clip, which this model cannot "
            "batch; use budget='fixed', or video_papr.Pipeline"
        )
    if pruner.compensation != "none":
        raise ConfigError(
            f"pruner.compensation={pruner.compensation} weighs tokens, which this model's own blocks cannot; use "
            "compensation='none', or video_papr.Pipeline"
        )
    found: MapPruner = pruner
    return found


def _check_suits(family: Family, host: Host, name: str) -> None:
    """Raises ConfigError unless a built-in pruner scores what the host reads."""

    def suits(spec: PrunerSpec) -> bool:
        refused = spec.reads_tokens or spec.reads_motion or spec.variable
        return spec.for_images if family.reads_images else not refused

    if name not in SPECS or not suits(SPECS[name]):
        reason = f"{host.name} reads images" if family.reads_images else "prune() scores frames, once a clip"
        usable = ", ".join(pruner_names(suits))
        raise ConfigError(f"pruner={name} cannot be used here ({reason}); use one of {usable}")
