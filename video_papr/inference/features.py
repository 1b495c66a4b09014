"""Features of a video instead of class names: what the classifier would read, or the tokens behind the last block.

Letters: B clips, V views, n and T frames, H x W and S x S pixels, K kept tokens, P class tokens, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..core.errors import ConfigError, LogitsError
from ..pipeline import Pipeline
from .predict import ClipReader, Recipe, Video, recipe_of


@dataclass(frozen=True)
class TokenFeatures:
    """What the last block gives for one view: tokens (K, D), keep_idx (K,) their places in the grid, prefix (P, D)."""

    tokens: Tensor
    keep_idx: Tensor
    prefix: Tensor


def features(
    pipeline: Pipeline, video: Video, *, pooled: bool = True, recipe: Recipe | None = None
) -> Tensor | list[TokenFeatures]:
    """Features for search or for training something small on top.

    Args:
        video: a file, or its frames (n, H, W, 3) uint8, read as in `predict`; or clips (B, T, S, S, 3) uint8 as the
            pipeline takes them.
        pooled: one vector per view, the one that the classifier reads; False: the tokens behind the last block.

    Returns:
        pooled: (V, D) float32 on the CPU, one row per view or clip; otherwise a list of V `TokenFeatures`.

    Raises:
        VideoDecodeError: the file cannot be decoded.
        ConfigError: tokens are asked for, and the pipeline merges them, reads frame by frame or
            cannot reach them.
        LogitsError: the features are not finite.
        ValueError: the frames have another shape or type.
    """
    if not pooled and pipeline.backbone.parts > 1:
        raise ConfigError(
            "pooled=False: backbone=image_vit reads frame by frame; give single frames to timm_vit"
        )
    if not pooled and pipeline.backbone.closed:
        raise ConfigError(f"pooled=False: {pipeline.backbone.closed}, which hands out no tokens")
    if not pooled and pipeline.merger is not None:
        raise ConfigError(
            "pooled=False needs merger=none: a merged token has no place of its own in the grid"
        )
    found = _features(pipeline, video, pooled, recipe_of(pipeline, recipe))
    for values in [found] if isinstance(found, Tensor) else [view.tokens for view in found]:
        check_finite(values)
    return found


def check_finite(values: Tensor) -> None:
    """Raises LogitsError: some features are not."""
    if not bool(values.isfinite().all()):
        raise LogitsError("the features are not finite (NaN or infinite); check the weights")


def _features(pipeline: Pipeline, video: Video, pooled: bool, recipe: Recipe) -> Tensor | list[TokenFeatures]:
    reader = ClipReader(pipeline, recipe, 1)
    given = torch.as_tensor(video) if isinstance(video, Tensor | np.ndarray) else None
    views = given.to(reader.engine.device) if given is not None and given.ndim == 5 else reader.read(video)
    backbone, batch_size = pipeline.backbone, reader.recipe.batch_size
    if pooled:
        headless = pipeline.headless()
        with reader.engine.inference():
            return torch.cat([headless(part).float().cpu() for part in views.split(batch_size)])
    bare = pipeline.with_backbone(forward_head=lambda tokens, sizes=None: tokens)
    found, first = [], backbone.num_prefix
    with reader.engine.inference():
        for view in views.split(1):  # one by one: each may keep another number of tokens
            selection = bare.select(view)
            tokens = bare.classify(view, selection)[0].float().cpu()
            kept = (
                torch.arange(backbone.grid.num_tokens) if selection is None else selection.keep_idx[0].cpu()
            )
            # Behind the kept tokens may be those of the regions, which have no place.
            found.append(TokenFeatures(tokens[first : first + len(kept)], kept, tokens[:first]))
    return found
