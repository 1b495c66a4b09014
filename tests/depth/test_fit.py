"""The fit finds a linear baseline exactly, and comes nearer to any other one than a copy does."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from video_papr.backbones.builders import build_backbone
from video_papr.depth.blocks import close_block, open_block, switch_of
from video_papr.depth.calibrate import calibrate
from video_papr.depth.fit import fit_branch, fit_branches, least_squares
from video_papr.depth.places import find_places, open_places, switches
from video_papr.pruning.scorers.x3d_network import X3D

sys.path.insert(0, str(Path(__file__).parent))  # the folder is no package
from stirring import stir


def opened(name, kind):
    """A block with two branches, and features that reach it."""
    torch.manual_seed(0)
    if name.startswith("blocks"):
        net = stir(build_backbone("videomae_tiny", num_classes=3, num_frames=8, input_size=32))
        inputs = [torch.randn(6, 40, 192, dtype=torch.float64) for _ in range(3)]
    else:
        net = stir(X3D(3))
        channels = 24 if name in ("res2.1", "res3.0") else 48
        inputs = [torch.randn(2, channels, 3, 9, 8, dtype=torch.float64) for _ in range(3)]
    block = next(place.block for place in find_places(net) if place.name == name)
    return open_block(block, kind, name), inputs


BLOCKS = [
    ("blocks.1", "linear"),
    ("res2.1", "dense"),
    ("res3.0", "dense"),
    ("res3.0", "pointwise"),
    ("res3.1", "pointwise"),
]


def distance(block, inputs):
    """Mean squared distance of the branches, shortcut and activation included."""
    switch = switch_of(block)
    with torch.no_grad():
        gaps = [(switch.pruned(x) - switch.baseline(x)).square().mean() for x in inputs]
    return torch.stack(gaps).mean().item()


@pytest.mark.parametrize(("name", "kind"), BLOCKS)
def test_fit_is_nearer_than_a_copy_and_merges(name, kind):
    block, inputs = opened(name, kind)
    switch = switch_of(block)
    calibrate(switch.pruned, switch.pruned, inputs)
    copied = distance(block, inputs)
    fit_branch(switch, inputs)
    assert distance(block, inputs) < 0.5 * copied
    before = distance(block, inputs)
    calibrate(switch.pruned, switch.pruned, inputs)  # which the search does: the same clips change nothing
    assert distance(block, inputs) == pytest.approx(before, rel=0.05)
    switch.mix = 1.0
    merged = close_block(block.eval(), name)
    assert merged is not None


@pytest.mark.parametrize("name", ["blocks.1", "res3.1"])
def test_fit_finds_a_baseline_that_is_linear(name):
    block, inputs = opened(name, "linear" if name.startswith("blocks") else "dense")
    switch = switch_of(block)
    if name.startswith("blocks"):
        baseline = switch.baseline
        baseline.norm2, baseline.mlp.act = nn.Identity(), nn.Identity()
    else:
        branch = switch.baseline.branch2
        branch.act_a = branch.act_b = nn.Identity()
        branch.norm_a.bias.data.zero_()
        branch.norm_a.running_mean.zero_()
        switch.pruned.norm_a.load_state_dict(branch.norm_a.state_dict())
    fit_branch(switch, inputs)
    with torch.no_grad():
        for x in inputs:
            inside = (..., slice(1, -1), slice(1, -1), slice(1, -1)) if x.ndim == 5 else ...
            wanted, got = switch.baseline(x)[inside], switch.pruned(x)[inside]
            assert (got - wanted).abs().max() < 1e-3 * wanted.abs().max()


def test_least_squares_knows_a_plane():
    torch.manual_seed(0)
    x, matrix, offset = torch.randn(200, 5), torch.randn(3, 5), torch.randn(3)
    x = torch.cat([x, x[:, :1] * 2, torch.zeros(200, 1)], 1)  # features that depend on others, or are nothing
    wanted = x[:, :5] @ matrix.T + offset
    found = least_squares((x[part], wanted[part]) for part in (slice(0, 80), slice(80, None)))
    predicted = (x.double() - found.mean) @ found.matrix.T + found.offset
    torch.testing.assert_close(predicted.float(), wanted, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.variance, wanted.double().var(0, correction=0), rtol=1e-3, atol=1e-4)


def test_every_branch_of_a_network_is_fitted_and_the_baseline_stays():
    net = build_backbone("videomae_tiny", num_classes=3, num_frames=8, input_size=32)
    clips = [torch.randn(2, 3, 8, 32, 32) for _ in range(2)]
    places = find_places(net)
    with torch.no_grad():
        expected = net(clips[0])
        open_places(places, ["linear", "removed", "linear", "linear"])
        copies = [{k: v.clone() for k, v in switch.pruned.state_dict().items()} for switch in switches(net)]
        fit_branches(net, net, clips)
        assert torch.equal(net(clips[0]), expected)
    changed = [
        any(not torch.equal(v, copy[k]) for k, v in switch.pruned.state_dict().items())
        for switch, copy in zip(switches(net), copies, strict=True)
    ]
    assert changed == [True, False, True, True]
    assert not any(switch._forward_pre_hooks for switch in switches(net))
