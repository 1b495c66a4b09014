"""PaPr+: several maps joined into one. Not in the paper; docs/results_synthetic.md has what each part brings.

The paper reads X3D's last map, which is coarse (1/32 of what X3D sees). Earlier stages are finer, cost less, and say as
well where something is; frame difference says where something changes, at no cost. Here the maps of one pass of X3D and
the frame difference are brought to one scale and added.

Letters: B clips, T frames, H x W pixels, T' x H' x W' the token grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...core.errors import ConfigError
from ...core.types import TokenGrid
from ..budget import BUDGET_OPTIONS, check_number
from ..map_pruner import built_from
from ..protocol import COMPENSATION_OPTIONS, PrunerSpec
from ..select import resize_map
from .rules import motion as frame_difference
from .x3d import OPTIONS as X3D_OPTIONS
from .x3d import X3DScorer, build_x3d_scorer
from .x3d_trunk import STAGES


def standardize(significance: Tensor) -> Tensor:
    """A map (B, T', H', W') with mean 0 and standard deviation 1 in each clip; one without contrast becomes 0."""
    centred = significance - significance.mean((1, 2, 3), keepdim=True)
    deviation = centred.square().mean((1, 2, 3), keepdim=True).sqrt()
    # Below this level, rounding alone makes a contrast.
    level = 1e-6 * significance.abs().amax((1, 2, 3), keepdim=True)
    return torch.where(deviation > level, centred / deviation.clamp(min=1e-30), 0.0)


class FusedScorer(X3DScorer):
    """Adds the standardised maps of some stages of X3D and, `motion` times, that of the frame difference.

    Args:
        frames, size: the clip that X3D sees, resampled from the backbone's view.
        stages: which stages, each counting 1; X3D runs no further than the last of them.
        motion: weight of the frame difference, 0 or more; 0 leaves it out.
        align_corners, cell_center: see `select.resize_map`; X3D's cells look at their first pixel.
        reading: `align_clip` and `normalize`, as for `X3DScorer`.

    Raises ConfigError: no stage, an unknown one, one that is there twice, or a negative weight.
    """

    def __init__(
        self,
        *,
        frames: int,
        size: int,
        stages: Sequence[str] = ("res3",),
        motion: float = 0.0,
        align_corners: bool = False,
        cell_center: float = 0.0,
        **reading: Any,
    ) -> None:
        if not stages or not set(stages) <= set(STAGES) or len(set(stages)) < len(stages):
            raise ConfigError(
                f"pruner.stages={list(stages)} must name one or more of {', '.join(STAGES)}, each once"
            )
        super().__init__(
            frames=frames,
            size=size,
            stage=max(stages, key=STAGES.index),
            align_corners=align_corners,
            cell_center=cell_center,
            **reading,
        )
        self.stages, self.motion = frozenset(stages), check_number("motion", motion, 0, 100)

    def score(self, frames: Tensor, grid: TokenGrid) -> Tensor:
        """frames (B, T, H, W, 3) uint8 -> significance map (B, T', H', W') on `grid`."""
        found = self.motion * standardize(frame_difference(frames, grid, 0)) if self.motion else 0.0
        names = tuple(name for name in STAGES if name in self.stages)
        pixels = self.pixels(frames)
        for features in self.trunk(pixels, names) if len(names) > 1 else (self.trunk(pixels),):
            cells = features.mean(1, dtype=torch.float32)
            found = found + standardize(resize_map(cells, grid, **self.resizing))
        assert isinstance(found, Tensor)
        return found


OWN = (*X3D_OPTIONS, "stages", "motion")


SPECS = (
    PrunerSpec(
        "papr_plus",
        "PaPr with finer maps of X3D-S, and a share of the tubelets for every frame.",
        built_from(partial(build_x3d_scorer, FusedScorer, (8, 96)), min_per_frame=0.5, uniform_share=0.3),
        (*OWN, "min_per_frame", "uniform_share", *BUDGET_OPTIONS, *COMPENSATION_OPTIONS),
        shares_crops=True,
        trained=True,
    ),
)
