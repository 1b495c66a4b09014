"""Merged networks on disk: an ordinary checkpoint whose metadata say what became of each block."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from video_papr.backbones.builders import build_backbone
from video_papr.checkpoints.files import read_weights, write_weights
from video_papr.core.errors import CheckpointError
from video_papr.core.types import TokenGrid
from video_papr.depth.places import find_places, merge_places, open_places, switches
from video_papr.pipeline import Pipeline
from video_papr.pruning.builders import build_pruner
from video_papr.pruning.scorers.channels_last import use_channels_last
from video_papr.pruning.scorers.x3d_network import X3D
from video_papr.pruning.tome import build_merger
from video_papr.training.targets import backbone_target, scorer_target

sys.path.insert(0, str(Path(__file__).parent))  # the folder is no package
from stirring import stir

CLIP = {"num_frames": 8, "input_size": 32}
KINDS = {
    "linear": ("linear", "linear", "whole", "whole"),
    "removed": ("removed", "whole", "removed", "whole"),
}


def shortened(net, kinds):
    """Prunes blocks to the kinds, in place."""
    mask = tuple(number for number, kind in enumerate(kinds) if kind != "whole")
    places = find_places(net)[: len(kinds)]
    open_places(places, kinds, mask)
    for switch in switches(net):
        switch.mix = 1.0
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d):
            stir(module)
    return merge_places(net, places, kinds, mask)


def backbone(kind, path):
    """A pruned backbone in float32, and its file."""
    net = stir(build_backbone("videomae_tiny", num_classes=3, seed=1, **CLIP))
    described = shortened(net, KINDS[kind])
    assert tuple(described) == KINDS[kind]
    net.float()
    described_as = {"model": "videomae_tiny", "class_names": ["a", "b", "c"], "blocks": described}
    write_weights(path / "w.safetensors", net.state_dict(), described_as, half=False)
    return net, path / "w.safetensors"


def scorer(path):
    torch.manual_seed(0)
    net = stir(X3D(3))
    kinds = ("dense", "whole", "pointwise", "pointwise", "whole", "dense")
    described = shortened(net, kinds)
    assert described == [*kinds, *["whole"] * 20]
    for module in net.float().modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eps = 1e-5  # a checkpoint does not say it; the merged blocks keep what they had
    write_weights(
        path / "x.safetensors", net.state_dict(), {"model": "x3d_s", "blocks": described}, half=False
    )
    return net, path / "x.safetensors"


@pytest.mark.parametrize("kind", KINDS)
def test_backbone_comes_back_with_every_pruner_and_merger(kind, tmp_path):
    net, path = backbone(kind, tmp_path)
    loaded = build_backbone("videomae_tiny", weights=path, **CLIP)
    assert loaded.class_names == ("a", "b", "c")
    clip = torch.randn(2, 3, 8, 32, 32)
    assert torch.equal(loaded(clip), net(clip))
    frames = torch.randint(0, 256, (2, 8, 32, 32, 3), dtype=torch.uint8)
    pruners = {
        "random": {"keep_ratio": 0.5},
        "motion": {"budget": "top_p", "top_p": 0.4},  # clips of unequal length: some tokens are padding
        "similarity": {"after_block": 1, "keep_ratio": 0.5},
    }
    for name, options in pruners.items():
        for merger in ("none", "tome"):
            joiner = build_merger(merger, **({"r": 2} if merger == "tome" else {}))
            pipeline = Pipeline(loaded, build_pruner(name, **options), joiner)
            logits = pipeline(frames)
            assert logits.shape == (2, 3) and logits.isfinite().all()
            alone = torch.cat([pipeline(one[None]) for one in frames]) if name != "random" else logits
            torch.testing.assert_close(alone, logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(kind, tmp_path):
    """A pruned block on the slow way (padding, sizes) and on the fast one gives the same."""
    net, _ = backbone(kind, tmp_path)
    clip = torch.randn(1, 3, 8, 32, 32)
    kept = torch.tensor([[0, 3, 7, 9]])
    padded = torch.tensor([[0, 3, 7, 9, 0, 0]])
    valid = torch.tensor([[True] * 4 + [False] * 2])
    torch.testing.assert_close(net(clip, padded, valid=valid), net(clip, kept), rtol=1e-4, atol=1e-5)


def test_scorer_comes_back_and_its_fast_trunk_agrees(tmp_path):
    net, path = scorer(tmp_path)
    frames = torch.randint(0, 256, (1, 8, 64, 64, 3), dtype=torch.uint8)
    grid = TokenGrid(4, 8, 8)
    for stage, count in (("res3", 3), ("res4", 4), ("head", 5)):
        pruner: Any = build_pruner("x3d_s", weights=path, frames=4, size=32, stage=stage)
        with torch.no_grad():
            features = pruner.scorer.pixels(frames)
            for block in list(net.blocks)[:count]:
                features = block(features)
            if stage == "head":
                pool: Any = net.blocks[5].pool
                features = pool.pre_act(pool.pre_norm(pool.pre_conv(features)))
            cells = pruner.scorer.cells(frames)
            torch.testing.assert_close(cells, features.mean(1), rtol=1e-4, atol=1e-5)
            use_channels_last(pruner)
            torch.testing.assert_close(pruner.scorer.cells(frames), cells, rtol=1e-3, atol=1e-4)
        assert pruner.scorer(frames, grid).shape == (1, 4, 8, 8)
    fused: Any = build_pruner("papr_plus", weights=path, frames=4, size=32, stages=["res2", "res3"])
    assert fused.scorer(frames, grid).isfinite().all()


def test_training_goes_on_from_pruned_weights_and_keeps_the_description(tmp_path):
    net, path = backbone("removed", tmp_path)
    target = backbone_target("videomae_tiny", num_classes=3, weights=str(path), **CLIP)
    frames = torch.randint(0, 256, (1, 8, 32, 32, 3), dtype=torch.uint8)
    target.save(tmp_path / "again.safetensors", ("a", "b", "c"), {})
    assert read_weights(tmp_path / "again.safetensors")[1]["blocks"] == list(KINDS["removed"])
    again = build_backbone("videomae_tiny", weights=tmp_path / "again.safetensors", **CLIP)
    torch.testing.assert_close(Pipeline(again)(frames), Pipeline(net)(frames), rtol=0, atol=2e-2)  # fp16
    whole, path = scorer(tmp_path)
    learner = scorer_target("x3d_s", num_classes=3, weights=str(path), frames=4, size=32)
    assert learner.blocks is not None and learner.blocks[:3] == ("dense", "whole", "pointwise")
    pairs = zip(learner.model.state_dict().values(), whole.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


WRONG = {
    "backbone": [
        ["linear", "linear", "whole"],
        ["linear", "linear", "whole", "dense"],
        "linear",
        ["linear", "linear", "whole", 3],
        ["removed", "linear", "linear", "whole", "whole", "whole"],
    ],
    "scorer": [["dense"] * 25, ["removed"] * 26, {"res2": "dense"}],
}


@pytest.mark.parametrize("blocks", WRONG["backbone"], ids=str)
def test_wrong_description_of_a_backbone(blocks, tmp_path):
    net, path = backbone("linear", tmp_path)
    write_weights(path, net.state_dict(), {"model": "videomae_tiny", "blocks": blocks})
    with pytest.raises(
        CheckpointError, match=r"^backbone\.weights=.*(describes its blocks as|is not a videomae_tiny)"
    ):
        build_backbone("videomae_tiny", weights=path, **CLIP)


@pytest.mark.parametrize("blocks", WRONG["scorer"], ids=lambda blocks: str(blocks)[:20])
def test_wrong_description_of_a_scorer(blocks, tmp_path):
    net, path = scorer(tmp_path)
    write_weights(path, net.state_dict(), {"blocks": blocks})
    with pytest.raises(
        CheckpointError, match=r"^pruner\.weights=.* describes its blocks as .*; expected 26 of whole"
    ):
        build_pruner("x3d_s", weights=path)


def test_description_that_does_not_fit_the_tensors(tmp_path):
    net, path = backbone("linear", tmp_path)
    write_weights(path, net.state_dict(), {"model": "videomae_tiny", "blocks": ["whole"] * 4})
    with pytest.raises(CheckpointError, match="does not fit VideoMAE; missing: "):
        build_backbone("videomae_tiny", weights=path, **CLIP)
