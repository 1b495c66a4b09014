"""Maps that the crops of one clip share, and what they cost; see `pruning.sharing`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..benchmark.flops import count_gmacs
from ..core.errors import ConfigError
from ..core.types import TokenGrid, TokenSelection
from ..data.datasets import VideoSample
from ..pruning.builders import pruner_names
from ..pruning.protocol import Pruner
from ..pruning.sharing import Corner, shared_maps
from .cost import Engine, StageTimes


class SharedMaps:
    """(video, its views (V, T, S, S', 3) uint8) -> maps (V, T', H', W'), with one pass of the scorer for each clip.

    Args:
        pruner: one whose spec says `shares_crops`.
        grid: of one view.
        corners: (height, width) of a video -> the (top, left) corners of the crops in its resized frames.
        parts: of a view that the backbone reads by themselves.

    Raises ConfigError: another pruner.
    """

    def __init__(
        self, pruner: Pruner, grid: TokenGrid, corners: Callable[[int, int], Sequence[Corner]], parts: int = 1
    ) -> None:
        if not pruner.spec.shares_crops:
            names = ", ".join(pruner_names(lambda spec: spec.shares_crops))
            raise ConfigError(
                f"share_maps=true: pruner={pruner.name} cannot score crops together; use one of {names}"
            )
        self.pruner: Any = pruner  # a `MapPruner`
        self.grid, self.corners, self.parts = grid, corners, parts
        self._gmacs: dict[tuple[object, ...], float] = {}

    def __call__(self, video: VideoSample, views: Tensor) -> Tensor:
        """Crops that leave a gap between them are scored one by one."""
        assert video.size is not None
        found = shared_maps(self.pruner.scorer, views, self.corners(*video.size), self.grid)
        return self.pruner.scorer(views, self.grid) if found is None else found

    def gmacs_per_view(self, video: VideoSample, views: Tensor) -> float:
        """Multiply-accumulates / 1e9 of the scorer, shared by the views; counted once for each layout of crops."""
        assert video.size is not None
        key = (tuple(views.shape), *self.corners(*video.size))
        if key not in self._gmacs:
            self._gmacs[key] = count_gmacs(self, video, views) / len(views)
        return self._gmacs[key]


def select_together(
    shared: SharedMaps, videos: Sequence[VideoSample], views: Tensor, engine: Engine, times: StageTimes
) -> TokenSelection:
    """What is kept of the views (V, T, S, S', 3) of some videos, by maps that the views of each video share."""
    parts = views.chunk(len(videos))
    with engine.inference():
        for video, part in zip(videos, parts, strict=True):
            times.scorer_gmacs.append((shared.gmacs_per_view(video, part), len(part)))
        with engine.timed(times, "score", len(views)):
            maps = [shared(video, part) for video, part in zip(videos, parts, strict=True)]
            return shared.pruner.choose(torch.cat(maps), shared.parts)
