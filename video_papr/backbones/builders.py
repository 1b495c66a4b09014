"""Backbones by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.files import PROBE
from ..core.errors import ConfigError, check_known
from ..core.types import TokenGrid
from .depth_pruned import WHOLE, depth_prune_backbone
from .fitting import choose_head, fit_positions, load, settings_of
from .hosts import MODELS, TRANSFORMERS, HostBackbone, build_timm_host, transformers_backbone
from .layers import clip_grid
from .probe import read_probe
from .timm_vit import TimmViT, build_timm_vit
from .videomae import VideoMAE
from .vivit import ViViT
from .vjepa2 import VJEPA2
from .weights import Checkpoint, read_checkpoint

Backbone = VideoMAE | ViViT | VJEPA2 | TimmViT | HostBackbone
IMAGES = ("timm_vit", *MODELS)  # read images
TIMM = (*IMAGES, "image_vit")  # take a model of timm
FAMILIES: dict[str, Callable[..., Backbone]] = {
    "videomae": VideoMAE,
    "vivit": ViViT,
    "vjepa2": VJEPA2,
    **{family: partial(transformers_backbone, family) for family in TRANSFORMERS},
}

PAPER = {"num_frames": 16, "input_size": 224, "tubelet": (2, 16, 16), "num_classes": 400}
ROTARY = {**PAPER, "num_frames": 64, "input_size": 256, "num_classes": 174, "pooler_depth": 3}
FRAMES = {**PAPER, "dim": 768, "depth": 12, "num_heads": 12}
# VideoMAE's own sizes (Tong et al., table 9), and one small enough to train and run on a laptop.
BACKBONES: dict[str, dict[str, Any]] = {
    "videomae_tiny": {
        "dim": 192,
        "depth": 4,
        "num_heads": 3,
        "num_frames": 16,
        "input_size": 64,
        "tubelet": (4, 8, 8),
        "num_classes": 12,
        "positions": "space_time",
    },
    "videomae_s": {**PAPER, "dim": 384, "depth": 12, "num_heads": 6},
    "videomae_b": {**PAPER, "dim": 768, "depth": 12, "num_heads": 12},
    "videomae_l": {**PAPER, "dim": 1024, "depth": 24, "num_heads": 16},
    "videomae_h": {**PAPER, "dim": 1280, "depth": 32, "num_heads": 16},
    # ViViT's factorised variants are other models; this is the joint one (Arnab et al., model 1, ViT-B, 16x2 tubelets).
    "vivit_b": {**PAPER, "num_frames": 32, "dim": 768, "depth": 12, "num_heads": 12},
    # V-JEPA 2 at the clips of its published classifiers; H has none.
    "vjepa2_l": {**ROTARY, "num_frames": 16, "dim": 1024, "depth": 24, "num_heads": 16},
    "vjepa2_h": {**ROTARY, "dim": 1280, "depth": 32, "num_heads": 16},
    "vjepa2_g": {**ROTARY, "input_size": 384, "dim": 1408, "depth": 40, "num_heads": 22, "mlp_dim": 6144},
    # Of transformers; VideoPrism's depth is that of its layers over space.
    "timesformer_b": {**FRAMES, "num_frames": 8, "tubelet": (1, 16, 16)},
    "videoprism_b": {**FRAMES, "input_size": 288, "tubelet": (1, 18, 18)},
    # Any VisionTransformer of timm; these are the sizes of most. It reads images, which are clips of one frame, or the
    # frames of a video one by one.
    "timm_vit": {**PAPER, "num_frames": 1, "tubelet": (1, 16, 16), "num_classes": 1000},
    "timm_convnext": {**PAPER, "num_frames": 1, "tubelet": (1, 4, 4), "num_classes": 1000},
    "timm_swin": {**PAPER, "num_frames": 1, "tubelet": (1, 4, 4), "num_classes": 1000},
    "timm_hiera": {**PAPER, "num_frames": 1, "tubelet": (1, 32, 32), "num_classes": 1000},
    "image_vit": {**PAPER, "num_frames": 8, "tubelet": (1, 16, 16), "num_classes": 1000},
}
# Other libraries' models.
OTHERS = (*TIMM, *(name for name in BACKBONES if name.startswith(tuple(TRANSFORMERS))))


def clip_size(name: str, *, num_frames: int | None = None, input_size: int | None = None) -> tuple[int, int]:
    """The (frames, size) of the clips that a backbone reads; its own where not given."""
    return num_frames or BACKBONES[name]["num_frames"], input_size or BACKBONES[name]["input_size"]


def token_grid(name: str, *, num_frames: int | None = None, input_size: int | None = None) -> TokenGrid:
    """The token grid of a backbone's clips, without building it."""
    frames, size = clip_size(name, num_frames=num_frames, input_size=input_size)
    depth, height, width = BACKBONES[name]["tubelet"]
    return TokenGrid(frames // depth, size // height, size // width)


def build_backbone(
    name: str,
    *,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    num_frames: int | None = None,
    input_size: int | tuple[int, int] | None = None,
    replace_head: bool = False,
    model: str | None = None,
    pool: str | None = None,
    stages: Sequence[int] | None = None,
    seed: int = 0,
) -> Backbone:
    """Builds a backbone in eval mode.

    Args:
        name: one of `BACKBONES`; or "probe", whose file in `weights` says the rest.
        weights: a bundled name, a file or folder, or a model of the Hugging Face Hub, see `checkpoints`; None is random
            weights.
        num_classes: of the logits; the model's own when None.
        num_frames, input_size: of the clip; None: what the weights say, otherwise the model's own. Positions follow the
            grid. `IMAGES` read one frame, "image_vit" several; they need not be square: (H, W).
        replace_head: a new, untrained classifier of `num_classes` in place of the one that the weights have.
        model: timm's name of the network, for those of `TIMM`, whose `weights` may be "pretrained"; see
            `build_timm_vit`.
        pool: what becomes of the frames' answers, for "image_vit", see `core.parts.POOLS`; None: their mean.
        stages: of "timm_convnext" and "timm_swin", those that drop places, counted from 0; None: all.
        seed: of random weights.

    Raises:
        ConfigError: unknown name, a clip that the tubelets do not divide, or a new classifier of unknown size.
        CheckpointError: the weights are missing, damaged or of another model.

    Warns:
        CheckpointWarning: positions or the classifier of the weights were changed, or the weights say that they are of
            another size, or were trained on another clip, than the named one.
    """
    own: dict[str, Any] = {"num_classes": num_classes, "num_frames": num_frames, "input_size": input_size}
    own |= {"model": model, "pool": pool, "stages": stages}
    if name == PROBE:
        if replace_head or any(value is not None for value in own.values()):
            raise ConfigError(
                "backbone=probe: its file says how the backbone is built; leave the other keys out"
            )
        return _build_probe(weights)
    _check_keys(name, own)
    if replace_head and weights is None:
        raise ConfigError(
            "backbone.replace_head=true needs backbone.weights=; random weights have a new classifier anyway"
        )
    if name in TIMM:
        shared: dict[str, Any] = {key: own[key] for key in ("model", "num_classes", "input_size")}
        shared |= {"weights": weights, "replace_head": replace_head, "seed": seed}
        if name in MODELS:
            return build_timm_host(name, stages=stages, **shared)
        return build_timm_vit(
            num_frames=num_frames or BACKBONES[name]["num_frames"], pool=pool or "mean", **shared
        )
    asked = {key: own[key] for key in ("num_frames", "input_size") if own[key] is not None}
    settings: dict[str, Any] = {**BACKBONES[name], **asked}
    checkpoint = None
    if weights is not None:
        checkpoint = read_checkpoint(weights, key="backbone.weights")
        settings = settings_of(checkpoint, name, BACKBONES, asked)
        num_classes, checkpoint = choose_head(checkpoint, num_classes, fresh=replace_head)
        settings |= {"config": checkpoint.config} if checkpoint.config else {}
        checkpoint = _fit_grid(name, settings, checkpoint)
    if num_classes is not None:
        settings["num_classes"] = num_classes
    return _build_loaded(name, settings, checkpoint, seed).eval().requires_grad_(False)


def _check_keys(name: str, own: Mapping[str, Any]) -> None:
    """Raises ConfigError: an unknown backbone, or one without such keys."""
    check_known("backbone", name, BACKBONES)
    pool, stages, num_frames = own["pool"], own["stages"], own["num_frames"]
    if pool is not None and name != "image_vit":
        raise ConfigError(f"backbone.pool={pool}: only backbone=image_vit answers frame by frame")
    if stages is not None and name not in MODELS:
        raise ConfigError(f"backbone.stages={list(stages)}: {name} drops tokens once; leave it out")
    if name in IMAGES and num_frames not in (None, 1):
        raise ConfigError(
            f"backbone.num_frames={num_frames}: {name} reads images, clips of 1 frame; image_vit reads videos"
        )
    if name in TIMM:
        return
    if own["model"] is not None:
        raise ConfigError(f"backbone.model={own['model']}: only {', '.join(TIMM)} take a model of timm")
    if not isinstance(own["input_size"], int | None):
        size = list(own["input_size"])
        raise ConfigError(f"backbone.input_size={size}: {name} reads square frames, one number")


def _fit_grid(name: str, settings: Mapping[str, Any], checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with the positions of the asked grid. Raises ConfigError: its library has them as they are."""
    trained = {**BACKBONES[name], **checkpoint.settings}
    if name in OTHERS and _grid(settings) != _grid(trained):
        raise ConfigError(
            f"backbone={name}: the positions of these weights are those of {trained['num_frames']} frames of "
            f"{trained['input_size']} pixels; leave backbone.num_frames and backbone.input_size out"
        )
    if settings.get("positions") == "space_time":  # these are shares of the clip: they serve every grid
        return checkpoint
    return fit_positions(checkpoint, _grid(settings), _grid(trained))


def _build_loaded(
    name: str, settings: Mapping[str, Any], checkpoint: Checkpoint | None, seed: int
) -> Backbone:
    """The network with the weights of `checkpoint`, and with how it is to be read; None: random ones."""
    if checkpoint is None:
        return _build(name, settings, None, seed)
    with torch.device("meta"):  # without memory: nothing is built for weights that do not fit
        load(_build(name, settings, checkpoint, seed), checkpoint, only_check=True)
    backbone = _build(name, settings, checkpoint, seed)
    load(backbone, checkpoint)
    backbone.class_names, backbone.read = checkpoint.names, checkpoint.read
    if checkpoint.read is not None:
        backbone.mean = checkpoint.read.mean or backbone.mean
        backbone.std = checkpoint.read.std or backbone.std
    return backbone


def _build_probe(weights: str | Path | None) -> Backbone:
    """The backbone that the file of a probe names, with its head."""
    probe = read_probe(weights)
    backbone = build_backbone(**probe.backbone)
    probe.attach(backbone, source=f"backbone.weights={weights}")
    return backbone


def _build(name: str, settings: Mapping[str, Any], checkpoint: Checkpoint | None, seed: int) -> Backbone:
    """The network with random weights, and with the blocks that `checkpoint` has, if its depth was pruned."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone: Backbone = FAMILIES[name.split("_")[0]](**settings)
        if checkpoint is not None and checkpoint.blocks is not None:
            depth_prune_backbone(backbone, checkpoint.blocks)
            backbone.depth_pruned = set(checkpoint.blocks) != {WHOLE}
    return backbone


def _grid(settings: Mapping[str, Any]) -> TokenGrid:
    return clip_grid(settings["num_frames"], settings["input_size"], settings["tubelet"])
