"""What the tests of the backbones share: transformers' models with weights under which every part matters."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

# family -> names in transformers
MODELS = {
    "videomae": ("VideoMAEConfig", "VideoMAEForVideoClassification"),
    "vivit": ("VivitConfig", "VivitForVideoClassification"),
}


def shake(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draws every parameter anew, in float32: attention far from uniform, biases and norms that matter. Eval mode."""
    generator = torch.Generator().manual_seed(seed)
    model.eval().requires_grad_(False)
    for name, value in model.named_parameters():
        scale = 0.25 if value.ndim < 2 else 1.5 / value[0].numel() ** 0.5
        noise = torch.randn(value.shape, generator=generator) * scale
        value.copy_(1 + noise if "norm" in name and name.endswith("weight") else noise)
    return model


def reference(family: str, settings: dict[str, Any], **config: Any) -> Any:
    """transformers' classifier for settings as in `BACKBONES`, float32."""
    transformers = pytest.importorskip("transformers")
    named = [getattr(transformers, name) for name in MODELS[family]]
    frames, height, width = settings["tubelet"]
    tubelet = (
        {"tubelet_size": frames, "patch_size": height}
        if family == "videomae"
        else {"tubelet_size": [frames, height, width]}
    )
    described = named[0](
        image_size=settings["input_size"],
        num_frames=settings["num_frames"],
        hidden_size=settings["dim"],
        num_hidden_layers=settings["depth"],
        num_attention_heads=settings["num_heads"],
        num_labels=settings["num_classes"],
        **{"intermediate_size": 4 * settings["dim"], **tubelet, **config},
    )
    return shake(named[1](described))


def logits_of(model: Any, pixels: Tensor) -> Tensor:
    """Logits of transformers' model for pixels (B, 3, T, S, S)."""
    with torch.no_grad():
        return model(pixel_values=pixels.transpose(1, 2)).logits


def clip(settings: dict[str, Any], batch: int = 2, seed: int = 0) -> Tensor:
    """Pixels (B, 3, T, S, S), float32."""
    shape = (batch, 3, settings["num_frames"], settings["input_size"], settings["input_size"])
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="session")
def hf() -> SimpleNamespace:
    """The functions of this file."""
    return SimpleNamespace(shake=shake, reference=reference, logits_of=logits_of, clip=clip)
