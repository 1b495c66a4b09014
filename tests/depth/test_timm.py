"""timm's ConvNeXt and ViT: 0 is the baseline bit for bit, the merged network is the pruned one to 1e-9 in float64."""

import sys
from copy import deepcopy
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from video_papr.backbones.builders import build_backbone
from video_papr.backbones.depth_pruned import TIMM_MODEL
from video_papr.checkpoints.files import write_weights
from video_papr.core.errors import CheckpointError, ConfigError, MergeError
from video_papr.depth.blocks import open_block, switch_of
from video_papr.depth.fit import fit_branch, fit_branches
from video_papr.depth.places import find_places, merge_places, open_places, set_mask, switches
from video_papr.pipeline import Pipeline
from video_papr.pruning.builders import build_pruner

sys.path.insert(0, str(Path(__file__).parent))  # the folder is no package
from stirring import stir

# A small model of timm of every kind of block: layers or 1 x 1 convolutions, response norm, layer scale, class token.
CONVNEXTS = {"test_convnext": {}, "convnextv2_atto": {}, "convnext_zepto_rms": {}}
VITS = {"test_vit": {}, "test_vit2": {}, "deit_tiny_distilled_patch16_224": {}}
NAMES = ("a", "b", "c")


def built(model, size=64):
    name = "timm_convnext" if model in CONVNEXTS else "timm_vit"
    net = build_backbone(name, model=model, num_classes=3, input_size=size, seed=1)
    for module in net.modules():
        for scale in ("gamma",):  # a layer scale of 1e-6 would hide what a block does
            if isinstance(getattr(module, scale, None), nn.Parameter):
                getattr(module, scale).uniform_(0.5, 1.5)
    return stir(net)


def pictures(size=64, count=2):
    return torch.randn(
        count, 3, 1, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )


CASES = [(model, kind) for model in CONVNEXTS for kind in ("dense", "linear", "pointwise", "removed")]
CASES += [(model, kind) for model in VITS for kind in ("linear", "removed")]


@torch.no_grad()
def pruned(model, kind, mask=(0, 3, 4)):
    """The network before, the opened one's answer with a mask pruned, the merged one, and its description."""
    net, images = built(model), pictures()
    before, places = deepcopy(net), find_places(net)
    kinds = [kind] * len(places)
    open_places(places, kinds)
    found = switches(net)
    set_mask(found, ())
    assert torch.equal(net(images), before(images))  # nothing is pruned yet: the unpruned network
    for switch in found:
        stir(switch.pruned)  # statistics that are not the usual ones
    set_mask(found, mask)
    expected = net(images)
    for number, place in enumerate(places):  # what was opened and not chosen becomes the block that it was
        if number not in mask:
            place.holder[place.at] = switch_of(place.block).baseline if kind != "linear" else place.block
    if kind == "linear":
        for number, place in enumerate(find_places(before)):
            if number not in mask:
                places[number].holder[place.at] = place.block
    described = merge_places(net, places, kinds, mask)
    return before, expected, net, described


@pytest.mark.parametrize(("model", "kind"), CASES)
def test_merging_is_exact(model, kind):
    mask = (0, 3, 4)
    before, expected, net, described = pruned(model, kind)
    got = net(pictures())
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    assert (got - before(pictures())).abs().max() > 1e-3
    assert not switches(net)
    assert [number for number, word in enumerate(described) if word != "whole"] == list(mask)
    blocks = [place.block for place in find_places(net)]
    if kind == "removed":
        assert len(blocks) == len(described) - 3
    elif model in CONVNEXTS and kind != "linear":
        side = find_places(before)[0].block.conv_dw.kernel_size[0] if kind == "dense" else 1
        assert [blocks[number].kernel_size for number in mask] == [(side, side)] * 3
    else:
        assert all(isinstance(blocks[number].joint, nn.Conv2d | nn.Linear) for number in mask)
        assert not any(hasattr(blocks[number], "mlp") for number in mask)


@torch.no_grad()
@pytest.mark.parametrize("mode", ["dense", "pointwise"])
def test_linear_branch_of_a_convnext_is_what_timm_computes_without_its_activation(mode):
    """With GELU and layer norm taken out of timm's own block, and the norm's statistics 0 and 1, both are the same."""
    block = find_places(built("test_convnext"))[2].block
    switch = switch_of(open_block(deepcopy(block), mode, "b"))
    block.mlp.act, block.norm = nn.Identity(), nn.Identity()
    if mode == "pointwise":
        block.conv_dw = nn.Identity()
    norm = switch.pruned.norm
    norm.weight.fill_(1).mul_((1 + norm.eps) ** 0.5)
    norm.bias.zero_()
    features = torch.randn(2, norm.num_features, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(switch.pruned(features), block(features), rtol=1e-10, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("model", ["test_convnext", "test_vit2"])
def test_branches_are_fitted_to_their_baseline(model):
    net = built(model).float()
    images = [pictures(count=4).float() for _ in range(2)]
    expected = net(images[0])
    places = find_places(net)
    open_places(places, ["linear"] * len(places))
    if model in CONVNEXTS:
        switch = switch_of(places[0].block)
        features = torch.randn(8, switch.baseline.conv_dw.in_channels, 9, 9)
        copied = (switch.pruned(features) - switch.baseline(features)).square().mean()
        fit_branch(switch, [features])
        assert (switch.pruned(features) - switch.baseline(features)).square().mean() < 0.5 * copied
    fit_branches(net, net, images)
    torch.testing.assert_close(net(images[0]), expected)


def written(model, kind, path):
    """The file of a merged network in float32, and the network."""
    _, _, net, described = pruned(model, kind)
    net.float()
    state = net.body.state_dict() if model in CONVNEXTS else {**net.state_dict(), "positions": net.positions}
    read = {"num_frames": 1, "input_size": 64, "short_side": 64}
    told = {"model": "timm", TIMM_MODEL: model, "class_names": NAMES, "blocks": described, "read": read}
    write_weights(path, state, told, half=False)
    return net, told


@pytest.mark.parametrize(
    ("model", "kind"), [case for case in CASES if case[0] in ("test_convnext", "test_vit", "test_vit2")]
)
def test_file_brings_the_network_back(model, kind, tmp_path):
    net, _ = written(model, kind, tmp_path / "w.safetensors")
    name = "timm_convnext" if model in CONVNEXTS else "timm_vit"
    back = build_backbone(name, model=model, weights=tmp_path / "w.safetensors")
    assert (back.class_names, back.read.short_side, back.depth_pruned) == (NAMES, 64, True)
    images = pictures().float()
    torch.testing.assert_close(back(images), net(images), rtol=1e-4, atol=1e-4)
    frames = torch.randint(0, 256, (2, 1, 64, 64, 3), dtype=torch.uint8)
    dense = Pipeline(back)(frames)
    assert torch.equal(Pipeline(back, build_pruner("random", keep_ratio=1.0))(frames), dense)
    fewer = Pipeline(back, build_pruner("random", keep_ratio=0.4))(frames)
    assert fewer.isfinite().all() and not torch.equal(fewer, dense)


@torch.no_grad()
def test_dropped_places_leave_out_what_is_merged_behind_the_depthwise_convolution(tmp_path):
    """Every block "linear": kept places equal the dense computation with the same masks."""
    net = built("test_convnext")
    places = find_places(net)
    open_places(places, ["linear"] * len(places))
    set_mask(switches(net), tuple(range(len(places))))
    described = merge_places(net, places, ["linear"] * len(places), tuple(range(len(places))))
    read = {"num_frames": 1, "input_size": 64}
    told = {"model": "timm_convnext", TIMM_MODEL: "test_convnext", "class_names": NAMES, "blocks": described}
    write_weights(tmp_path / "w.safetensors", net.body.state_dict(), {**told, "read": read}, half=False)
    back = build_backbone("timm_convnext", model="test_convnext", weights=tmp_path / "w.safetensors").double()
    frames = torch.randint(0, 256, (2, 1, 64, 64, 3), dtype=torch.uint8)
    images, stages = pictures(), build_pruner("random", keep_ratio=0.4).select(frames, back).stages
    features = back.body.stem(images[:, :, 0])
    for stage, chosen in zip(back.body.stages, stages, strict=True):
        features = stage.downsample(features)
        mask = torch.zeros(2, features[0, 0].numel(), dtype=torch.float64).scatter(1, chosen.keep_idx, 1.0)
        for block in stage.blocks:
            features = features + mask.view(2, 1, *features.shape[2:]) * block.joint(block.conv_dw(features))
    expected = back.head(back.body.forward_head(back.body.norm_pre(features), pre_logits=True))
    torch.testing.assert_close(back(images, stages=stages), expected, rtol=1e-9, atol=1e-9)


WRONG = {
    "model": (
        {TIMM_MODEL: "test_convnext2"},
        {},
        "its depth was pruned with model=test_convnext2, not test_convnext",
    ),
    "classes": ({}, {"num_classes": 5}, "its depth was pruned with num_classes=3, not 5"),
    "size": ({}, {"input_size": 96}, "its depth was pruned with input_size=64, not 96"),
    "head": (
        {},
        {"replace_head": True, "num_classes": 3},
        "weights whose depth was pruned keep their classifier",
    ),
    "words": (
        {"blocks": ["whole"] * 8 + ["sparse"]},
        {},
        "describes its blocks as .*; expected 9 of whole, linear, ",
    ),
    "names": ({"class_names": 3}, {}, "its class_names are 3, not a list of texts"),
    "tensors": ({"blocks": ["whole"] * 9}, {}, "does not fit ConvNeXt; missing: "),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_file(case, tmp_path):
    changed, asked, message = WRONG[case]
    net, told = written("test_convnext", "dense", tmp_path / "w.safetensors")
    write_weights(tmp_path / "w.safetensors", net.body.state_dict(), {**told, **changed}, half=False)
    with pytest.raises(CheckpointError, match=rf"^backbone\.weights=.*{message}"):
        build_backbone("timm_convnext", model="test_convnext", weights=tmp_path / "w.safetensors", **asked)


def test_positions_of_another_grid(tmp_path):
    net, told = written("test_vit", "linear", tmp_path / "w.safetensors")
    state = {**net.state_dict(), "positions": torch.zeros(1, 3, 64)}
    write_weights(tmp_path / "w.safetensors", state, told, half=False)
    with pytest.raises(CheckpointError, match=r"^backbone\.weights=.*positions"):
        build_backbone("timm_vit", model="test_vit", weights=tmp_path / "w.safetensors")


def test_what_cannot_be_pruned():
    with pytest.raises(
        ConfigError, match=r"^SwinTransformer: depth pruning knows plain transformers, timm's ConvNeXt"
    ):
        find_places(build_backbone("timm_swin", model="swin_tiny_patch4_window7_224"))
    block = timm.models.convnext.ConvNeXtBlock(8, 16)
    with pytest.raises(MergeError, match=r"^b\.shortcut: Downsample has no place in a linear branch"):
        open_block(block, "dense", "b")
    gated = timm.create_model("vit_tiny_patch16_224", mlp_layer=timm.layers.GluMlp).blocks[0]
    with pytest.raises(MergeError, match=r"^b\.mlp: GluMlp has no place in a linear branch"):
        open_block(gated, "linear", "b")
