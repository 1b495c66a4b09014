"""The two things that can be trained, and how their weights come back as a backbone and a scorer."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from video_papr.backbones.builders import build_backbone
from video_papr.checkpoints.files import write_weights
from video_papr.core.errors import CheckpointError
from video_papr.core.types import TokenGrid
from video_papr.pipeline import Pipeline
from video_papr.pruning.builders import build_pruner
from video_papr.pruning.scorers.x3d_network import X3D
from video_papr.synthetic.tracks import actor_motion, actor_tokens
from video_papr.training.dropping import Dropping
from video_papr.training.store import Batch
from video_papr.training.targets import Losses, backbone_target, scorer_target

CLIP = {"num_frames": 8, "input_size": 32}  # a grid of 2 x 4 x 4


def batch(clips=3):
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (clips, 8, 32, 32, 3), dtype=torch.uint8, generator=generator)
    tracks = torch.rand(clips, 8, 5, generator=generator) * torch.tensor([0.6, 0.6, 0.2, 6, 1]) + 0.1
    return Batch(frames, torch.arange(clips) % 3, tracks)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def backbone(share=None, by="random", seed=0, **losses):
    return backbone_target(
        "videomae_tiny",
        num_classes=3,
        **CLIP,
        dropping=Dropping(share, by),
        losses=Losses(**losses),
        seed=seed,
    )


def test_backbone_predicts_what_the_evaluated_pipeline_predicts(tmp_path):
    target = backbone()
    frames = batch().frames
    target.save(tmp_path / "w.safetensors", ("a", "b", "c"), {"steps": 1})
    loaded = build_backbone("videomae_tiny", weights=tmp_path / "w.safetensors", **CLIP)
    assert loaded.class_names == ("a", "b", "c")
    torch.testing.assert_close(
        Pipeline(loaded)(frames), target.predict(frames), rtol=0, atol=2e-3
    )  # stored as fp16
    assert all(p.requires_grad for p in target.model.parameters())


def test_backbone_loss_is_the_cross_entropy_of_all_tokens():
    target, given = backbone(label_smoothing=0.1), batch()
    expected = F.cross_entropy(target.predict(given.frames), given.labels, label_smoothing=0.1)
    torch.testing.assert_close(target.loss(given, rng()), expected)


def test_locating_adds_a_loss_over_the_tokens_that_are_there():
    given = batch()
    for kept in (None, (0.5, 0.5)):
        plain, located = (backbone(kept, locate=weight) for weight in (0.0, 2.0))
        probe = located.model.where
        with torch.no_grad():  # an untrained probe that says "actor" with certainty 3 everywhere
            probe.weight.zero_()
            probe.bias.fill_(3.0)
        extra = (located.loss(given, rng()) - plain.loss(given, rng())).item() / 2
        share = actors(given).float().mean().item()
        if kept is not None:  # the same 16 of 32 tokens as in the loss
            share = extra_share(given, kept)
        expected = share * F.softplus(torch.tensor(-3.0)) + (1 - share) * F.softplus(torch.tensor(3.0))
        assert extra == pytest.approx(expected.item(), abs=1e-4)
        without = located.loss(given._replace(tracks=None), rng())
        torch.testing.assert_close(without, plain.loss(given, rng()))


def extra_share(given, kept):
    """The actor's share of the tokens that the loss keeps, read off a backbone that only records what it is asked."""
    seen: list[torch.Tensor] = []
    target = backbone(kept)
    target.weights.patch_embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    target.loss(given, rng())
    assert seen[0].shape == (3, 16)
    return actors(given).flatten(1).gather(1, seen[0]).float().mean().item()


def actors(given):
    """(B, 2, 4, 4) bool"""
    assert given.tracks is not None
    return actor_tokens(given.tracks, TokenGrid(2, 4, 4))


@pytest.mark.parametrize("kept", [None, (0.5, 0.5)])
def test_following_measures_the_motion_at_the_actors_tokens(kept):
    given = batch()
    plain, following = (backbone(kept, follow=weight) for weight in (0.0, 2.0))
    probe = following.model.motion
    with torch.no_grad():  # an untrained probe that calls every motion 0
        probe.weight.zero_()
        probe.bias.zero_()
    extra = (following.loss(given, rng()) - plain.loss(given, rng())).item() / 2
    assert given.tracks is not None
    moves = actor_motion(given.tracks, 2)
    each = F.smooth_l1_loss(moves, torch.zeros_like(moves), reduction="none").mean(-1)  # (B, T')
    seen: list[torch.Tensor] = []
    watched = backbone(kept)
    watched.weights.patch_embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    watched.loss(given, rng())
    there = torch.ones(3, 32, dtype=torch.bool)
    if kept is not None:
        there = torch.zeros(3, 32, dtype=torch.bool).scatter_(1, seen[0], True)
    marked = (actors(given).flatten(1) & there).view(3, 2, 16)
    expected = (marked * each[..., None]).sum() / marked.sum()
    assert extra == pytest.approx(expected.item(), abs=1e-4)
    torch.testing.assert_close(following.loss(given._replace(tracks=None), rng()), plain.loss(given, rng()))


def test_random_tokens_are_dropped_in_training_only():
    target, given = backbone((0.2, 0.9)), batch()
    seen: list[int] = []
    target.weights.patch_embed.register_forward_hook(lambda _m, _i, tokens: seen.append(tokens.shape[1]))
    losses = [target.loss(given, rng(seed)).item() for seed in range(40)]
    assert 6 <= min(seen) < 12 and 22 < max(seen) <= 28
    assert target.loss(given, rng(7)).item() == losses[7]
    seen.clear()
    target.predict(given.frames)
    assert seen == [32]


def test_actors_are_preferred_where_they_are_known():
    """Averaged over many draws more of the actor's tokens stay, and no more tokens than before."""
    given = batch()
    share = {}
    for keep_by in ("random", "actor"):
        target, seen = backbone((0.3, 0.3), keep_by), []
        target.weights.patch_embed.register_forward_pre_hook(
            lambda _m, inputs, seen=seen: seen.append(inputs[1])
        )
        for seed in range(60):
            target.loss(given, rng(seed))
        kept = torch.stack(seen)  # (draws, B, K)
        assert kept.shape[2] == 9
        share[keep_by] = actors(given).flatten(1).expand(60, -1, -1).gather(2, kept).float().mean()
    assert share["actor"] > 1.15 * share["random"]
    target.loss(given._replace(tracks=None), rng())  # nobody to prefer


def test_scorer_weights_come_back_as_a_pruner(tmp_path):
    target = scorer_target("x3d_s", num_classes=3, frames=4, size=32)
    given = batch()
    target.model.eval()
    expected = F.cross_entropy(target.predict(given.frames), given.labels)
    torch.testing.assert_close(target.loss(given, rng()), expected)
    target.save(tmp_path / "w.safetensors", ("a", "b", "c"), {})
    pruner = build_pruner("x3d_s", weights=tmp_path / "w.safetensors", frames=4, size=32)
    assert pruner is not None
    head = target.model.blocks[5].pool
    seen: list[torch.Tensor] = []
    head.pre_act.register_forward_hook(lambda _m, _i, output: seen.append(output))
    target.predict(given.frames)
    cells = pruner.scorer.cells(given.frames)
    torch.testing.assert_close(cells, seen[0].mean(1), rtol=0, atol=5e-3)


def test_fine_tuning_keeps_the_body_and_starts_a_head_of_another_size_afresh(tmp_path):
    vit = build_backbone("videomae_tiny", num_classes=7, seed=9).state_dict()
    write_weights(tmp_path / "vit.safetensors", vit, {}, half=False)
    x3d = X3D(400).state_dict()
    torch.save({"model_state": x3d}, tmp_path / "x3d.pyth")  # as published for Kinetics-400
    vit_path, x3d_path = str(tmp_path / "vit.safetensors"), str(tmp_path / "x3d.pyth")
    for classes, fresh in ((7, False), (3, True)):
        tuned = backbone_target("videomae_tiny", num_classes=classes, weights=vit_path).weights.state_dict()
        for key, value in tuned.items():
            assert torch.equal(value, vit[key]) != (fresh and key == "head.weight") or key == "head.bias"
    for classes, fresh in ((400, False), (3, True)):
        tuned = scorer_target("x3d_s", num_classes=classes, weights=x3d_path).weights.state_dict()
        for key, value in tuned.items():
            assert torch.equal(value, x3d[key]) != (fresh and key.startswith("blocks.5.proj."))
    with pytest.raises(
        CheckpointError, match=r"^train\.weights=.*x3d\.pyth does not fit VideoMAE; missing: "
    ):
        backbone_target("videomae_tiny", num_classes=3, weights=x3d_path)
    with pytest.raises(CheckpointError, match=r"^train\.weights=absent is neither a file nor a bundled"):
        scorer_target("x3d_s", num_classes=3, weights="absent")


def test_seed_decides_every_weight_and_leaves_the_callers_randomness_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    states = [backbone(seed=seed).model.state_dict() for seed in (1, 1, 2)]
    states += [scorer_target("x3d_s", num_classes=3, seed=seed).model.state_dict() for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(3), expected)
    for one, same, other in (states[:3], states[3:]):
        assert all(torch.equal(value, same[key]) for key, value in one.items())
        assert any(not torch.equal(value, other[key]) for key, value in one.items())
