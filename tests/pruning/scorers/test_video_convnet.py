"""Scorers from any 3-D ConvNet: of torchvision by name, or by import path, at a stage that is named."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models

import video_papr as vp
from video_papr.benchmark.flops import count_gmacs
from video_papr.core.types import TokenGrid


class Net(nn.Module):
    """Three convolutions, a pool and a classifier that is a convolution, as in I3D."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv3d(3, 4, 3, stride=(1, 2, 2), padding=1)
        self.body = nn.ModuleDict({"a": nn.Conv3d(4, 6, 3, stride=2, padding=1), "b": nn.Conv3d(6, 8, 1)})
        self.logits = nn.Conv3d(8, 5, 1)

    def forward(self, pixels):
        features = self.body["b"](self.body["a"](self.stem(pixels).relu()).relu()).relu()
        return self.logits(features.mean((2, 3, 4), keepdim=True)).flatten(1)


@pytest.fixture
def mine(monkeypatch):
    """An importable module `mine` with `Net`, and things that are none; returns what `mine:Net` makes with seed 0."""
    module = ModuleType("mine")
    vars(module).update(Net=Net, needs=lambda path: Net(), number=lambda: 3, flat=lambda: nn.Flatten())
    monkeypatch.setitem(sys.modules, "mine", module)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().eval()


def scorer(**options):
    pruner: Any = vp.build_pruner("video_convnet", **options)
    return pruner.scorer


def clip(batch=2, length=8, side=32):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, length, side, side, 3), generator=generator, dtype=torch.uint8)


@torch.no_grad()
def test_map_is_that_of_the_named_part_of_an_imported_network(mine, tmp_path):
    given = clip()
    pixels = (given / 127.5 - 1).movedim(-1, 1)
    first = mine.stem(pixels)
    last = mine.body["b"](mine.body["a"](first.relu()).relu())
    assert torch.allclose(scorer(model="mine:Net", stage="stem").cells(given), first.mean(1), atol=1e-5)
    assert torch.allclose(scorer(model="mine:Net").cells(given), last.mean(1), atol=1e-5)  # the last map
    torch.save(mine.state_dict(), tmp_path / "net.pt")
    made = scorer(model="mine:Net", weights=tmp_path / "net.pt", seed=5, recalibration="cam", stage="body.b")
    rows = mine.logits.weight.flatten(1)[mine(pixels).argmax(1)]
    assert torch.allclose(made.cells(given), torch.einsum("bcthw,bc->bthw", last, rows), atol=1e-5)
    assert torch.allclose(made.cells(given[1:]), made.cells(given)[1:], atol=1e-5)
    other = scorer(model="mine:Net", stage="stem", mean=(0, 0, 0), std=(1, 1, 1), frames=4, size=16)
    half = torch.nn.functional.interpolate(given.movedim(-1, 1) / 255, (4, 16, 16), mode="trilinear")
    assert torch.allclose(other.cells(given), mine.stem(half).mean(1), atol=1e-5)
    assert made(given, TokenGrid(8, 2, 2)).shape == (2, 8, 2, 2)


@torch.no_grad()
def test_networks_of_torchvision_stop_at_the_stage():
    given = clip(1, 8, 64)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        network = models.video.r3d_18().eval()
    made = scorer(model="r3d_18", stage="layer2", seed=2, size=64)
    usual = models.video.R3D_18_Weights.DEFAULT.transforms()
    assert (made.mean, made.std, scorer(model="r3d_18").size) == (tuple(usual.mean), tuple(usual.std), 112)
    pixels = ((given / 255 - torch.tensor(made.mean)) / torch.tensor(made.std)).movedim(-1, 1)
    expected = network.layer2(network.layer1(network.stem(pixels)))
    assert torch.allclose(made.cells(given), expected.mean(1), atol=1e-4)
    assert count_gmacs(made.cells, given) < 0.9 * count_gmacs(network, pixels)
    backbone = vp.build_backbone("image_vit", model="vit_tiny_patch16_224", input_size=64)
    pruner = vp.build_pruner("video_convnet", stage="layer2", size=64, keep_ratio=0.25)
    selection = vp.Pipeline(backbone, pruner).select(given)
    assert selection is not None and selection.mask().sum((2, 3)).tolist() == [[4] * 8]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"model": "r3d_81"}, "pruner.model=r3d_81 is unknown; use one of .* Did you mean 'r3d_18'?"),
        ({"model": "swin3d_t"}, "pruner.model=swin3d_t is unknown"),
        ({"model": "nowhere:Net"}, "pruner.model=nowhere:Net: no module 'nowhere'"),
        ({"model": "mine:Nett"}, "pruner.model=mine:Nett: mine has no class or function 'Nett'"),
        ({"model": "mine:needs"}, "pruner.model=mine:needs must make a network without arguments"),
        ({"model": "mine:number"}, "pruner.model=mine:number gives int; it must give an nn.Module"),
        ({"model": "mine:flat"}, "pruner.model=mine:flat gives no feature map"),
        (
            {"model": "mine:Net", "stage": "bodi.b"},
            "pruner.stage=bodi.b: .* has no such part, but stem, body, logits",
        ),
        ({"model": "mine:Net", "stage": "logits"}, "pruner.stage=logits gives no feature map"),
        (
            {"model": "mine:Net", "stage": "stem", "recalibration": "cam"},
            "pruner.recalibration=cam: .* 4 channels of",
        ),
        (
            {"model": "mine:Net", "recalibration": "mean"},
            "pruner.recalibration='mean' is unknown; use one of unif",
        ),
        (
            {"model": "mine:Net", "weights": "pretrained"},
            "pruner.weights=pretrained: only networks of torchvision",
        ),
        ({"model": "mine:Net", "frames": 0}, "pruner.frames=0 must be at least 1"),
        ({"model": "mine:Net", "std": (1, 0, 1)}, r"pruner.std=\[1, 0, 1\] must be three numbers above 0"),
    ],
)
@pytest.mark.usefixtures("mine")
def test_wrong_options_give_one_line(options, line):
    with pytest.raises(vp.ConfigError, match=f"^{line}") as caught:
        scorer(**options)
    assert "\n" not in str(caught.value)
