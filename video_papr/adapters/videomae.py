"""VideoMAE and ViViT of transformers: tokens are dropped where they leave the embeddings, positions added.

The embeddings are the one module that sees the pixels and makes the tokens, so their hooks need no memory between them.
transformers itself is never imported.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from ..core.pixels import IMAGENET_MEAN, IMAGENET_STD
from ..core.types import TokenGrid
from .hooks import EmbeddingHooks
from .host import Colors, Family, Handle, Host, check_rgb, keep_behind, pair
from .selector import Selector

# What the published weights were trained with; a processor may do something else.
VIDEOMAE: tuple[Colors, Colors] = (IMAGENET_MEAN, IMAGENET_STD)
VIVIT: tuple[Colors, Colors] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def open_model(model: Any, name: str) -> Host:
    """Describes a VideoMAE or ViViT.

    Raises ConfigError: the model does not read RGB.
    """
    config, base = model.config, model.base_model
    check_rgb(config.num_channels, name)
    videomae = name.startswith("VideoMAE")
    frames, height, width = int(config.num_frames), *pair(config.image_size)
    tubelet = (int(config.tubelet_size), *pair(config.patch_size)) if videomae else tuple(config.tubelet_size)
    mean, std = VIDEOMAE if videomae else VIVIT
    num_prefix = 0 if videomae else 1

    def attach(selector: Selector) -> list[Handle]:
        hooks = EmbeddingHooks(selector, partial(keep_behind, num_prefix=num_prefix))
        return [
            base.register_forward_pre_hook(_refuse_masks, with_kwargs=True),
            *hooks.attach(base.embeddings),
        ]

    return Host(
        name=name,
        home=base.embeddings,
        grid=TokenGrid(frames // tubelet[0], height // tubelet[1], width // tubelet[2]),
        clip=(frames, height, width),
        mean=mean,
        std=std,
        attach=attach,
        num_prefix=num_prefix,
        first_stays=name == "VideoMAEForVideoClassification" and not config.use_mean_pooling,
    )


def _refuse_masks(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Masks number the tokens of the whole grid, which a pruned model does not have."""
    named = {"bool_masked_pos": args[1] if len(args) > 1 else None, **kwargs}
    for name in ("bool_masked_pos", "attention_mask"):
        if isinstance(named.get(name), Tensor):  # ViViT's second argument is a flag
            raise ValueError(f"a pruned model takes no {name}: it numbers tokens that were dropped")


FAMILY = Family(
    library="transformers",
    classes=("VideoMAEForVideoClassification", "VideoMAEModel", "VivitForVideoClassification", "VivitModel"),
    drops="tokens, before the first block",
    checked="all tokens computed, the dropped ones barred from attention and from the mean",
    open=open_model,
)
