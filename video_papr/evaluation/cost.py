"""What an evaluation costs: time by stage, memory, multiply-accumulates.

Time on a processor is `time.perf_counter` around a stage of a batch. On a GPU it lies between two events in its queue,
which nobody waits for before the figures are asked for. Decoding runs beside the other stages, in worker processes, and
is timed there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..backbones.builders import Backbone
from ..benchmark.flops import count_gmacs
from ..core.types import TokenSelection
from ..pipeline import Pipeline
from ..pruning.compensation import num_regions
from ..pruning.protocol import Pruner

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
    """Where the networks run and in which precision. float32 and int8 mean without autocast."""

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
            torch.autocast(self.device.type, self.dtype, self.dtype in (torch.bfloat16, torch.float16)),
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
    dense = count_gmacs(Pipeline(pipeline.backbone).classify, frames[..., :3], None)
    scorer = count_gmacs(pipeline.select, frames)
    backbone = count_gmacs(pipeline.classify, frames, pipeline.select(frames))
    return {"backbone": backbone, "scorer": scorer, "total": backbone + scorer, "dense": dense}


def mean_gmacs(pipeline: Pipeline, gmacs: Mapping[str, float], kept: Mapping[int, int]) -> dict[str, float]:
    """What `gmacs_per_view` says, with the backbone's part as the mean over views of unequal numbers of tokens.

    Each number of tokens is counted once, without arithmetic, as if its views ran one by one: padding is left out.

    Args:
        kept: number of tokens -> number of views, or of the backbone's parts of views, that kept so many; not empty.
    """
    behind = _Kept(pipeline)
    shapes = _shapes(behind)
    each = {count: count_gmacs(functional_call, behind, shapes, (count,)) for count in kept if count}
    mean = sum(each[count] * number for count, number in kept.items() if count) / sum(kept.values())
    backbone = mean * pipeline.backbone.parts
    return {**gmacs, "backbone": backbone, "total": backbone + gmacs["scorer"]}


def shared_gmacs(gmacs: Mapping[str, float], runs: Runs) -> dict[str, float]:
    """What `gmacs_per_view` says, with the mean of `StageTimes.scorer_gmacs`, which is not empty, for the scorer."""
    scorer = sum(each * views for each, views in runs) / sum(views for _, views in runs)
    return {**gmacs, "scorer": scorer, "total": gmacs["backbone"] + scorer}


class ChoiceCost:
    """What choosing tokens at several places takes where the clip decides how many of them come to each.

    Every number of tokens is counted once, without arithmetic, as if the clips ran one by one.
    """

    def __init__(self, pipeline: Pipeline, pruner: Pruner) -> None:
        self._part = _BackbonePart(pipeline)
        self._shapes = _shapes(self._part)
        self._pruner, self._backbone = pruner, pipeline.backbone
        self._places = list(pairwise(pruner.after_blocks))
        self._counted: dict[tuple[int, int, int], float] = {}

    def __call__(self, arrived: Tensor) -> float:
        """arrived (B, S - 1), see `TokenSelection` -> the mean over the clips, multiply-accumulates / 1e9."""
        start = self._gmacs(self._backbone.part_grid.num_tokens, 0, self._pruner.after_blocks[0])
        each = [
            sum(self._gmacs(count, *blocks) for count, blocks in zip(counts, self._places, strict=True))
            for counts in arrived.flatten(0, -2).tolist()
        ]
        return (start + sum(each) / len(each)) * self._backbone.parts

    def _gmacs(self, count: int, first: int, stop: int) -> float:
        """Of `count` tokens through these blocks, from their pixels where all are there, to the choice behind."""
        key = (count, first, stop)
        if key not in self._counted:
            whole = (first, stop) == (0, self._pruner.after_blocks[0])
            run = count_gmacs(functional_call, self._part, self._shapes, (count, first, stop, whole))
            self._counted[key] = run + self._pruner.choice_macs(count, self._backbone.dim) / 1e9
        return self._counted[key]


def choice_cost(pipeline: Pipeline) -> ChoiceCost | None:
    """Counts the choice where `gmacs_per_view` cannot, because clips differ in it; None where they do not."""
    pruner = pipeline.pruner
    if pruner is None or not pruner.budget.variable or len(pruner.after_blocks) < 2:
        return None
    return ChoiceCost(pipeline, pruner)


def _shapes(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers without content."""
    named = chain(module.named_parameters(), module.named_buffers())
    return {name: value.to("meta") for name, value in named}


class _BackbonePart(nn.Module):
    """Some blocks of a backbone, on tensors without content."""

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__()
        self.backbone = pipeline.backbone

    def forward(self, count: int, first: int, stop: int, embeds: bool) -> Tensor:
        backbone = self.backbone
        tokens = (
            backbone.embed(_no_frames(backbone).movedim(-1, 1)) if embeds else _no_tokens(backbone, count)
        )
        return backbone.encode(tokens, first=first, stop=stop)


class _Kept(nn.Module):
    """A pipeline behind its pruner, for any number of kept tokens, on tensors without content."""

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__()
        self.flow = pipeline.with_backbone()  # what torch.compile has made cannot be counted

    def forward(self, count: int) -> Tensor:
        backbone, pruner = self.flow.backbone, self.flow.pruner
        keep_idx = torch.empty(1, count, dtype=torch.int64, device="meta")
        frames = _no_frames(backbone)
        if pruner is None:
            return self.flow.classify_parts(frames, TokenSelection(keep_idx, backbone.part_grid))
        cell = pruner.compensation_cell
        selection = TokenSelection(keep_idx, backbone.part_grid, compensation=pruner.compensation, cell=cell)
        if pruner.after_blocks:  # the tokens are embedded, or further, when they are chosen
            regions = num_regions(backbone.part_grid, cell)
            selection = replace(
                selection,
                tokens=_no_tokens(backbone, count),
                block=pruner.after_blocks[-1],
                merged=_no_tokens(backbone, regions)[:, backbone.num_prefix :],
            )
        return self.flow.classify_parts(frames, selection)


def _no_tokens(backbone: Backbone, count: int) -> Tensor:
    """Class tokens and `count` others, without content, as wide as the backbone's blocks take them."""
    like: dict[str, Any] = {"device": "meta", "dtype": backbone.dtype}
    chosen = torch.empty(1, count, device="meta", dtype=torch.int64)
    return backbone.add_pos_embed(torch.empty(1, count, backbone.dim, **like), chosen)


def _no_frames(backbone: Backbone) -> Tensor:
    """Frames (1, T, H, W, 3) uint8 without content, of a clip or of one of the backbone's parts."""
    shape = (1, backbone.num_frames // backbone.parts, *backbone.frame_size, 3)
    return torch.empty(shape, dtype=torch.uint8, device="meta")
