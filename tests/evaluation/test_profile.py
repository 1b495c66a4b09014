"""Where the time went."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from video_papr.evaluation.cost import StageTimes
from video_papr.evaluation.profile import ADVICE, NAMES, Profile, Waiting, print_profile, profile
from video_papr.evaluation.runner import Evaluation

seconds = st.floats(0, 1e4)


def made(waiting: float, score: float, backbone: float, decode: float = 0.0, total: float = 10.0) -> Profile:
    times = StageTimes([(1000 * decode, 1)], [], [(1000 * score, 4)], [(1000 * backbone, 4)])
    return profile(Evaluation(pruned=times), total=total, waiting=waiting, workers=2)


def test_stages_add_up_and_the_largest_is_named() -> None:
    found = made(waiting=1, score=2, backbone=4, decode=8)
    assert found.stages == {
        "waiting": 1,
        "preprocess": 0,
        "score": 2,
        "backbone": 4,
        "dense": 0,
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


def test_waiting_is_the_time_of_the_source_only() -> None:
    def slow() -> Iterator[int]:
        for number in range(3):
            time.sleep(0.02)
            yield number

    waiting = Waiting()
    got = []
    for number in waiting.watch(slow()):
        time.sleep(0.1)
        got.append(number)
    assert got == [0, 1, 2]
    assert 0.06 <= waiting.seconds < 0.25


def test_what_is_printed() -> None:
    def shown(found: Profile) -> str:
        out = io.StringIO()
        print_profile(found, Console(file=out, width=140))
        return out.getvalue()

    text = shown(made(waiting=6, score=1, backbone=2, decode=19))
    assert "Networks are busy 30 % of the time, decoding (2 processes) 95 %." in text
    assert "Bottleneck: decoding" in text and "runtime.workers" in text
    assert "could do more" not in text
    assert "could do more" in shown(made(waiting=1, score=1, backbone=2))
