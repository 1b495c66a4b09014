"""timm's VisionTransformer, for images: tokens are dropped where it would drop them itself, at `patch_drop`.

timm adds positions in a method, which has no hooks, so the choice travels from `patch_embed`, which sees the pixels, to
`patch_drop`, which sees the tokens. timm itself is not imported here.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from ..core.errors import ConfigError
from ..core.pixels import IMAGENET_MEAN, IMAGENET_STD
from ..core.types import TokenGrid
from .host import Colors, Family, Handle, Host, Override, PerThread, class_of, keep_tokens
from .selector import Selector

IMAGENET: dict[str, Colors] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}


def open_model(model: Any, name: str) -> Host:
    """Describes a VisionTransformer.

    Raises:
        ConfigError: the model does not read RGB, reads images of any size, embeds them in another way than patch by
            patch, or drops tokens itself.
    """
    embed = model.patch_embed
    if class_of(embed, "timm", ("PatchEmbed",)) is None:
        raise ConfigError(f"cannot prune this {name}: its patches come from a {type(embed).__name__}")
    if model.dynamic_img_size or embed.grid_size is None:
        raise ConfigError(f"cannot prune this {name}: dynamic_img_size=True has no fixed token grid")
    if not isinstance(model.patch_drop, nn.Identity):
        raise ConfigError(f"cannot prune this {name}: it drops tokens itself; use patch_drop_rate=0")
    channels = embed.proj.in_channels
    if channels != 3:
        raise ConfigError(f"cannot prune this {name}: it reads {channels} channels instead of RGB")
    cfg = getattr(model, "pretrained_cfg", None) or {}  # create_model leaves it there
    mean, std = (tuple(cfg.get(key) or IMAGENET[key]) for key in ("mean", "std"))

    def attach(selector: Selector) -> list[Handle]:
        hooks = _Hooks(selector, model.num_prefix_tokens)
        return [
            embed.register_forward_pre_hook(hooks.check),
            embed.register_forward_hook(hooks.choose),
            model.patch_drop.register_forward_hook(hooks.drop),
            model.register_forward_hook(hooks.forget, always_call=True),
            Override(embed, "dynamic_feat_size", partial(hooks.map_size, embed)),
        ]

    return Host(
        name=name,
        home=embed,
        grid=TokenGrid(1, *embed.grid_size),
        clip=(1, *embed.img_size),
        mean=mean,
        std=std,
        attach=attach,
    )


class _Hooks:
    """Hands a thread's choice from `patch_embed` to `patch_drop`.

    A choice is taken out when it is used, and replaced by the next call of `patch_embed`, which comes first in every
    forward pass: what a pass that failed has left behind never reaches another one.
    """

    def __init__(self, selector: Selector, num_prefix: int) -> None:
        self.selector, self.num_prefix = selector, num_prefix
        self.chosen, self.shorter = PerThread(), PerThread()

    def check(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.selector.check(args[0])

    def choose(self, module: nn.Module, args: tuple[Any, ...], tokens: Tensor) -> None:
        self.chosen.value = self.selector(args[0]).keep_idx

    def drop(self, module: nn.Module, args: tuple[Any, ...], tokens: Tensor) -> Tensor:
        keep_idx, self.chosen.value = self.chosen.value, None
        kept = tokens if keep_idx is None else keep_tokens(tokens, keep_idx, self.num_prefix)
        self.shorter.value = kept.shape[1] < tokens.shape[1]
        return kept

    def forget(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.chosen.value = None

    def map_size(self, embed: Any, image_size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the map that `forward_intermediates` lays tokens out on, if it has all of them."""
        if self.shorter.value:
            raise ValueError(
                "a pruned model has no full grid to lay its tokens out on; use output_fmt='NLC' or reshape=False, and "
                "video_papr.kept_tokens(model, pixels) for their places"
            )
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
