"""Entry points of torch.hub, for those who have torch and want no installation.

    import torch
    pipeline = torch.hub.load(folder, "pipeline", source="local")    # the folder of a checkout
    pipeline = torch.hub.load("OWNER/NAME", "pipeline")              # the same from a code-hosting page

Each is a short way to a function of the package. torch.hub's `list` and `help` show them for "OWNER/NAME".
"""

from typing import Any

import video_papr as _vp

# Modules, not distributions; torch.hub stops with their names when one is missing.
dependencies = [
    "PIL",
    "av",
    "einops",
    "huggingface_hub",
    "hydra",
    "jinja2",
    "matplotlib",
    "numpy",
    "omegaconf",
    "pebble",
    "pydantic",
    "rich",
    "safetensors",
    "scipy",
    "timm",
    "torch",
    "tqdm",
    "typing_extensions",
]


def videomae_tiny(pretrained: bool = True, **options: Any) -> Any:
    """A small VideoMAE that embeds only the tubelets it is asked to keep; reads the synthetic actions.

    Args:
        pretrained: with the weights that come with the package; False: random ones.
        options: of `video_papr.build_backbone`, e.g. `num_classes`, `num_frames`, `input_size`.

    Returns:
        model(pixels (B, 3, T, S, S) float, keep_idx=None) -> logits (B, classes); T and S are `model.num_frames` and
        `model.input_size`.
    """
    return _vp.build_backbone(
        "videomae_tiny", weights="videomae_tiny_synthetic" if pretrained else None, **options
    )


def backbone(name: str = "videomae_b", weights: str | None = None, **options: Any) -> Any:
    """Any backbone by its name; see `video_papr.build_backbone`.

    Args:
        name: videomae_tiny, videomae_s, videomae_b, videomae_l, videomae_h or vivit_b.
        weights: a file, a folder, or org/name of the Hugging Face Hub; None: random ones.
        options: `num_classes`, `num_frames`, `input_size`, `replace_head`, `seed`.

    Returns:
        model(pixels (B, 3, T, H, W) float, keep_idx=None) -> logits (B, classes).
    """
    return _vp.build_backbone(name, weights=weights, **options)


def pruner(name: str = "x3d_s", weights: str | None = None, **options: Any) -> Any:
    """What chooses the tubelets; see `video_papr.build_pruner`.

    Args:
        name: x3d_xs, x3d_s, x3d_m, similarity, run_length, motion, brightness, random, uniform or center.
        weights: of an X3D: "x3d_s_synthetic" (bundled), "x3d_s_k400" (downloaded once) or a file; None: random ones.
        options: `keep_ratio` and what else the pruner has.

    Returns:
        pruner.select(frames (B, T, H, W, 3) uint8, backbone) -> the kept tokens.
    """
    return _vp.build_pruner(name, weights=weights, **options)


def pipeline(**groups: Any) -> Any:
    """Backbone and pruner together, as the command line would build them; see `video_papr.Pipeline.from_config`.

    Args:
        groups: dataset, backbone, pruner, merger, views, runtime: an option, or a mapping of its name and keys. Without
            any: the synthetic actions with bundled weights. `dataset="k400"` downloads VideoMAE-B and X3D-S once.

    Returns:
        a pipeline with `predict("clip.mp4")`, `features(...)`, `stream(...)`; called with frames (B, T, S, S, 3) uint8
        it gives logits.
    """
    return _vp.Pipeline.from_config(**groups)


def prune(model: Any, pruner: str = "x3d_s", keep_ratio: float = 0.3, **options: Any) -> Any:
    """Prunes a VideoMAE or ViViT of transformers, or a VisionTransformer of timm; see `video_papr.prune`.

    Args:
        model: the model; the same object is returned and is called the same way.
        pruner: what chooses the tubelets.
        keep_ratio: share of them that is kept, above 0, at most 1.
        options: `processor`, `mean`, `std`, `weights`, and those of the pruner.
    """
    return _vp.prune(model, pruner=pruner, keep_ratio=keep_ratio, **options)
