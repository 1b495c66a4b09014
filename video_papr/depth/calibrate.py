"""Batch norms that know the network as it is now: their statistics are taken again from some clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .blocks import TwoBranch
from .merge import NORMS, Norm


@torch.no_grad()
def calibrate(net: nn.Module, call: Callable[[Tensor], Any], batches: Sequence[Tensor]) -> None:
    """Replaces the statistics of every batch norm that runs by those of `batches`; everything else is in eval mode.

    UPDP does so before each score of its search: a norm behind a pruned block has never met what comes out of it. The
    statistics are means over the batches, so they depend on nothing but the weights and the batches.

    Args:
        net: left in eval mode.
    """
    net.eval()
    norms = list(running_norms(net))
    if not norms or not batches:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
        norm.train()
    for batch in batches:
        call(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def running_norms(net: nn.Module) -> list[Norm]:
    """The batch norms that a call of `net` goes through: in a block with two branches those of the ones in use."""
    found: list[Norm] = []
    if isinstance(net, NORMS):
        return [net] if net.track_running_stats else []
    children = list(net.children())
    if isinstance(net, TwoBranch):
        children = [net.baseline] * (net.mix < 1) + [net.pruned] * (net.mix > 0)
    for child in children:
        found += running_norms(child)
    return found
