"""timm's ConvNeXt and Swin as backbones: they read an image, which is a clip of one frame; see `stages`.

Letters: B images of H x W pixels.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoints.timm_models import build_timm, imagenet_names
from ..core.errors import ConfigError
from ..core.threads import PerThread
from ..core.types import Mark, TokenGrid, TokenSelection
from .depth_pruned import CONV_KINDS, read_pruned_timm
from .encoder import Encoder
from .stages import CONVNEXT, SWIN, hook_stages, image_size, kept_places, reductions
from .timm_vit import read_as_tested

MODELS = {"timm_convnext": "convnext_tiny", "timm_swin": "swin_tiny_patch4_window7_224"}
CLASSES = {"timm_convnext": CONVNEXT, "timm_swin": SWIN}


class TimmStages(Encoder):
    """A ConvNeXt or Swin of timm whose stages can leave out the place-wise work of some places.

    Args:
        body: the model, in eval mode.
        input_size: (H, W) of the images.

    Attributes: see `Encoder`. There are no tokens: `embed` and `encode` do not exist.
    """

    def __init__(self, body: Any, *, input_size: tuple[int, int]) -> None:
        steps = reductions(body)
        super().__init__(
            num_classes=body.num_classes,
            num_frames=1,
            input_size=input_size,
            tubelet=(1, steps[0], steps[0]),
            dim=body.num_features,
            depth=0,
            num_heads=1,
        )
        del self.patch_embed, self.blocks
        self.body, self.head = body, body.get_classifier()
        self.stage_grids = tuple(TokenGrid(1, *(side // step for side in input_size)) for step in steps)
        self.chosen = PerThread()
        hook_stages(body, range(len(steps)), self.chosen)
        read_as_tested(self, body)

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""
        return next(self.body.parameters()).dtype

    def forward(
        self,
        pixels: Tensor | None,
        keep_idx: Tensor | None = None,
        *,
        stages: tuple[TokenSelection, ...] = (),
        mark: Mark | None = None,
        **options: Any,
    ) -> Tensor:
        """pixels (B, 3, 1, H, W), normalised or uint8, what each stage keeps, none: all -> logits (B, classes).

        Args:
            keep_idx: not read: the first stage's.
            mark: told where the stages "embed", "blocks" and "head" end.

        Raises:
            ValueError: the pixels have another shape.
        """
        assert pixels is not None and not options, f"a hierarchical backbone takes no {', '.join(options)}"
        self._check_pixels(pixels)
        if pixels.dtype == torch.uint8:
            pixels = self._normalize(pixels)
        if mark is not None:
            mark("embed")
        self.chosen.value = kept_places(dict(enumerate(stages)))
        try:
            features = self.body.forward_features(pixels[:, :, 0])
        finally:
            self.chosen.value = None
        if mark is not None:
            mark("blocks")
        logits: Tensor = self.head(self.body.forward_head(features, pre_logits=True))
        if mark is not None:
            mark("head")
        return logits


def build_timm_stages(
    name: str,
    *,
    model: str | None = None,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    input_size: int | tuple[int, int] | None = None,
    replace_head: bool = False,
    seed: int = 0,
) -> TimmStages:
    """Builds a ConvNeXt or Swin of timm in eval mode; arguments as of `timm_vit.build_timm_vit`.

    Args:
        name: "timm_convnext" or "timm_swin".

    Raises:
        ConfigError: timm has no such model, it is of another class, or the stages do not divide the image.
        CheckpointError: the weights are missing, damaged or of another model.
    """
    model = MODELS[name] if model is None else model
    asked = {"num_classes": num_classes, "input_size": input_size, "replace_head": replace_head}
    pruned = read_pruned_timm(weights, {"model": model, **asked})
    size = pruned.read.input_size if pruned else input_size
    sides = (size, size) if isinstance(size, int) else size
    options: dict[str, Any] = {} if sides is None or name == "timm_convnext" else {"img_size": sides}
    body: Any = build_timm(
        model,
        group="backbone",
        weights=None if pruned else weights,
        num_classes=len(pruned.names) if pruned else num_classes,
        fresh_head=replace_head,
        convert=_convert,
        seed=seed,
        **options,
    )
    kind = type(body).__name__
    if kind not in CLASSES[name]:
        raise ConfigError(
            f"backbone.model={model}: backbone={name} takes a {' or '.join(CLASSES[name])}, not {kind}"
        )
    sides = image_size(body) if sides is None else sides
    if any(side % max(reductions(body)) for side in sides):
        raise ConfigError(
            f"backbone.input_size={list(sides)}: {model} reads sides that are multiples of {max(reductions(body))}"
        )
    if body.in_chans != 3:
        raise ConfigError(f"backbone.model={model}: it reads {body.in_chans} channels instead of RGB")
    if pruned is not None:
        pruned.rebuild(body, CONV_KINDS)
    backbone = TimmStages(body, input_size=sides).eval().requires_grad_(False)
    if pruned is not None:
        pruned.load(backbone, body)
    elif weights is not None and not replace_head:
        backbone.class_names = imagenet_names(body, backbone.num_classes)
    return backbone


def _convert(state: dict[str, Tensor], network: Any) -> Mapping[str, Tensor]:
    """What timm itself does to the weights of this class before it loads them."""
    found: Mapping[str, Tensor] = sys.modules[type(network).__module__].checkpoint_filter_fn(state, network)
    return found
