"""Scorers without a network: the controls that every pruner has to beat, and the rule of run-length tokenization.

Each rule is a function (frames, grid, seed) -> significance map on the token grid. The number of clips is
`frames.shape[0]`: `len` would make it a constant in an exported graph.

Letters: B clips, T frames, H x W pixels, T' x H' x W' the token grid.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ...core.types import TokenGrid

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

    No clip and no seed changes it, see `lattice`.
    """
    return lattice(grid, frames.device).expand(frames.shape[0], *grid.shape)


def lattice(grid: TokenGrid, device: torch.device) -> Tensor:
    """Values (T', H', W') float32 whose largest K lie evenly in space and time for every K.

    The fractional part of a linear form with the powers of the plastic number's 3-D kin (a rank-1 lattice, after
    Roberts' R3 sequence).
    """
    t, y, x = _axes(grid, device)
    ratio = 1.2207440846057596  # the positive root of g ** 4 = g + 1
    return ((t / ratio + y / ratio**2 + x / ratio**3) % 1).float()


def center(frames: Tensor, grid: TokenGrid, seed: int) -> Tensor:
    """Nearness to the middle of the picture, the same for every frame, (B, T', H', W')."""
    _, y, x = _axes(grid, frames.device)
    y, x = (y + 0.5) / grid.height - 0.5, (x + 0.5) / grid.width - 0.5
    return -(y**2 + x**2).float().expand(frames.shape[0], *grid.shape)


def motion(frames: Tensor, grid: TokenGrid, seed: int) -> Tensor:
    """Mean absolute difference to the previous frame (the first frame's is to the next), (B, T', H', W')."""
    grey = frames.float().mean(-1)
    change = (grey[:, 1:] - grey[:, :-1]).abs()
    first = change[:, :1] if change.shape[1] else torch.zeros_like(grey)
    return _cell_means(torch.cat([first, change], 1), grid)


def brightness(frames: Tensor, grid: TokenGrid, seed: int) -> Tensor:
    """Mean of the three colours, (B, T', H', W')."""
    return _cell_means(frames.float().mean(-1), grid)


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


def _cell_means(values: Tensor, grid: TokenGrid) -> Tensor:
    """The mean over each token's pixels: (B, T, H, W) -> (B, T', H', W')."""
    shape = values.shape[1:]
    if any(pixels % tokens for pixels, tokens in zip(shape, grid.shape, strict=True)):
        return F.adaptive_avg_pool3d(values[:, None], grid.shape).squeeze(1)
    cell = [pixels // tokens for pixels, tokens in zip(shape, grid.shape, strict=True)]
    return F.avg_pool3d(values[:, None], cell).squeeze(1)  # the same, and ONNX knows it


def _axes(grid: TokenGrid, device: torch.device) -> tuple[Tensor, ...]:
    return torch.meshgrid(
        *(torch.arange(n, device=device, dtype=torch.float64) for n in grid.shape), indexing="ij"
    )


RULES: dict[str, Rule] = {
    "random": random,
    "uniform": uniform,
    "center": center,
    "motion": motion,
    "brightness": brightness,
    "run_length": repetition,
}
