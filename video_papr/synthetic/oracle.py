"""How much of the actor survives pruning: known for synthetic videos, which say where their actor is."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..core.types import TokenSelection
from ..data.datasets import VideoSample
from .tracks import actor_tokens, in_view


def actor_share(
    tracks: Mapping[str, np.ndarray], sample: VideoSample, selection: TokenSelection
) -> float | None:
    """Returns the share of the actor's tokens that is kept, over the clips of one video.

    Args:
        tracks: video name -> (frames, 5), the actor; see `data.synthetic.read_actors`.
        sample: a decoded video.
        selection: of its clips, each seen through one centre crop of the whole shorter side.

    Returns:
        0 to 1; None when the actor is not known or not in the picture.
    """
    if sample.name not in tracks or sample.size is None or sample.frame_indices is None:
        return None
    own = tracks[sample.name]
    total = kept = 0
    for indices, mask in zip(np.asarray(sample.frame_indices), selection.mask(), strict=True):
        actor = actor_tokens(in_view(own[indices], sample.size), selection.grid)
        total += int(actor.sum())
        kept += int((actor & mask.cpu()).sum())
    return kept / total if total else None
