"""timm's VisionTransformer, for images: tokens are dropped where it would drop them itself, at `patch_drop`.

timm adds positions in a method, which has no hooks, so the choice travels from `patch_embed`, which sees the pixels, to
`patch_drop`, which sees the tokens. timm itself is not imported here.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from ..core.errors import ConfigError
from ..core.types import TokenGrid
from .hooks import HandedOver, Override
from .host import Family, Handle, Host, class_of, image_colors, keep_behind
from .selector import Selector


def open_model(model: Any, name: str) -> Host:
    """Describes a VisionTransformer.

    Raises ConfigError: the model does not read RGB, reads images of any size, embeds them in another way than patch by
    patch, or drops tokens itself.
    """
    embed = model.patch_embed
    if class_of(embed, "timm", ("PatchEmbed",)) is None:
        raise ConfigError(f"cannot prune this {name}: its patches come from a {type(embed).__name__}")
    if model.dynamic_img_size or embed.grid_size is None:
        raise ConfigError(f"cannot prune this {name}: dynamic_img_size=True has no fixed token grid")
    if not isinstance(model.patch_drop, nn.Identity):
        raise ConfigError(f"cannot prune this {name}: it drops tokens itself; use patch_drop_rate=0")
    colors = image_colors(model, embed.proj.in_channels, name)

    def attach(selector: Selector) -> list[Handle]:
        hooks = HandedOver(selector, partial(keep_behind, num_prefix=model.num_prefix_tokens))
        return [
            *hooks.attach(model, embed, model.patch_drop),
            Override(embed, "dynamic_feat_size", partial(_map_size, hooks, embed)),
        ]

    return Host(
        name=name,
        home=embed,
        grid=TokenGrid(1, *embed.grid_size),
        clip=(1, *embed.img_size),
        **colors,
        attach=attach,
        num_prefix=model.num_prefix_tokens,
    )


def _map_size(hooks: HandedOver, embed: Any, image_size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the map that `forward_intermediates` lays tokens out on, if it has all of them."""
    hooks.refuse_maps("output_fmt='NLC' or reshape=False")
    size: tuple[int, int] = type(embed).dynamic_feat_size(embed, image_size)
    return size


FAMILY = Family(
    library="timm",
    classes=("VisionTransformer",),
    drops="tokens, before the first block",
    checked="all tokens computed, the dropped ones barred from attention and from the mean",
    open=open_model,
    reads_images=True,
)
