"""Scorers without a network: the controls that every pruner has to beat, and the rule of run-length tokenization.

Each rule is a function (frames, grid, seed) -> significance map on the token grid. The number of clips is
`frames.shape[0]`: `len` would make it a constant in an exported graph.

Letters: B clips, T frames, H x W pixels, T' x H' x W' the token grid.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.types import TokenGrid
from ..budget import Budget, check_number
from ..map_pruner import MapPruner, built_from
from ..protocol import COMPENSATION_OPTIONS, MAP_OPTIONS, PrunerSpec
from ..select import lattice, token_axes

Rule = Callable[[Tensor, TokenGrid, int], Tensor]


def random(frames: Tensor, grid: TokenGrid, seed: int) -> Tensor:
    """A random map for each clip, (B, T', H', W').

    Its seed joins `seed` with the clip's own pixels, so a clip gets the same map in every batch, on every device.
    """
    sums = frames.flatten(1).sum(1, dtype=torch.int64).tolist()
    maps = [
        torch.rand(grid.shape, generator=torch.Generator().manual_seed(seed * 1_000_003 + s)) for s in sums
    ]
    return torch.stack(maps).to(frames.device)


def uniform(frames: Tensor, grid: TokenGrid, seed: int) -> Tensor:
    """A map whose best K tokens are spread evenly over space and time for every K, (B, T', H', W').

    No clip and no seed changes it, see `select.lattice`.
    """
    return lattice(grid, frames.device).expand(frames.shape[0], *grid.shape)


def center(frames: Tensor, grid: TokenGrid, seed: int) -> Tensor:
    """Nearness to the middle of the picture, the same for every frame, (B, T', H', W')."""
    _, y, x = token_axes(grid, frames.device)
    y, x = (y + 0.5) / grid.height - 0.5, (x + 0.5) / grid.width - 0.5
    return -(y**2 + x**2).float().expand(frames.shape[0], *grid.shape)


def motion(frames: Tensor, grid: TokenGrid, seed: int) -> Tensor:
    """Mean absolute difference to the previous frame (the first frame's is to the next), (B, T', H', W')."""
    grey = frames.float().mean(-1)
    change = (grey[:, 1:] - grey[:, :-1]).abs()
    first = change[:, :1] if change.shape[1] else torch.zeros_like(grey)
    return cell_means(torch.cat([first, change], 1), grid)


def brightness(frames: Tensor, grid: TokenGrid, seed: int) -> Tensor:
    """Mean of the three colours, (B, T', H', W')."""
    return cell_means(frames.float().mean(-1), grid)


def repetition(frames: Tensor, grid: TokenGrid, seed: int) -> Tensor:
    """How far a tubelet is from repeating the previous one at its place, 0 to 255, (B, T', H', W').

    The mean absolute difference between the first frame of the previous tubelet and the last frame of this one:
    the rule of RLT (Choudhury et al., NeurIPS 2024, section 3). The first tubelets repeat nothing: 255.
    """
    num_frames, slices = frames.shape[1], grid.frames
    first = [t * num_frames // slices for t in range(slices)]
    last = [-(-(t + 1) * num_frames // slices) - 1 for t in range(slices)]
    change = (frames[:, last[1:]].float() - frames[:, first[:-1]].float()).abs().mean(-1)
    nothing_before = frames.new_full((len(frames), 1, *grid.shape[1:]), 255, dtype=torch.float32)
    return torch.cat([nothing_before, F.adaptive_avg_pool2d(change, grid.shape[1:])], 1)


def cell_means(values: Tensor, grid: TokenGrid) -> Tensor:
    """The mean over each token's pixels: (B, T, H, W) -> (B, T', H', W')."""
    shape = values.shape[1:]
    if any(pixels % tokens for pixels, tokens in zip(shape, grid.shape, strict=True)):
        return F.adaptive_avg_pool3d(values[:, None], grid.shape).squeeze(1)
    cell = [pixels // tokens for pixels, tokens in zip(shape, grid.shape, strict=True)]
    return F.avg_pool3d(values[:, None], cell).squeeze(1)  # the same, and ONNX knows it


RULES: dict[str, Rule] = {
    "random": random,
    "uniform": uniform,
    "center": center,
    "motion": motion,
    "brightness": brightness,
    "run_length": repetition,
}


class RuleScorer(nn.Module):
    """One of `RULES` with its seed."""

    def __init__(self, name: str, *, seed: int = 0) -> None:
        super().__init__()
        self.rule, self.seed = RULES[name], seed

    def forward(self, frames: Tensor, grid: TokenGrid) -> Tensor:
        """frames (B, T, H, W, 3) uint8 -> significance map (B, T', H', W') on `grid`."""
        return self.rule(frames, grid, self.seed)


def build_run_length(
    spec: PrunerSpec, *, tau: float = 6.0, min_keep: float = 0.05, max_keep: float = 1.0, **compensation: Any
) -> MapPruner:
    """Run-length tokenization: keeps what differs from the previous tubelet by `tau` or more, from 0 to 255."""
    budget = Budget("level", check_number("tau", tau, 0, 255), min_keep, max_keep)
    return MapPruner(spec, RuleScorer(spec.name), budget, **compensation)


def _rule(name: str, summary: str, **declared: Any) -> PrunerSpec:
    build = built_from(partial(RuleScorer, name))
    return PrunerSpec(name, summary, build, ("seed", *MAP_OPTIONS), **declared)


SPECS = (
    _rule(
        "random",
        "A control: keeps tubelets drawn at random.",
        for_images=True,
        not_exportable="it draws from a generator that a clip's own pixels seed; use pruner=uniform as a control",
    ),
    _rule("uniform", "A control: keeps an even pattern, the same for every video.", for_images=True),
    _rule("center", "A control: keeps the middle of the picture.", for_images=True),
    _rule(
        "motion",
        "Keeps what changes most from frame to frame. A moving camera fools it.",
        compares_frames=True,
        shares_crops=True,
    ),
    _rule(
        "brightness",
        "Keeps what is brightest. A bright background fools it.",
        for_images=True,
        shares_crops=True,
    ),
    PrunerSpec(
        "run_length",
        "Drops what repeats the previous tubelet at its place (run-length tokenization).",
        build_run_length,
        ("tau", "min_keep", "max_keep", *COMPENSATION_OPTIONS),
        variable=True,
        compares_frames=True,
        shares_crops=True,
    ),
)
