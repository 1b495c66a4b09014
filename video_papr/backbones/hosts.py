"""Models of transformers and timm as backbones, as their libraries have them: `prune`'s own hooks drop the tokens.

TimeSformer and VideoPrism of transformers read clips; ConvNeXt, Swin and Hiera of timm read images, clips of one frame.

Letters: B clips of T frames of H x W pixels, K kept tokens, D channels.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters.families import open_model
from ..adapters.stages import CONVNEXT, SWIN
from ..checkpoints.timm_models import imagenet_names
from ..core.errors import ConfigError
from ..core.threads import PerThread
from ..core.types import Mark, TokenGrid, TokenSelection, unobserved
from .depth_pruned import CONV_KINDS
from .encoder import Encoder
from .timm_vit import open_timm, read_as_tested

MODELS = {
    "timm_convnext": "convnext_tiny",
    "timm_swin": "swin_tiny_patch4_window7_224",
    "timm_hiera": "hiera_base_224",
}
CLASSES = {"timm_convnext": CONVNEXT, "timm_swin": SWIN, "timm_hiera": ("Hiera",)}
# Family -> its class in transformers, and what that calls the number of layers.
TRANSFORMERS = {
    "timesformer": ("TimesformerForVideoClassification", "num_hidden_layers"),
    "videoprism": ("VideoPrismForVideoClassification", "num_spatial_layers"),
}
STRIDES = {8: 32, 16: 16, 96: 4}  # TimeSformer's on Kinetics, by the frames of its three published sizes


class _Chosen:
    """Stands where `prune` has a `Selector`: what the hooks drop was chosen before the pass."""

    def __init__(self, grid: TokenGrid, reductions: Mapping[int, int]) -> None:
        self.grid, self.reductions, self.given = grid, reductions, PerThread()

    def __call__(self, pixels: Tensor) -> TokenSelection:
        keep_idx = self._given()[0]
        if keep_idx is None:
            keep_idx = torch.arange(self.grid.num_tokens, device=pixels.device).expand(pixels.shape[0], -1)
        return TokenSelection(keep_idx, self.grid)

    def of_stages(self, pixels: Tensor) -> dict[int, TokenSelection]:
        given = self._given()[1]  # none where nothing drops
        return dict(zip(self.reductions, given, strict=False))

    def _given(self) -> tuple[Tensor | None, tuple[TokenSelection, ...]]:
        """Outside of `HostBackbone.forward`, where the body runs by itself, nothing drops."""
        return self.given.value or (None, ())

    def check(self, pixels: Tensor) -> None:
        """`HostBackbone` has looked at them."""


class HostBackbone(Encoder):
    """A model of one of `adapters.families`, with as many tokens as it is told.

    Args:
        body: a classifier of `TRANSFORMERS`, or of timm, in eval mode. It becomes part of the backbone.
        frame_size: (H, W) of the frames; None: the model's own.
        stages: of a hierarchical model, those that drop places, counted from 0; None: all. `grid` is that of the first.

    Attributes: see `Encoder`. `embed` and `encode` do not exist, `closed` says so.
    """

    def __init__(
        self, body: Any, *, frame_size: tuple[int, int] | None = None, stages: Sequence[int] | None = None
    ) -> None:
        family, host = open_model(body)
        sides, images = frame_size or host.clip[1:], family.reads_images
        steps = {stage: host.reductions[stage] for stage in host.choose_stages(stages, "backbone.stages")}
        cell = tuple(side // count for side, count in zip(host.clip, host.grid.shape, strict=True))
        if steps:
            finest = min(steps.values())
            cell = 1, finest, finest
        super().__init__(
            num_classes=body.num_classes if images else body.config.num_labels,
            num_frames=host.clip[0],
            input_size=sides if images else sides[0],
            tubelet=cell,  # type: ignore[arg-type]
            dim=body.num_features if images else body.config.hidden_size,
            depth=0,
            num_heads=1,
        )
        del self.patch_embed, self.blocks
        self.name, self.reads_images, self.num_prefix = host.name, images, host.num_prefix
        self.mean, self.std, self.same_places = host.mean, host.std, host.same_places
        self.stage_grids = tuple(TokenGrid(1, *(side // step for side in sides)) for step in steps.values())
        self.closed = (
            "this backbone keeps the grid of each stage"
            if steps
            else f"this backbone runs as {family.library} has it"
        )
        self.chosen = _Chosen(self.grid, steps)
        host.attach(self.chosen)
        self.body = body
        if images:
            self.head = body.get_classifier()
            read_as_tested(self, body)
        else:
            self.head, body.classifier = body.classifier, nn.Identity()

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
        mark: Mark = unobserved,
        **options: Any,
    ) -> Tensor:
        """pixels (B, 3, T, H, W), normalised or uint8, keep_idx (B, K) or None: all -> logits (B, classes).

        Args:
            stages: what each of `stage_grids` keeps, of a backbone that has them; none: all. `keep_idx` is not read.

        Raises:
            ValueError: the pixels have another shape.
        """
        assert pixels is not None and not options, f"{self.closed}: it takes no {', '.join(options)}"
        self._check_pixels(pixels)
        if pixels.dtype == torch.uint8:
            pixels = self._normalize(pixels)
        mark("embed")
        self.chosen.given.value = keep_idx, stages
        try:
            if self.reads_images:
                features = self.body.forward_head(
                    self.body.forward_features(pixels[:, :, 0]), pre_logits=True
                )
            else:
                # Its classifier is `head`; VideoPrism gives (B, 1, D).
                features = self.body(pixels.transpose(1, 2)).logits.flatten(1)
        finally:
            self.chosen.given.value = None
        mark("blocks")
        logits: Tensor = self.head(features)
        mark("head")
        return logits


def transformers_backbone(
    family: str,
    *,
    num_classes: int,
    num_frames: int,
    input_size: int,
    tubelet: tuple[int, int, int],
    dim: int,
    depth: int,
    num_heads: int,
    mlp_dim: int | None = None,
    config: Mapping[str, Any] | None = None,
) -> HostBackbone:
    """A classifier of transformers with random weights.

    Args:
        family: one of `TRANSFORMERS`.
        num_classes, num_frames, input_size, tubelet, dim, depth, num_heads, mlp_dim: see `Encoder`; of VideoPrism the
            depth of the layers over space.
        config: what the model's config.json says beside; only what describes the network is read.

    Raises ConfigError: transformers is missing, too old, or cannot build it; or it cannot be pruned.
    """
    name, layers = TRANSFORMERS[family]
    try:
        import transformers  # an extra, and slow
    except ImportError:
        reason = 'needs transformers (pip install "video_papr[bench]")'
        raise ConfigError(f"backbone={family}: {reason}") from None
    kind = getattr(transformers, name, None)
    if kind is None:
        raise ConfigError(
            f"backbone={family}: transformers {transformers.__version__} has no {name}; update it"
        )
    every = signature(transformers.PretrainedConfig).parameters.keys()
    described = signature(kind.config_class).parameters.keys() - every
    settings = {key: value for key, value in (config or {}).items() if key in described}
    settings |= {
        "num_labels": num_classes,
        "num_frames": num_frames,
        "image_size": input_size,
        layers: depth,
        "hidden_size": dim,
        "num_attention_heads": num_heads,
        "intermediate_size": mlp_dim or 4 * dim,
        "patch_size": tubelet[1],
        "tubelet_size": list(tubelet),
    }
    try:
        body = kind(kind.config_class(**settings)).eval()
    except Exception as error:  # whatever the library's own checks raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError(f"backbone={family}: transformers cannot build it ({reason})") from None
    backbone = HostBackbone(body)
    if family == "timesformer":
        backbone.usual_stride = STRIDES.get(num_frames)
    return backbone


def build_timm_host(
    name: str,
    *,
    model: str | None = None,
    weights: str | Path | None = None,
    replace_head: bool = False,
    stages: Sequence[int] | None = None,
    **asked: Any,
) -> HostBackbone:
    """Builds a ConvNeXt, Swin or Hiera of timm in eval mode; arguments as of `timm_vit.build_timm_vit`.

    Args:
        name: one of `MODELS`.
        stages: see `HostBackbone`.

    Raises:
        ConfigError: timm has no such model, it is of another class, the stages do not divide the image, or it has no
            such stages.
        CheckpointError: the weights are missing, damaged or of another model.
    """
    model = MODELS[name] if model is None else model
    body, pruned, sides = open_timm(
        model,
        _convert,
        weights=weights,
        replace_head=replace_head,
        any_size=name == "timm_convnext",
        **asked,
    )
    kind = type(body).__name__
    if kind not in CLASSES[name]:
        raise ConfigError(
            f"backbone.model={model}: backbone={name} takes a {' or '.join(CLASSES[name])}, not {kind}"
        )
    sides = sides or open_model(body)[1].clip[1:]
    multiple = max(info["reduction"] for info in body.feature_info)
    if any(side % multiple for side in sides):
        raise ConfigError(
            f"backbone.input_size={list(sides)}: {model} reads sides that are multiples of {multiple}"
        )
    if pruned is not None:
        pruned.rebuild(body, CONV_KINDS)
    backbone = HostBackbone(body, frame_size=sides, stages=stages).eval().requires_grad_(False)
    if pruned is not None:
        pruned.load(backbone, body)
    elif weights is not None and not replace_head:
        backbone.class_names = imagenet_names(body, backbone.num_classes)
    return backbone


def _convert(state: dict[str, Tensor], network: Any) -> Mapping[str, Tensor]:
    """What timm itself does to the weights of this class before it loads them."""
    found: Mapping[str, Tensor] = sys.modules[type(network).__module__].checkpoint_filter_fn(state, network)
    return found
