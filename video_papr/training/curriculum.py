"""Batches from several stores of rising difficulty.

Small video transformers do not leave chance level when training starts with the full clutter; they do when it starts
with bright actors on quiet ground.
"""

from __future__ import annotations

import torch

from .augment import jitter_colors
from .loop import Batch
from .store import ClipStore


class Curriculum:
    """Draws random clips, moving from the first store (easiest) to the last one.

    Args:
        stores: in rising difficulty; a single one is plain uniform sampling.
        full_at: the share of the training after which every clip comes from the last store.
        augment: (frames, labels, generator) -> the same, e.g. `ActionSymmetries`.
        colors: permute and invert colours.
    """

    def __init__(self, stores: list[ClipStore], *, full_at: float, augment, colors: bool) -> None:
        self.stores, self.full_at, self.augment, self.colors = stores, full_at, augment, colors

    def shares(self, progress: float) -> list[float]:
        """How much of a batch each store gives at a progress in 0..1; sums to 1."""
        place = min(1.0, progress / self.full_at if self.full_at > 0 else 1.0) * (len(self.stores) - 1)
        return [max(0.0, 1 - abs(place - i)) for i in range(len(self.stores))]

    def __call__(self, progress: float, clips: int, generator: torch.Generator) -> Batch:
        """Returns frames (clips, T, S, S, 3) uint8 and labels (clips,)."""
        source = torch.multinomial(
            torch.tensor(self.shares(progress)), clips, replacement=True, generator=generator
        )
        frames, labels = [], []
        for i, store in enumerate(self.stores):
            count = int((source == i).sum())
            if count:
                rows = torch.randint(len(store), (count,), generator=generator)
                part, target = store.batch(rows.numpy())
                frames.append(part)
                labels.append(target)
        batch, target = self.augment(torch.cat(frames), torch.cat(labels), generator)
        return (jitter_colors(batch, generator) if self.colors else batch), target
