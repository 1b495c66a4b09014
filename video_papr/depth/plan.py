"""What a depth pruning is told, what it reads and what it gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..training.loop import Draw, Schedule
from ..training.store import ClipStore
from .subjects import Teaching

METHODS = ("updp", "greedy", "random", "uniform")


@dataclass(frozen=True)
class Plan:
    """What to prune and how long to train. Keys of the same name stand in `conf/depth_prune.yaml`.

    Attributes:
        prune: K, the number of blocks.
        kinds: that a block may be merged to, the one that keeps most first; see `LatencyTable.choose`.
        method: who chooses the blocks, one of `METHODS`; only "updp" trains a supernet.
        start: of the pruned branches: "fit" (see `fit`), or "copy" of the baseline's weights.
        progressive: move to the pruned branches little by little; False: at once.
        max_latency: the share of the measured time that may be left; None: any.
        schedule: of both trainings but for their steps.
        supernet_steps, progressive_steps, finetune_steps: optimiser steps of each part.
        calibration_clips: for the norms before each score, and for the fit.
        search_clips: of the validation split, that score.
        alike: see `progressive.Judge`.
    """

    prune: int
    kinds: tuple[str, ...]
    schedule: Schedule
    teaching: Teaching = field(default_factory=Teaching)
    method: str = "updp"
    start: str = "fit"
    progressive: bool = True
    max_latency: float | None = None
    supernet_steps: int = 300
    progressive_steps: int = 300
    finetune_steps: int = 300
    calibration_clips: int = 64
    search_clips: int = 600
    population: int = 12
    generations: int = 8
    exhaustive: int = 64
    latency_clips: int = 8
    latency_repeats: int = 20
    alike: tuple[Any, ...] | None = None
    seed: int = 0


@dataclass(frozen=True)
class Clips:
    """What a pruning reads.

    Attributes:
        draw: (progress, clips, generator) -> a training batch.
        train: the clips behind it as they are, for the norms.
        val: neither trained on nor part of any test.
    """

    draw: Draw
    train: ClipStore
    val: ClipStore


@dataclass(frozen=True)
class Pruned:
    """The outcome: the merged network, one word for each of its blocks, and what was found on the way."""

    net: nn.Module
    blocks: list[str]
    report: dict[str, Any]
