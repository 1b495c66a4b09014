"""timm's VisionTransformer, for images: tokens are dropped where it would drop them itself, at `patch_drop`.

timm adds positions in a method, which has no hooks, so the choice travels from `patch_embed`, which sees the pixels, to
`patch_drop`, which sees the tokens. timm itself is not imported here.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import ConfigError
from ..pixels import IMAGENET_MEAN, IMAGENET_STD
from ..structures import TokenGrid
from .host import Colors, Host, Selector, class_of, keep_tokens

CLASSES = ("VisionTransformer",)
IMAGENET: dict[str, Colors] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}


def open_model(model: Any) -> Host | None:
    """Describes a VisionTransformer; None for any other model.

    Raises:
        ConfigError: the model does not read RGB, reads images of any size, embeds them in another way than patch by
            patch, or drops tokens itself.
    """
    if class_of(model, "timm", CLASSES) is None:
        return None
    embed = model.patch_embed
    if class_of(embed, "timm", ("PatchEmbed",)) is None:
        raise ConfigError(
            f"cannot prune this VisionTransformer: its patches come from a {type(embed).__name__}"
        )
    if model.dynamic_img_size or embed.grid_size is None:
        raise ConfigError(
            "cannot prune this VisionTransformer: dynamic_img_size=True has no fixed token grid"
        )
    if not isinstance(model.patch_drop, nn.Identity):
        raise ConfigError(
            "cannot prune this VisionTransformer: it drops tokens itself; use patch_drop_rate=0"
        )
    channels = embed.proj.in_channels
    if channels != 3:
        raise ConfigError(f"cannot prune this VisionTransformer: it reads {channels} channels instead of RGB")
    cfg = getattr(model, "pretrained_cfg", None) or {}  # create_model leaves it there
    mean, std = (tuple(cfg.get(key) or IMAGENET[key]) for key in ("mean", "std"))

    def attach(selector: Selector) -> list[RemovableHandle]:
        hooks = _Hooks(selector, model.num_prefix_tokens)
        return [
            embed.register_forward_pre_hook(hooks.check),
            embed.register_forward_hook(hooks.choose),
            model.patch_drop.register_forward_hook(hooks.drop),
            model.register_forward_hook(hooks.forget, always_call=True),
        ]

    return Host(
        name="VisionTransformer",
        home=embed,
        grid=TokenGrid(1, *embed.grid_size),
        clip=(1, *embed.img_size),
        mean=mean,
        std=std,
        reads_images=True,
        attach=attach,
    )


class _Hooks:
    """Hands each thread's choice from `patch_embed` to `patch_drop`.

    A choice is taken out when it is used, and replaced by the next call of `patch_embed`, which comes first in every
    forward pass: what a pass that failed has left behind never reaches another one.
    """

    def __init__(self, selector: Selector, num_prefix: int) -> None:
        self.selector, self.num_prefix = selector, num_prefix
        self.chosen: dict[int, Tensor] = {}

    def check(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.selector.check(args[0])

    @torch.compiler.disable  # the compiler cannot see threads; the blocks are still compiled as a whole
    def choose(self, module: nn.Module, args: tuple[Any, ...], tokens: Tensor) -> None:
        self.chosen[threading.get_ident()] = self.selector(args[0]).keep_idx

    @torch.compiler.disable
    def drop(self, module: nn.Module, args: tuple[Any, ...], tokens: Tensor) -> Tensor:
        keep_idx = self.chosen.pop(threading.get_ident(), None)
        return tokens if keep_idx is None else keep_tokens(tokens, keep_idx, self.num_prefix)

    @torch.compiler.disable
    def forget(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.chosen.pop(threading.get_ident(), None)
