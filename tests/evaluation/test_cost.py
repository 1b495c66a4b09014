from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from video_papr.backbones.builders import build_backbone
from video_papr.benchmark.flops import count_gmacs
from video_papr.core.types import TokenSelection
from video_papr.evaluation import cost
from video_papr.evaluation.cost import Engine, StageTimes, gmacs_per_view, mean_gmacs
from video_papr.pipeline import Pipeline
from video_papr.pruning.builders import build_pruner
from video_papr.pruning.tome import ToMe


def test_median_per_view_and_sum() -> None:
    times = StageTimes([(10, 5), (30, 5)], [(4, 2)], [(9, 3), (300, 3), (6, 2)], [(2, 2), (8, 2), (3, 1)])
    assert times.per_view_ms() == {"decode": 4, "preprocess": 2, "score": 3, "backbone": 3, "total": 12}
    assert times.processing_seconds() == pytest.approx((4 + 315 + 13) / 1000)


def test_nothing_ran() -> None:
    assert set(StageTimes().per_view_ms().values()) == {None}
    assert StageTimes().processing_seconds() == 0


def test_time_of_the_body(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "perf_counter", iter([1.0, 1.02]).__next__)
    times = StageTimes()
    with Engine(torch.device("cpu")).timed(times, "score", 4):
        pass
    assert times.score == [(pytest.approx(20), 4)]


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


@pytest.mark.parametrize("merger", [None, ToMe(3), ToMe(4, "decreasing")], ids=["", "tome", "falling"])
@pytest.mark.parametrize("name", ["motion", "similarity"])
def test_mean_over_views_of_unequal_length(name: str, merger: ToMe | None) -> None:
    """Each view counts as if it ran alone, and what torch.compile makes of the backbone does not matter."""
    backbone = build_backbone("videomae_tiny", num_frames=4, input_size=32, num_classes=3)
    extra = {"mode": "adaptive", "after_block": 1} if name == "similarity" else {"budget": "top_p"}
    pipeline = Pipeline(backbone, build_pruner(name, **extra), merger)
    frames = torch.zeros(1, 4, 32, 32, 3, dtype=torch.uint8)
    gmacs = gmacs_per_view(pipeline, frames)

    def alone(count: int) -> float:
        tokens = torch.zeros(1, count, 192) if name == "similarity" else None
        keep_idx = torch.arange(count)[None]
        selection = TokenSelection(
            keep_idx, backbone.grid, tokens=tokens, block=1 if tokens is not None else 0
        )
        return count_gmacs(pipeline.classify, frames, selection)

    kept = {1: 2, 5: 1, 16: 3}
    expected = sum(views * alone(count) for count, views in kept.items()) / 6
    backbone._compiled_call_impl = lambda *_, **__: pytest.fail("must not be called")
    found = mean_gmacs(pipeline, gmacs, kept)
    assert found["backbone"] == pytest.approx(expected, rel=1e-9)
    assert found["total"] == found["backbone"] + gmacs["scorer"]
    assert (found["scorer"], found["dense"]) == (gmacs["scorer"], gmacs["dense"])


def test_part_of_the_backbone_that_chooses_counts_as_scorer() -> None:
    backbone = build_backbone("videomae_tiny", num_frames=4, input_size=32, num_classes=3)
    frames = torch.zeros(1, 4, 32, 32, 3, dtype=torch.uint8)
    found = gmacs_per_view(
        Pipeline(backbone, build_pruner("similarity", keep_ratio=1, after_block=2)), frames
    )
    assert found["total"] == pytest.approx(found["dense"], rel=1e-9)  # nothing is computed twice
    assert 0.4 < found["scorer"] / found["dense"] < 0.6


def test_merging_is_counted_block_by_block() -> None:
    """Attention reads what entered the block, the MLP what merging left; all edges between A and B cost a product."""
    backbone = build_backbone("videomae_tiny", num_frames=4, input_size=32, num_classes=3)
    frames = torch.zeros(1, 4, 32, 32, 3, dtype=torch.uint8)
    dim, tokens = 192, 16
    macs = tokens * 3 * 4 * 8 * 8 * dim + 3 * dim
    for r in (5, 5, 3, 1):  # of 16, 11, 6, 3 tokens
        macs += 4 * tokens * dim**2 + 2 * tokens**2 * dim
        macs += -(-tokens // 2) * (tokens // 2) * dim // 3  # keys of a head
        tokens -= r
        macs += 8 * tokens * dim**2
    found = gmacs_per_view(Pipeline(backbone, merger=ToMe(5)), frames)
    assert found["backbone"] == pytest.approx(macs / 1e9, rel=1e-9)
    assert found["scorer"] == 0
    assert found["total"] < found["dense"] == pytest.approx(count_gmacs(Pipeline(backbone), frames))


def choice(pipeline: Pipeline, arrived: list[list[int]]) -> float:
    counted = cost.choice_cost(pipeline)
    assert counted is not None
    return counted(torch.tensor(arrived))


def test_choice_of_clips_that_differ_is_the_mean_of_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = build_backbone("videomae_tiny", num_frames=4, input_size=32, num_classes=3)
    pruner = build_pruner("similarity", keep_ratio=0.5, mode="threshold", tau=0.5, after_block=[1, 2])
    pipeline = Pipeline(backbone, pruner)
    few, many = choice(pipeline, [[2]]), choice(pipeline, [[12]])
    assert 0 < choice(pipeline, [[0]]) < few < many
    assert choice(pipeline, [[2], [12], [12]]) == pytest.approx((few + 2 * many) / 3, rel=1e-9)
    monkeypatch.setattr(pruner, "choice_macs", lambda count, dim: 0)
    blocks = choice(pipeline, [[2]])
    monkeypatch.setattr(pruner, "choice_macs", lambda count, dim: count * 10**9)
    assert choice(pipeline, [[2]]) == pytest.approx(
        blocks + 16 + 2, rel=1e-9
    )  # all tokens, then those that arrived


def test_what_the_choice_took_stands_for_the_scorer() -> None:
    known = {"backbone": 4.0, "scorer": 1.0, "total": 5.0, "dense": 9.0}
    found = cost.shared_gmacs(known, [(2.0, 3), (6.0, 1)])
    assert found == {"backbone": 4.0, "scorer": 3.0, "total": 7.0, "dense": 9.0}


def test_choice_is_what_its_blocks_and_its_comparisons_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """Embedding, a block over all tokens, a block over those that arrived, and what choosing takes at each place."""
    backbone = build_backbone("videomae_tiny", num_frames=4, input_size=32, num_classes=3)
    pruner = build_pruner("similarity", keep_ratio=0.5, mode="threshold", tau=0.5, after_block=[1, 2])
    dim, arrived = 192, 5
    macs = 16 * 3 * 4 * 8 * 8 * dim
    for tokens in (16, arrived):
        macs += 12 * tokens * dim**2 + 2 * tokens**2 * dim + pruner.choice_macs(tokens, dim)
    assert choice(Pipeline(backbone, pruner), [[arrived]]) == pytest.approx(macs / 1e9, rel=1e-12)


def test_a_motion_plane_is_no_part_of_the_dense_model() -> None:
    backbone = build_backbone("videomae_tiny", num_frames=4, input_size=32, num_classes=3)
    pipeline = Pipeline(backbone, build_pruner("codec", keep_ratio=0.5))
    with_plane = gmacs_per_view(pipeline, torch.full((1, 4, 32, 32, 4), 9, dtype=torch.uint8))
    dense = gmacs_per_view(Pipeline(backbone), torch.zeros(1, 4, 32, 32, 3, dtype=torch.uint8))
    assert with_plane["dense"] == dense["total"] and with_plane["backbone"] < dense["total"]


@pytest.mark.parametrize(("system", "unit"), [("linux", 2**10), ("darwin", 2**20)])
def test_memory_in_the_units_of_the_system(system: str, unit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(cost.sys, "platform", system)
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=48 * unit))
    assert Engine(torch.device("cpu")).peak_memory_mb() == 48
    monkeypatch.setitem(sys.modules, "resource", None)
    assert Engine(torch.device("cpu")).peak_memory_mb() == 0
    assert StageTimes().peak_memory_mb == 0


def test_memory_of_a_gpu_is_its_peak_since_the_last_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    reset: list[torch.device] = []
    device = torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda asked: 48 * 2**20 * (asked == device))
    Engine(torch.device("cpu")).reset_peak_memory()
    Engine(device).reset_peak_memory()
    assert reset == [device] and Engine(device).peak_memory_mb() == 48
    assert Engine(device).queues and not Engine(torch.device("cpu")).queues
