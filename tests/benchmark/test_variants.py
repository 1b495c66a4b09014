"""Every variant gives the logits of what it stands for, whole and stage by stage."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from video_papr.backbones.builders import Backbone
from video_papr.benchmark.clips import file_clips, synthetic_clips
from video_papr.benchmark.peers import PeerFlow, build_pair, drops_tokens
from video_papr.benchmark.probes import STAGES
from video_papr.benchmark.suite import DENSE, Plan, Variant, measure
from video_papr.benchmark.variants import build_variants, compile_variants
from video_papr.pruning.builders import SPECS

CLIP = {"num_frames": 8, "input_size": 32}
SCORER = {"frames": 4, "size": 32}
PRUNERS: list[tuple[str, dict[str, Any]]] = [
    ("x3d_s", SCORER),
    ("x3d_s", {**SCORER, "budget": "top_p"}),
    ("random", {"keep_ratio": 0.2}),
    ("run_length", {}),
    ("similarity", {"after_block": 1}),
]


def variants_of(ours: Backbone, theirs: Any = None, **options: Any) -> list[Variant]:
    return build_variants(ours, theirs, pruners=PRUNERS, keep_ratios=[0.3, 0.5], tome=[2], **options)


def test_names_are_unique_and_every_ratio_has_a_variant(tiny: Backbone) -> None:
    names = [variant.name for variant in variants_of(tiny)]
    assert names == [
        "dense",
        "x3d_s 0.3 frames=4 size=32",
        "x3d_s 0.5 frames=4 size=32",
        "x3d_s frames=4 size=32 budget=top_p",
        "random 0.2",
        "run_length",
        "similarity 0.3 after_block=1",
        "similarity 0.5 after_block=1",
        "tome r=2",
    ]


@pytest.mark.parametrize("split", [True, False])
@torch.inference_mode()
def test_staged_runs_give_the_same_logits(tiny: Backbone, frames: Tensor, split: bool) -> None:
    for variant in variants_of(tiny, split=split):
        stages: list[str] = []
        logits = variant.staged(frames, stages.append)
        torch.testing.assert_close(logits, variant.flow(frames), rtol=1e-5, atol=1e-6)
        assert stages == sorted(stages, key=STAGES.index)
        assert "backbone" in stages or (split and stages[-3:] == ["embed", "blocks", "head"])


@pytest.mark.parametrize("name", ["videomae_tiny", "vivit_b"])
@torch.inference_mode()
def test_transformers_model_has_our_weights(
    name: str, monkeypatch: pytest.MonkeyPatch, frames: Tensor
) -> None:
    pytest.importorskip("transformers")
    from video_papr.backbones import builders

    monkeypatch.setitem(
        builders.BACKBONES,
        name,
        {**builders.BACKBONES[name], "depth": 2, "dim": 48, "num_heads": 4, "num_classes": 7},
    )
    ours, theirs = build_pair(name, **CLIP)
    assert theirs is not None
    assert theirs.config._attn_implementation == "sdpa"
    variants = {variant.name: variant for variant in variants_of(ours, theirs)}
    peers = [variant for variant in variants.values() if isinstance(variant.flow, PeerFlow)]
    assert {peer.like for peer in peers} == (
        {DENSE, "x3d_s 0.3 frames=4 size=32", "x3d_s 0.5 frames=4 size=32"}
        if drops_tokens(theirs)
        else {DENSE}
    )
    assert drops_tokens(theirs) == (name != "vivit_b")
    for peer in peers:
        assert peer.like is not None
        logits = variants[peer.like].flow(frames)
        assert logits.std() > 1e-3  # not all alike
        torch.testing.assert_close(peer.flow(frames), logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(peer.staged(frames, str), logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("seconds", "rounds"), [(1e-3, 3), (1e4, 4), (0.0, 4)])
def test_fewer_rounds_where_time_is_short(
    tiny: Backbone, frames: Tensor, seconds: float, rounds: int
) -> None:
    planned: list[tuple[int, float]] = []
    plan = Plan(repeats=4, sample_ms=0, seconds=seconds)
    records = measure(variants_of(tiny), frames, plan, on_plan=lambda *found: planned.append(found))
    assert [count for count, _ in planned] == [rounds] and planned[0][1] > 0
    assert {len(record["rounds_ms"]) for record in records} == {rounds}


def test_record_of_a_measurement(tiny: Backbone, frames: Tensor) -> None:
    variants = variants_of(tiny)
    rounds: list[None] = []
    records = measure(variants, frames, Plan(repeats=2, sample_ms=0), on_round=lambda: rounds.append(None))
    assert len(rounds) == 2
    assert [record["name"] for record in records] == [variant.name for variant in variants]
    dense = records[0]
    assert (dense["kept_tokens"], dense["scoring_share"], dense["flop_limit"]) == (None, 0, 1)
    assert dense["speedup"] == {"median": 1, "low": 1, "high": 1}
    for record in records:
        assert record["latency_ms"]["median"] > 0 and len(record["rounds_ms"]) == 2
        shares = [stage["share"] for stage in record["stages"].values()]
        assert sum(shares) == pytest.approx(1)
        assert record["flop_limit"] == pytest.approx(dense["gmacs"] / record["gmacs"])
        assert record["clips_per_second"] == pytest.approx(2000 / record["latency_ms"]["median"])
    by_name = {record["name"]: record for record in records}
    assert by_name["random 0.2"]["kept_tokens"] == 6  # of 32
    assert by_name["random 0.2"]["flop_limit"] > 4
    assert 0 < by_name["x3d_s 0.3 frames=4 size=32"]["scoring_share"] < 1


def test_all_networks_are_compiled_alike(tiny: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    ours, theirs = build_pair("videomae_tiny", **CLIP)
    asked: dict[str, set[tuple[tuple[str, object], ...]]] = {}

    def note(network: nn.Module, **options: object) -> None:
        asked.setdefault(type(network).__name__, set()).add(tuple(sorted(options.items())))

    monkeypatch.setattr(nn.Module, "compile", note)
    compile_variants(variants_of(ours, theirs))
    assert asked == {
        "VideoMAE": {(("dynamic", False), ("fullgraph", True))},  # that it is whole changes no code
        "ChannelsLastTrunk": {(("dynamic", False), ("fullgraph", True))},
        "VideoMAEForVideoClassification": {(("dynamic", False),)},
    }


def test_compiled_variants_give_the_same_logits(frames: Tensor) -> None:
    """With a backend that runs the traced graphs as they are: what is asked about is the tracing."""
    pytest.importorskip("transformers")
    ours, theirs = build_pair("videomae_tiny", **CLIP)
    variants = variants_of(ours, theirs, split=False)
    torch.compiler.reset()
    with torch.inference_mode():
        expected = [variant.flow(frames) for variant in variants]
        compile_variants(variants, backend="eager")
        for variant, logits in zip(variants, expected, strict=True):
            for _ in range(2):
                torch.testing.assert_close(variant.flow(frames), logits, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(variant.staged(frames, str), logits, rtol=1e-4, atol=1e-5)
    torch.compiler.reset()


def test_scorer_is_shared_between_ratios(tiny: Backbone) -> None:
    scorers = [
        variant.chooser.pruner.scorer  # type: ignore[union-attr]
        for variant in variants_of(tiny)
        if variant.settings.get("pruner") == "x3d_s" and "keep_ratio" in variant.settings
    ]
    assert len(scorers) == 2 and scorers[0] is scorers[1]


def test_clips(tiny: Backbone, video_root: Any) -> None:
    made = synthetic_clips(tiny, 3, seed=1)
    assert made.shape == (3, 8, 32, 32, 3) and made.dtype == torch.uint8
    assert not torch.equal(made[0], made[1])
    assert torch.equal(made, synthetic_clips(tiny, 3, seed=1))
    read, took = file_clips(video_root / "left" / "a.mp4", tiny, 2, repeats=2)
    assert read.shape == (2, 8, 32, 32, 3)
    assert set(took) == {"decode", "resize"} and all(ms > 0 for ms in took.values())


def test_all_pruners_can_be_measured(tiny: Backbone, frames: Tensor) -> None:
    """A new pruner gets a variant without a line here."""
    names = [name for name in SPECS if name not in ("image_convnet", "x3d_m", "x3d_xs")]
    for variant in build_variants(tiny, None, pruners=[(name, {}) for name in names], keep_ratios=[0.4]):
        with torch.inference_mode():
            assert variant.staged(frames, str).shape == (2, 12)
