"""The evaluation loop: decoded videos in, one answer per video and the cost of each stage out.

Letters: V views in a batch, T frames, S x S pixels, C classes, K kept tokens, T' x H' x W' the token grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.parts import split_frames
from ..core.types import TokenSelection
from ..data.datasets import VideoSample, in_groups
from ..pipeline import Pipeline
from .answers import NOT_FINITE, Evaluation, VideoAnswer
from .cost import ChoiceCost, Engine, StageTimes, choice_cost
from .memory import FittingBatch
from .observers import AnsweredVideo, Observer
from .prefetch import BatchOutput, Launched, Upload, behind
from .sharing import SharedMaps, select_together
from .views import aggregate_views


def classify_views(
    pipeline: Pipeline,
    frames: Tensor,
    *,
    batch_size: int,
    engine: Engine,
    times: StageTimes,
    full: int = 1,
    selection: TokenSelection | None = None,
    choice_cost: ChoiceCost | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Scores, prunes and classifies views, `batch_size` at a time, and adds what that took to `times`.

    Args:
        frames: (V, T, S, S, 3) uint8, on the device.
        full: a batch of fewer views than this, and than `batch_size`, repeats its last one: a compiled network has one
            graph for each size.
        selection: what is kept of them, where it is known already.

    Returns:
        logits (V, C), and the mask (V, T', H', W') of the tokens that each view kept: None when that is all of them.
        Both on the device, which may still be working on them.
    """
    logits, kept = [], []
    engine.reset_peak_memory()
    with engine.inference():
        for rows in torch.arange(len(frames), device=frames.device).split(batch_size):
            views, own = len(rows), None
            rows = torch.cat([rows, rows[-1:].expand(max(0, min(full, batch_size) - views))])
            chunk = frames[rows]
            if selection is not None:
                own = selection.rows(rows)
            elif pipeline.pruner is not None:
                with engine.timed(times, "score", views):
                    own = pipeline.select(chunk)
                if choice_cost is not None and own is not None and own.arrived is not None:
                    times.scorer_gmacs.append((choice_cost(own.arrived[:views]), views))
            with engine.timed(times, "backbone", views):
                logits.append(pipeline.classify(chunk, own)[:views])
            if own is not None:
                kept.append(own.mask()[:views])
    times.peak_memory_mb = max(times.peak_memory_mb, engine.peak_memory_mb())
    return torch.cat(logits), torch.cat(kept) if kept else None


@dataclass
class Evaluator:
    """Runs a pipeline, and the dense model on the same views, over decoded videos, and tells observers about it.

    Args:
        prepare: (clips, T, H, W, 3) uint8 of one video -> its views (views_per_video, T, S, S, 3) uint8.
        views_per_video: clips x crops.
        batch_size: views per forward pass, at most.
        baseline: also classify every view with all its tokens.
        full_batches: fill up batches that are short, for compiled networks; see `classify_views`.
        shared_maps: scores all views of a video in one go; None: every view is scored by itself.
        batch_bytes: of decoded frames; a batch is shorter once it holds so many.
    """

    pipeline: Pipeline
    prepare: Callable[[Tensor], Tensor]
    views_per_video: int
    batch_size: int
    engine: Engine
    baseline: bool = False
    full_batches: bool = False
    shared_maps: SharedMaps | None = None
    observers: Sequence[Observer] = ()
    batch_bytes: float = math.inf

    def __post_init__(self) -> None:
        self._dense = Pipeline(self.pipeline.backbone)
        self._choice_cost = choice_cost(self.pipeline)
        self._fitting = FittingBatch(self.batch_size, self._smaller_batch)
        self._upload = Upload(self.engine.device)
        self._warm = False

    @property
    def videos_per_batch(self) -> int:
        """Videos that meet in one batch; one at least."""
        return max(1, self.batch_size // self.views_per_video)

    def run(self, samples: Iterable[VideoSample]) -> Evaluation:
        """Answers all videos.

        A GPU is handed the next batch before the answers to this one are read; see `prefetch`. A video that could not
        be decoded, or whose logits are not finite, becomes an answer that says why; it never ends the run. The first
        batch runs once beforehand, with compiled networks twice, as a warm-up that is not timed.

        Args:
            samples: decoded videos, in the order of the dataset.

        Raises ConfigError: memory runs out with half of `batch_size` too.
        """
        done = Evaluation(dense=StageTimes() if self.baseline else None)
        launched = map(self._launch, in_groups(samples, self.videos_per_batch, self.batch_bytes))
        for made in behind(launched, 1 if self.engine.queues else 0):
            part = self._finish(made)
            del made  # and its frames, before the batch after the next one is launched
            for observer in self.observers:
                observer.on_batch(part)
            done.extend(part)
        return done

    def _launch(self, batch: list[VideoSample]) -> Launched:
        """Hands a batch to the device."""
        part = Evaluation(dense=StageTimes() if self.baseline else None)
        readable = [sample for sample in batch if sample.error is None]
        if not readable:
            return Launched(batch, part)
        frames = self._views(readable, part.pruned)
        selection = None
        if self.shared_maps is not None:
            if not self._warm:
                select_together(self.shared_maps, readable, frames, self.engine, part.warmup)
            selection = select_together(self.shared_maps, readable, frames, self.engine, part.pruned)
        if not self._warm:
            for _ in range(2 if self.full_batches else 1):  # a CUDA graph is recorded by the second run
                part.warmup.extend(self._probabilities(self.pipeline, frames, selection).times)
                if self.baseline:
                    part.warmup.extend(self._probabilities(self._dense, frames).times)
            self._warm = True
        pruned = self._probabilities(self.pipeline, frames, selection)
        dense = self._probabilities(self._dense, frames) if self.baseline else None
        return Launched(batch, part, readable, frames, pruned, dense)

    def _views(self, samples: Sequence[VideoSample], times: StageTimes) -> Tensor:
        """Moves videos to the device, resizes and crops them (each has its own size): (V, T, S, S, 3) uint8.

        Views that a clip cache had are taken as they are, and stand in `preprocess` with what they took once.
        """
        cached = [sample for sample in samples if sample.views is not None]
        cut = {sample.index: self._upload(sample.views) for sample in cached if sample.views is not None}
        times.preprocess += [(sample.preprocess_ms, self.views_per_video) for sample in cached]
        decoded = [sample for sample in samples if sample.frames is not None]
        if decoded:
            views = len(decoded) * self.views_per_video
            with torch.inference_mode(), self.engine.timed(times, "preprocess", views):
                for sample in decoded:  # one after the other: the views are small, the videos may be large
                    assert sample.frames is not None
                    cut[sample.index] = self.prepare(self._upload(sample.frames))
        times.decode += [(sample.decode_ms, self.views_per_video) for sample in samples]
        return torch.cat([cut[sample.index] for sample in samples])

    def _probabilities(
        self, flow: Pipeline, frames: Tensor, selection: TokenSelection | None = None
    ) -> BatchOutput:
        if not flow.reads_motion:  # the dense model reads the same views without their plane
            frames = frames[..., :3]

        def classify(size: int) -> BatchOutput:
            own = StageTimes()  # what a failed attempt took is no cost of the model
            full = self.videos_per_batch * self.views_per_video if self.full_batches else 1
            more: Any = {"full": full, "selection": selection, "choice_cost": self._choice_cost}
            logits, kept = classify_views(
                flow, frames, batch_size=size, engine=self.engine, times=own, **more
            )
            return BatchOutput(own, aggregate_views(logits, self.views_per_video), kept)

        return self._fitting.run(classify, len(frames))

    def _finish(self, made: Launched) -> Evaluation:
        """Reads the answers to a batch and tells the observers about its videos."""
        part, answers = made.part, dict[int, VideoAnswer]()
        if made.pruned is not None and made.frames is not None:
            probs, dense, kept = made.read()
            self._share_views(made.readable, made.frames, part)
            if kept is not None:
                parts = split_frames(kept, self.pipeline.backbone.parts)
                part.kept.update(parts.flatten(1).sum(1).tolist())
            for row, sample in enumerate(made.readable):
                rows = slice(row * self.views_per_video, (row + 1) * self.views_per_video)
                own = None if kept is None else TokenSelection.from_mask(kept[rows])
                answer = self._answer(sample, probs[row], None if dense is None else dense[row], own)
                answers[sample.index] = answer
                if answer.error is None:
                    video = AnsweredVideo(sample, made.frames[rows], own, answer)
                    for observer in self.observers:
                        observer.on_video(video, part)
        part.answers += [
            answers.get(sample.index)
            or VideoAnswer(sample.name, sample.label, error=sample.error, index=sample.index)
            for sample in made.batch
        ]
        return part

    def _share_views(self, samples: Sequence[VideoSample], frames: Tensor, part: Evaluation) -> None:
        """Hands views (V, T, S, S, 3) that were cut just now to the observers; the dense model reads the same ones."""
        part.pruned.settle()
        decoded = [(row, sample) for row, sample in enumerate(samples) if sample.frames is not None]
        for row, sample in decoded:
            views = frames[row * self.views_per_video : (row + 1) * self.views_per_video]
            for observer in self.observers:
                observer.on_views(sample, views, part.pruned.preprocess[-1][0] / len(decoded))
        if part.dense is not None:
            part.dense.preprocess += part.pruned.preprocess
            part.dense.decode += part.pruned.decode

    def _answer(
        self, sample: VideoSample, probs: Tensor, dense: Tensor | None, kept: TokenSelection | None
    ) -> VideoAnswer:
        """Puts the answer to one video together, from its probabilities (C,) and those of the dense model."""
        if not bool(probs.isfinite().all()):
            return VideoAnswer(sample.name, sample.label, error=NOT_FINITE, index=sample.index)
        best = probs.topk(min(5, len(probs)))
        baseline = None
        if dense is not None and bool(dense.isfinite().all()):
            baseline = tuple(dense.topk(len(best.indices)).indices.tolist())
        return VideoAnswer(
            name=sample.name,
            label=sample.label,
            top5=tuple(best.indices.tolist()),
            probs_top5=tuple(best.values.tolist()),
            kept_tokens=self.pipeline.backbone.grid.num_tokens if kept is None else _mean(kept.counts()),
            baseline_top5=baseline,
            index=sample.index,
        )

    def _smaller_batch(self, size: int) -> None:
        for observer in self.observers:
            observer.on_smaller_batch(self.batch_size, size)


def _mean(counts: Tensor) -> float:
    """The mean of whole numbers, itself a whole number where it can be."""
    total, number = int(counts.sum()), len(counts)
    return total / number if total % number else total // number
