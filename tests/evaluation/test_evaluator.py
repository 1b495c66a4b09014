"""The loop on samples made in memory, with a real, small, random backbone."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor

from video_papr.backbones.builders import build_backbone
from video_papr.core.errors import ConfigError
from video_papr.core.types import TokenSelection
from video_papr.data.datasets import VideoSample, in_groups
from video_papr.data.transforms import resize_and_crop
from video_papr.evaluation import evaluator
from video_papr.evaluation.answers import NOT_FINITE, Evaluation, VideoAnswer
from video_papr.evaluation.cost import Engine
from video_papr.evaluation.evaluator import Evaluator
from video_papr.evaluation.observers import AnsweredVideo, ExtraMetric, Observer, Pictures
from video_papr.evaluation.views import aggregate_views
from video_papr.pipeline import Pipeline
from video_papr.pruning.builders import build_pruner
from video_papr.pruning.tome import build_merger

CLIPS, CROPS, FRAMES, SIZE = 2, 3, 4, 16
CPU = Engine(torch.device("cpu"))


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    backbone = build_backbone("videomae_tiny", num_classes=7, num_frames=FRAMES, input_size=SIZE)
    return Pipeline(backbone, build_pruner("motion", keep_ratio=0.5))


def video(index: int, *, error: str | None = None) -> VideoSample:
    """Every video has its own size."""
    generator = torch.Generator().manual_seed(index)
    shape = (CLIPS, FRAMES, 20 + 2 * index, 40 - index, 3)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return VideoSample(
        index=index,
        name=f"{index}.mp4",
        label=index % 7,
        frames=None if error else frames,
        error=error,
        decode_ms=5.0,
        frame_indices=None,
        num_video_frames=FRAMES,
        fps=25.0,
    )


def prepare(clips: Tensor) -> Tensor:
    return resize_and_crop(clips, size=SIZE, num_crops=CROPS)


def run(
    pipeline: Pipeline, samples: list[VideoSample], batch_size: int = 12, **options: object
) -> Evaluation:
    settings: dict[str, Any] = {"engine": CPU, **options}
    return Evaluator(pipeline, prepare, CLIPS * CROPS, batch_size, **settings).run(samples)


def close(one: list[VideoAnswer], two: list[VideoAnswer]) -> None:
    assert [(a.name, a.label, a.top5, a.baseline_top5) for a in one] == [
        (a.name, a.label, a.top5, a.baseline_top5) for a in two
    ]
    for a, b in zip(one, two, strict=True):
        assert a.probs_top5 == pytest.approx(b.probs_top5, abs=1e-6)


def test_answers_are_those_of_the_pipeline_video_by_video(pipeline: Pipeline) -> None:
    samples = [video(index) for index in range(5)]
    found = run(pipeline, samples, baseline=True).answers
    dense = Pipeline(pipeline.backbone)
    for sample, answer in zip(samples, found, strict=True):
        assert sample.frames is not None
        views = prepare(sample.frames)
        probs = aggregate_views(pipeline(views), len(views))[0]
        assert answer.top5 == tuple(probs.topk(5).indices.tolist())
        assert answer.probs_top5 == pytest.approx(probs.topk(5).values.tolist(), abs=1e-6)
        dense_probs = aggregate_views(dense(views), len(views))[0]
        assert answer.baseline_top5 == tuple(dense_probs.topk(5).indices.tolist())
        assert answer.kept_tokens == pipeline.backbone.grid.num_tokens // 2


@pytest.mark.parametrize("batch_size", [1, 2, 5, 6, 7, 18, 100])
def test_answers_do_not_depend_on_the_batch_size(pipeline: Pipeline, batch_size: int) -> None:
    samples = [video(index) for index in range(4)]
    close(
        run(pipeline, samples, batch_size, baseline=True).answers,
        run(pipeline, samples, 6, baseline=True).answers,
    )


def test_answers_do_not_depend_on_the_neighbours(pipeline: Pipeline) -> None:
    together = run(pipeline, [video(index) for index in range(4)]).answers
    close(together, list(chain.from_iterable(run(pipeline, [video(index)]).answers for index in range(4))))


@pytest.mark.parametrize("failed", [[0], [2], [0, 1], [3, 4], [0, 1, 2, 3, 4]])
def test_failed_videos_are_counted_and_harm_no_other(pipeline: Pipeline, failed: list[int]) -> None:
    samples = [video(index, error="broken" if index in failed else None) for index in range(5)]
    found = run(pipeline, samples, baseline=True)
    assert [answer.name for answer in found.answers] == [f"{index}.mp4" for index in range(5)]
    whole = run(pipeline, [video(index) for index in range(5)], baseline=True).answers
    for index, answer in enumerate(found.answers):
        if index in failed:
            assert answer == VideoAnswer(f"{index}.mp4", index % 7, error="broken")
        else:
            close([answer], [whole[index]])


def test_stages_are_timed_over_all_views_once(pipeline: Pipeline) -> None:
    found = run(pipeline, [video(index) for index in range(5)], baseline=True)
    views = 5 * CLIPS * CROPS
    assert found.dense is not None
    for times in (found.pruned, found.dense):
        assert sum(count for _, count in times.preprocess) == views
        assert sum(count for _, count in times.backbone) == views
        assert times.decode == [(5.0, CLIPS * CROPS)] * 5
    assert sum(count for _, count in found.pruned.score) == views
    assert found.dense.score == []
    assert found.pruned.per_view_ms()["decode"] == pytest.approx(5 / 6)
    assert found.dense.per_view_ms()["score"] == 0
    assert found.pruned.peak_memory_mb > 0


def test_dense_pipeline(pipeline: Pipeline) -> None:
    samples = [video(index) for index in range(2)]
    found = run(Pipeline(pipeline.backbone), samples, observers=[Pictures({0, 1})])
    assert found.dense is None
    assert found.pruned.score == []
    assert found.examples == []  # nothing was dropped, so there is nothing to show
    assert [answer.kept_tokens for answer in found.answers] == [pipeline.backbone.grid.num_tokens] * 2
    baseline = run(pipeline, samples, baseline=True).answers
    assert [answer.top5 for answer in found.answers] == [answer.baseline_top5 for answer in baseline]


def test_examples_are_the_first_views_of_the_videos_asked_for(pipeline: Pipeline) -> None:
    samples = [video(index, error="broken" if index == 1 else None) for index in range(5)]
    found = run(pipeline, samples, observers=[Pictures({1, 2, 4, 99})])
    assert [example.answer.name for example in found.examples] == ["2.mp4", "4.mp4"]
    for sample, example in zip((samples[2], samples[4]), found.examples, strict=True):
        assert sample.frames is not None
        first = prepare(sample.frames)[:1]
        assert torch.equal(example.frames, first[0])
        selection = pipeline.select(first)
        assert selection is not None
        assert torch.equal(example.mask, selection.mask()[0])


def test_an_extra_metric_sees_each_video_with_its_own_selection(pipeline: Pipeline) -> None:
    seen: list[tuple[str, int]] = []

    def share(sample: VideoSample, selection: TokenSelection) -> float | None:
        assert sample.frames is not None
        own = pipeline.select(prepare(sample.frames))
        assert own is not None
        assert torch.equal(selection.keep_idx, own.keep_idx)
        seen.append((sample.name, len(selection.keep_idx)))
        return None if sample.index == 1 else sample.index / 10

    found = run(pipeline, [video(index) for index in range(3)], observers=[ExtraMetric("share", share)])
    assert seen == [(f"{index}.mp4", CLIPS * CROPS) for index in range(3)]
    assert [answer.extra["share"] for answer in found.answers] == [0.0, None, 0.2]


def test_observers_see_everything_in_order(pipeline: Pipeline) -> None:
    told: list[tuple[str, Any]] = []

    class Notes(Observer):
        def on_views(self, sample: VideoSample, views: Tensor, preprocess_ms: float) -> None:
            assert sample.frames is not None and torch.equal(views, prepare(sample.frames))
            told.append(("views", sample.index))

        def on_video(self, video: AnsweredVideo, part: Evaluation) -> None:
            assert len(video.views) == CLIPS * CROPS
            told.append(("video", video.answer))

        def on_batch(self, part: Evaluation) -> None:
            told.append(("batch", part.answers))

    samples = [video(0), video(1, error="broken"), video(2)]
    found = run(pipeline, samples, CLIPS * CROPS, observers=[Notes()])
    first, broken, last = found.answers
    assert told == [
        *(("views", 0), ("video", first), ("batch", [first]), ("batch", [broken])),
        *(("views", 2), ("video", last), ("batch", [last])),
    ]
    assert (found.failed, found.top1) == ([broken], found.accuracy(1))


class Broken(torch.nn.Module):
    """Spoils the logits of clips that are bright on the whole."""

    def __init__(self, head: torch.nn.Module, value: float) -> None:
        super().__init__()
        self.head, self.value = head, value

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.head(features)
        spoilt = logits.clone()
        spoilt[1, 3] = self.value
        return spoilt if len(logits) > 6 else logits


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_finite_are_failures(value: float) -> None:
    """One logit of one view; the other video of its batch keeps its answer."""
    flow = Pipeline(build_backbone("videomae_tiny", num_classes=7, num_frames=FRAMES, input_size=SIZE))
    samples = [video(0), video(1), video(2)]
    whole = run(flow, samples).answers
    flow.backbone.head = Broken(flow.backbone.head, value)
    found = run(flow, samples)
    first, *others = found.answers
    assert first == VideoAnswer("0.mp4", 0, error=NOT_FINITE)
    close(others, whole[1:])
    assert found.failed == [first]


def test_fewer_than_five_classes() -> None:
    backbone = build_backbone("videomae_tiny", num_classes=2, num_frames=FRAMES, input_size=SIZE)
    found = run(Pipeline(backbone, build_pruner("center")), [video(0)], baseline=True)
    answer = found.answers[0]
    assert answer.top5 is not None
    assert sorted(answer.top5) == [0, 1]
    assert answer.probs_top5 is not None
    assert sum(answer.probs_top5) == pytest.approx(1.0)


def test_the_warm_up_is_timed_apart(pipeline: Pipeline) -> None:
    found = run(pipeline, [video(index) for index in range(4)], CLIPS * CROPS, baseline=True)
    views = CLIPS * CROPS
    assert [count for _, count in found.warmup.score] == [views]
    assert [count for _, count in found.warmup.backbone] == [views, views]  # dense too
    assert [count for _, count in found.pruned.backbone] == 4 * [views]


def test_compiled_networks_warm_up_twice(pipeline: Pipeline) -> None:
    """A CUDA graph is recorded by the second run."""
    found = run(pipeline, [video(index) for index in range(3)], CLIPS * CROPS, full_batches=True)
    assert (len(found.warmup.backbone), len(found.warmup.score), len(found.pruned.backbone)) == (2, 2, 3)


@pytest.mark.parametrize("after", [[1, 2], 1])
def test_a_choice_that_clips_differ_in_is_counted_batch_by_batch(after: Any) -> None:
    backbone = build_backbone("videomae_tiny", num_classes=7, num_frames=FRAMES, input_size=SIZE)
    pruner = build_pruner("similarity", mode="threshold", tau=0.5, after_block=after)
    found = run(Pipeline(backbone, pruner), [video(index) for index in range(3)], CLIPS * CROPS)
    assert [views for _, views in found.pruned.scorer_gmacs] == (
        3 * [CLIPS * CROPS] if after == [1, 2] else []
    )


def test_bf16_autocast_gives_nearly_the_same_probabilities(pipeline: Pipeline) -> None:
    samples = [video(index) for index in range(2)]
    exact = run(pipeline, samples).answers
    rounded = run(pipeline, samples, engine=Engine(torch.device("cpu"), torch.bfloat16)).answers
    for one, two in zip(exact, rounded, strict=True):
        assert one.probs_top5 == pytest.approx(two.probs_top5, abs=0.02)


def test_batches_that_do_not_fit_are_halved_once(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [video(index) for index in range(5)]
    roomy = run(pipeline, samples, 12, baseline=True)
    classify, told = evaluator.classify_views, []

    def tight(flow: Pipeline, frames: Tensor, **options: Any) -> object:
        found = classify(flow, frames, **options)
        if min(options["batch_size"], len(frames)) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return found

    monkeypatch.setattr(evaluator, "classify_views", tight)

    class Notes(Observer):
        def on_smaller_batch(self, asked: int, size: int) -> None:
            told.append((asked, size))

    found = run(pipeline, samples, 12, baseline=True, observers=[Notes()])
    assert told == [(12, 6)]
    close(found.answers, roomy.answers)
    assert (
        sum(views for _, views in found.pruned.backbone) == 5 * CLIPS * CROPS
    )  # failed attempts are not timed
    with pytest.raises(ConfigError, match=r"runtime.batch_size=30: out of memory.*runtime.batch_size=3 fits"):
        run(pipeline, samples, 30)  # half is 15, the half of that 7


def test_no_videos_at_all(pipeline: Pipeline) -> None:
    found = run(pipeline, [])
    assert found.answers == []
    assert found.pruned.per_view_ms()["total"] is None


@pytest.mark.parametrize("batch_size", [1, 5, 18, 100])
def test_views_that_keep_unequal_numbers_of_tokens(pipeline: Pipeline, batch_size: int) -> None:
    flow = Pipeline(
        pipeline.backbone, build_pruner("motion", budget="top_p", top_p=0.6), build_merger("tome", r=1)
    )
    samples = [video(index) for index in range(3)]
    shares: list[list[int]] = []

    def share(sample: VideoSample, selection: TokenSelection) -> float | None:
        shares.append(selection.counts().tolist())
        return None

    observers = [ExtraMetric("share", share), Pictures({1})]
    found = run(flow, samples, batch_size, baseline=True, observers=observers)
    all_kept: list[int] = []
    for sample, answer, kept in zip(samples, found.answers, shares, strict=True):
        assert sample.frames is not None
        views = prepare(sample.frames)
        own = [flow.select(view[None]) for view in views]
        counts = [selection.num_kept for selection in own if selection is not None]
        assert kept == counts
        assert answer.kept_tokens == pytest.approx(sum(counts) / len(counts))
        all_kept += counts
        alone = torch.cat([flow(view[None]) for view in views])
        probs = aggregate_views(alone, len(views))[0]
        assert answer.probs_top5 == pytest.approx(probs.topk(5).values.tolist(), abs=1e-6)
    assert len(set(all_kept)) > 1
    assert sorted(found.kept.elements()) == sorted(all_kept)
    dense = run(Pipeline(pipeline.backbone), samples).answers
    assert [answer.baseline_top5 for answer in found.answers] == [answer.top5 for answer in dense]
    assert int(found.examples[0].mask.sum()) == shares[1][0]


@pytest.mark.parametrize("full_batches", [False, True])
def test_networks_see_whole_batches_only_where_they_are_compiled(
    pipeline: Pipeline, full_batches: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of two videos with six views each, the last of one; a compiled network has one graph for each size."""
    seen: list[int] = []
    monkeypatch.setattr(
        pipeline,
        "classify",
        lambda *given, whole=pipeline.classify: (seen.append(len(given[0])), whole(*given))[1],
    )
    whole = run(pipeline, [video(index) for index in range(3)], 17, full_batches=full_batches)
    assert seen == ([12, 12, 12, 12] if full_batches else [12, 12, 6])
    assert [views for _, views in whole.pruned.backbone] == [12, 6]
    assert len(whole.answers) == 3


def test_time_of_cutting_is_shared_among_the_videos_of_a_batch(pipeline: Pipeline) -> None:
    told: list[float] = []

    class Notes(Observer):
        def on_views(self, sample: VideoSample, views: Tensor, preprocess_ms: float) -> None:
            told.append(preprocess_ms)

    samples = [video(0), video(1, error="broken"), video(2), video(3)]
    found = run(pipeline, samples, 12, observers=[Notes()])
    (first, alone), (second, both) = found.pruned.preprocess
    assert (alone, both) == (CLIPS * CROPS, 2 * CLIPS * CROPS)
    assert told == [first, second / 2, second / 2]


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("full", [0.5, 2, 2.5, 99])
def test_groups_end_where_they_have_enough_videos_or_bytes(size: int, full: float) -> None:
    samples = [video(index) for index in range(7)]
    each = max(sample.num_bytes for sample in samples)
    groups, group = [], []
    for sample in samples:
        group.append(sample.index)
        if len(group) >= size or sum(samples[index].num_bytes for index in group) >= full * each:
            groups, group = [*groups, group], []
    groups += [group] if group else []
    found = list(in_groups(samples, size, full * each))
    assert [[sample.index for sample in group] for group in found] == groups
    exact = samples[0].num_bytes + samples[1].num_bytes  # as many bytes as allowed are enough
    assert len(next(in_groups(samples, 9, exact))) == 2 and len(next(in_groups(samples, 9))) == 7
