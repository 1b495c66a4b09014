"""How long every block takes as it is and merged: measured, on the machine and the clip that the model is meant for.

Counts of operations would mislead: a dense 3x3x3 convolution has more of them than the bottleneck that it replaces
(27 C^2 against about 4.5 C^2 + 61 C multiply-accumulates per voxel for X3D), and may be faster or slower, by the width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from ..benchmark.timing import alternate
from ..pruning.scorers.channels_last import run_block
from ..pruning.scorers.x3d_trunk import fold_norms
from .blocks import close_block, open_block, switch_of
from .places import Place
from .search import Budget

WARM_UP = 3
WHOLE = "whole"
CLEAR_GAIN = 0.9  # of a block's time; measured times are not better than that


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds of one forward pass.

    Attributes:
        blocks: name of a block -> kind of its merged form, or "whole", -> milliseconds.
    """

    network: float  # the whole network as it is
    blocks: dict[str, dict[str, float]]
    measured: dict[str, Any]  # on what, for people

    def choose(self, name: str, kinds: Sequence[str]) -> str:
        """The first kind of merged form with a clear gain over the block as it is; without one, the fastest.

        The kinds are to be listed by what they keep: "dense" looks at neighbours, "pointwise" does not.
        """
        times = self.blocks[name]
        gaining = [kind for kind in kinds if times[kind] <= CLEAR_GAIN * times[WHOLE]]
        return gaining[0] if gaining else min(kinds, key=lambda kind: times[kind])

    def budget(self, kinds: Mapping[str, str], share: float | None) -> Budget:
        """What pruning saves.

        Args:
            kinds: name of a block -> the kind that it would be merged to, in the order of the masks' places.
            share: no more than this share of the network's time may be left; None: any may.
        """
        saved = (self.blocks[name][WHOLE] - self.blocks[name][kind] for name, kind in kinds.items())
        return Budget(self.network, tuple(saved), None if share is None else share * self.network)


@torch.inference_mode()
def measure(
    net: nn.Module,
    run: Callable[[nn.Module], Any],
    places: Sequence[Place],
    kinds: Sequence[str],
    *,
    repeats: int,
    described: Mapping[str, Any],
    on_block: Callable[[], None] = lambda: None,
) -> LatencyTable:
    """Times a network and each of its blocks on the features that reach it.

    Norms are folded where the evaluation folds them, so that a block is not made to look slow.

    Args:
        net: in eval mode; stays as it is.
        run: calls a network once on a clip; hooks see what reaches the blocks.
        repeats: the median of so many calls counts.
    """
    reached = _inputs(net, run, places)
    network = time_networks({WHOLE: net}, run, repeats=repeats)[WHOLE]
    blocks: dict[str, dict[str, float]] = {}
    for place, features in zip(places, reached, strict=True):
        calls = {WHOLE: _call(_folded(place.block), features)}
        for kind in kinds:
            opened = open_block(deepcopy(place.block), kind, place.name).eval()
            switch_of(opened).mix = 1.0
            closed = close_block(opened, place.name)
            if closed is None:
                continue
            if features.ndim == 5:
                closed = closed.to(memory_format=torch.channels_last_3d)
            calls[kind] = _call(closed, features)
        blocks[place.name] = dict.fromkeys(kinds, 0.0) | _medians(calls, repeats, features.device)
        on_block()
    return LatencyTable(network, blocks, dict(described))


@torch.inference_mode()
def time_networks(
    nets: Mapping[str, nn.Module], run: Callable[[nn.Module], Any], *, repeats: int
) -> dict[str, float]:
    """Milliseconds of whole networks, which take turns; norms are folded as in `measure`."""
    folded = {name: _folded(net) for name, net in nets.items()}
    device = next(next(iter(nets.values())).parameters()).device
    return _medians({name: partial(run, net) for name, net in folded.items()}, repeats, device)


def _inputs(net: nn.Module, run: Callable[[nn.Module], Any], places: Sequence[Place]) -> list[Tensor]:
    """What reaches each block in one call."""
    found: dict[str, Tensor] = {}

    def remember(name: str) -> Any:
        return lambda module, args: found.__setitem__(name, args[0].clone())

    hooks = [place.block.register_forward_pre_hook(remember(place.name)) for place in places]
    try:
        run(net)
    finally:
        for hook in hooks:
            hook.remove()
    return [found[place.name] for place in places]


def _folded(net: nn.Module) -> nn.Module:
    copy = deepcopy(net)
    fold_norms(copy)
    return copy


def _call(module: nn.Module, features: Tensor) -> Callable[[], Any]:
    """The call that an evaluation makes: on a processor, blocks of X3D run with the channels last."""
    if features.ndim != 5 or features.device.type != "cpu":
        return lambda: module(features)
    last = features.movedim(1, -1).contiguous()
    return lambda: run_block(last, module)


def _medians(calls: Mapping[str, Callable[[], Any]], repeats: int, device: torch.device) -> dict[str, float]:
    """The median of `repeats` single calls of each in milliseconds, after a few that do not count."""
    times = alternate(calls, device, repeats=repeats, warmup=WARM_UP, sample_ms=0)
    return {name: median(values) for name, values in times.items()}
