"""The trunk against pytorchvideo's own network, through a checkpoint file in pytorchvideo's layout."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorchvideo.models.x3d import create_x3d
from torch import Tensor, nn
from torch.nn import functional as F

from video_papr.core.errors import CheckpointError, ConfigError
from video_papr.core.types import TokenGrid
from video_papr.pruning.builders import build_pruner
from video_papr.pruning.scorers import x3d
from video_papr.pruning.scorers.x3d import X3DScorer
from video_papr.pruning.scorers.x3d_network import X3D
from video_papr.pruning.scorers.x3d_trunk import X3DTrunk, fold_norms

CHANNELS = {"res2": (24, 4), "res3": (48, 8), "res4": (96, 16), "res5": (192, 32), "head": (432, 32)}


def pytorchvideo_x3d(frames: int, size: int, *, num_classes: int = 7, seed: int = 0) -> nn.Module:
    """X3D-S as pytorchvideo's hub builds it, with random batch norms too, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = create_x3d(input_clip_length=frames, input_crop_size=size, model_num_class=num_classes)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.normal_(0, 0.2, generator=generator)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2, generator=generator)  # type: ignore[union-attr]
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, 0, 0.2, generator=generator)
    return net.eval().requires_grad_(False)


def outputs(net: nn.Module, pixels: Tensor) -> dict[str, Tensor]:
    """What every stage of a whole network gives on its way to the logits."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda _module, _inputs, output: seen.__setitem__(name, output)

    stages: nn.ModuleList = net.blocks  # type: ignore[assignment]
    for number, name in enumerate(("res2", "res3", "res4", "res5"), start=1):
        stages[number].register_forward_hook(keep(name))
    stages[5].pool.pre_act.register_forward_hook(keep("head"))  # type: ignore[union-attr]
    net(pixels)
    return seen


@pytest.mark.parametrize(("frames", "size"), [(4, 32), (5, 64), (8, 96)])
def test_features_equal_those_of_pytorchvideo(tmp_path: Path, frames: int, size: int) -> None:
    net = pytorchvideo_x3d(frames, size)
    path = tmp_path / "x3d.pyth"
    torch.save({"model_state": net.state_dict(), "epoch": 300}, path)
    pixels = torch.randn(2, 3, frames, size, size, dtype=torch.float64)
    expected = outputs(net.double(), pixels)
    assert list(expected) == list(CHANNELS)
    for stage, (channels, stride) in CHANNELS.items():
        pruner = build_pruner("x3d_s", weights=path, frames=frames, size=size, stage=stage)
        assert pruner is not None
        trunk = pruner.scorer.trunk.double()  # type: ignore[union-attr,operator]
        features = trunk(pixels)
        assert features.shape == (2, channels, frames, -(-size // stride), -(-size // stride))
        assert features.std() > 0.01
        torch.testing.assert_close(features, expected[stage], rtol=0, atol=1e-9)


@pytest.mark.parametrize("stage", CHANNELS)
def test_features_stay_the_same_when_the_norms_are_folded(tmp_path: Path, stage: str) -> None:
    net = pytorchvideo_x3d(4, 64)
    path = tmp_path / "x3d.pyth"
    torch.save({"model_state": net.state_dict()}, path)
    pixels = torch.randn(2, 3, 4, 64, 64, dtype=torch.float64)
    expected = outputs(net.double(), pixels)[stage]
    pruner = build_pruner("x3d_s", weights=path, frames=4, size=64, stage=stage)
    assert pruner is not None
    trunk = pruner.scorer.trunk.double()  # type: ignore[union-attr,operator]
    fold_norms(trunk)
    assert not any(isinstance(module, nn.BatchNorm3d) for module in trunk.modules())
    torch.testing.assert_close(trunk(pixels), expected, rtol=0, atol=1e-9)


def test_norms_are_not_folded_in_training_mode() -> None:
    with pytest.raises(ValueError, match="in eval mode only"):
        fold_norms(X3DTrunk("res2").train())


def test_classifier_for_training_equals_pytorchvideos_at_the_size_that_it_was_built_for() -> None:
    net = pytorchvideo_x3d(8, 160)
    own = X3D(7).eval()
    own.load_state_dict(net.state_dict())
    assert list(own.state_dict()) == list(net.state_dict())
    pixels = torch.randn(1, 3, 8, 160, 160)
    with torch.no_grad():
        logits = own(pixels)
        # pytorchvideo's network ends in a softmax; comparing logarithms leaves one constant to take away
        expected = net(pixels).log()
    torch.testing.assert_close(logits - logits.mean(), expected - expected.mean(), rtol=0, atol=1e-5)
    assert own(torch.randn(1, 3, 4, 64, 64)).shape == (1, 7)


@pytest.mark.parametrize(
    ("size", "frame", "sides"),
    [
        (48, (100, 100), (48, 48)),  # a square stays as it is
        (64, (64, 128), (64, 128)),
        (64, (128, 64), (128, 64)),
        (64, (100, 110), (64, 64)),  # 70.4: the nearest multiple of 32 is 64
        (64, (130, 100), (96, 64)),  # 83.2
        (40, (100, 101), (40, 64)),  # 40.4: never below the shorter side
    ],
)
def test_what_x3d_sees_of_frames_that_are_no_squares(
    size: int, frame: tuple[int, int], sides: tuple[int, int]
) -> None:
    scorer = build_pruner("x3d_s", weights=None, size=size, frames=1).scorer
    assert scorer._sides(*frame) == sides
    assert scorer.pixels(torch.zeros(1, 2, *frame, 3, dtype=torch.uint8)).shape == (1, 3, 1, *sides)


@pytest.mark.parametrize("align_corners", [True, False])
def test_map_is_the_channel_mean_of_a_clip_in_x3ds_own_normalisation(align_corners: bool) -> None:
    torch.manual_seed(0)
    scorer = X3DScorer(frames=4, size=64, stage="res4", align_corners=align_corners)
    scorer.eval().requires_grad_(False)
    frames = torch.randint(0, 256, (2, 8, 40, 40, 3), dtype=torch.uint8)
    pixels = (frames.permute(0, 4, 1, 2, 3).float() / 255 - 0.45) / 0.225
    pixels = F.interpolate(pixels, (4, 64, 64), mode="trilinear", align_corners=False)
    cells = scorer.trunk(pixels).mean(1)
    assert cells.shape == (2, 4, 4, 4)
    torch.testing.assert_close(scorer.cells(frames), cells, rtol=0, atol=1e-5)
    grid = TokenGrid(8, 5, 6)
    expected = F.interpolate(
        cells[:, None], grid.shape, mode="trilinear", align_corners=align_corners
    ).squeeze(1)
    torch.testing.assert_close(scorer(frames, grid), expected, rtol=0, atol=1e-5)


def test_an_upright_map_for_an_upright_clip() -> None:
    """Frames, rows and columns are not mixed up on the way: what happens in one place changes the map there most."""
    torch.manual_seed(0)
    scorer = X3DScorer(frames=8, size=128, stage="res3", align_corners=False).eval().requires_grad_(False)
    still = torch.full((1, 8, 128, 128, 3), 120, dtype=torch.uint8)
    changed = still.clone()
    changed[:, 6:, 16:32, 96:112] = 255  # token (3, 1, 6) of 4 x 8 x 8
    grid = TokenGrid(4, 8, 8)
    change = (scorer(changed, grid) - scorer(still, grid)).abs()[0]
    assert change.argmax() == 3 * 64 + 1 * 8 + 6


@pytest.mark.parametrize("name", ["x3d_s", "papr_plus"])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_map_does_not_depend_on_how_many_clips_run_side_by_side(
    name: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = build_pruner(name, frames=4, size=32).scorer  # type: ignore[union-attr]
    frames = torch.randint(0, 256, (count, 8, 32, 32, 3), dtype=torch.uint8)
    grid = TokenGrid(4, 2, 2)
    together = scorer(frames, grid)
    assert together.shape == (count, *grid.shape)
    seen: list[int] = []
    scorer.trunk.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    monkeypatch.setattr(x3d, "SIDE_BY_SIDE", 2 * 4 * 32 * 32 + 7)
    torch.testing.assert_close(scorer(frames, grid), together, rtol=1e-4, atol=1e-5)
    assert seen == {0: [0], 1: [1], 5: [2, 2, 1]}[count]


def test_half_precision_trunk_gives_a_float32_map() -> None:
    scorer = X3DScorer(frames=4, size=32).eval().requires_grad_(False)
    frames = torch.randint(0, 256, (1, 4, 32, 32, 3), dtype=torch.uint8)
    exact = scorer.cells(frames)
    scorer.trunk.to(torch.bfloat16)
    rounded = scorer.cells(frames)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.1, atol=0.02)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            {"stage": "res9"},
            r"^pruner\.stage='res9' is unknown; use one of res2, res3, res4, res5, head\. Did you mean 'res\d'\?$",
        ),
        ({"size": 31}, r"^pruner\.frames=4 must be >= 1 and pruner\.size=31 >= 32"),
        ({"frames": 0}, r"^pruner\.frames=0 must be >= 1"),
    ],
)
def test_options_out_of_range(options: dict[str, object], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        X3DScorer(**{"frames": 4, "size": 32, **options})  # type: ignore[arg-type]


# pytorchvideo's layers in the names of two other projects: outside the residual blocks, in them, and the blocks'.
OUTSIDE = ("blocks.0.conv.conv_t", "blocks.0.conv.conv_xy", "blocks.0.norm", "blocks.5.pool.pre_conv")
OUTSIDE += ("blocks.5.pool.pre_norm", "blocks.5.pool.post_conv", "blocks.5.proj")
INSIDE = ("branch1_conv", "branch1_norm", "conv_a", "norm_a", "conv_b", "norm_b.0")
INSIDE += ("norm_b.1.block.0", "norm_b.1.block.2", "conv_c", "norm_c")
PROJECTS = {
    "PySlowFast": (
        "s1.pathway0_stem.conv_xy s1.pathway0_stem.conv s1.pathway0_stem.bn head.conv_5 head.conv_5_bn head.lin_5 "
        "head.projection",
        "branch1 branch1_bn branch2.a branch2.a_bn branch2.b branch2.b_bn branch2.se.fc1 branch2.se.fc2 branch2.c "
        "branch2.c_bn",
        "s{slow}.pathway0_res{number}",
    ),
    "mmaction2": (
        "backbone.conv1_s.conv backbone.conv1_t.conv backbone.conv1_t.bn backbone.conv5.conv backbone.conv5.bn "
        "cls_head.fc1 cls_head.fc2",
        "downsample.conv downsample.bn conv1.conv conv1.bn conv2.conv conv2.bn se_module.fc1 se_module.fc2 conv3.conv "
        "conv3.bn",
        "backbone.layer{stage}.{number}",
    ),
}


def foreign(state: dict[str, Tensor], project: str) -> dict[str, Tensor]:
    outside, inside, block = PROJECTS[project]
    stem = dict(zip(OUTSIDE, outside.split(), strict=True))
    parts = dict(zip(INSIDE, inside.split(), strict=True))
    named = {}
    for key, value in state.items():
        layer, kind = key.rsplit(".", 1)
        found = re.fullmatch(r"blocks\.(\d)\.res_blocks\.(\d+)\.(?:branch2\.)?(.+)", layer)
        if found is None:
            named[f"{stem[layer]}.{kind}"] = value
        else:
            stage, number = int(found[1]), int(found[2])
            place = block.format(stage=stage, slow=stage + 1, number=number)
            named[f"{place}.{parts[found[3]]}.{kind}"] = value
    return named


@pytest.mark.parametrize("project", PROJECTS)
@pytest.mark.parametrize("wrap", ["", "module."])
def test_features_of_weights_of_other_projects(tmp_path: Path, project: str, wrap: str) -> None:
    """Their X3D has a batch norm more, in the shortcut of res2's first block; folded or not, it counts."""
    net = pytorchvideo_x3d(4, 64)
    block: Any = net.blocks[1].res_blocks[0]  # type: ignore[index,union-attr]
    block.branch1_norm = nn.BatchNorm3d(24).eval().requires_grad_(False)
    for value in (block.branch1_norm.running_mean, block.branch1_norm.running_var, block.branch1_norm.weight):
        value.uniform_(0.5, 2, generator=torch.Generator().manual_seed(1))
    path = tmp_path / "x3d.pth"
    torch.save({"state_dict": {wrap + k: v for k, v in foreign(net.state_dict(), project).items()}}, path)
    pixels = torch.randn(1, 3, 4, 64, 64, dtype=torch.float64)
    expected = outputs(net.double(), pixels)
    for stage in ("res2", "head"):
        pruner: Any = build_pruner("x3d_s", weights=path, frames=4, size=64, stage=stage)
        trunk = pruner.scorer.trunk.double()
        torch.testing.assert_close(trunk(pixels), expected[stage], rtol=0, atol=1e-9)
        fold_norms(trunk)
        torch.testing.assert_close(trunk(pixels), expected[stage], rtol=0, atol=1e-9)


@pytest.mark.parametrize("stage", ["res3", "head"])
def test_an_x3d_of_another_size_is_refused(stage: str) -> None:
    """Whatever part of it is used."""
    state = X3D(3).state_dict()
    deeper = {
        key.replace("res_blocks.2.", "res_blocks.11."): v for key, v in state.items() if "blocks.3." in key
    }
    with pytest.raises(CheckpointError) as caught:
        X3DTrunk(stage).load_classifier({**state, **deeper}, source="x=f")
    assert str(caught.value).startswith("x=f holds an X3D of another size, with 3, 5, 12, 7 residual blocks")
    extra = {**state, "blocks.1.extra.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"unexpected: blocks\.1\.extra\.weight"):
        X3DTrunk(stage).load_classifier(extra, source="x=f")
    with pytest.raises(
        CheckpointError, match=r"^x=f holds no X3D of pytorchvideo, PySlowFast, mmaction2 \(layer1.weight"
    ):
        X3DTrunk(stage).load_classifier({"layer1.weight": torch.zeros(1)}, source="x=f")


def test_checkpoint_of_another_network() -> None:
    state = X3D(3).state_dict()
    state["blocks.5.pool.pre_conv.weight"] = torch.zeros(216, 192, 1, 1, 1)
    del state["blocks.0.norm.weight"]
    with pytest.raises(CheckpointError) as caught:
        X3DTrunk().load_classifier(state, source="pruner.weights=other.pyth")
    line = (
        "pruner.weights=other.pyth does not fit X3DTrunk; missing: blocks.0.norm.weight; of another shape: "
    )
    assert str(caught.value) == line + "pre_conv.weight (216, 192, 1, 1, 1) instead of (432, 192, 1, 1, 1)"
