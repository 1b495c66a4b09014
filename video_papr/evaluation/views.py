"""View aggregation: from the logits of a video's views to one answer. Letters: V videos, C classes."""

from __future__ import annotations

import torch
from torch import Tensor


def aggregate_views(logits: Tensor, views_per_video: int) -> Tensor:
    """Averages the class probabilities of each video's views: the one place where softmax is applied.

    Args:
        logits: (V * views_per_video, C), the views of one video adjacent.
        views_per_video: clips x crops.

    Returns:
        (V, C) float32 probabilities, each row summing to 1; NaN throughout for a video with a logit that is not finite.

    Raises ValueError: the rows do not divide into videos.
    """
    if logits.ndim != 2 or views_per_video < 1 or len(logits) % views_per_video:
        raise ValueError(
            f"logits of shape {tuple(logits.shape)} are not whole videos of {views_per_video} views"
        )
    logits = logits.float()
    finite = logits.isfinite().all(dim=1, keepdim=True)  # softmax would turn minus infinity into a 0
    probs = logits.softmax(dim=1).where(finite, torch.nan)
    return probs.view(-1, views_per_video, logits.shape[1]).mean(dim=1)
