"""timm's ConvNeXt, V1 and V2: the depthwise convolutions see every place, the rest of a block only the kept ones.

V2's global response normalisation lies in that rest, so it takes its statistics over the kept places.
"""

from __future__ import annotations

from typing import Any

from ..core.errors import ConfigError
from ..core.pixels import IMAGENET_MEAN, IMAGENET_STD
from ..core.types import TokenGrid
from .host import Family, Handle, Host
from .selector import Selector
from .stages import StageHooks


def open_model(model: Any, name: str) -> Host:
    """Describes a ConvNeXt.

    Raises:
        ConfigError: the model does not read RGB.
    """
    if model.in_chans != 3:
        raise ConfigError(f"cannot prune this {name}: it reads {model.in_chans} channels instead of RGB")
    cfg = getattr(model, "pretrained_cfg", None) or {}  # create_model leaves it there
    _, height, width = cfg.get("input_size") or (3, 224, 224)
    reductions = tuple(info["reduction"] for info in model.feature_info)

    def attach(selector: Selector) -> list[Handle]:
        hooks = StageHooks(selector, model.stages)
        handles = hooks.attach(model.stem, model.norm_pre)
        for stage in selector.reductions:
            for block in model.stages[stage].blocks:
                handles += hooks.around(stage, block.norm, block.mlp, "CHW" if block.use_conv_mlp else "HWC")
        return handles

    return Host(
        name=name,
        home=model.stem,
        grid=TokenGrid(1, height // reductions[0], width // reductions[0]),
        clip=(1, height, width),
        mean=tuple(cfg.get("mean") or IMAGENET_MEAN),
        std=tuple(cfg.get("std") or IMAGENET_STD),
        attach=attach,
        reductions=reductions,
    )


FAMILY = Family(
    library="timm",
    classes=("ConvNeXt",),
    drops="places of each stage: norm and feed-forward part of its blocks",
    checked="all places computed, the blocks' output times the same masks",
    open=open_model,
    reads_images=True,
    keep_ratio=0.65,
)
