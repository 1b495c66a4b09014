"""Where the time went."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from video_papr.core.console import make_console
from video_papr.data.datasets import VideoSample
from video_papr.evaluation import profile as profiling
from video_papr.evaluation.answers import Evaluation
from video_papr.evaluation.cost import StageTimes
from video_papr.evaluation.profile import ADVICE, NAMES, Profile, Waiting, print_profile, profile

seconds = st.floats(0, 1e4)


def made(
    waiting: float,
    score: float,
    backbone: float,
    decode: float = 0.0,
    total: float = 10.0,
    *,
    warmup: float = 0.0,
    cut: float = 0.0,
    remembered: float = 0.0,
    cores: int = 0,
    processor: float = 0.0,
) -> Profile:
    def runs(value: float) -> list[tuple[float, int]]:
        return [(1000 * value, 4)]

    watched = Waiting()
    watched.seconds, watched.decoding, watched.decoded, watched.remembered = waiting, decode, 4, remembered
    times = StageTimes([], runs(cut), runs(score), runs(backbone))
    evaluation = Evaluation(pruned=times, warmup=StageTimes(backbone=runs(warmup)))
    return profile(
        evaluation, total=total, waiting=watched, workers=2, views=15, cores=cores, processor=processor
    )


def sample(frames: bool = True, views: bool = False, error: str | None = None) -> VideoSample:
    return VideoSample(
        *(0, "a.mp4", 0, torch.zeros(1, 1, 1, 1, 3, dtype=torch.uint8) if frames else None, error, 40.0),
        *(None, 9, 25.0, torch.zeros(1, 1, 1, 1, 3, dtype=torch.uint8) if views else None, 8.0),
    )


def test_stages_add_up_and_the_largest_is_named() -> None:
    found = made(waiting=1, score=2, backbone=4, decode=8)
    assert found.stages == {
        "waiting": 1,
        "preprocess": 0,
        "score": 2,
        "backbone": 4,
        "dense": 0,
        "warmup": 0,
        "rest": 3,
    }
    assert found.bottleneck == "backbone"
    assert found.networks_busy == pytest.approx(0.6)
    assert found.decoders_busy == pytest.approx(0.4)  # 8 s of 2 x 10 s
    assert made(waiting=6, score=1, backbone=2).bottleneck == "waiting"


def test_waiting_behind_the_work_of_a_gpu_does_not_count() -> None:
    found = made(waiting=9, score=1, backbone=6)  # of 10 s
    assert found.stages["waiting"] == 3 and found.stages["rest"] == 0
    assert found.networks_busy == pytest.approx(0.7)


@given(waiting=seconds, score=seconds, backbone=seconds, rest=seconds, decode=seconds)
def test_shares_are_shares(waiting: float, score: float, backbone: float, rest: float, decode: float) -> None:
    total = waiting + score + backbone + rest + 1e-3
    found = made(waiting, score, backbone, decode, total)
    assert sum(found.stages.values()) == pytest.approx(total)
    assert 0 <= found.networks_busy <= 1 + 1e-9 and 0 <= found.decoders_busy <= 1
    assert found.stages[found.bottleneck] == max(found.stages.values())
    assert set(found.stages) == set(NAMES) == set(ADVICE)


def test_waiting_is_the_time_of_the_source_only(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(profiling, "perf_counter", lambda: now[0])
    batches = [[sample()], [sample(), sample()], []]

    def slow() -> Iterator[list[VideoSample]]:
        for batch in batches:
            now[0] += 2
            yield batch

    waiting = Waiting()
    got = []
    for batch in waiting.watch(slow()):
        now[0] += 10
        got.append(batch)
    assert got == batches
    assert waiting.seconds == 6


def shown(found: Profile) -> str:
    out = io.StringIO()
    print_profile(found, make_console(out, width=160))
    return out.getvalue()


def test_what_is_printed() -> None:
    text = shown(made(waiting=6, score=1, backbone=2, decode=19))
    assert "Networks are busy 30 % of the time after the warm-up, decoding (2 processes) 95 %." in text
    assert "4 videos were decoded, each once for its 15 views together: 4750 ms a video." in text
    assert "Bottleneck: decoding" in text and "runtime.workers" in text
    assert "could do more" not in text
    assert "could do more" in shown(made(waiting=1, score=1, backbone=2))


def test_the_cores_are_as_busy_as_the_system_counts() -> None:
    """On a machine with other work, networks and decoders take long without computing."""
    found = made(waiting=3, score=2, backbone=5, decode=5, cores=2, processor=19)
    assert (found.networks_busy, found.decoders_busy) == pytest.approx((0.7, 0.25))
    assert found.cores_busy == pytest.approx(0.95)  # 19 s of 2 x 10 s
    assert (found.record()["cores_busy"], found.record()["processor_seconds"]) == (found.cores_busy, 19)
    assert "19.0 s, 95 % of 2 cores" in shown(found) and "could do more" not in shown(found)
    starved = made(waiting=0, score=2, backbone=8, decode=5, cores=1, processor=1.3)
    assert starved.networks_busy == pytest.approx(1) and starved.cores_busy == pytest.approx(0.13)
    assert "13 % of 1 cores" in shown(starved) and "did other work" in shown(starved)
    on_gpu = made(waiting=3, score=2, backbone=5, decode=5)
    assert on_gpu.cores_busy == 0 and "cores" not in shown(on_gpu) and "cores_busy" not in on_gpu.record()


def test_the_processor_time_of_a_process_that_ended_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """User and system time, of this process and of its children; the fifth number is the clock on the wall."""
    monkeypatch.setattr("os.times", lambda: (1.0, 2.0, 4.0, 8.0, 100.0))
    assert profiling.processor_seconds() == 15


def test_busy_is_nine_tenths_of_the_time() -> None:
    assert "could do more" not in shown(made(waiting=1, score=4, backbone=5))
    assert "could do more" in shown(made(waiting=1.01, score=4, backbone=4.99))
    assert "could do more" not in shown(made(waiting=5, score=1, backbone=1, cores=1, processor=9))


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_decoders_share_their_time(workers: int) -> None:
    found = replace(made(waiting=3, score=1, backbone=1, decode=4), workers=workers)
    assert found.decoders_busy == pytest.approx(0.4 / max(workers, 1))
    assert found.record() | {"videos_decoded": 4, "views_per_video": 15} == found.record()
    nothing = made(waiting=0, score=0, backbone=0, warmup=10)
    assert (nothing.networks_busy, nothing.stages["warmup"]) == (0, 10)
    assert made(waiting=0, score=5e-10, backbone=0, total=1e-9).networks_busy == pytest.approx(0.5)


def test_decoding_of_this_session_only() -> None:
    """A clip cache has what an earlier run decoded; a video that failed was worked on too."""
    waiting = Waiting()
    list(
        waiting.watch([[sample(), sample(frames=False, views=True)], [sample(frames=False, error="broken")]])
    )
    assert (waiting.decoding, waiting.decoded, waiting.remembered) == pytest.approx((0.08, 1, 0.008))
    found = made(waiting=0, score=1, backbone=2, cut=5, remembered=5)
    assert found.stages["preprocess"] == 0 and found.stages["rest"] == 7


def test_the_warm_up_stands_by_itself() -> None:
    found = made(waiting=0.1, score=1, backbone=2.8, warmup=6)
    assert found.networks_busy == pytest.approx(0.95)
    assert found.bottleneck == "warmup" and found.stages["rest"] == pytest.approx(0.1)
