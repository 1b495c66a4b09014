"""Small models of other libraries, with weights under which every part matters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

FRAMES, SIZE = 4, 32  # grid 2 x 4 x 4
LAYERS: dict[str, Any] = {"hidden_size": 24, "num_attention_heads": 3, "num_labels": 5}
CLIP: dict[str, Any] = {**LAYERS, "image_size": SIZE, "num_frames": FRAMES, "intermediate_size": 48}
CONFIGS: dict[str, dict[str, Any]] = {
    "VideoMAE": {**CLIP, "num_hidden_layers": 3, "patch_size": 8, "tubelet_size": 2},
    "Vivit": {**CLIP, "num_hidden_layers": 3, "tubelet_size": [2, 8, 8]},
    "VJEPA2": {
        **{**LAYERS, "num_hidden_layers": 3, "crop_size": SIZE, "frames_per_clip": FRAMES, "patch_size": 8},
        **{"mlp_ratio": 2.0, "num_pooler_layers": 1, "pred_hidden_size": 24, "pred_num_hidden_layers": 1},
        "pred_num_attention_heads": 3,
    },
    "Timesformer": {**CLIP, "num_hidden_layers": 3, "patch_size": 8},
    "VideoPrismVision": {
        **CLIP,
        "tubelet_size": [1, 8, 8],
        "num_spatial_layers": 2,
        "num_temporal_layers": 2,
    },
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


def build_host(name: str, **changes: Any) -> Any:
    """A model of transformers by its class; `changes` of its configuration."""
    transformers = pytest.importorskip("transformers")
    family = next(family for family in CONFIGS if name.startswith(family.removesuffix("Vision")))
    config = getattr(transformers, f"{family}Config")(**{**CONFIGS[family], **changes})
    return shaken(getattr(transformers, name)(config))


def build_vit(**options: Any) -> Any:
    """A VisionTransformer of timm, with a grid of 1 x 4 x 4."""
    from timm.models.vision_transformer import VisionTransformer

    settings = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3}
    return shaken(VisionTransformer(**{**settings, "num_classes": 5, **options}))


def build_convnext(**options: Any) -> Any:
    """A ConvNeXt of timm, whose stages have grids of 16, 8, 4 and 2 places a side for images of 64 pixels."""
    from timm.models.convnext import ConvNeXt

    settings = {"depths": (1, 1, 2, 1), "dims": (8, 12, 16, 24), "ls_init_value": 1.0, "num_classes": 5}
    return shaken(ConvNeXt(**{**settings, **options}))


def build_swin(name: str = "SwinTransformer", **options: Any) -> Any:
    """A Swin of timm, with the same grids."""
    import timm.models as models

    settings = {
        "img_size": 64,
        "window_size": 4,
        "embed_dim": 8,
        "depths": (2, 1, 2, 1),
        "num_heads": (2, 2, 2, 2),
    }
    return shaken(getattr(models, name)(**{**settings, "num_classes": 5, "drop_path_rate": 0.0, **options}))


def build_hiera(**options: Any) -> Any:
    """A Hiera of timm for images of 64 pixels: 4 x 4 mask units of 4 x 4 tokens."""
    from timm.models.hiera import Hiera

    settings = {"img_size": (64, 64), "embed_dim": 8, "num_heads": 1, "stages": (1, 2, 1), "q_pool": 2}
    attention = {"mask_unit_size": (4, 4), "mask_unit_attn": (True, True, False)}
    return shaken(Hiera(**{**settings, **attention, "num_classes": 5, **options}))


TOWER: dict[str, Any] = {
    "depth": 4,
    "patch_size": 4,
    "num_heads": 2,
    "spatial_merge_size": 2,
    "in_channels": 3,
}
WIDE = {"hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 24}
TOWERS: dict[str, dict[str, Any]] = {
    "Qwen2VL": {"embed_dim": 16, "hidden_size": 24},
    "Qwen2_5_VL": {**WIDE, "window_size": 16, "fullatt_block_indexes": [1, 3]},
    "Qwen3VL": {**WIDE, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 2]},
}
GRIDS = torch.tensor([[2, 8, 8], [1, 4, 4], [3, 4, 8]])  # a video, an image and another video


def build_qwen(name: str) -> Any:
    """A Qwen-VL of transformers with its tower, `model.visual`, of 4 x 4 pixels a patch."""
    transformers = pytest.importorskip("transformers")
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]}
    text = {"hidden_size": 24, "head_dim": 12, "num_attention_heads": 2, "num_key_value_heads": 1}
    text |= {"num_hidden_layers": 3, "intermediate_size": 32, "vocab_size": 100, "rope_parameters": rope}
    config = getattr(transformers, f"{name}Config")(
        vision_config={**TOWER, **TOWERS[name]},
        text_config=text,
        **{
            "image_token_id": 90,
            "video_token_id": 91,
            "vision_start_token_id": 92,
            "vision_end_token_id": 93,
        },
    )
    return shaken(getattr(transformers, f"{name}ForConditionalGeneration")(config))


def draw_patches(batch: int = 2, seed: int = 0) -> Tensor:
    """The patches of `GRIDS`, (N, 3 x 2 x 4 x 4)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(int(GRIDS.prod(1).sum()), 96, generator=generator) * 2 - 1


def draw_clip(batch: int = 2, seed: int = 0) -> Tensor:
    """Pixels (B, T, 3, S, S), normalised roughly as photographs are."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, FRAMES, 3, SIZE, SIZE, generator=generator) * 2 - 1


def draw_colors(batch: int = 2, seed: int = 0) -> Tensor:
    """Pixels (B, T, 3, S, S) that are not normalised, in 0..1."""
    return draw_clip(batch, seed) / 2 + 0.5


def draw_images(batch: int = 2, seed: int = 0) -> Tensor:
    return draw_clip(batch, seed)[:, 0]


def draw_large_images(batch: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, 2 * SIZE, 2 * SIZE, generator=generator) * 2 - 1


@dataclass
class Example:
    """A small model of one family, and what it reads."""

    model: Any
    pixels: Callable[..., Tensor] = draw_clip  # (batch, seed) -> pixels
    reads_images: bool = False
    one_graph: bool = True  # `torch.compile(fullgraph=True)` takes it, as it takes the dense model

    def logits(self, model: Any, pixels: Tensor) -> Tensor:
        answer: Any = model(pixels)
        return answer if self.reads_images else answer.logits


class TowerExample(Example):
    def __init__(self, name: str) -> None:
        super().__init__(build_qwen(name).model.visual, draw_patches, one_graph=False)

    def logits(self, model: Any, pixels: Tensor) -> Tensor:
        features: Tensor = model(pixels, grid_thw=GRIDS).pooler_output
        return torch.stack(
            [features[:4].mean(0), features[-4:].mean(0)]
        )  # of the first video and of the last


# One of each family, and of each way in which it may be built.
HOSTS: dict[str, Callable[[], Example]] = {
    "VideoMAE": lambda: Example(build_host("VideoMAEForVideoClassification")),
    "ViViT": lambda: Example(build_host("VivitForVideoClassification")),
    "V-JEPA 2": lambda: Example(build_host("VJEPA2ForVideoClassification")),
    "TimeSformer": lambda: Example(build_host("TimesformerForVideoClassification")),
    "TimeSformer, joint": lambda: Example(
        build_host("TimesformerForVideoClassification", attention_type="joint_space_time")
    ),
    "VideoPrism": lambda: Example(build_host("VideoPrismForVideoClassification"), draw_colors),
    "Qwen2-VL": lambda: TowerExample("Qwen2VL"),
    "Qwen2.5-VL": lambda: TowerExample("Qwen2_5_VL"),
    "Qwen3-VL": lambda: TowerExample("Qwen3VL"),
    "timm ViT": lambda: Example(build_vit(), draw_images, reads_images=True),
    "ConvNeXt": lambda: Example(build_convnext(), draw_large_images, reads_images=True),
    "ConvNeXt V2": lambda: Example(
        build_convnext(use_grn=True, ls_init_value=None, conv_mlp=True), draw_large_images, reads_images=True
    ),
    "Swin": lambda: Example(build_swin(), draw_large_images, reads_images=True),
    "Hiera": lambda: Example(build_hiera(), draw_large_images, reads_images=True),
    "Swin V2": lambda: Example(build_swin("SwinTransformerV2"), draw_large_images, reads_images=True),
}


@pytest.fixture
def host() -> Callable[..., Any]:
    return build_host


@pytest.fixture
def vit() -> Callable[..., Any]:
    return build_vit


@pytest.fixture
def clip() -> Callable[..., Tensor]:
    return draw_clip
