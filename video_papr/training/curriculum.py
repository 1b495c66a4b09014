"""Batches from several stores of rising difficulty.

Small video transformers do not leave chance level when training starts with the full clutter; they do when it starts
with bright actors on quiet ground.
"""

from __future__ import annotations

import torch

from .augment import Augment, jitter_colors
from .store import Batch, ClipStore


class Curriculum:
    """Draws random clips, moving from the first store (easiest) to the last one.

    Args:
        stores: in rising difficulty; a single one is plain uniform sampling.
        full_at: the share of the training after which every clip comes from the last store.
        augment: (batch, generator) -> batch, e.g. `MirrorActions`.
        colors: permute and invert colours.
    """

    def __init__(self, stores: list[ClipStore], *, full_at: float, augment: Augment, colors: bool) -> None:
        self.stores, self.full_at, self.augment, self.colors = stores, full_at, augment, colors

    def shares(self, progress: float) -> list[float]:
        """How much of a batch each store gives at a progress in 0..1; sums to 1."""
        place = min(1.0, progress / self.full_at if self.full_at > 0 else 1.0) * (len(self.stores) - 1)
        return [max(0.0, 1 - abs(place - i)) for i in range(len(self.stores))]

    def __call__(self, progress: float, clips: int, generator: torch.Generator) -> Batch:
        """Returns a batch of `clips` clips for a progress in 0..1."""
        source = torch.multinomial(
            torch.tensor(self.shares(progress)), clips, replacement=True, generator=generator
        )
        parts = []
        for i, store in enumerate(self.stores):
            count = int((source == i).sum())
            if count:
                parts.append(store.batch(torch.randint(len(store), (count,), generator=generator).numpy()))
        frames, labels, tracks, _ = zip(*parts, strict=True)
        known = None if tracks[0] is None else torch.cat(tracks)
        batch = self.augment(Batch(torch.cat(frames), torch.cat(labels), known), generator)
        return batch._replace(frames=jitter_colors(batch.frames, generator)) if self.colors else batch
