"""What a depth pruning is told, what it reads and what it gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from ..training.loop import Draw, Schedule
from ..training.store import ClipStore
from .subjects import Subject, Teaching


@dataclass(frozen=True)
class Plan:
    """What to prune and how long to train. Keys of the same name stand in `config.DepthConfig`.

    Attributes:
        kinds: that a block may be merged to, the one that keeps most first; see `LatencyTable.choose`.
        supernet_steps, progressive_steps, finetune_steps: optimiser steps of each part.
    """

    prune: int  # K, the number of blocks
    kinds: tuple[str, ...]
    schedule: Schedule  # of both trainings but for their steps
    teaching: Teaching = field(default_factory=Teaching)
    method: str = "updp"  # who chooses the blocks, see `config.recipes.Method`; only "updp" trains a supernet
    start: str = "fit"  # of the pruned branches: "fit" (see `fit`), or "copy" of the baseline's weights
    progressive: bool = True  # move to the pruned branches little by little; False: at once
    max_latency: float | None = None  # the share of the measured time that may be left; None: any
    supernet_steps: int = 300
    progressive_steps: int = 300
    finetune_steps: int = 300
    calibration_clips: int = 64  # for the norms before each score, and for the fit
    search_clips: int = 600  # of the validation split, that score
    population: int = 12
    generations: int = 8
    exhaustive: int = 64
    latency_clips: int = 8
    latency_repeats: int = 20
    alike: tuple[Any, ...] | None = None  # see `progressive.Judge`
    seed: int = 0


@dataclass(frozen=True)
class Clips:
    """What a pruning reads."""

    draw: Draw  # (progress, clips, generator) -> a training batch
    train: ClipStore  # the clips behind it as they are, for the norms
    val: ClipStore  # neither trained on nor part of any test


@dataclass(frozen=True)
class Work:
    """What all stages of one pruning share; for the attributes see `run.prune_depth`.

    `teacher` is the unpruned network, in eval mode.
    """

    teacher: nn.Module
    subject: Subject
    plan: Plan
    clips: Clips
    directory: Path
    resume: bool
    progress: bool

    def clips_of(self, store: ClipStore, clips: int, batch_size: int) -> list[Tensor]:
        """Frames (B, T, S, S, 3) uint8 of `clips` clips, evenly spread over a store, on the network's device."""
        device, count = next(self.teacher.parameters()).device, min(clips, len(store))
        rows = np.linspace(0, len(store) - 1, count).round().astype(int)
        starts = range(0, count, batch_size)
        return [store.batch(rows[start : start + batch_size]).frames.to(device) for start in starts]


@dataclass(frozen=True)
class Pruned:
    """The outcome: the merged network, one word for each of its blocks, and what was found on the way."""

    net: nn.Module
    blocks: list[str]
    report: dict[str, Any]
