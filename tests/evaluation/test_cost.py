from __future__ import annotations

import time

import pytest
import torch

from video_papr.backbones.builders import build_backbone
from video_papr.benchmark.flops import count_gmacs
from video_papr.evaluation.cost import Engine, StageTimes, gmacs_per_view
from video_papr.pipeline import Pipeline
from video_papr.pruning.builders import build_pruner


def test_median_per_view_and_sum() -> None:
    times = StageTimes([(10, 5), (30, 5)], [(4, 2)], [(9, 3), (300, 3), (6, 2)], [(2, 2), (8, 2), (3, 1)])
    assert times.per_view_ms() == {"decode": 4, "preprocess": 2, "score": 3, "backbone": 3, "total": 12}
    assert times.processing_seconds() == pytest.approx((4 + 315 + 13) / 1000)


def test_nothing_ran() -> None:
    assert set(StageTimes().per_view_ms().values()) == {None}
    assert StageTimes().processing_seconds() == 0


def test_time_of_the_body() -> None:
    runs: list[tuple[float, int]] = []
    with Engine(torch.device("cpu")).timed(runs, 4):
        time.sleep(0.02)
    assert runs[0][1] == 4
    assert 19 < runs[0][0] < 1000


def test_autocast_only_when_asked_for() -> None:
    layer, pixels = torch.nn.Linear(2, 2), torch.ones(1, 2)
    with Engine(torch.device("cpu")).inference():
        assert layer(pixels).dtype == torch.float32
        assert not layer(pixels).requires_grad
    with Engine(torch.device("cpu"), torch.bfloat16).inference():
        assert layer(pixels).dtype == torch.bfloat16


def test_memory_of_the_process() -> None:
    assert 10 < Engine(torch.device("cpu")).peak_memory_mb() < 1e6


def test_arithmetic_by_part() -> None:
    backbone = build_backbone("videomae_tiny", num_frames=4, input_size=16, num_classes=3)
    frames = torch.zeros(1, 4, 16, 16, 3, dtype=torch.uint8)
    dense = gmacs_per_view(Pipeline(backbone), frames)
    assert dense == {
        "backbone": dense["dense"],
        "scorer": 0,
        "total": dense["dense"],
        "dense": dense["dense"],
    }
    assert dense["dense"] == pytest.approx(count_gmacs(Pipeline(backbone), frames))
    pruner = build_pruner("x3d_s", keep_ratio=0.5, frames=4, size=32)
    pruned = gmacs_per_view(Pipeline(backbone, pruner), frames)
    assert pruned["dense"] == dense["dense"]
    assert pruned["backbone"] < 0.7 * dense["dense"]
    assert pruned["scorer"] > 0
    assert pruned["total"] == pruned["backbone"] + pruned["scorer"]
