"""Backbones by name."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import torch

from ..checkpoints import load_exactly, read_weights
from ..errors import CheckpointError, ConfigError
from ..structures import TokenGrid
from .videomae import VideoMAE

PAPER = {"num_frames": 16, "input_size": 224, "tubelet": (2, 16, 16), "num_classes": 400}
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
}


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
    input_size: int | None = None,
    seed: int = 0,
) -> VideoMAE:
    """Builds a backbone in eval mode.

    Args:
        name: one of `BACKBONES`.
        weights: a bundled name or a file that `tools/train.py` wrote; None is random weights.
        num_classes: of the logits; the model's own when None.
        num_frames, input_size: of the clip; the model's own when None. Positions follow the grid.
        seed: of random weights.

    Raises:
        ConfigError: unknown name, or a clip that the tubelets do not divide.
        CheckpointError: the weights are missing, damaged or of another model.
    """
    if name not in BACKBONES:
        close = difflib.get_close_matches(name, BACKBONES, 1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ConfigError(f"backbone={name} is unknown; use one of {', '.join(BACKBONES)}.{hint}")
    asked = {"num_classes": num_classes, "num_frames": num_frames, "input_size": input_size}
    state, described = read_weights(weights, key="backbone.weights") if weights is not None else ({}, {})
    _check_described(name, weights, described, num_classes)
    stored = {"num_classes": len(described["class_names"])} if "class_names" in described else {}
    settings = {**BACKBONES[name], **stored, **{k: v for k, v in asked.items() if v is not None}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = VideoMAE(**settings)
    if weights is not None:
        load_exactly(backbone, state, source=f"backbone.weights={weights}")
        names = described.get("class_names")
        backbone.class_names = tuple(names) if names else None
    return backbone.eval().requires_grad_(False)


def _check_described(name: str, weights: object, described: dict[str, Any], num_classes: int | None) -> None:
    """A file of ours says what it is; a wrong one is refused by name before its shapes are compared."""
    model = described.get("model", name)
    if model != name:
        raise CheckpointError(f"backbone.weights={weights} holds {model}, but backbone={name} was asked for")
    stored = len(described.get("class_names", ()))
    if stored and num_classes not in (None, stored):
        raise CheckpointError(
            f"backbone.weights={weights} was trained for {stored} classes, but {num_classes} were asked for; "
            "leave backbone.num_classes out, or train a head with tools/train.py"
        )
