"""VideoPrism of transformers: layers over space, then layers over time, so the same places of all frames stay.

The spatial embeddings are the one module that sees the pixels and makes the tokens, (B T, H' W', D); every later step
takes the number of places from its input.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..core.errors import ConfigError
from ..core.types import TokenGrid, TokenSelection
from .hooks import EmbeddingHooks
from .host import Family, Handle, Host, check_rgb, keep_tokens, pair
from .selector import Selector


def open_model(model: Any, name: str) -> Host:
    """Describes a VideoPrism.

    Raises ConfigError: the model does not read RGB, or embeds several frames together.
    """
    video = getattr(model, "video_model", model)  # of a video-text model
    vision = getattr(video, "vision_model", video)
    config = vision.config
    check_rgb(config.num_channels, name)
    depth, *patch = config.tubelet_size
    if depth != 1:
        raise ConfigError(f"cannot prune this {name}: its tubelets are {depth} frames deep instead of 1")
    frames, height, width = config.num_frames, *pair(config.image_size)
    embeddings = vision.spatial_embeddings

    def attach(selector: Selector) -> list[Handle]:
        return EmbeddingHooks(selector, _keep, "pixel_values_videos").attach(embeddings)

    return Host(
        name=name,
        home=embeddings,
        grid=TokenGrid(frames, height // patch[0], width // patch[1]),
        clip=(frames, height, width),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        attach=attach,
        same_places=True,
    )


def _keep(tokens: Tensor, selection: TokenSelection) -> Tensor:
    """tokens (B T, N / T, D) -> (B T, K / T, D)."""
    frames = selection.grid.frames
    # Those of the first frame are those of all.
    places = selection.keep_idx[:, : selection.num_kept // frames]
    return keep_tokens(tokens, places.repeat_interleave(frames, 0))


FAMILY = Family(
    library="transformers",
    classes=(
        "VideoPrismForVideoClassification",
        "VideoPrismVisionModel",
        "VideoPrismVideoModel",
        "VideoPrismClipModel",
    ),
    drops="the same places of all frames, before the first layer",
    checked="all tokens computed, the dropped places barred from the attention over space and from the pooling",
    open=open_model,
)
