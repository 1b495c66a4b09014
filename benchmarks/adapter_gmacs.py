"""What `video_papr.prune` saves on models of transformers and timm, counted by torch's FLOP counter.

    python benchmarks/adapter_gmacs.py

Prints GMACs per clip or image, with the default number of tokens: the model as it is, and pruned. What chooses the
tokens comes on top: 1.2 for X3D-S, 0.3 for an image of MobileOne-S0. Tensors have no storage, so nothing is computed
and weights do not matter. Needs transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
import transformers

import video_papr as vp
from video_papr.benchmark.flops import count_gmacs

CLIP, IMAGE = (16, 3, 224, 224), (3, 224, 224)
HEADS = {"g": {"hidden_size": 1408, "num_hidden_layers": 40, "num_attention_heads": 22, "mlp_ratio": 48 / 11}}


def vjepa2(frames: int, size: int, **changes: Any) -> Any:
    config = transformers.VJEPA2Config(frames_per_clip=frames, crop_size=size, **changes)
    return transformers.VJEPA2ForVideoClassification(config)


# model -> how it is built, and the shape of one input
MODELS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "VideoMAE-B, 16 x 224": (
        lambda: transformers.VideoMAEForVideoClassification(
            transformers.VideoMAEConfig(use_mean_pooling=True)
        ),
        CLIP,
    ),
    "ViViT-B, 32 x 224": (
        lambda: transformers.VivitForVideoClassification(transformers.VivitConfig()),
        (32, 3, 224, 224),
    ),
    "V-JEPA 2 L, 16 x 256": (lambda: vjepa2(16, 256), (16, 3, 256, 256)),
    "V-JEPA 2 L, 64 x 256": (lambda: vjepa2(64, 256), (64, 3, 256, 256)),
    "V-JEPA 2 g, 64 x 384": (lambda: vjepa2(64, 384, **HEADS["g"]), (64, 3, 384, 384)),
    "TimeSformer-B, 8 x 224": (
        lambda: transformers.TimesformerForVideoClassification(transformers.TimesformerConfig()),
        (8, 3, 224, 224),
    ),
    "VideoPrism-B, 16 x 288": (
        lambda: transformers.VideoPrismForVideoClassification(transformers.VideoPrismVisionConfig()),
        (16, 3, 288, 288),
    ),
    "DeiT-S": (lambda: timm.create_model("deit_small_patch16_224"), IMAGE),
    "ConvNeXt-T": (lambda: timm.create_model("convnext_tiny"), IMAGE),
    "ConvNeXt V2-T": (lambda: timm.create_model("convnextv2_tiny"), IMAGE),
    "Swin-T": (lambda: timm.create_model("swin_tiny_patch4_window7_224"), IMAGE),
    "Swin V2-T": (
        lambda: timm.create_model("swinv2_tiny_window8_256", img_size=256),
        (3, 256, 256),
    ),
    "Hiera-T": (lambda: timm.create_model("hiera_tiny_224"), IMAGE),
}


def count(build: Callable[[], Any], shape: tuple[int, ...]) -> tuple[float, float]:
    """GMACs of a model as it is, and pruned."""
    with torch.device("meta"):
        model, pixels = build().to("meta").eval().requires_grad_(False), torch.zeros(1, *shape)
    with torch.inference_mode():
        dense = count_gmacs(lambda: model(pixels))
        vp.prune(model, "center")  # a rule costs nothing, so this is the model alone
        for module in model.modules():
            note = vars(module).get("video_papr_pruning")
            if note is not None:
                note.selector.doubted = True  # pixels without storage have no range to look at
        return dense, count_gmacs(lambda: model(pixels))


def main() -> None:
    print("| model | dense | pruned | |\n|---|---|---|---|")
    for name, (build, shape) in MODELS.items():
        dense, pruned = count(build, shape)
        print(f"| {name} | {dense:,.1f} | {pruned:,.1f} | {dense / pruned:.2f}x |")


if __name__ == "__main__":
    main()
