"""V-JEPA 2 of transformers: tokens are dropped before the first layer, and keep the rotary positions of their places.

The encoder hands its keyword arguments on to every layer, so the choice travels with the call: threads, gradient
checkpointing and the compiler see it as they see every other argument.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..core.pixels import IMAGENET_MEAN, IMAGENET_STD
from ..core.types import TokenGrid
from .host import Family, Handle, Host, check_rgb, keep_tokens
from .selector import Selector

PLACES = "video_papr_places"  # the keyword argument that takes the kept places from the encoder to its layers


def open_model(model: Any, name: str) -> Host:
    """Describes a V-JEPA 2.

    Raises ConfigError: the model does not read RGB.
    """
    config, base = model.config, model.base_model
    check_rgb(config.in_chans, name)
    frames, size = config.frames_per_clip, config.crop_size
    side = size // config.patch_size

    def attach(selector: Selector) -> list[Handle]:
        hooks, encoder = _Hooks(selector), base.encoder
        return [
            base.register_forward_pre_hook(hooks.skip_predictor, with_kwargs=True),
            encoder.register_forward_pre_hook(hooks.choose, with_kwargs=True),
            encoder.layer[0].register_forward_pre_hook(hooks.drop, with_kwargs=True),
            *(layer.register_forward_pre_hook(hooks.place, with_kwargs=True) for layer in encoder.layer),
        ]

    return Host(
        name=name,
        home=base.encoder.embeddings,
        grid=TokenGrid(frames // config.tubelet_size, side, side),
        clip=(frames, size, size),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        attach=attach,
        frame_step=config.tubelet_size,
    )


class _Hooks:
    """What comes before the passes of the model, its encoder, and the encoder's layers."""

    def __init__(self, selector: Selector) -> None:
        self.selector = selector

    def skip_predictor(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The predictor of a bare model takes its context for the whole grid; classifiers do without it anyway."""
        if not self.selector.drops:
            return args, kwargs
        given = dict(zip(("pixel_values_videos", "context_mask", "target_mask"), args, strict=False)) | kwargs
        for name in ("context_mask", "target_mask"):
            if given.get(name) is not None:
                raise ValueError(f"a pruned model takes no {name}: it numbers tokens that were dropped")
        return args[:1], {**kwargs, "skip_predictor": True}

    def choose(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        pixels = args[0] if args else kwargs["pixel_values_videos"]
        selection = self.selector(pixels)
        others = {name: value for name, value in kwargs.items() if name != "pixel_values_videos"}
        places = {PLACES: selection.keep_idx} if self.selector.drops else {}
        return (selection.blank(pixels),), others | places

    def drop(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if PLACES in kwargs:
            args = (keep_tokens(args[0], kwargs[PLACES]), *args[1:])
        return args, kwargs

    def place(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        tokens: Tensor = args[0]
        others = {name: value for name, value in kwargs.items() if name != PLACES}
        return (tokens, kwargs.get(PLACES)), others


FAMILY = Family(
    library="transformers",
    classes=("VJEPA2ForVideoClassification", "VJEPA2Model"),
    drops="tokens, before the first layer; the rest keep the rotary positions of their places",
    checked="all tokens computed, the dropped ones barred from attention in encoder and pooler",
    open=open_model,
)
