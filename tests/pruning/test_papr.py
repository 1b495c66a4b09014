"""`pruner.recipe=papr`: the same tokens as the published rule, restated here in a few lines of torch."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from torch.nn import functional as F

from video_papr import Pipeline, build_backbone, build_pruner
from video_papr.adapters.prune import kept_tokens, prune
from video_papr.core.errors import ConfigError
from video_papr.core.types import TokenGrid
from video_papr.pruning.scorers.x3d_trunk import X3DTrunk

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
CLIPS = 20


def noise(length: int, side: int, count: int = CLIPS) -> Tensor:
    """(count, length, side, side, 3) uint8 that varies over place and time."""
    generator = torch.Generator().manual_seed(2)
    coarse = torch.rand(count, 3, -(-length // 4), 9, 9, generator=generator)
    smooth = F.interpolate(coarse, (length, side, side), mode="trilinear")
    fine = 0.2 * torch.rand(smooth.shape, generator=generator)
    return ((smooth * 0.8 + fine) * 255).byte().movedim(1, -1)


@torch.no_grad()
def test_videos(shaken: Callable[[X3DTrunk], X3DTrunk]) -> None:
    """The clip and the map are resized with corners aligned, and X3D sees what the backbone sees."""
    pruner: Any = build_pruner("x3d_s", recipe="papr", keep_ratio=0.3)
    trunk = shaken(pruner.scorer.trunk)
    pipeline = Pipeline(build_backbone("videomae_s", weights=None), pruner).eval()
    compared = 0
    for clip in noise(16, 224, CLIPS + 8):
        pixels = ((clip / 255 - MEAN) / STD).movedim(-1, 0)[None]
        small = F.interpolate(pixels, (8, 160, 160), mode="trilinear", align_corners=True)
        cells = trunk(small).mean(1, keepdim=True)
        expected = F.interpolate(cells, (8, 14, 14), mode="trilinear", align_corners=True).flatten()
        count = int(0.3 * 1568)
        last, next_best = expected.topk(count + 1).values[-2:]
        if last - next_best > 5e-7:  # otherwise rounding decides
            kept = pipeline.select(clip[None])
            assert kept is not None
            assert kept.keep_idx[0].tolist() == sorted(expected.topk(count).indices.tolist())
            compared += 1
    assert compared >= CLIPS


@torch.no_grad()
def test_images() -> None:
    """The map is resized bicubically, and 0.3 of 197 tokens are 59 of the grid's beside the class token."""
    pruner: Any = build_pruner("image_convnet", model="resnet18", recipe="papr", keep_ratio=0.3)
    backbone = build_backbone("timm_vit", model="deit_tiny_patch16_224", weights=None)
    images = noise(1, 224)
    pixels = ((images[:, 0] / 255 - MEAN) / STD).movedim(-1, 1)
    cells = pruner.scorer.reader.network.forward_features(pixels).mean(1, keepdim=True)
    expected = F.interpolate(cells, (14, 14), mode="bicubic", align_corners=True)
    pipeline = Pipeline(backbone, pruner).eval()
    kept = pipeline.select(images)
    assert kept is not None
    assert torch.equal(kept.keep_idx, expected.flatten(1).topk(59).indices.sort(1).values)
    assert pipeline(images[:2]).shape == (2, 1000)
    model = timm.create_model("deit_tiny_patch16_224").eval()
    prune(model, "image_convnet", 0.3, model="resnet18", weights=None, recipe="papr")
    assert kept_tokens(model, pixels).keep_idx.shape == (CLIPS, 59)  # type: ignore[union-attr]
    for ratio, count in ((0.3, 58), (1.0, 196)):
        plain: Any = build_pruner(
            "image_convnet", model="resnet18", recipe="papr" if ratio == 1 else "own", keep_ratio=ratio
        )
        plain.fit(backbone)
        assert plain.choose(expected).num_kept == count


def test_each_part_is_a_key_of_its_own() -> None:
    frames = noise(16, 64, 1)
    grid, host = TokenGrid(8, 4, 4), SimpleNamespace(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), num_prefix=0)

    def cells(**options: object) -> Tensor:
        pruner: Any = build_pruner("x3d_xs", size=32, **options)
        pruner.fit(host)
        with torch.no_grad():
            return pruner.scorer(frames, grid)

    parts = [{}, {"align_clip": True}, {"normalize": "backbone"}, {"recipe": "papr"}]
    maps = [cells(**part) for part in parts]
    assert all(not torch.allclose(one, two) for i, one in enumerate(maps) for two in maps[:i])
    both = cells(align_clip=True, normalize="backbone")
    assert torch.equal(both, maps[3])
    assert torch.equal(cells(recipe="papr", align_clip=False, normalize="own"), maps[0])


def test_a_pruner_serves_one_normalisation_and_one_number_of_class_tokens() -> None:
    pruner: Any = build_pruner("x3d_xs", recipe="papr")
    hosts = [SimpleNamespace(mean=(m,) * 3, std=(0.2,) * 3, num_prefix=n) for m, n in ((0.5, 1), (0.4, 2))]
    pruner.fit(hosts[0])
    pruner.fit(hosts[0])
    with pytest.raises(
        ConfigError, match=r"^pruner\.normalize=backbone: the pruner serves a backbone with mean"
    ):
        pruner.fit(hosts[1])
    images: Any = build_pruner("image_convnet", model="resnet18", count_class_token=True)
    images.fit(hosts[0])
    with pytest.raises(ConfigError, match=r"^pruner\.count_class_token=true: .* with 1 class tokens"):
        images.fit(hosts[1])


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        (
            "x3d_s",
            {"recipe": "paper"},
            r"^pruner\.recipe='paper' is unknown; use one of own, papr\. Did",
        ),
        ("x3d_s", {"normalize": "no"}, r"^pruner\.normalize='no' is unknown; use one of own, backbone$"),
        ("papr_plus", {"recipe": "papr"}, r"^unknown key pruner\.recipe for pruner=papr_plus"),
        (
            "image_convnet",
            {"interpolation": "x"},
            r"^pruner\.interpolation='x' is unknown; use one of linear, bic",
        ),
        (
            "image_convnet",
            {"interpolation": "bicubic", "align_corners": False, "cell_center": 0.0},
            r"^pruner\.interpolation=bicubic needs pruner\.cell_center=0\.5, not 0\.0$",
        ),
        (
            "image_convnet",
            {"recipe": "papr", "budget": "top_p"},
            r"count_class_token=true goes with pruner\.budget=",
        ),
    ],
)
def test_wrong_options_give_one_line(name: str, options: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        build_pruner(name, **({"model": "resnet18"} if name == "image_convnet" else {}), **options)
