"""The stages on a transformer of 3 small blocks: mix, calibration, fitness, latency, and the way through them all."""

from __future__ import annotations

import json
import math
import shutil
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from video_papr.backbones.videomae import VideoMAE
from video_papr.config.recipes import Method
from video_papr.core.errors import CheckpointError, ConfigError
from video_papr.core.types import TokenGrid
from video_papr.depth import run
from video_papr.depth.calibrate import calibrate, running_norms
from video_papr.depth.latency import LatencyTable, measure
from video_papr.depth.places import find_places, open_places, set_mask, switches
from video_papr.depth.plan import Clips, Plan
from video_papr.depth.progressive import Judge, mix_at, random_subnet, rising_draw, supernet_loss
from video_papr.depth.run import prune_depth
from video_papr.depth.subjects import (
    Teaching,
    backbone_subject,
    divergence,
    kept_alike,
    map_distance,
    scorer_subject,
)
from video_papr.pruning.scorers.x3d import X3DScorer
from video_papr.pruning.scorers.x3d_network import X3D
from video_papr.training.loop import Schedule
from video_papr.training.store import Batch, ClipStore


def network(depth=3):
    torch.manual_seed(0)
    net = VideoMAE(
        num_classes=2, num_frames=4, input_size=16, tubelet=(2, 8, 8), dim=24, depth=depth, num_heads=2
    )
    return net.eval()


def store(count=12):
    """Bright clips are class 1, dark ones class 0."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 2
    frames = rng.integers(0, 128, (count, 4, 16, 16, 3)) + 127 * labels.reshape(-1, 1, 1, 1, 1)
    return ClipStore(frames.astype(np.uint8), labels.astype(np.int64))


def draw(progress, clips, generator):
    return store().batch(torch.randint(12, (clips,), generator=generator).numpy())


def subject(net, **options):
    return backbone_subject("small", net, **options)


PLAN = Plan(
    prune=1,
    kinds=("linear",),
    schedule=Schedule(steps=1, batch_size=4, validate_every=2, learning_rate=1e-3),
    supernet_steps=4,
    progressive_steps=4,
    finetune_steps=2,
    calibration_clips=8,
    search_clips=12,
    latency_clips=2,
    latency_repeats=1,
)


def prune(directory, plan=PLAN, net=None, **options):
    net = network() if net is None else net
    clips = options.pop("clips", Clips(draw, store(), store(12)))
    return prune_depth(net, subject(net), plan, clips, directory=directory, progress=False, **options)


def frames():
    return store().batch(np.arange(4)).frames


# ---- mix ----


@given(steps=st.integers(1, 400), rising=st.integers(0, 400))
def test_mix_rises_from_0_to_exactly_1_and_stays(steps, rising):
    values = [mix_at(step, rising) for step in range(steps)]
    assert all(0 <= a <= b <= 1 for a, b in pairwise(values))
    assert values[0] == (1.0 if rising <= 1 else 0.0)
    if steps >= rising:
        assert values[-1] == 1.0
    assert all(value == 1.0 for value in values[max(0, rising - 1) :])


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 300))
def test_every_step_of_a_training_gets_its_own_mix(steps):
    """The loop says the progress, not the step; none is lost to rounding."""
    net = network(1)
    open_places(find_places(net), ["removed"])
    seen = []

    def source(progress, clips, generator):
        seen.append(switches(net)[0].mix)
        return Batch(torch.empty(0), torch.empty(0))

    drawn = rising_draw(source, switches(net), steps, steps)
    for step in range(steps):
        drawn(step / steps, 1, torch.Generator())
    assert seen == [mix_at(step, steps) for step in range(steps)]


def test_supernet_prunes_k_blocks_drawn_anew():
    net = network(5)
    open_places(find_places(net), ["linear"] * 5)
    net.train()
    loss = supernet_loss(net, network(5), subject(net), Teaching(), 2)
    drawn = set()
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        loss(draw(0, 4, generator), generator).backward()
        mixes = [switch.mix for switch in switches(net)]
        assert sorted(mixes) == [0, 0, 0, 1, 1]
        drawn.add(tuple(mixes))
    assert len(drawn) > 4
    assert random_subnet(5, 5, torch.Generator()) == (0, 1, 2, 3, 4)


# ---- what is taught ----


def test_distillation_is_0_for_the_same_answer_and_grows_with_the_difference():
    torch.manual_seed(0)
    logits = torch.randn(5, 4)
    assert divergence(logits, logits, 2.0).abs() < 1e-6
    assert divergence(logits + 3, logits, 2.0).abs() < 1e-6  # a constant changes no probability
    noise = torch.randn(5, 4)
    sizes = [divergence(logits + scale * noise, logits, 2.0).item() for scale in (0.1, 0.5, 2.0)]
    assert 0 < sizes[0] < sizes[1] < sizes[2]
    by_hand = (logits.softmax(1) * (logits.log_softmax(1) - noise.log_softmax(1))).sum(1).mean()
    torch.testing.assert_close(divergence(noise, logits, 1.0), by_hand)


def test_maps_are_compared_by_their_order_only():
    torch.manual_seed(0)
    cells, grid = torch.rand(3, 2, 4, 4), TokenGrid(2, 8, 8)
    options = {"align_corners": False, "cell_center": 0.0}
    assert map_distance(5 * cells + 2, cells) < 1e-9
    assert map_distance(torch.rand(3, 2, 4, 4), cells) > 0.1
    assert kept_alike(5 * cells + 2, cells, grid, 0.3, options).tolist() == [1.0] * 3
    assert kept_alike(-cells, cells, grid, 0.5, options).max() < 0.2


def test_scorer_answers_with_its_logits_and_the_map_that_the_trunk_would_give():
    torch.manual_seed(0)
    net = X3D(3).eval()
    clips = torch.randint(0, 256, (1, 4, 32, 32, 3), dtype=torch.uint8)
    shapes = {"res2": (1, 4, 16, 16), "res4": (1, 4, 4, 4), "head": (1, 4, 2, 2)}
    channels = {"res2": 24, "res4": 96, "head": 192}
    for stage, shape in shapes.items():
        one = scorer_subject("x3d_s", frames=4, size=64, stage=stage, timed_frames=4, timed_size=64)
        trunk = X3DScorer(frames=4, size=64, stage=stage).eval()
        trunk.trunk.load_classifier(net.state_dict(), source="test")
        with torch.no_grad():
            answer = one.answer(net, clips, None)
            assert answer.cells is not None and answer.cells.shape == shape
            torch.testing.assert_close(answer.cells, trunk.cells(clips), rtol=1e-4, atol=1e-5)
            assert one.timed(net, clips).shape[1] == channels[stage]
        assert answer.logits.shape == (1, 3)


# ---- norms ----


def test_calibration_gives_the_statistics_of_the_batches():
    norm = nn.BatchNorm1d(3)
    net = nn.Sequential(norm, nn.Dropout(0.5)).train()
    batches = [torch.randn(50, 3) * 2 + 1 for _ in range(4)]
    for _ in range(2):  # nothing of an earlier call stays
        calibrate(net, net, batches)
        expected = torch.stack([batch.mean(0) for batch in batches]).mean(0)
        torch.testing.assert_close(norm.running_mean, expected)
        expected = torch.stack([batch.var(0) for batch in batches]).mean(0)
        torch.testing.assert_close(norm.running_var, expected)
    assert not net.training and not norm.training and norm.momentum == 0.1


def test_only_norms_that_run_are_calibrated():
    net = network()
    open_places(find_places(net), ["linear"] * 3)
    found = switches(net)
    for mask in ((), (1,), (0, 2)):
        set_mask(found, mask)
        assert running_norms(net) == [found[number].pruned.norm for number in mask]


# ---- fitness ----


@pytest.mark.parametrize("kind", ["linear", "removed"])
def test_fitness_does_not_depend_on_what_was_asked_before(kind):
    net = network()
    places = find_places(net)
    teacher = deepcopy(net)
    open_places(places, [kind] * 3)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    judge = Judge(net, subject(net), calibration=[frames()], examples=store(), batch_size=5, teacher=teacher)
    masks = [(0,), (1,), (0, 2), (0,), (1,)]
    scores = [judge(mask) for mask in masks]
    assert scores[0] == scores[3] and scores[1] == scores[4]
    assert all(0 <= score <= 100 for score in scores)


def test_fitness_is_the_accuracy_and_for_maps_the_agreement():
    net = network()
    known = subject(net)
    labels = known.logits(net, store().batch(np.arange(12)).frames).argmax(1)
    examples = ClipStore(store().frames, np.where(np.arange(12) < 9, labels, 1 - labels))
    assert Judge(net, known, calibration=[], examples=examples, batch_size=5)(()) == 75.0
    torch.manual_seed(0)
    x3d = X3D(2).eval()
    scorer = scorer_subject("x3d_s", frames=2, size=32, stage="res3", timed_frames=2, timed_size=32)
    alike = (TokenGrid(2, 2, 2), 0.5, {"align_corners": True, "cell_center": 0.5})
    judge = Judge(
        x3d, scorer, calibration=[], examples=store(2), batch_size=2, alike=alike, teacher=deepcopy(x3d)
    )
    assert judge(()) == 100.0


# ---- latency ----


def test_table_prefers_what_keeps_more_where_it_gains():
    times = {"a": {"whole": 10, "dense": 8, "pointwise": 1}, "b": {"whole": 10, "dense": 12, "pointwise": 3}}
    times["c"] = {"whole": 10, "dense": 14, "pointwise": 11}
    table = LatencyTable(40.0, times, {})
    kinds = {name: table.choose(name, ("dense", "pointwise")) for name in "abc"}
    assert kinds == {"a": "dense", "b": "pointwise", "c": "pointwise"}
    budget = table.budget(kinds, 0.8)
    assert budget.saved == (2, 7, -1) and budget.limit == 32.0
    assert budget.cost((0, 1)) == 31.0


def test_every_block_is_timed_and_the_network_stays():
    net = network()
    before = deepcopy(net.state_dict())
    known = subject(net)
    seen: list[int] = []
    table = measure(
        net,
        lambda one: known.timed(one, frames()),
        find_places(net),
        ("linear", "removed"),
        repeats=1,
        described={"clips": 4},
        on_block=lambda: seen.append(1),
    )
    assert list(table.blocks) == ["blocks.0", "blocks.1", "blocks.2"] and len(seen) == 3
    for times in table.blocks.values():
        assert times["removed"] == 0 < min(times["linear"], times["whole"])
    assert table.network > 0
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not any(module._forward_pre_hooks for module in net.modules())


# ---- the whole way ----


@pytest.mark.parametrize("kind", ["linear", "removed"])
@pytest.mark.parametrize("method", get_args(Method))
def test_every_method_prunes_exactly_k_blocks(method, kind, tmp_path):
    net = network()
    before = deepcopy(net.state_dict())
    plan = replace(PLAN, method=method, kinds=(kind,), prune=2, progressive=method != "random")
    said: list[str] = []
    pruned = prune(tmp_path, plan, net, say=said.append)
    assert sorted(pruned.blocks) == sorted([kind, kind, "whole"])
    assert pruned.report["pruned"] == [f"blocks.{n}" for n, word in enumerate(pruned.blocks) if word == kind]
    assert not switches(pruned.net) and not any(p.requires_grad for p in pruned.net.parameters())
    assert pruned.report["merge_error"] < 1e-4
    assert pruned.report["parameters"] < pruned.report["parameters_unpruned"]
    assert (tmp_path / "supernet").is_dir() == (method == "updp")
    assert (tmp_path / "search.json").is_file() == (method in ("updp", "greedy"))
    assert len(said) == 3 and math.isfinite(pruned.report["latency_ms"])
    if method == "random":
        assert pruned.report["score"] is None and pruned.report["scored"] == 0
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


class Stop(Exception):
    """Raised where a run is to end."""


def test_run_that_is_stopped_anywhere_ends_like_one_that_was_not(tmp_path):
    """Killed in the supernet, then in the search, then in progressive training; every stage goes on where it was."""
    whole = prune(tmp_path / "whole")
    drawn = {"count": 0}

    def until(limit):
        def source(progress, clips, generator):
            drawn["count"] += 1
            if drawn["count"] > limit:
                raise Stop
            return draw(progress, clips, generator)

        return Clips(source, store(), store(12))

    parts = tmp_path / "parts"
    parts.mkdir()
    shutil.copy(tmp_path / "whole" / "latency.json", parts)  # times are never the same twice
    with pytest.raises(Stop):
        prune(parts, clips=until(3), resume=True)  # of 4 supernet steps; the checkpoint has 2
    assert (parts / "supernet" / "checkpoint.pt").is_file() and not (parts / "search.json").exists()
    drawn["count"] = 0
    with pytest.raises(Stop):
        prune(parts, clips=until(2 + 5), resume=True)  # the 2 that were left, then 5 of 6
    scores = json.loads((parts / "search.json").read_text())["scores"]
    (parts / "search.json").write_text(json.dumps({"scores": scores[:1]}))  # as if killed in the search
    drawn["count"] = 0
    resumed = prune(parts, clips=until(99), resume=True)
    assert drawn["count"] == 2  # from step 4 of 6
    assert json.loads((parts / "search.json").read_text())["scores"] == scores
    assert resumed.blocks == whole.blocks
    pairs = zip(resumed.net.state_dict().values(), whole.net.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    again = prune(parts, clips=until(0), resume=True)  # nothing is left to do
    pairs = zip(again.net.state_dict().values(), whole.net.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_new_run_takes_up_nothing_of_an_earlier_one(tmp_path):
    def stopped(progress, clips, generator):
        raise Stop

    prune(tmp_path)
    assert all((tmp_path / name).is_file() for name in run.STAGE_FILES)
    with pytest.raises(Stop):
        prune(tmp_path, clips=Clips(stopped, store(), store(12)))
    assert [name for name in run.STAGE_FILES if (tmp_path / name).exists()] == ["latency.json"]


def test_training_starts_from_the_unpruned_model(tmp_path):
    """Whatever the supernet did to the shared weights, the first step's loss is that of the unpruned model."""
    net = network()
    losses: list[float] = []
    plan = replace(PLAN, teaching=Teaching(distill=1.0, temperature=1.0, map=0.0))
    original = run.student_loss

    def spied(student, teacher, known, teaching):
        taught = original(student, teacher, known, teaching)

        def loss(batch, generator):
            if not losses:
                logits = known.logits(student, batch.frames)
                losses.append((logits - known.logits(teacher, batch.frames)).abs().max().item())
            return taught(batch, generator)

        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "student_loss", spied)
        prune(tmp_path, plan, net)
    assert losses == [0.0]


def test_budget_that_cannot_be_met_and_counts_that_cannot_be(tmp_path):
    times = {f"blocks.{number}": {"whole": 2.0, "linear": 1.0} for number in range(3)}
    table = {"network": 8.0, "blocks": times, "measured": {}}  # measured ones would be too rough here
    (tmp_path / "latency.json").write_text(json.dumps(table))
    with pytest.raises(
        ConfigError, match=r"^depth\.max_latency=0\.5: pruning 1 blocks leaves at least 0\.875 of"
    ):
        prune(tmp_path, replace(PLAN, max_latency=0.5), resume=True)
    assert prune(tmp_path, replace(PLAN, max_latency=0.9), resume=True).blocks.count("linear") == 1
    with pytest.raises(ConfigError, match=r"^depth\.prune=3: must be 1 to 2 blocks \(of 3, one must stay\)"):
        prune(tmp_path, replace(PLAN, prune=3, kinds=("removed",)))
    with pytest.raises(ConfigError, match=r"^depth\.prune=4: must be 1 to 3 blocks"):
        prune(tmp_path, replace(PLAN, prune=4))


@pytest.mark.parametrize("text", ["{", "[]", '{"scores": 1, "more": 2}'])
def test_damaged_files_of_a_stage_are_named(text, tmp_path):
    (tmp_path / "latency.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"latency\.json .*delete it to do this stage again$"):
        prune(tmp_path, resume=True)
