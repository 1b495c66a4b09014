"""Measures the variants of one setting - backbone, clip, batch, precision - against each other in one process."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from ..pipeline import Pipeline
from ..pruning.scorers.x3d import X3DScorer
from .ceilings import Ceilings
from .probes import MIB, SCORING, Clock, MemoryProbe, Staged
from .timing import alternate, ratios, spread
from .work import Work, convolution_work, count_work

DENSE = "dense"
LEAST_ROUNDS = 3


@dataclass(frozen=True)
class Variant:
    """One way from frames to logits.

    Attributes:
        name: unique among the variants; `DENSE` is the one that all others are compared with.
        kind: "dense", "pruned", "merged" or "peer".
        flow: frames (B, T, H, W, 3) uint8 -> logits (B, classes).
        staged: the same, with a mark behind every stage.
        chooser: the pipeline that says which tokens stay; None: all do.
        like: name of the variant whose logits it should give; None: there is none.
    """

    name: str
    kind: str
    flow: nn.Module
    staged: Staged
    settings: Mapping[str, Any]
    chooser: Pipeline | None = None
    like: str | None = None


@dataclass(frozen=True)
class Plan:
    """How to measure: see conf/bench.yaml."""

    repeats: int = 10
    warmup: int = 1
    sample_ms: float = 100.0
    stages: bool = True
    seed: int = 0
    seconds: float = 0.0  # for which fewer rounds are made, `LEAST_ROUNDS` at least; 0: any number


def measure(
    variants: Sequence[Variant],
    frames: Tensor,
    plan: Plan,
    *,
    ceilings: Ceilings | None = None,
    prepare: Callable[[], object] | None = None,
    on_round: Callable[[], None] | None = None,
    on_plan: Callable[[int, float], None] | None = None,
) -> list[dict[str, Any]]:
    """Measures all variants on the same frames (B, T, H, W, 3) uint8, and returns a record of each.

    Args:
        variants: one of them is named `DENSE`.
        ceilings: of the device in this precision; None leaves the bounds out.
        prepare: called when the work is counted, before anything is timed: to compile the networks, for instance.
        on_plan: told how many rounds there will be, and how many seconds they take, stages included.
    """
    device, start = frames.device, perf_counter()

    def rounds(seconds: float) -> int:
        each = seconds * (2 if plan.stages else 1)
        left = plan.seconds - (perf_counter() - start) - 2 * seconds  # memory is measured in the end
        count = min(plan.repeats, max(LEAST_ROUNDS, int(left / each))) if plan.seconds else plan.repeats
        if on_plan is not None:
            on_plan(count, count * each + 2 * seconds)
        return count

    work = {variant.name: count_work(variant.staged, frames) for variant in variants}
    least = {variant.name: _least_scoring(variant, frames, ceilings) for variant in variants}
    kept = {variant.name: _kept_tokens(variant, frames) for variant in variants}
    if prepare is not None:
        prepare()
    with torch.inference_mode():
        logits = {variant.name: variant.flow(frames).float() for variant in variants}
        times = alternate(
            {variant.name: partial(variant.flow, frames) for variant in variants},
            device,
            repeats=plan.repeats,
            warmup=plan.warmup,
            sample_ms=plan.sample_ms,
            seed=plan.seed,
            on_round=on_round,
            plan=rounds,
        )
        done = replace(plan, repeats=len(times[DENSE]))
        stages = _time_stages(variants, frames, done) if plan.stages else {}
        peaks = {variant.name: _peaks(variant, frames) for variant in variants}
    gmacs = {name: sum(part.gmacs for part in parts.values()) / len(frames) for name, parts in work.items()}
    records = []
    for variant in variants:
        name, like = variant.name, logits.get(variant.like or "")
        records.append(
            {
                "name": name,
                "kind": variant.kind,
                "settings": dict(variant.settings),
                "kept_tokens": kept[name],
                "gmacs": gmacs[name],
                **_speed_record(times[DENSE], times[name], gmacs[DENSE] / gmacs[name], len(frames)),
                "scoring_share": _share(stages[name], SCORING) if name in stages else None,
                "stages": _stage_records(work[name], stages.get(name, {}), peaks[name], ceilings),
                "least_scoring": least[name],
                "peak_memory_mb": max(peaks[name].values(), default=None),
                "weights_mb": sum(p.numel() * p.element_size() for p in variant.flow.parameters()) / MIB,
                "logit_difference": None if like is None else _difference(logits[name], like),
            }
        )
    return records


def _speed_record(
    dense: Sequence[float], own: Sequence[float], limit: float, num_clips: int
) -> dict[str, Any]:
    """Times of the rounds in ms, and how they compare with dense and with `limit`, the ratio of the GMACs."""
    faster, ms = ratios(dense, own), spread(own)
    return {
        "latency_ms": ms,
        "rounds_ms": own,
        "clips_per_second": 1000 * num_clips / ms["median"],
        "speedup": faster,
        "flop_limit": limit,
        "share_of_flop_limit": faster["median"] / limit,
    }


def _time_stages(
    variants: Sequence[Variant], frames: Tensor, plan: Plan
) -> dict[str, dict[str, list[float]]]:
    """Milliseconds by variant and stage, one value for each round; the variants take turns here too."""
    found: dict[str, dict[str, list[float]]] = {variant.name: {} for variant in variants}
    order, shuffle = list(variants), random.Random(plan.seed).shuffle
    for variant in variants:
        variant.staged(frames, Clock(frames.device))
    for _ in range(plan.repeats):
        shuffle(order)
        for variant in order:
            clock = Clock(frames.device)
            variant.staged(frames, clock)
            for stage, ms in clock.stages_ms().items():
                found[variant.name].setdefault(stage, []).append(ms)
    return found


def _stage_records(
    work: Mapping[str, Work],
    times: Mapping[str, Sequence[float]],
    peaks: Mapping[str, float],
    ceilings: Ceilings | None,
) -> dict[str, dict[str, Any]]:
    """One record for each stage of a variant; a compiled run has coarser stages than the one that was counted."""
    records: dict[str, dict[str, Any]] = {}
    for stage in dict.fromkeys(chain(times, work)):
        record: dict[str, Any] = {"ms": None, "share": None, "peak_memory_mb": peaks.get(stage)}
        if stage in times:
            record |= {"ms": spread(times[stage]), "share": _share(times, (stage,))}
        if stage in work:
            record |= {"gmacs": work[stage].gmacs, "gigabytes": work[stage].gigabytes}
            record["bound_ms"] = None if ceilings is None else work[stage].bound_ms(ceilings)
        records[stage] = record
    return records


def _least_scoring(variant: Variant, frames: Tensor, ceilings: Ceilings | None) -> dict[str, Any] | None:
    """The least that an X3D's convolutions have to do, if there is one among the variant's parts."""
    scorer = None if variant.chooser is None else getattr(variant.chooser.pruner, "scorer", None)
    if not isinstance(scorer, X3DScorer):
        return None
    work = convolution_work(scorer, frames)
    bound = None if ceilings is None else work.bound_ms(ceilings)
    return {"gmacs": work.gmacs, "gigabytes": work.gigabytes, "bound_ms": bound}


def _share(times: Mapping[str, Sequence[float]], stages: Sequence[str]) -> float:
    """The share of some stages in the sum of all, of medians."""
    medians = {stage: spread(values)["median"] for stage, values in times.items()}
    return sum(medians.get(stage, 0.0) for stage in stages) / sum(medians.values())


def _peaks(variant: Variant, frames: Tensor) -> dict[str, float]:
    probe = MemoryProbe(frames.device)
    variant.staged(frames, probe)
    return probe.peaks


def _kept_tokens(variant: Variant, frames: Tensor) -> float | None:
    """Tokens that a clip keeps, the mean over the batch; None where nothing is dropped."""
    if variant.chooser is None:
        return None
    with torch.inference_mode():
        selection = variant.chooser.select(frames)
    return None if selection is None else selection.counts().float().mean().item()


def _difference(logits: Tensor, like: Tensor) -> float:
    """The largest difference, as a share of the largest logit."""
    return ((logits - like).abs().max() / like.abs().max()).item()
