"""timm's Swin, V1 and V2: the attention in windows sees every place, the feed-forward part only the kept ones."""

from __future__ import annotations

from typing import Any

from ..core.errors import ConfigError
from ..core.pixels import IMAGENET_MEAN, IMAGENET_STD
from ..core.types import TokenGrid
from .host import Family, Handle, Host
from .selector import Selector
from .stages import StageHooks


def open_model(model: Any, name: str) -> Host:
    """Describes a Swin.

    Raises:
        ConfigError: the model does not read RGB.
    """
    if model.in_chans != 3:
        raise ConfigError(f"cannot prune this {name}: it reads {model.in_chans} channels instead of RGB")
    cfg = getattr(model, "pretrained_cfg", None) or {}  # create_model leaves it there
    height, width = model.patch_embed.img_size
    reductions = tuple(info["reduction"] for info in model.feature_info)

    def attach(selector: Selector) -> list[Handle]:
        hooks = StageHooks(selector, model.layers)
        handles = hooks.attach(model.patch_embed, model.norm)
        for stage in selector.reductions:
            for block in model.layers[stage].blocks:
                # V1 normalises what goes into the feed-forward part, V2 what comes out of it.
                ends = (block.norm2, block.mlp) if name == "SwinTransformer" else (block.mlp, block.norm2)
                handles += hooks.around(stage, *ends, "NC")
        return handles

    return Host(
        name=name,
        home=model.patch_embed,
        grid=TokenGrid(1, *model.patch_embed.grid_size),
        clip=(1, height, width),
        mean=tuple(cfg.get("mean") or IMAGENET_MEAN),
        std=tuple(cfg.get("std") or IMAGENET_STD),
        attach=attach,
        reductions=reductions,
    )


FAMILY = Family(
    library="timm",
    classes=("SwinTransformer", "SwinTransformerV2"),
    drops="places of each stage: the feed-forward part of its blocks",
    checked="all places computed, the feed-forward part's output times the same masks",
    open=open_model,
    reads_images=True,
    keep_ratio=0.65,
)
