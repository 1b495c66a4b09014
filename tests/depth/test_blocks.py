"""The two branches: 0 is the baseline bit for bit, 1 the pruned branch and the merged layer to 1e-10 in float64."""

import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn

from video_papr.backbones.builders import build_backbone
from video_papr.backbones.videomae import VideoMAE
from video_papr.backbones.vivit import ViViT
from video_papr.core.errors import MergeError
from video_papr.depth.blocks import TwoBranch, close_block, open_block, switch_of
from video_papr.depth.merge import compose, to_conv3d
from video_papr.depth.places import find_places, merge_places, open_places, set_mask, switches
from video_papr.pruning.scorers.x3d_depth_pruned import X3D_BLOCKS, MergedBlock
from video_papr.pruning.scorers.x3d_network import X3D

sys.path.insert(0, str(Path(__file__).parent))  # the folder is no package
from stirring import stir

CLIP = {"num_frames": 8, "input_size": 32}


def x3d():
    torch.manual_seed(0)
    return stir(X3D(3))


def backbone(name="videomae_tiny"):
    if name == "vivit_b":
        net = ViViT(
            num_classes=3, num_frames=4, input_size=32, tubelet=(2, 16, 16), dim=48, depth=3, num_heads=3
        )
    else:
        net = build_backbone(name, num_classes=3, **CLIP)
    return stir(net)


# name of a block of X3D -> what its shortcut is
SHORTCUTS = {
    "res2.0": "strided projection",
    "res3.0": "strided, wider",
    "res3.1": "itself",
    "res4.2": "itself",
}


def x3d_block(name):
    """A block with stirred norms, and features for it."""
    place = next(place for place in find_places(x3d()) if place.name == name)
    block = place.block
    channels = block.branch2.conv_a.in_channels
    return block, torch.randn(2, channels, 3, 5, 7, dtype=torch.float64)


@pytest.mark.parametrize("kind", ["dense", "pointwise"])
@pytest.mark.parametrize("name", SHORTCUTS)
def test_x3d_block_from_baseline_to_one_convolution(name, kind):
    block, features = x3d_block(name)
    before = deepcopy(block)
    opened = open_block(block, kind, name)
    switch = switch_of(opened)
    for number, module in enumerate(switch.pruned.modules()):
        if isinstance(module, nn.BatchNorm3d):  # the pruned branch has norms of its own
            stir(module, number)
    with torch.no_grad():
        assert torch.equal(opened(features), before(features))
        one = switch.pruned(features)
        switch.mix = 0.3
        torch.testing.assert_close(
            opened(features), 0.7 * before(features) + 0.3 * one, rtol=1e-12, atol=1e-12
        )
        switch.mix = 1.0
        assert torch.equal(opened(features), one)
        merged = close_block(opened, name)
        assert merged is not None
        torch.testing.assert_close(merged(features), one, rtol=1e-10, atol=1e-10)
    assert isinstance(merged, MergedBlock)
    layers = [module for module in merged.modules() if not list(module.children())]
    assert [type(layer) for layer in layers] == [nn.Conv3d, nn.ReLU]
    assert merged.conv.kernel_size == ((3, 3, 3) if kind == "dense" else (1, 1, 1))


@pytest.mark.parametrize("kind", ["dense", "pointwise"])
def test_x3d_branch_without_shortcut_merges_too(kind):
    block, features = x3d_block("res3.1")
    branch = switch_of(open_block(block, kind, "res3.1")).pruned
    with torch.no_grad():
        expected = features
        for _, layer in branch.row():
            expected = layer(expected)
        merged = to_conv3d(compose(branch.row()))
        torch.testing.assert_close(merged(features), expected, rtol=1e-10, atol=1e-10)


def test_feed_forward_from_baseline_to_one_matrix():
    net = backbone()
    place = find_places(net)[1]
    before = deepcopy(place.block)
    opened = open_block(place.block, "linear", place.name)
    switch = switch_of(opened)
    stir(switch.pruned.norm, 5)
    tokens = torch.randn(2, 9, 192, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(opened(tokens), before(tokens))
        switch.mix = 1.0
        one = opened(tokens)
        assert (one - before(tokens)).abs().max() > 1e-3
        merged = close_block(opened, place.name)
        assert merged is not None
        torch.testing.assert_close(merged(tokens), one, rtol=1e-10, atol=1e-10)
    assert isinstance(merged.joint, nn.Linear)
    assert merged.joint.weight.shape == (192, 192)


CASES = {
    ("x3d", "dense"): (0, 4, 9),
    ("x3d", "pointwise"): (0, 8, 25),
    ("videomae_tiny", "linear"): (0, 3),
    ("videomae_tiny", "removed"): (1, 2),
    ("vivit_b", "linear"): (2,),
    ("vivit_b", "removed"): (0,),
}


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_exactly_the_chosen_blocks_are_merged(name, kind):
    mask = CASES[name, kind]
    net = x3d() if name == "x3d" else backbone(name)
    shape = (1, 3, 4, 32, 32) if name != "videomae_tiny" else (1, 3, 8, 32, 32)
    clip = torch.randn(shape, dtype=torch.float64)
    places = find_places(net)
    kinds = [kind] * len(places)
    before, depth = deepcopy(net), len(places)
    with torch.no_grad():
        open_places(places, kinds)
        found = switches(net)
        set_mask(found, ())
        assert torch.equal(net(clip), before(clip))  # nothing is pruned yet
        set_mask(found, mask)
        expected = net(clip)
        for number in range(depth):  # what was opened and not chosen becomes the block that it was
            if number not in mask:
                places[number].holder[places[number].at] = find_places(before)[number].block
        described = merge_places(net, places, kinds, mask)
        torch.testing.assert_close(net(clip), expected, rtol=1e-10, atol=1e-10)
    assert not switches(net)
    assert [number for number, word in enumerate(described) if word != "whole"] == list(mask)
    assert {described[number] for number in mask} == {kind}
    whole = [place.block for place in find_places(net)]
    assert len(whole) == (depth - len(mask) if kind == "removed" else depth)
    if name == "x3d":
        assert depth == X3D_BLOCKS
        assert sum(isinstance(block, MergedBlock) for block in whole) == len(mask)
        assert not any("Squeeze" in type(m).__name__ for n in mask for m in whole[n].modules())
    elif kind == "linear":
        assert [hasattr(block, "mlp") for block in whole] == [n not in mask for n in range(depth)]


def test_only_blocks_up_to_a_stage():
    net = x3d()
    assert [len(find_places(net, last_stage=stage)) for stage in ("res2", "res3", "res4", "res5", "head", None)] == [
        3, 8, 19, 26, 26, 26,
    ]  # fmt: skip


def test_merging_says_which_block_is_not_ready():
    block, _ = x3d_block("res3.1")
    opened = open_block(block, "dense", "res3.1")
    with pytest.raises(MergeError, match=r"^res3\.1: mix=0\.0, but only a block at 1"):
        close_block(opened, "res3.1")
    switch = switch_of(opened)
    switch.mix = 1.0
    with pytest.raises(MergeError, match=r"^res3\.1\.norm_a: a batch norm in training mode"):
        close_block(opened.train(), "res3.1")
    opened.eval()
    switch.pruned.norm_b = nn.GELU()
    with pytest.raises(MergeError, match=r"^res3\.1\.norm_b: GELU cannot be merged"):
        close_block(opened, "res3.1")
    switch.pruned.activation = nn.GELU()
    with pytest.raises(MergeError, match=r"^res3\.1\.activation: GELU"):
        close_block(opened, "res3.1")


def test_layer_scale_has_no_place_in_a_linear_branch():
    net = VideoMAE(num_classes=2, num_frames=2, input_size=16, dim=48, depth=1, num_heads=3)
    net.blocks[0].ls2 = nn.Linear(48, 48)
    with pytest.raises(MergeError, match=r"^blocks\.0\.ls2: Linear has no place"):
        open_places(find_places(net), ["linear"])


def test_branches_learn_apart():
    """The pruned branch has weights of its own: a step on it leaves the baseline as it was."""
    block, features = x3d_block("res3.1")
    opened = open_block(block, "dense", "res3.1")
    switch = switch_of(opened)
    switch.mix = 1.0
    opened(features).sum().backward()
    assert all(p.grad is None for p in switch.baseline.parameters())
    assert all(p.grad is not None for p in switch.pruned.parameters())
    assert isinstance(switch, TwoBranch)
