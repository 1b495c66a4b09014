"""Pruned branches that start near their baseline: their last layer is fitted to it by least squares.

Our choice, where the paper leaves open how a branch starts. What an activation lets through is far from what goes in,
so a copy without the activations starts far from its baseline. Here the branch keeps the copied layers but the last,
and this one becomes the matrix that comes nearest to the baseline over some training clips; it costs seconds.

Letters: N tokens or voxels, H channels that the last layer reads, O channels that it gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .blocks import LinearResidual, TwoBranch
from .calibrate import calibrate
from .places import set_mask, switches

RIDGE = 1e-6  # of the mean variance: the features may depend on each other


class Fit(NamedTuple):
    """out ~ matrix (features - mean) + offset, in float64."""

    matrix: Tensor  # (O, H)
    mean: Tensor  # (H,) of the features
    offset: Tensor  # (O,), the mean of what is fitted
    variance: Tensor  # (O,) of matrix features


@torch.no_grad()
def fit_branches(net: nn.Module, call: Callable[[Tensor], Any], batches: Sequence[Tensor]) -> None:
    """Fits every pruned branch of an opened network to its baseline, in place; a removed block has nothing to fit.

    Args:
        net: what its blocks do while nothing is pruned is what is fitted. Left in eval mode, with nothing pruned.
    """
    found = [switch for switch in switches(net) if not isinstance(switch.pruned, nn.Identity)]
    set_mask(switches(net), ())
    net.eval()
    reached: list[list[Tensor]] = [[] for _ in found]
    hooks = [
        switch.register_forward_pre_hook(lambda module, args, inputs=inputs: inputs.append(args[0]))
        for switch, inputs in zip(found, reached, strict=True)
    ]
    try:
        for batch in batches:
            call(batch)
    finally:
        for hook in hooks:
            hook.remove()
    for switch, inputs in zip(found, reached, strict=True):
        if inputs:
            fit_branch(switch, inputs)


@torch.no_grad()
def fit_branch(switch: TwoBranch, inputs: Sequence[Tensor]) -> None:
    """Fits one pruned branch to its baseline on what reaches the block."""
    branch: Any = switch.pruned
    calibrate(branch, branch, inputs)
    pairs = ((_rows(branch.features(x)), _rows(_wanted(switch, x))) for x in inputs)
    found = least_squares(pairs)
    if not isinstance(branch, LinearResidual):
        branch.fc2.weight.copy_(found.matrix.view_as(branch.fc2.weight))
        branch.fc2.bias.copy_(found.offset - found.matrix @ found.mean)
        return
    branch.conv_c.weight.copy_(found.matrix[:, :, None, None, None])
    norm = branch.norm_c
    norm.running_mean.copy_(found.matrix @ found.mean)
    norm.running_var.copy_(found.variance)
    norm.weight.copy_((found.variance + norm.eps).sqrt())
    norm.bias.copy_(found.offset)


def least_squares(pairs: Any) -> Fit:
    """The matrix that leads from features to what is wanted, over pairs of (N, H) and (N, O)."""
    count, sums, within, across = 0, None, None, None
    for features, wanted in pairs:
        x, y = features.double().cpu(), wanted.double().cpu()
        count += len(x)
        parts = (torch.cat([x.sum(0), y.sum(0)]), x.T @ x, x.T @ y)
        if sums is None:
            sums, within, across = parts
        else:
            sums, within, across = sums + parts[0], within + parts[1], across + parts[2]
    assert sums is not None and within is not None and across is not None
    mean, offset = (sums / count).split([len(within), across.shape[1]])
    covariance = within / count - torch.outer(mean, mean)
    ridge = RIDGE * covariance.diagonal().mean().clamp(min=1e-12)
    damped = covariance + ridge * torch.eye(len(covariance), dtype=torch.float64)
    matrix = torch.linalg.solve(damped, across / count - torch.outer(mean, offset)).T
    variance = ((matrix @ covariance) * matrix).sum(1).clamp(min=0)
    return Fit(matrix, mean, offset, variance)


def _wanted(switch: TwoBranch, x: Tensor) -> Tensor:
    """What the baseline adds to its shortcut."""
    baseline: Any = switch.baseline
    return baseline.branch2(x) if isinstance(switch.pruned, LinearResidual) else baseline(x) - x


def _rows(features: Tensor) -> Tensor:
    """Tokens (B, K, D), features (B, C, h, w) or (B, C, T, h, w) -> (N, channels)."""
    return (features.movedim(1, -1) if features.ndim > 3 else features).flatten(0, -2)
