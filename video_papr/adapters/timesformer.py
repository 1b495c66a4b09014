"""TimeSformer of transformers: attention over space and over time in turns, so the same places of all frames stay.

Its tokens lie place by place, the frames of a place side by side: (B, 1 + H' W' T', D).
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor

from ..core.errors import ConfigError
from ..core.types import TokenGrid, TokenSelection
from .hooks import EmbeddingHooks, Override
from .host import Colors, Family, Handle, Host, check_rgb, keep_tokens
from .selector import Selector

# What the published weights were trained with.
MEAN: Colors = (0.45, 0.45, 0.45)
STD: Colors = (0.225, 0.225, 0.225)


def open_model(model: Any, name: str) -> Host:
    """Describes a TimeSformer.

    Raises ConfigError: the model does not read RGB, or answers every frame by itself.
    """
    config, base = model.config, model.base_model
    check_rgb(config.num_channels, name)
    if config.attention_type == "space_only":
        raise ConfigError(
            f"cannot prune this {name}: with config.attention_type='space_only' it gives one answer for each frame"
        )
    frames, size = config.num_frames, config.image_size
    side = size // config.patch_size
    divided = config.attention_type == "divided_space_time"

    def attach(selector: Selector) -> list[Handle]:
        handles = EmbeddingHooks(selector, _keep).attach(base.embeddings)
        # A layer counts the places of a frame by dividing them into rows of image_size / patch_size; any number is
        # rows of one.
        column = copy.copy(config)
        column.image_size = column.patch_size
        return handles + [Override(layer, "config", column) for layer in base.encoder.layer if divided]

    return Host(
        name=name,
        home=base.embeddings,
        grid=TokenGrid(frames, side, side),
        clip=(frames, size, size),
        mean=MEAN,
        std=STD,
        attach=attach,
        same_places=divided,
        num_prefix=1,
    )


def _keep(tokens: Tensor, selection: TokenSelection) -> Tensor:
    """tokens (B, 1 + N, D) -> (B, 1 + K, D)."""
    frames, places = selection.grid.frames, selection.grid.height * selection.grid.width
    frame, place = selection.keep_idx // places, selection.keep_idx % places
    return keep_tokens(tokens, (place * frames + frame).sort(1).values, num_prefix=1)


FAMILY = Family(
    library="transformers",
    classes=("TimesformerForVideoClassification", "TimesformerModel"),
    drops="the same places of all frames, before the first layer (`joint_space_time`: any tokens)",
    checked="all tokens computed, the dropped places barred from the attention over space",
    open=open_model,
)
