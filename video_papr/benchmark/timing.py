"""Timing of several variants of one computation against each other.

`torch.utils.benchmark.Timer` measures one thing at a time, and a processor's speed drifts with heat and neighbours by
more than some of the differences that are asked about. So the variants take turns here: every round runs all of them
once, in an order that is drawn anew, and ratios are taken within a round. From the Timer comes its idea of a sample:
so many calls in a row that it lasts `sample_ms`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from math import ceil
from statistics import median, quantiles

import torch

from .probes import Clock

Call = Callable[[], object]


def alternate(
    calls: Mapping[str, Call],
    device: torch.device,
    *,
    repeats: int,
    warmup: int = 1,
    sample_ms: float = 100.0,
    seed: int = 0,
    on_round: Callable[[], None] | None = None,
    plan: Callable[[float], int] | None = None,
) -> dict[str, list[float]]:
    """Milliseconds of one call of each variant in each of `repeats` rounds, which all variants take part in.

    Args:
        warmup: untimed calls of each beforehand, at least 1; one more says how long a call takes.
        sample_ms: calls that are shorter are repeated until they take so long together; their mean counts.
        seed: of the order within the rounds.
        plan: told how many seconds a round takes, says how many there are, in place of `repeats`.
    """
    numbers: dict[str, int] = {}
    seconds = 0.0
    for name, call in calls.items():
        for _ in range(max(1, warmup)):
            call()
        took = max(_milliseconds(call, 1, device), 1e-3)
        numbers[name] = max(1, ceil(sample_ms / took))
        seconds += numbers[name] * took / 1000
    times: dict[str, list[float]] = {name: [] for name in calls}
    order, shuffle = list(calls), random.Random(seed).shuffle
    for _ in range(repeats if plan is None else plan(seconds)):
        shuffle(order)
        for name in order:
            times[name].append(_milliseconds(calls[name], numbers[name], device))
        if on_round:
            on_round()
    return times


def _milliseconds(call: Call, number: int, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    clock = Clock(device)
    for _ in range(number):
        call()
    clock("all")
    return clock.stages_ms()["all"] / number


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles: {"median", "low", "high"}."""
    if len(values) == 1:
        return dict.fromkeys(("median", "low", "high"), float(values[0]))
    low, _, high = quantiles(values, n=4, method="inclusive")
    return {"median": median(values), "low": low, "high": high}


def ratios(slow: Sequence[float], fast: Sequence[float]) -> dict[str, float]:
    """How many times as fast, round by round: the spread of slow / fast."""
    return spread([a / b for a, b in zip(slow, fast, strict=True)])
