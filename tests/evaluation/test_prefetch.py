"""A GPU's queue is kept filled, and nobody notices but the clock. Stand-ins play the GPU's part here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from video_papr.backbones.builders import build_backbone
from video_papr.data.datasets import VideoSample
from video_papr.evaluation.answers import Evaluation
from video_papr.evaluation.cost import Engine
from video_papr.evaluation.evaluator import Evaluator
from video_papr.evaluation.observers import Observer, Pictures
from video_papr.evaluation.prefetch import Upload, behind
from video_papr.pipeline import Pipeline
from video_papr.pruning.builders import build_pruner

CPU = torch.device("cpu")
STAGES = ("decode", "preprocess", "score", "backbone")


@given(st.integers(0, 8), st.integers(0, 3))
def test_items_come_in_order_and_so_many_steps_behind(count: int, steps: int) -> None:
    made: list[int] = []
    for place, item in enumerate(behind((made.append(n) or n for n in range(count)), steps)):  # type: ignore[func-returns-value]
        assert item == place
        assert len(made) == min(count, place + 1 + steps)
    assert made == list(range(count))


def test_an_item_that_fails_costs_none_before_it() -> None:
    read: list[float] = []
    with pytest.raises(ZeroDivisionError):
        read.extend(behind((6 // (3 - n) for n in range(5)), 2))
    assert read == [2, 3, 6]


class Queued(Engine):
    """An engine that believes its processor to have a queue."""

    queues = True


class Event:
    """Knows when it was recorded; nobody may ask before having waited for it."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.waited = False

    def record(self, stream: str) -> None:
        assert stream == "networks"
        self.time = perf_counter()

    def synchronize(self) -> None:
        self.waited = True

    def elapsed_time(self, end: Event) -> float:
        assert end.waited
        return 1000 * (end.time - self.time)


def sample(index: int) -> VideoSample:
    generator = torch.Generator().manual_seed(index)
    frames = torch.randint(0, 256, (2, 4, 16, 16, 3), dtype=torch.uint8, generator=generator)
    error = "broken" if index == 3 else None
    return VideoSample(index, str(index), 0, None if error else frames, error, 5.0, None, 4, 25.0)


@pytest.mark.parametrize("videos", [0, 1, 2, 7])
def test_answers_are_those_of_the_plain_loop_to_the_bit(videos: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "networks")
    backbone = build_backbone("videomae_tiny", num_classes=7, num_frames=4, input_size=16)
    pipeline = Pipeline(backbone, build_pruner("motion", keep_ratio=0.5))

    def run(engine: Engine) -> tuple[Evaluation, list[str], list[float]]:
        order: list[str] = []
        kept_ms: list[float] = []

        def samples() -> Iterator[VideoSample]:
            for index in range(videos):
                order.append(f"fetch {index}")
                yield sample(index)

        class Notes(Observer):
            def on_views(self, sample: VideoSample, views: Tensor, preprocess_ms: float) -> None:
                assert sample.frames is not None and torch.equal(views, sample.frames)
                kept_ms.append(preprocess_ms)

            def on_batch(self, part: Evaluation) -> None:
                order.extend(f"read {answer.name}" for answer in part.answers)

        found = Evaluator(
            pipeline,
            prepare=lambda clips: clips,
            views_per_video=2,
            batch_size=2,
            engine=engine,
            baseline=True,
            observers=[Pictures({0, 4}), Notes()],
        ).run(samples())
        return found, order, kept_ms

    (plain, one_by_one, _), (queued, ahead, kept_ms) = run(Engine(CPU)), run(Queued(CPU))
    assert queued.answers == plain.answers
    assert queued.kept == plain.kept
    assert [shown.answer for shown in queued.examples] == [shown.answer for shown in plain.examples]
    for times, others in ((queued.pruned, plain.pruned), (queued.dense, plain.dense)):
        assert times is not None and others is not None
        for stage in STAGES:
            runs = getattr(times, stage)
            assert [views for _, views in runs] == [views for _, views in getattr(others, stage)]
            assert all(ms > 0 for ms, _ in runs)
    assert len(kept_ms) == sum(index != 3 for index in range(videos)) and all(ms > 0 for ms in kept_ms)
    assert one_by_one == [f"{what} {index}" for index in range(videos) for what in ("fetch", "read")]
    assert ahead == [
        step
        for index in range(videos + 1)
        for step in (f"fetch {index}", f"read {index - 1}")
        if step not in (f"fetch {videos}", "read -1")
    ]


def test_copies_run_beside_the_networks_and_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    class Stream:
        def __init__(self, name: Any) -> None:
            self.name = name if isinstance(name, str) else "copies"

        def wait_stream(self, other: Stream) -> None:
            log.append(f"{self.name} wait for {other.name}")

    class Pinned:
        def to(self, device: torch.device, non_blocking: bool) -> Pinned:
            assert non_blocking and device.type == "cuda"
            log.append("copy")
            return self

        def record_stream(self, stream: Stream) -> None:
            log.append(f"memory belongs to {stream.name} too")

    @contextmanager
    def within(stream: Stream) -> Iterator[None]:
        log.append(f"on {stream.name}")
        yield
        log.append("back")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("networks"))
    Upload(torch.device("cuda"))(Pinned())  # type: ignore[arg-type]
    assert log == ["on copies", "copy", "back", "networks wait for copies", "memory belongs to networks too"]


def test_nothing_is_copied_on_a_processor() -> None:
    frames = torch.zeros(3)
    assert Upload(CPU)(frames) is frames


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_many_copies_beside_much_work_arrive_whole() -> None:
    """Memory that is handed on too early would show as another video's frames."""
    upload, device = Upload(torch.device("cuda")), torch.device("cuda")
    weights = torch.randn(4096, 4096, device=device)
    sums = []
    for value in range(64):
        product = weights @ weights  # keeps the stream of the networks busy
        clip = upload(torch.full((64 << 20,), value, dtype=torch.uint8).pin_memory())
        sums.append(clip.amin().float() + clip.amax().float() + 0 * product[0, 0])
        del clip
    assert torch.stack(sums).tolist() == [2 * value for value in range(64)]
