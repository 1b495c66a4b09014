"""A pipeline's run, stage by stage, for the probes. The same calls as `Pipeline.forward`, in the same order."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..backbones.blocks import run_blocks
from ..core.types import TokenSelection
from ..pipeline import Pipeline, planes
from ..pruning.similarity import SimilarityPruner
from .probes import Mark

STAGES = ("score", "select", "embed", "blocks", "head", "backbone")
SCORING = ("score", "select")  # what pruning costs


def run_stages(pipeline: Pipeline, frames: Tensor, mark: Mark, *, split: bool = True) -> Tensor:
    """frames (B, T, H, W, 3) uint8 -> logits (B, classes), as `pipeline(frames)` gives them.

    `mark` hears of these stages: "score" (the map, with what the scorer's own pixels take), "select" (from the map to
    the kept tokens), "embed" (with normalising), "blocks" and "head". Where the backbone runs as one,
    "backbone" takes the place of the last three: when clips keep unequal numbers of tokens, when the pruner reads the
    backbone's own features ("select" then holds that part of it), and with `split=False`, for a compiled backbone.
    """
    pruner = pipeline.pruner
    selection: TokenSelection | None = None
    if isinstance(pruner, SimilarityPruner):
        selection = pipeline.select(frames)
        mark("select")
    elif pruner is not None:
        significance = pruner.significance(frames, pipeline.backbone.grid)
        mark("score")
        selection = pruner.choose(significance)
        mark("select")
    if not split or (selection is not None and (selection.valid is not None or selection.tokens is not None)):
        logits = pipeline.classify(frames, selection)
        mark("backbone")
        return logits
    return _split_backbone(pipeline, frames, selection, mark)


def _split_backbone(
    pipeline: Pipeline, frames: Tensor, selection: TokenSelection | None, mark: Mark
) -> Tensor:
    backbone = pipeline.backbone
    keep_idx = None if selection is None else selection.keep_idx
    options: dict[str, Any] = {"num_prefix": backbone.num_prefix}
    if pipeline.merger is not None:
        options["merger"] = pipeline.merger
    tokens = backbone.embed(planes(frames), keep_idx)
    mark("embed")
    tokens, sizes = run_blocks(backbone.blocks, tokens, **options)
    mark("blocks")
    logits = backbone.classify(tokens, sizes)
    mark("head")
    return logits
