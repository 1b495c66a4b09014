"""Which tokens a backbone does without in training.

What a good pruner keeps is no even sample: most of the ground is gone, and what is left of it lies together, around the
actor and elsewhere. A small backbone that has met even samples only takes the share of the actor's tokens for the
actor's size. So training can draw sets of other kinds too, from scores that are made up: no pruner is asked.

Letters: B clips, T' x H' x W' the token grid, N its tokens, K kept tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.types import TokenGrid
from ..pruning.budget import keep_count
from ..pruning.scorers.fusion import standardize
from ..synthetic.tracks import actor_tokens
from .store import Batch

ACTOR = 3.0  # "actor" adds at most so much to scores from 0 to 1: beyond 1 the whole actor stays
BLOBS, ACTOR_IN_BLOBS = 6.0, 18.0  # "map": deviation of the smooth part at most; what the actor adds at most
WIDTH, DURATION = 1.5, 1.2  # of a blob, in tokens: deviation of the bell that noise is blurred with


@dataclass(frozen=True)
class Dropping:
    """How many tokens stay in training, and which."""

    share: tuple[float, float] | None = None  # drawn uniformly from this range for each batch; None: all stay
    by: str = "random"  # a name of `SCORES`

    def choose(self, batch: Batch, grid: TokenGrid, generator: torch.Generator) -> Tensor | None:
        """The tokens that stay, (B, K) int64, sorted, on the device of the frames; None for all. Draws on the CPU."""
        if self.share is None:
            return None
        low, high = self.share
        share = low + (high - low) * torch.rand((), generator=generator).item()
        scores = SCORES[self.by](batch, grid, generator)
        kept = keep_count(share, grid.num_tokens)
        return scores.flatten(1).topk(kept, dim=1).indices.sort(1).values.to(batch.frames.device)


ALL_STAY = Dropping()


def random_scores(batch: Batch, grid: TokenGrid, generator: torch.Generator) -> Tensor:
    """Scores (B, T', H', W') of an even draw, from 0 to 1."""
    return torch.rand(len(batch.labels), *grid.shape, generator=generator)


def actor_scores(batch: Batch, grid: TokenGrid, generator: torch.Generator) -> Tensor:
    """Half of the clips prefer the actor's tokens, some a little, some so much that all of them stay; (B, T', H', W').

    What else stays is an even draw.
    """
    strength = ACTOR * _preference(1 / 2, batch, generator)
    return strength * _actor(batch, grid) + random_scores(batch, grid, generator)


def map_scores(
    batch: Batch,
    grid: TokenGrid,
    generator: torch.Generator,
    *,
    smoothest: bool = False,
    preferring: float = 3 / 4,
) -> Tensor:
    """Like the maps of a ConvNet: neighbours score alike, and part of it stays where it is in time; (B, T', H', W').

    How smooth is drawn for every clip, from an even draw to blobs only; `smoothest` takes the upper half of that.
    The share `preferring` of the clips prefers the actor's tokens, and those around them more or less: some a little,
    some so much that all of them stay.
    """
    clips = len(batch.labels)
    smooth, spread = torch.rand(2, clips, 1, 1, 1, generator=generator)
    smooth = (1 + smooth) / 2 if smoothest else smooth
    actor = _actor(batch, grid)
    around = F.avg_pool3d(F.pad(actor, (1,) * 6), 3, stride=1)
    preferred = _preference(preferring, batch, generator) * ((1 - spread) * actor + spread * around)
    blobs = BLOBS * smooth * _blobs(clips, grid, generator)
    return blobs + random_scores(batch, grid, generator) + ACTOR_IN_BLOBS * preferred


SCORES: dict[str, Callable[[Batch, TokenGrid, torch.Generator], Tensor]] = {
    "random": random_scores,
    "actor": actor_scores,
    "map": map_scores,
    "blobs": partial(map_scores, smoothest=True),
    "actor_blobs": partial(map_scores, smoothest=True, preferring=1.0),
}


def _blobs(clips: int, grid: TokenGrid, generator: torch.Generator) -> Tensor:
    """Blurred noise (B, T', H', W') of mean 0 and deviation 1 in each clip.

    The blur goes round the borders, so that all places are alike; stretching coarse noise would not do that.
    """
    noise = torch.fft.fftn(torch.randn(clips, *grid.shape, generator=generator), dim=(1, 2, 3))
    for size, deviation, shape in (
        (grid.frames, DURATION, (-1, 1, 1)),
        (grid.height, WIDTH, (-1, 1)),
        (grid.width, WIDTH, (-1,)),
    ):
        noise = noise * torch.exp(-2 * (math.pi * deviation * torch.fft.fftfreq(size)) ** 2).view(shape)
    return standardize(torch.fft.ifftn(noise, dim=(1, 2, 3)).real)


def _preference(share: float, batch: Batch, generator: torch.Generator) -> Tensor:
    """(B, 1, 1, 1): evenly from 0 to 1 for about this share of the clips, 0 for the others."""
    drawn = torch.rand(len(batch.labels), 1, 1, 1, generator=generator)
    return (1 - (1 - drawn) / share).clamp(min=0)


def _actor(batch: Batch, grid: TokenGrid) -> Tensor:
    """(B, T', H', W') float, 1 for the actor's tokens; 0 everywhere where nobody knows them."""
    if batch.tracks is None:
        return torch.zeros(len(batch.labels), *grid.shape)
    return actor_tokens(batch.tracks.cpu(), grid).float()
