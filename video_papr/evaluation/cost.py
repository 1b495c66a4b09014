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
from ..pruning.compensation import num_regions
from ..pruning.similarity import SimilarityPruner

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
    # (per view, views) where crops share a map, or the clip decides how many tokens come to the later places
    scorer_gmacs: Runs = field(default_factory=list)

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
    shapes = _shapes(reader)
    each = {count: count_gmacs(functional_call, reader, shapes, (count,)) for count in kept}
    backbone = sum(each[count] * views for count, views in kept.items()) / sum(kept.values())
    return {**gmacs, "backbone": backbone, "total": backbone + gmacs["scorer"]}


def shared_gmacs(gmacs: Mapping[str, float], runs: Runs) -> dict[str, float]:
    """What `gmacs_per_view` says, with the mean of `StageTimes.scorer_gmacs`, which is not empty, for the scorer."""
    scorer = sum(each * views for each, views in runs) / sum(views for _, views in runs)
    return {**gmacs, "scorer": scorer, "total": gmacs["backbone"] + scorer}


class ChoiceCost:
    """What choosing tokens at several places takes where the clip decides how many of them come to each.

    Every number of tokens is counted once, without arithmetic, as if the clips ran one by one.
    """

    def __init__(self, pipeline: Pipeline, pruner: SimilarityPruner) -> None:
        self._walker = _Walker(pipeline)
        self._shapes = _shapes(self._walker)
        self._clusters, self._dim = pruner.diversity == "cluster", pipeline.backbone.dim
        self._num_tokens = pipeline.backbone.grid.num_tokens
        self._places = list(zip(pruner.after_blocks[:-1], pruner.after_blocks[1:], strict=True))
        self._first = pruner.after_blocks[0]
        self._counted: dict[tuple[int, int, int], float] = {}

    def __call__(self, arrived: Tensor) -> float:
        """arrived (B, S - 1), see `TokenSelection` -> the mean over the clips, multiply-accumulates / 1e9."""
        start = self._gmacs(self._num_tokens, 0, self._first)
        each = [
            sum(self._gmacs(count, *blocks) for count, blocks in zip(counts, self._places, strict=True))
            for counts in arrived.tolist()
        ]
        return start + sum(each) / len(each)

    def _gmacs(self, count: int, first: int, stop: int) -> float:
        """Of `count` tokens through these blocks, from their pixels where all are there, to the choice behind."""
        key = (count, first, stop)
        if key not in self._counted:
            whole = (first, stop) == (0, self._first)
            run = count_gmacs(functional_call, self._walker, self._shapes, (count, first, stop, whole))
            self._counted[key] = run + (count**2 * self._dim / 1e9 if self._clusters else 0)
        return self._counted[key]


def choice_cost(pipeline: Pipeline) -> ChoiceCost | None:
    """Counts the choice where `gmacs_per_view` cannot, because clips differ in it; None where they do not."""
    pruner = pipeline.pruner
    if not isinstance(pruner, SimilarityPruner) or not pruner.budget.variable or len(pruner.after_blocks) < 2:
        return None
    return ChoiceCost(pipeline, pruner)


def _shapes(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers without content."""
    named = chain(module.named_parameters(), module.named_buffers())
    return {name: value.to("meta") for name, value in named}


class _Walker(nn.Module):
    """A part of the way through a backbone, on tensors without content."""

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__()
        self.backbone = pipeline.backbone

    def forward(self, count: int, first: int, stop: int, embeds: bool) -> Tensor:
        backbone = self.backbone
        like: dict[str, Any] = {"device": "meta", "dtype": next(backbone.parameters()).dtype}
        if embeds:
            tokens = backbone.embed(torch.empty(1, 3, backbone.num_frames, *backbone.frame_size, **like))
        else:
            tokens = torch.empty(1, backbone.num_prefix + count, backbone.dim, **like)
        return backbone.encode(tokens, first=first, stop=stop)


class _Reader(nn.Module):
    """The backbone of a pipeline behind its pruner, for any number of tokens, on tensors without content."""

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__()
        self.backbone, self.merger = pipeline.backbone, pipeline.merger
        self.places: tuple[int, ...] = getattr(pipeline.pruner, "after_blocks", ())
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
        if self.places:  # the tokens are embedded, or further, when they are chosen
            tokens = torch.empty(1, backbone.num_prefix + count + regions, backbone.dim, **like)
            return backbone.forward(None, tokens=tokens, block=self.places[-1], **options)
        pixels = torch.empty(1, 3, backbone.num_frames, *backbone.frame_size, **like)
        keep_idx = torch.empty(1, count, dtype=torch.int64, device="meta")
        if regions:
            shares = torch.empty(1, regions, backbone.grid.num_tokens, **like)
            merged = backbone.embed_means(pixels, shares)
            return backbone.forward(
                None, tokens=torch.cat([backbone.embed(pixels, keep_idx), merged], 1), **options
            )
        return backbone.forward(pixels, keep_idx, **options)
