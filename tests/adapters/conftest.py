"""Small models of other libraries, with weights under which every part matters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

FRAMES, SIZE = 4, 32  # grid 2 x 4 x 4
COMMON: dict[str, Any] = {
    "image_size": SIZE,
    "num_frames": FRAMES,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 48,
    "num_labels": 5,
}
TUBELETS: dict[str, dict[str, Any]] = {
    "VideoMAE": {"patch_size": 8, "tubelet_size": 2},
    "Vivit": {"tubelet_size": [2, 8, 8]},
}


def shaken(model: nn.Module) -> Any:
    """Draws every parameter anew, so that attention is far from uniform and biases and norms matter. Eval mode."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            scale = 0.25 if value.ndim < 2 else 1.5 / value[0].numel() ** 0.5
            noise = torch.randn(value.shape, generator=generator) * scale
            value.copy_(1 + noise if "norm" in name and name.endswith("weight") else noise)
    return model.eval()


@pytest.fixture
def host() -> Callable[..., Any]:
    """A function (class name, changes of its configuration) -> a model of transformers."""
    transformers = pytest.importorskip("transformers")

    def build(name: str, **changes: Any) -> Any:
        family = "VideoMAE" if name.startswith("VideoMAE") else "Vivit"
        config = getattr(transformers, f"{family}Config")(**{**COMMON, **TUBELETS[family], **changes})
        return shaken(getattr(transformers, name)(config))

    return build


@pytest.fixture
def vit() -> Callable[..., Any]:
    """A function (options) -> a VisionTransformer of timm, with a grid of 1 x 4 x 4."""
    from timm.models.vision_transformer import VisionTransformer

    def build(**options: Any) -> Any:
        settings = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3}
        return shaken(VisionTransformer(**{**settings, "num_classes": 5, **options}))

    return build


@pytest.fixture
def clip() -> Callable[..., torch.Tensor]:
    """A function (batch, seed) -> pixels (B, T, 3, S, S), normalised roughly as photographs are."""

    def draw(batch: int = 2, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(batch, FRAMES, 3, SIZE, SIZE, generator=generator) * 2 - 1

    return draw
