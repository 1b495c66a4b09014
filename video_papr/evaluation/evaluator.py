"""The evaluation loop: decoded videos in, one answer per video and the cost of each stage out.

Letters: V views in a batch, T frames, S x S pixels, C classes, K kept tokens, T' x H' x W' the token grid.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..core.types import TokenSelection
from ..pipeline import Pipeline
from .answers import Evaluation, Example, VideoAnswer
from .cost import ChoiceCost, Engine, StageTimes, choice_cost
from .memory import FittingBatch
from .prefetch import Found, Launched, Upload, behind
from .sharing import SharedMaps, select_together
from .views import aggregate_views

if TYPE_CHECKING:
    from ..data.datasets import VideoSample

ActorShare = Callable[["VideoSample", TokenSelection], "float | None"]
"""(video, selection of each of its views) -> share of the actor's tokens that is kept; None when it is not known."""


KeepViews = Callable[["VideoSample", Tensor, float], None]
"""(video, its views (V, T, S, S, 3) uint8, milliseconds that resizing and cropping took)."""


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
        choice_cost: counts the choice where clips differ in it.

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


def evaluate(
    pipeline: Pipeline,
    samples: Iterable[VideoSample],
    *,
    prepare: Callable[[Tensor], Tensor],
    views_per_video: int,
    batch_size: int,
    engine: Engine,
    baseline: bool = False,
    examples: Collection[int] = (),
    actor_share: ActorShare | None = None,
    on_answer: Callable[[VideoAnswer], None] | None = None,
    keep_views: KeepViews | None = None,
    on_batch: Callable[[Evaluation], None] | None = None,
    on_smaller_batch: Callable[[int], None] | None = None,
    full_batches: bool = False,
    shared_maps: SharedMaps | None = None,
) -> Evaluation:
    """Runs the pipeline, and the dense model on the same views, over all videos.

    A GPU is handed the next batch before the answers to this one are read; see `ahead`. A video that could not be
    decoded becomes an answer that says why; it never ends the run. The first batch runs once beforehand, with compiled
    networks twice, as a warm-up that is not timed.

    Args:
        pipeline: backbone and pruner, on the device.
        samples: decoded videos, in the order of the dataset.
        prepare: (clips, T, H, W, 3) uint8 of one video -> its views (views_per_video, T, S, S, 3) uint8.
        views_per_video: clips x crops.
        batch_size: views per forward pass, at most.
        baseline: also classify every view with all its tokens.
        examples: indices of the videos whose first view is kept for a picture.
        actor_share: see `ActorShare`.
        on_answer: called with each answer, for a progress bar.
        keep_views: called with the views of each video that was decoded, for a clip cache.
        on_batch: called with each finished batch, before its answers are reported.
        on_smaller_batch: called with the new number of views per forward pass when memory ran out.
        full_batches: fill up batches that are short, for compiled networks; see `classify_views`.
        shared_maps: scores all views of a video in one go; None: every view is scored by itself.

    Raises:
        ConfigError: memory runs out with half of `batch_size` too.
    """
    done = Evaluation(dense=StageTimes() if baseline else None)
    whole = Pipeline(pipeline.backbone)
    counting = choice_cost(pipeline)
    warm = False

    group = videos_per_batch(batch_size, views_per_video)
    fitting = FittingBatch(batch_size, on_smaller_batch)
    upload = Upload(engine.device)

    def probabilities(flow: Pipeline, frames: Tensor, selection: TokenSelection | None = None) -> Found:
        def classify(size: int) -> Found:
            own = StageTimes()  # what a failed attempt took is no cost of the model
            full = group * views_per_video if full_batches else 1
            logits, kept = classify_views(
                flow,
                frames,
                batch_size=size,
                engine=engine,
                times=own,
                full=full,
                selection=selection,
                choice_cost=counting,
            )
            return Found(own, aggregate_views(logits, views_per_video), kept)

        return fitting.run(classify, len(frames))

    def launch(batch: list[VideoSample]) -> Launched:
        nonlocal warm
        part = Evaluation(dense=StageTimes() if baseline else None)
        readable = [sample for sample in batch if sample.error is None]
        if not readable:
            return Launched(batch, part)
        frames = _views(readable, prepare, views_per_video, engine, part.pruned, upload)
        selection = None
        if shared_maps is not None:
            if not warm:
                select_together(shared_maps, readable, frames, engine, part.warmup)
            selection = select_together(shared_maps, readable, frames, engine, part.pruned)
        if not warm:
            for _ in range(2 if full_batches else 1):  # a CUDA graph is recorded by the second run
                part.warmup.extend(probabilities(pipeline, frames, selection).times)
                if baseline:
                    part.warmup.extend(probabilities(whole, frames).times)
            warm = True
        pruned = probabilities(pipeline, frames, selection)
        dense = probabilities(whole, frames) if baseline else None
        return Launched(batch, part, readable, frames, pruned, dense)

    def finish(made: Launched) -> Evaluation:
        part, answers = made.part, dict[int, VideoAnswer]()
        if made.pruned is not None and made.frames is not None:
            probs, dense_probs, kept = made.read()
            _note_videos(made.readable, made.frames, views_per_video, part, keep_views)
            if kept is not None:
                part.kept.update(kept.flatten(1).sum(1).tolist())
            for row, sample in enumerate(made.readable):
                first = row * views_per_video
                own = (
                    None if kept is None else TokenSelection.from_mask(kept[first : first + views_per_video])
                )
                dense = None if dense_probs is None else dense_probs[row]
                answer = _answer(
                    sample, probs[row], dense, own, pipeline.backbone.grid.num_tokens, actor_share
                )
                answers[sample.index] = answer
                if own is not None and sample.index in examples:
                    part.examples.append(Example(answer, made.frames[first].cpu(), own.mask()[0]))
        part.answers += [
            answers.get(sample.index)
            or VideoAnswer(sample.name, sample.label, error=sample.error, index=sample.index)
            for sample in made.batch
        ]
        return part

    for made in behind(map(launch, _groups(samples, group)), 1 if engine.queues else 0):
        part = finish(made)
        del made  # and its frames, before the batch after the next one is launched
        if on_batch:
            on_batch(part)
        done.extend(part)
        if on_answer:
            for answer in part.answers:
                on_answer(answer)
    return done


def videos_per_batch(batch_size: int, views_per_video: int) -> int:
    """The number of videos that meet in one batch of at most `batch_size` views; one at least."""
    return max(1, batch_size // views_per_video)


def _groups(samples: Iterable[VideoSample], size: int) -> Iterator[list[VideoSample]]:
    """Takes `size` videos at a time; the last group may be smaller."""
    rest = iter(samples)
    while group := list(islice(rest, size)):
        yield group


def _views(
    samples: Sequence[VideoSample],
    prepare: Callable[[Tensor], Tensor],
    views_per_video: int,
    engine: Engine,
    times: StageTimes,
    upload: Upload,
) -> Tensor:
    """Moves videos to the device, resizes and crops them (each has its own size): (V, T, S, S, 3) uint8.

    Views that a clip cache had are taken as they are, and stand in `preprocess` with what they took once.
    """
    cut: dict[int, Tensor] = {s.index: upload(s.views) for s in samples if s.views is not None}
    times.preprocess += [
        (sample.preprocess_ms, views_per_video) for sample in samples if sample.views is not None
    ]
    decoded = [sample for sample in samples if sample.frames is not None]
    if decoded:
        with torch.inference_mode(), engine.timed(times, "preprocess", len(decoded) * views_per_video):
            for sample in decoded:  # one after the other: the views are small, the videos may be large
                assert sample.frames is not None
                cut[sample.index] = prepare(upload(sample.frames))
    times.decode += [(sample.decode_ms, views_per_video) for sample in samples]
    return torch.cat([cut[sample.index] for sample in samples])


def _note_videos(
    samples: Sequence[VideoSample],
    frames: Tensor,
    views_per_video: int,
    part: Evaluation,
    keep_views: KeepViews | None,
) -> None:
    """Hands views (V, T, S, S, 3) that were cut just now to the clip cache; the dense model reads the same ones."""
    part.pruned.settle()
    decoded = [(row, sample) for row, sample in enumerate(samples) if sample.frames is not None]
    if keep_views is not None:
        for row, sample in decoded:
            views = frames[row * views_per_video : (row + 1) * views_per_video]
            keep_views(sample, views, part.pruned.preprocess[-1][0] / len(decoded))
    if part.dense is not None:
        part.dense.preprocess += part.pruned.preprocess
        part.dense.decode += part.pruned.decode


def _answer(
    sample: VideoSample,
    probs: Tensor,
    dense_probs: Tensor | None,
    kept: TokenSelection | None,
    num_tokens: int,
    actor_share: ActorShare | None,
) -> VideoAnswer:
    """Puts the answer to one video together, from its probabilities (C,) and those of the dense model."""
    best = probs.topk(min(5, len(probs)))
    dense = None if dense_probs is None else dense_probs.topk(len(best.indices)).indices
    return VideoAnswer(
        name=sample.name,
        label=sample.label,
        top5=tuple(best.indices.tolist()),
        probs_top5=tuple(best.values.tolist()),
        kept_tokens=num_tokens if kept is None else _mean(kept.counts()),
        baseline_top5=None if dense is None else tuple(dense.tolist()),
        actor_share=actor_share(sample, kept) if actor_share and kept is not None else None,
        index=sample.index,
    )


def _mean(counts: Tensor) -> float:
    """The mean of whole numbers, itself a whole number where it can be."""
    total, number = int(counts.sum()), len(counts)
    return total / number if total % number else total // number
