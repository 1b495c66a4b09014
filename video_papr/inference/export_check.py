"""Does an exported graph do what the pipeline does? The comparison, and the clips for it.

Which tubelets are kept is a matter of ranking, and rounding decides between equals: a grey clip, or the rule `center`,
has many. So two questions are asked apart. Is the choice as good as the pipeline's: does every tubelet that was taken
instead of another score the same, within `SCORE_TOLERANCE`? And are the logits those that the pipeline gives for the
graph's own choice, within `LOGIT_TOLERANCE`?

Letters: B clips, T frames of S x S pixels, N tokens of the grid, K kept tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..core.errors import ExportError, LogitsError
from ..core.types import TokenGrid, TokenSelection
from ..pipeline import Pipeline
from ..synthetic.videos import render_clips
from .export import Runner, kept_tokens

# Relative to the largest value of the clip's map or of its logits. float32 sums in another order differ by about 1e-6.
SCORE_TOLERANCE = 1e-4
LOGIT_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Agreement:
    """What a comparison found.

    Attributes:
        same_choice: clips of which both keep the very same tubelets.
        ties: tubelets of the others that were taken instead of ones that score the same.
        score_gap: how far apart the scores of such tubelets are at most, as a share of the map's largest value.
        logit_difference: the largest one for the graph's own choice, as a share of the largest logit.
        same_answer: clips with the same best class, each with its own choice.
    """

    clips: int
    same_choice: int
    ties: int
    score_gap: float
    logit_difference: float
    same_answer: int


def check_clips(pipeline: Pipeline, count: int, *, seed: int = 0) -> Tensor:
    """Clips for a comparison, (2 count + 1, T, S, S, 3) uint8, on the CPU.

    `count` of noise, as many of synthetic actions, and a grey one, where rounding alone decides what is kept.
    """
    model = pipeline.backbone
    rng = np.random.default_rng(seed)
    shape = (model.num_frames, *model.frame_size, 3)
    noise = torch.from_numpy(rng.integers(0, 256, (count, *shape), dtype=np.uint8))
    acted = render_clips(count, num_frames=model.num_frames, size=model.frame_size, rng=rng)
    return torch.cat([noise, acted, torch.full((1, *shape), 128, dtype=torch.uint8)])


@torch.inference_mode()
def compare(pipeline: Pipeline, run: Runner, frames: Tensor, *, source: str) -> Agreement:
    """Runs the graph on the first clip alone and on the others together, and compares with the pipeline.

    Args:
        frames: (B, T, S, S, 3) uint8, at least 2 clips.

    Raises:
        ExportError: the graph keeps other tubelets that do not score the same, or gives other logits.
        LogitsError: the pipeline's logits are not finite.
    """
    device = next(pipeline.backbone.parameters()).device
    parts = [
        _compare(pipeline, run, part.to(device), source=source)
        for part in (frames[:1], frames[1:])
        if len(part)
    ]
    return Agreement(
        clips=sum(part.clips for part in parts),
        same_choice=sum(part.same_choice for part in parts),
        ties=sum(part.ties for part in parts),
        score_gap=max(part.score_gap for part in parts),
        logit_difference=max(part.logit_difference for part in parts),
        same_answer=sum(part.same_answer for part in parts),
    )


def _compare(pipeline: Pipeline, run: Runner, frames: Tensor, *, source: str) -> Agreement:
    batch = frames.shape[0]
    outputs = [value.to(frames.device) for value in run(frames)]
    logits, kept = outputs[0], outputs[1] if len(outputs) > 1 else None
    selection = pipeline.select(frames)
    if (selection is None) != (kept is None):
        raise ExportError(f"{source}: the graph has {len(outputs)} outputs, which do not fit the pruner")
    own = pipeline.classify(frames, selection)
    if not bool(own.isfinite().all()):
        raise LogitsError(
            "the pipeline's own logits are not finite (NaN or infinite); check backbone.weights"
        )
    expected, swapped, gap = own, torch.zeros(batch, dtype=torch.int64), 0.0
    if selection is not None and kept is not None:
        _check_indices(kept, batch, kept_tokens(pipeline), selection.grid, source)
        scores = pipeline.significance(frames)
        assert scores is not None
        swapped, gap = _swaps(scores, selection.mask(), TokenSelection(kept, selection.grid).mask())
        if not gap <= SCORE_TOLERANCE:
            raise ExportError(
                f"{source}: keeps other tubelets than the pipeline, with scores {gap:.1e} of the map's largest apart "
                f"(allowed: {SCORE_TOLERANCE:.0e})"
            )
        assert pipeline.pruner is not None
        chosen = pipeline.pruner.selection_of(kept, frames, pipeline.backbone)
        expected = pipeline.classify(frames, chosen)
    if logits.shape != expected.shape:
        raise ExportError(f"{source}: logits {tuple(logits.shape)} instead of {tuple(expected.shape)}")
    difference = float((logits - expected).abs().amax() / expected.abs().amax().clamp(min=1))
    if not difference <= LOGIT_TOLERANCE:  # NaN too
        raise ExportError(
            f"{source}: logits differ from the pipeline's by {difference:.1e} of the largest one (allowed: "
            f"{LOGIT_TOLERANCE:.0e})"
        )
    same = int((logits.argmax(1) == own.argmax(1)).sum())
    return Agreement(batch, int((swapped == 0).sum()), int(swapped.sum()), gap, difference, same)


def _check_indices(kept: Tensor, batch: int, count: int, grid: TokenGrid, source: str) -> None:
    if tuple(kept.shape) != (batch, count) or kept.dtype != torch.int64:
        raise ExportError(
            f"{source}: keep_idx is {kept.dtype} {tuple(kept.shape)} instead of torch.int64 {(batch, count)}"
        )
    ascending = bool((kept.diff(dim=1) > 0).all())
    if not ascending or int(kept.min()) < 0 or int(kept.max()) >= grid.num_tokens:
        raise ExportError(f"{source}: keep_idx is not ascending within 0 to {grid.num_tokens - 1}")


def _swaps(scores: Tensor, own: Tensor, other: Tensor) -> tuple[Tensor, float]:
    """How many tubelets of each clip only one side keeps, (B,), and how far apart their scores are, best to best.

    scores, own, other: (B, T', H', W'), float and two masks that keep equally many.
    """
    counts, gap = [], 0.0
    for values, ours, theirs in zip(scores.flatten(1), own.flatten(1), other.flatten(1), strict=True):
        lost, won = values[ours & ~theirs].sort().values, values[theirs & ~ours].sort().values
        counts.append(len(lost))
        if len(lost):
            gap = max(gap, float((lost - won).abs().amax() / values.abs().amax().clamp(min=1e-12)))
    return torch.tensor(counts), gap
