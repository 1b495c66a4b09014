"""The strongest rule that reads pixels: logistic regression on statistics of a tubelet, fitted to find the actor.

A control for scorers that were trained: what they know beyond the colours, contrast, edges and changes of a tubelet is
what they keep more of the actor than this rule does.

Letters: B clips, T frames, H x W pixels, T' x H' x W' the token grid, F statistics.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...checkpoints.files import find_weights, load_exactly, read_weights
from ...core.types import TokenGrid
from ..map_pruner import built_from
from ..protocol import MAP_OPTIONS, PrunerSpec
from .rules import cell_means

NAMES = (
    *("red", "green", "blue", "lightness", "saturation"),  # means
    *("red_std", "green_std", "blue_std", "lightness_std"),
    *("gradient_x", "gradient_y", "change_before", "change_after"),  # mean absolute differences
)


def tubelet_statistics(frames: Tensor, grid: TokenGrid) -> Tensor:
    """frames (B, T, H, W, 3) uint8 -> statistics of every tubelet and their squares, (B, 2 F, T', H', W') float32.

    The first F are `NAMES`, of colours from 0 to 1.
    """
    colors = frames.movedim(-1, 0).float() / 255  # (3, B, T, H, W)
    grey = colors.mean(0)
    change = grey.diff(dim=1).abs()
    nothing = change.new_zeros(len(frames), 0 if frames.shape[1] > 1 else 1, *grey.shape[2:])
    planes = [*colors, grey]
    means = [cell_means(plane, grid) for plane in planes]
    spreads = [
        (cell_means(plane.square(), grid) - mean.square()).clamp(min=0).sqrt()
        for plane, mean in zip(planes, means, strict=True)
    ]
    rest = [
        F.pad(grey.diff(dim=3).abs(), (0, 1)),
        F.pad(grey.diff(dim=2).abs(), (0, 0, 0, 1)),
        torch.cat([change[:, :1], change, nothing], 1),  # the first frame's is to the next
        torch.cat([change, change[:, -1:], nothing], 1),
    ]
    saturation = cell_means(colors.amax(0) - colors.amin(0), grid)
    found = torch.stack([*means, saturation, *spreads, *(cell_means(plane, grid) for plane in rest)], 1)
    return torch.cat([found, found.square()], 1)


class PixelRule(nn.Module):
    """A linear function of `tubelet_statistics`.

    Attributes:
        weight: (2 F,), of the statistics as they are; what is constant over tubelets changes no ranking.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2 * len(NAMES)), requires_grad=False)

    def forward(self, frames: Tensor, grid: TokenGrid) -> Tensor:
        """frames (B, T, H, W, 3) uint8 -> significance map (B, T', H', W') on `grid`."""
        return torch.einsum("bfthw,f->bthw", tubelet_statistics(frames, grid), self.weight)


def read_pixel_rule(*, weights: str | Path = "pixel_rule_synthetic") -> PixelRule:
    """The rule with fitted weights: a bundled name or a file, as `benchmarks/fit_pixel_rule.py` writes it.

    Raises CheckpointError: the weights are missing, damaged or of another model.
    """
    state, _ = read_weights(find_weights(weights, key="pruner.weights"))
    rule = PixelRule()
    load_exactly(rule, state, source=f"pruner.weights={weights}")
    return rule


SPECS = (
    PrunerSpec(
        "pixel_rule",
        "A control: what colours, contrast, edges and change of a tubelet tell, fitted to find the actor.",
        built_from(read_pixel_rule),
        MAP_OPTIONS,
        compares_frames=True,
        shares_crops=True,
        trained=True,
    ),
)
