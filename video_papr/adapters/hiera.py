"""timm's Hiera: whole mask units are dropped, as in its own pretraining, where its tokens come out of `unroll`.

There a unit's tokens lie apart: (B, M U, C) with M tokens of a unit and U units, the units side by side.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from ..core.errors import ConfigError
from ..core.types import TokenGrid, TokenSelection
from .hooks import HandedOver
from .host import Family, Handle, Host, image_colors, keep_tokens
from .selector import Selector


def open_model(model: Any, name: str) -> Host:
    """Describes a Hiera.

    Raises ConfigError: the model does not read RGB images, or drops units itself.
    """
    embed = model.patch_embed
    if len(model.mask_spatial_shape) != 2:
        raise ConfigError(f"cannot prune this {name}: it does not read images")
    if model.patch_drop_rate:
        raise ConfigError(f"cannot prune this {name}: it drops tokens itself; use patch_drop_rate=0")
    colors = image_colors(model, embed.proj.in_channels, name)
    height, width = (
        count * stride for count, stride in zip(model.tokens_spatial_shape, model.patch_stride, strict=True)
    )

    def attach(selector: Selector) -> list[Handle]:
        hooks = HandedOver(selector, _keep)
        return [
            *hooks.attach(model, embed, model.unroll),
            model.reroll.register_forward_pre_hook(partial(_refuse_maps, hooks)),
        ]

    return Host(
        name=name,
        home=embed,
        grid=TokenGrid(1, *model.mask_spatial_shape),
        clip=(1, height, width),
        **colors,
        attach=attach,
    )


def _keep(tokens: Tensor, selection: TokenSelection) -> Tensor:
    """tokens (B, M U, C) of a selection from the U units -> (B, M K, C)."""
    units, inner = selection.grid.num_tokens, tokens.shape[1] // selection.grid.num_tokens
    lone = tokens.unflatten(1, (inner, units)).flatten(0, 1)  # (B M, U, C)
    kept = keep_tokens(lone, selection.keep_idx.repeat_interleave(inner, 0))
    return tokens if kept is lone else kept.unflatten(0, (-1, inner)).flatten(1, 2)


def _refuse_maps(hooks: HandedOver, module: nn.Module, args: tuple[Any, ...]) -> None:
    hooks.refuse_maps("forward_features")


FAMILY = Family(
    library="timm",
    classes=("Hiera",),
    drops="mask units, before the first block",
    checked="its own masked forward pass, on pixels that are not masked",
    open=open_model,
    reads_images=True,
)
