"""Probes, timing and the count of work: do they say what happened?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from video_papr.backbones.builders import Backbone
from video_papr.benchmark import probes
from video_papr.benchmark.ceilings import Ceilings
from video_papr.benchmark.flops import count_gmacs
from video_papr.benchmark.probes import Clock, Mark, MemoryProbe
from video_papr.benchmark.timing import alternate, ratios, spread
from video_papr.benchmark.work import Work, count_work
from video_papr.pipeline import Pipeline
from video_papr.pruning.builders import build_pruner

CPU = torch.device("cpu")


@pytest.fixture
def sleep(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A clock that only this moves on, by so many seconds: nothing here depends on how busy the machine is."""
    now = [0.0]
    monkeypatch.setattr(probes, "perf_counter", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def test_clock_tells_stages_apart_and_adds_up_those_that_come_twice(sleep: Callable[[float], None]) -> None:
    clock = Clock(CPU)
    for stage, seconds in (("a", 0.01), ("b", 0.03), ("a", 0.02)):
        sleep(seconds)
        clock(stage)
    found = clock.stages_ms()
    assert found == {"a": pytest.approx(30), "b": pytest.approx(30)}


def test_memory_of_a_stage_is_what_it_holds_at_most() -> None:
    probe = MemoryProbe(CPU)
    if not probe.known:
        pytest.skip("this system does not say")
    big = torch.ones(64 * 2**18)  # 64 MiB
    del big
    probe("big")
    small = torch.ones(16 * 2**18)
    probe("small")
    assert 60 < probe.peaks["big"] < 110
    assert 12 < probe.peaks["small"] < 50
    del small


def test_variants_take_turns(sleep: Callable[[float], None]) -> None:
    calls: list[str] = []

    def call(name: str, seconds: float) -> Callable[[], None]:
        def work() -> None:
            calls.append(name)
            sleep(seconds)

        return work

    rounds: list[int] = []
    times = alternate(
        {"slow": call("slow", 0.02), "fast": call("fast", 0.01)},
        CPU,
        repeats=6,
        sample_ms=0,
        on_round=lambda: rounds.append(len(calls)),
    )
    assert rounds == [
        6,
        8,
        10,
        12,
        14,
        16,
    ]  # two of each come before: a warm-up, and one that says how long it takes
    for start in rounds:
        assert set(calls[start - 2 : start]) == {"slow", "fast"}
    assert {len(values) for values in times.values()} == {6}
    assert ratios(times["slow"], times["fast"]) == pytest.approx({"median": 2, "low": 2, "high": 2})


def test_a_plan_hears_what_a_round_takes_and_says_how_many(sleep: Callable[[float], None]) -> None:
    told: list[float] = []

    def plan(seconds: float) -> int:
        told.append(seconds)
        return 2

    times = alternate(
        {"a": lambda: sleep(0.02), "b": lambda: sleep(0.03)}, CPU, repeats=9, sample_ms=40, plan=plan
    )
    assert told == pytest.approx([2 * 0.02 + 2 * 0.03])
    assert {len(values) for values in times.values()} == {2}


def test_short_calls_are_repeated_until_a_sample_lasts(sleep: Callable[[float], None]) -> None:
    count = 0

    def call() -> None:
        nonlocal count
        count += 1
        sleep(0.001)

    times = alternate({"short": call}, CPU, repeats=1, sample_ms=30)
    assert count == 2 + 30
    assert times["short"] == [pytest.approx(1)]  # of one call, not of the sample


@given(st.lists(st.floats(0.001, 1e6), min_size=1, max_size=30))
def test_spread_is_in_order_and_within_the_values(values: list[float]) -> None:
    found = spread(values)
    assert (
        min(values) * (1 - 1e-9)
        <= found["low"]
        <= found["median"]
        <= found["high"]
        <= max(values) * (1 + 1e-9)
    )
    assert ratios(values, values) == {"median": 1, "low": 1, "high": 1}


def test_work_of_a_product_and_of_a_sum() -> None:
    left, right = torch.ones(8, 16), torch.ones(16, 32)

    def run(frames: Tensor, mark: Mark) -> Tensor:
        product = left @ right
        mark("product")
        views = product.view(4, 64).T  # moves nothing
        return (views + 1, mark("sum"))[0]

    work = count_work(run, torch.zeros(1))
    assert work["product"].flops == 2 * 8 * 16 * 32
    assert work["product"].gigabytes == pytest.approx(4 * (8 * 16 + 16 * 32 + 8 * 32) / 1e9)
    assert (work["sum"].flops, work["sum"].gigabytes) == (0, pytest.approx(4 * 2 * 8 * 32 / 1e9))


def test_an_operator_takes_as_long_as_the_slower_of_its_two_limits() -> None:
    ceilings = Ceilings(flops_per_s=1e9, bytes_per_s=1e8)
    assert Work([(1e6, 0.0)]).bound_ms(ceilings) == pytest.approx(1)
    assert Work([(1e6, 1e6)]).bound_ms(ceilings) == pytest.approx(10)
    assert Work([(1e6, 0.0), (0.0, 1e6)]).bound_ms(ceilings) == pytest.approx(11)  # one after the other


@pytest.mark.parametrize("compensation", ["none", "pool", "merge"])
@pytest.mark.parametrize("name", ["none", "x3d_s", "random", "similarity"])
def test_count_of_all_stages_is_that_of_the_counter(
    tiny: Backbone, frames: Tensor, name: str, compensation: str
) -> None:
    """What is measured is the pipeline's own run, with its compensation."""
    options: dict[str, Any] = {"frames": 4, "size": 32} if name == "x3d_s" else {}
    pruner = build_pruner(name, keep_ratio=0.5, compensation=compensation, **options)
    pipeline = Pipeline(tiny, pruner)
    work = count_work(pipeline, frames)
    assert sum(part.gmacs for part in work.values()) == pytest.approx(count_gmacs(pipeline, frames))
