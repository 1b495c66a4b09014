"""What an evaluation costs: time by stage, memory, multiply-accumulates.

Time on a processor is `time.perf_counter` around a stage of a batch. On a GPU it lies between two events in its queue,
which nobody waits for before the figures are asked for. Decoding runs beside the other stages, in worker processes, and
is timed there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..benchmark.flops import count_gmacs
from ..pipeline import Pipeline
from ..pruning.carrying import num_regions

Runs = list[tuple[float, int]]
"""(milliseconds, views) of each batch."""


@dataclass
class StageTimes:
    """What each stage took, batch by batch (`decode`: video by video), and the most memory that was in use.

    `scorer_gmacs`: what the scorer computed, where it depends on the videos.
    The lists of a batch that a GPU may still be working on are complete after `settle`.
    """

    decode: Runs = field(default_factory=list)
    preprocess: Runs = field(default_factory=list)
    score: Runs = field(default_factory=list)
    backbone: Runs = field(default_factory=list)
    peak_memory_mb: float = 0.0
    scorer_gmacs: Runs = field(default_factory=list)  # (per view, views) where crops share a map

    def __post_init__(self) -> None:
        self._laps: list[tuple[str, Any, Any, int]] = []  # (stage, event before, event behind, views)

    def note(self, stage: str, start: Any, end: Any, views: int) -> None:
        """Remembers two recorded `torch.cuda.Event` around a stage of a batch."""
        self._laps.append((stage, start, end, views))

    def settle(self) -> None:
        """Waits for the events that were noted, and adds the milliseconds between them to the lists."""
        for stage, start, end, views in self._laps:
            end.synchronize()
            getattr(self, stage).append((start.elapsed_time(end), views))
        self._laps.clear()

    def extend(self, other: StageTimes) -> None:
        """Adds the batches of another one; both are settled first."""
        self.settle()
        other.settle()
        for name in ("decode", "preprocess", "score", "backbone", "scorer_gmacs"):
            getattr(self, name).extend(getattr(other, name))
        self.peak_memory_mb = max(self.peak_memory_mb, other.peak_memory_mb)

    def per_view_ms(self) -> dict[str, float | None]:
        """Returns the median milliseconds per view of each stage and their sum, `total`; None where nothing ran."""
        self.settle()
        if not self.backbone:
            return dict.fromkeys(("decode", "preprocess", "score", "backbone", "total"))
        stages = {name: getattr(self, name) for name in ("decode", "preprocess", "score", "backbone")}
        medians = {
            name: median(ms / views for ms, views in runs) if runs else 0.0 for name, runs in stages.items()
        }
        return {**medians, "total": sum(medians.values())}

    def processing_seconds(self) -> float:
        """Returns the seconds spent on everything but decoding."""
        self.settle()
        return sum(ms for runs in (self.preprocess, self.score, self.backbone) for ms, _ in runs) / 1000


@dataclass(frozen=True)
class Engine:
    """Where the networks run and in which precision. float32 means without autocast."""

    device: torch.device
    dtype: torch.dtype = torch.float32

    @property
    def queues(self) -> bool:
        """Whether the device has a queue of its own, so that calls return before the work is done."""
        return self.device.type == "cuda"

    @contextmanager
    def inference(self) -> Iterator[None]:
        """No gradients, and autocast if `dtype` asks for it."""
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, self.dtype, self.dtype != torch.float32),
        ):
            yield

    @contextmanager
    def timed(self, times: StageTimes, stage: str, views: int) -> Iterator[None]:
        """Appends what the body takes to the list of `times` that `stage` names; see `StageTimes.settle`."""
        if self.queues:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            stream = torch.cuda.current_stream(self.device)
            start.record(stream)
            yield
            end.record(stream)
            times.note(stage, start, end, views)
            return
        begin = perf_counter()
        yield
        getattr(times, stage).append(((perf_counter() - begin) * 1000, views))

    def reset_peak_memory(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_memory_mb(self) -> float:
        """Returns the GPU's peak since the last reset; on the CPU that of the whole process (0 where unknown)."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        try:
            import resource
        except ImportError:  # Windows
            return 0.0
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 2**10)  # macOS counts bytes, Linux kibibytes


def gmacs_per_view(pipeline: Pipeline, frames: Tensor) -> dict[str, float]:
    """Counts multiply-accumulates / 1e9 of one view, by part.

    Args:
        frames: (1, T, S, S, 3) uint8, any content: the count depends on shapes only, unless the pruner's budget
            depends on the clip; see `mean_gmacs`.

    Returns:
        `backbone` (with the kept tokens), `scorer` (what it takes to choose them, and the part of the backbone that
        the pruner reads), `total` of the two, and `dense` (backbone with all tokens, nothing merged).
    """
    dense = count_gmacs(Pipeline(pipeline.backbone).classify, frames, None)
    scorer = count_gmacs(pipeline.select, frames)
    backbone = count_gmacs(pipeline.classify, frames, pipeline.select(frames))
    return {"backbone": backbone, "scorer": scorer, "total": backbone + scorer, "dense": dense}


def mean_gmacs(pipeline: Pipeline, gmacs: Mapping[str, float], kept: Mapping[int, int]) -> dict[str, float]:
    """What `gmacs_per_view` says, with the backbone's part as the mean over views of unequal numbers of tokens.

    Each number of tokens is counted once, without arithmetic, as if its views ran one by one: padding is left out.

    Args:
        gmacs: from `gmacs_per_view`.
        kept: number of tokens -> number of views that kept so many; not empty.
    """
    reader = _Reader(pipeline)
    shapes = {
        name: value.to("meta") for name, value in chain(reader.named_parameters(), reader.named_buffers())
    }
    each = {count: count_gmacs(functional_call, reader, shapes, (count,)) for count in kept}
    backbone = sum(each[count] * views for count, views in kept.items()) / sum(kept.values())
    return {**gmacs, "backbone": backbone, "total": backbone + gmacs["scorer"]}


def shared_gmacs(gmacs: Mapping[str, float], runs: Runs) -> dict[str, float]:
    """What `gmacs_per_view` says, with the mean of `StageTimes.scorer_gmacs`, which is not empty, for the scorer."""
    scorer = sum(each * views for each, views in runs) / sum(views for _, views in runs)
    return {**gmacs, "scorer": scorer, "total": gmacs["backbone"] + scorer}


class _Reader(nn.Module):
    """The backbone of a pipeline behind its pruner, for any number of tokens, on tensors without content."""

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__()
        self.backbone, self.merger = pipeline.backbone, pipeline.merger
        self.after_block = getattr(pipeline.pruner, "after_block", None)
        self.regions, pruner = 0, pipeline.pruner
        if pruner is not None and pruner.carry == "merge":
            self.regions = num_regions(self.backbone.grid, pruner.carry_cell)

    def forward(self, count: int) -> Tensor:
        backbone = self.backbone
        options: dict[str, Any] = {} if self.merger is None else {"merger": self.merger}
        like: dict[str, Any] = {"device": "meta", "dtype": next(backbone.parameters()).dtype}
        # `backbone.forward`, because a call may lead to what torch.compile has made, and that cannot be counted.
        regions = self.regions if count < backbone.grid.num_tokens else 0
        if regions:
            options["sizes"] = torch.empty(1, count + regions, device="meta")
        if self.after_block is not None:  # the tokens are embedded, or further, when they are chosen
            tokens = torch.empty(1, backbone.num_prefix + count + regions, backbone.dim, **like)
            return backbone.forward(None, tokens=tokens, block=self.after_block, **options)
        pixels = torch.empty(1, 3, backbone.num_frames, *backbone.frame_size, **like)
        keep_idx = torch.empty(1, count, dtype=torch.int64, device="meta")
        if regions:
            shares = torch.empty(1, regions, backbone.grid.num_tokens, **like)
            merged = backbone.embed_means(pixels, shares)
            return backbone.forward(
                None, tokens=torch.cat([backbone.embed(pixels, keep_idx), merged], 1), **options
            )
        return backbone.forward(pixels, keep_idx, **options)
