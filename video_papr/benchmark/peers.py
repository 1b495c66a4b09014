"""What a user would take instead: the video transformers of Hugging Face's transformers, with the same weights as ours.

transformers is no dependency of the package; `pip install "video_papr[bench]"` brings it.
"""

from __future__ import annotations

import inspect
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones.builders import BACKBONES, Backbone, build_backbone
from ..checkpoints.files import load_exactly
from ..checkpoints.formats import from_huggingface
from ..core.types import Mark, unobserved
from ..pipeline import Pipeline


def available() -> bool:
    """Whether transformers is installed."""
    return find_spec("transformers") is not None


def build_pair(name: str, *, seed: int = 0, **clip: int | None) -> tuple[Backbone, nn.Module | None]:
    """Our backbone and transformers' model of the same architecture, with the same random weights.

    Args:
        name: one of `BACKBONES`.
        clip: `num_frames` and `input_size`; the architecture's own where None.

    Returns:
        both in eval mode, theirs with SDPA; None in its place where transformers is missing or has no such model.
    """
    ours = build_backbone(name, seed=seed, **clip)  # type: ignore[arg-type]
    family = name.partition("_")[0]
    if not available() or family not in ("videomae", "vivit"):
        return ours, None
    settings = BACKBONES[name]
    config: dict[str, Any] = {
        "num_frames": ours.num_frames,
        "image_size": ours.input_size,
        "num_labels": ours.num_classes,
        "hidden_size": settings["dim"],
        "num_hidden_layers": settings["depth"],
        "num_attention_heads": settings["num_heads"],
        "intermediate_size": 4 * settings["dim"],
        "layer_norm_eps": 1e-6,  # ours
        "attn_implementation": "sdpa",
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        theirs = _videomae(config, ours, settings) if family == "videomae" else _vivit(config, settings)
    load_exactly(ours, from_huggingface(theirs.state_dict()), source="transformers")
    return ours, theirs.eval().requires_grad_(False)


def _videomae(config: dict[str, Any], ours: Backbone, settings: dict[str, Any]) -> Any:
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    frames, height, _ = settings["tubelet"]
    model: Any = VideoMAEForVideoClassification(
        VideoMAEConfig(**config, patch_size=height, tubelet_size=frames, use_mean_pooling=True)
    )
    model.fc_norm.eps = 1e-6
    # A table that is computed, not trained; videomae_tiny has another one.
    model.videomae.embeddings.position_embeddings = ours.get_buffer("positions").clone()
    return model


def _vivit(config: dict[str, Any], settings: dict[str, Any]) -> Any:
    from transformers import VivitConfig, VivitForVideoClassification

    model = VivitForVideoClassification(VivitConfig(**config, tubelet_size=list(settings["tubelet"])))
    for name, value in model.named_parameters():  # zeros, which would leave the positions untested
        if name.endswith(("position_embeddings", "cls_token")):
            nn.init.trunc_normal_(value, std=0.02)
    return model


def drops_tokens(model: Any) -> bool:
    """Whether the classifier hands `bool_masked_pos` on to an encoder that drops the masked tokens.

    VideoMAE's does since its forward takes further arguments; ViViT has no such argument.
    """
    if not hasattr(model, "videomae"):
        return False
    kinds = [entry.kind for entry in inspect.signature(type(model).forward).parameters.values()]
    return inspect.Parameter.VAR_KEYWORD in kinds


class PeerFlow(nn.Module):
    """transformers' model on frames, normalised as for our backbone.

    Args:
        ours: for its normalisation.
        chooser: a pipeline whose pruner says which tokens stay; the others are dropped through `bool_masked_pos`.
            None: all stay.
    """

    def __init__(self, ours: Backbone, theirs: nn.Module, chooser: Pipeline | None = None) -> None:
        super().__init__()
        self.ours, self.theirs, self.chooser = ours, theirs, chooser

    def forward(self, frames: Tensor, mark: Mark = unobserved) -> Tensor:
        """frames (B, T, H, W, 3) uint8 -> logits (B, classes); `mark` as that of `Pipeline.forward`."""
        selection = None if self.chooser is None else self.chooser.select(frames, mark)
        pixels = self.ours.normalize(frames).transpose(1, 2)
        dropped = {} if selection is None else {"bool_masked_pos": ~selection.mask().flatten(1)}
        logits: Tensor = self.theirs(pixel_values=pixels, **dropped).logits
        mark("backbone")
        return logits.clone() if self.ours.replayed else logits  # as `Pipeline` does
