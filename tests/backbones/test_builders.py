"""Named sizes, start values and position tables, each against a statement of its own."""

from __future__ import annotations

import inspect
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from video_papr.backbones.builders import BACKBONES, build_backbone, token_grid
from video_papr.backbones.encoder import Encoder
from video_papr.backbones.fitting import MAX_TOKENS
from video_papr.backbones.layers import TubeletEmbed, interpolate_positions, space_time_positions
from video_papr.backbones.timm_vit import read_as_tested
from video_papr.backbones.videomae import VideoMAE
from video_papr.backbones.vivit import ViViT
from video_papr.backbones.vjepa2 import VJEPA2, rotary_angles
from video_papr.core.types import TokenGrid

PLAIN = (2, 16, 16)
# As published: frames, side, tubelet, classes, and of the transformer width, depth, heads.
PUBLISHED: dict[str, tuple[Any, ...]] = {
    "videomae_tiny": (16, 64, (4, 8, 8), 12, 192, 4, 3),
    "videomae_s": (16, 224, PLAIN, 400, 384, 12, 6),
    "videomae_b": (16, 224, PLAIN, 400, 768, 12, 12),
    "videomae_l": (16, 224, PLAIN, 400, 1024, 24, 16),
    "videomae_h": (16, 224, PLAIN, 400, 1280, 32, 16),
    "vivit_b": (32, 224, PLAIN, 400, 768, 12, 12),
    "vjepa2_l": (16, 256, PLAIN, 174, 1024, 24, 16),
    "vjepa2_h": (64, 256, PLAIN, 174, 1280, 32, 16),
    "vjepa2_g": (64, 384, PLAIN, 174, 1408, 40, 22),
    "timesformer_b": (8, 224, (1, 16, 16), 400, 768, 12, 12),
    "videoprism_b": (16, 288, (1, 18, 18), 400, 768, 12, 12),
    "timm_vit": (1, 224, (1, 16, 16), 1000),
    "timm_convnext": (1, 224, (1, 4, 4), 1000),
    "timm_swin": (1, 224, (1, 4, 4), 1000),
    "timm_hiera": (1, 224, (1, 32, 32), 1000),
    "image_vit": (8, 224, (1, 16, 16), 1000),
}


def test_named_sizes_are_the_published_ones() -> None:
    keys = ("num_frames", "input_size", "tubelet", "num_classes", "dim", "depth", "num_heads")
    found = {name: tuple(sizes[key] for key in keys if key in sizes) for name, sizes in BACKBONES.items()}
    assert found == PUBLISHED
    others = {key: value for key, value in BACKBONES["vjepa2_g"].items() if key not in keys}
    assert others == {"pooler_depth": 3, "mlp_dim": 6144}  # 48 / 11 of the width
    for name, (frames, side, (depth, height, width), *_) in PUBLISHED.items():
        assert token_grid(name).shape == (frames // depth, side // height, side // width)
    assert MAX_TOKENS == 2**17 > 7 * max(token_grid(name).num_tokens for name in PUBLISHED)


@pytest.mark.parametrize(
    ("family", "name", "more"),
    [(VideoMAE, "videomae_b", {}), (ViViT, "vivit_b", {}), (VJEPA2, "vjepa2_l", {"num_frames": 64})],
)
def test_a_family_is_by_default_its_published_model(family: type, name: str, more: dict[str, int]) -> None:
    parameters = {**inspect.signature(Encoder).parameters, **inspect.signature(family).parameters}
    known = {key: value for key, value in {**BACKBONES[name], **more}.items() if key != "num_classes"}
    assert {key: parameters[key].default for key in known} == known


@pytest.mark.parametrize("name", ["videomae_tiny", "vivit_b", "vjepa2_l"])
@torch.no_grad()
def test_start_values_are_small_and_computed_tables_are_not_stored(name: str) -> None:
    """Normal with a deviation of 0.02, as all of these were trained from; biases are zero, norms change nothing."""
    small = {"dim": 192, "depth": 1, "num_heads": 4, "tubelet": (2, 8, 8), "num_frames": 8, "input_size": 32}
    families = {"videomae": VideoMAE, "vivit": ViViT, "vjepa2": VJEPA2}
    backbone = families[name.split("_")[0]](num_classes=50, **small)
    for key, value in backbone.named_parameters():
        if "norm" in key or key.endswith("bias"):
            assert (value == float("norm" in key and key.endswith("weight"))).all(), key
        else:
            assert float(value.std()) == pytest.approx(0.02, rel=0.15), key
            assert abs(float(value.mean())) < 0.005, key
    stored = {key for key in backbone.state_dict() if "positions" in key}
    assert stored == ({"positions"} if name == "vivit_b" else set())
    assert backbone.positions.shape[:2] == (1, 64 + backbone.num_prefix)


@pytest.mark.parametrize(("frames", "stride"), [(16, 4), (62, 4), (64, 2), (66, 2)])
def test_clips_of_vjepa_span_as_long_as_published(frames: int, stride: int) -> None:
    with torch.device("meta"):
        model = VJEPA2(num_classes=2, num_frames=frames, input_size=16, dim=24, depth=1, num_heads=2)
    assert model.usual_stride == stride


@pytest.mark.parametrize(("frames", "size", "dim"), [(16, 64, 192), (8, 32, 12), (4, 128, 6)])
def test_space_time_positions_follow_the_formula(frames: int, size: int, dim: int) -> None:
    grid, part = TokenGrid(frames // 4, size // 8, size // 8), dim // 3
    table = space_time_positions(grid, dim)
    assert table.shape == (1, grid.num_tokens, dim) and table.dtype == torch.float32
    for token in range(0, grid.num_tokens, 7):
        t, rest = divmod(token, grid.height * grid.width)
        places = zip((t, *divmod(rest, grid.width)), grid.shape, (4, 8, 8), strict=True)
        expected = []
        for at, count, span in places:
            angle = (at + 0.5) * span / count - 0.5
            turns = [angle / 100 ** (number / (part // 2)) for number in range(part // 2)]
            expected += [math.sin(turn) for turn in turns] + [math.cos(turn) for turn in turns]
        assert table[0, token].tolist() == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match=f"divisible by 6, got {dim + 1}"):
        space_time_positions(grid, dim + 1)


@pytest.mark.parametrize("channels", [6, 8, 24, 64, 70])
def test_rotary_angles_follow_the_formula(channels: int) -> None:
    places = torch.tensor([[0.0, 1.0, 2.0], [5.0, 0.0, 31.0]], dtype=torch.float64)
    half = channels // 6
    for place, angles in zip(places.tolist(), rotary_angles(places, channels).tolist(), strict=True):
        once = [[at / 10000 ** (number / half) for number in range(half)] for at in place]
        expected = [angle for axis in once for angle in [*axis, *axis]]
        assert angles == pytest.approx(expected + [0.0] * (channels - 6 * half), rel=1e-12)


def test_positions_keep_their_share_of_the_clip_when_the_grid_changes() -> None:
    """A ramp over each axis stays that ramp between the outermost old cells, and is level beyond them."""
    old, new = TokenGrid(2, 4, 2), TokenGrid(4, 8, 4)
    ramps = torch.meshgrid(*((torch.arange(n) + 0.5) / n for n in old.shape), indexing="ij")
    table = torch.cat([torch.full((1, 1, 3), 7.0), torch.stack(ramps, -1).flatten(0, 2)[None]], 1)
    found = interpolate_positions(table, old, new)
    assert found.shape == (1, 1 + new.num_tokens, 3) and (found[0, 0] == 7).all()
    ends = [0.5 / n for n in old.shape]
    axes = [((torch.arange(n) + 0.5) / n).clamp(end, 1 - end) for n, end in zip(new.shape, ends, strict=True)]
    expected = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 2)
    torch.testing.assert_close(found[0, 1:], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("cfg", "side", "short_side"),
    [
        ({}, 224, 256),
        ({"crop_pct": 0.9}, 224, 248),
        ({"crop_pct": 1.0}, 224, 224),
        ({"crop_pct": None}, 56, 64),
    ],
)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", None])
def test_pictures_are_read_as_timm_tests_its_weights(
    cfg: dict[str, Any], side: int, short_side: int, interpolation: str | None
) -> None:
    transforms = pytest.importorskip("timm.data.transforms_factory")
    backbone: Any = SimpleNamespace(frame_size=(side, side + 32))
    for colours in ({}, {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}):
        network = SimpleNamespace(pretrained_cfg={**cfg, **colours, "interpolation": interpolation})
        read_as_tested(backbone, network)
        assert backbone.mean == colours.get("mean", (0.485, 0.456, 0.406))
        assert backbone.std == colours.get("std", (0.229, 0.224, 0.225))
    assert backbone.short_side == short_side
    assert backbone.interpolation == ("bicubic" if interpolation == "bicubic" else "bilinear")
    theirs = transforms.transforms_imagenet_eval(side, crop_pct=cfg.get("crop_pct")).transforms[0]
    assert theirs.size == short_side


def test_images_have_three_colours_unless_said_otherwise() -> None:
    assert TubeletEmbed((2, 4, 4), 5).proj.in_features == 3 * 2 * 4 * 4
    assert TubeletEmbed((2, 4, 4), 5, in_channels=1).proj.in_features == 2 * 4 * 4


def test_a_backbone_is_drawn_anew_for_each_seed_and_learns_nothing_by_itself() -> None:
    one, same, other = (build_backbone("videomae_tiny", **seed) for seed in ({}, {"seed": 0}, {"seed": 1}))
    assert torch.equal(one.head.weight, same.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)
    assert not one.training and not any(value.requires_grad for value in one.parameters())
    assert (one.depth_pruned, one.replayed, one.read, one.stage_grids) == (False, False, None, ())
