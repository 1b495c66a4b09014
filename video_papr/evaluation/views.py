"""From the logits of a video's views to one answer. Letters: V videos, C classes."""

from __future__ import annotations

from torch import Tensor


def aggregate_views(logits: Tensor, views_per_video: int) -> Tensor:
    """Averages the class probabilities of each video's views: the one place where softmax is applied.

    Args:
        logits: (V * views_per_video, C), the views of one video adjacent.
        views_per_video: clips x crops.

    Returns:
        (V, C) float32 probabilities, each row summing to 1.

    Raises:
        ValueError: the rows do not divide into videos.
    """
    if logits.ndim != 2 or views_per_video < 1 or len(logits) % views_per_video:
        raise ValueError(
            f"logits of shape {tuple(logits.shape)} are not whole videos of {views_per_video} views"
        )
    probs = logits.float().softmax(dim=1)
    return probs.view(-1, views_per_video, logits.shape[1]).mean(dim=1)
