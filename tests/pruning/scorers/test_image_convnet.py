"""Scorers from timm's ConvNets: the channel mean of the last map, for images and, frame by frame, for clips."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from video_papr.core.errors import CheckpointError, ConfigError
from video_papr.core.pixels import IMAGENET_MEAN, IMAGENET_STD
from video_papr.core.types import TokenGrid
from video_papr.pruning.builders import build_pruner
from video_papr.pruning.map_pruner import MapPruner
from video_papr.pruning.scorers.image_convnet import ImageScorer


def frames(batch: int = 2, length: int = 1, height: int = 64, width: int = 96) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, length, height, width, 3), generator=generator, dtype=torch.uint8)


def scorer(**options: object) -> ImageScorer:
    pruner = build_pruner("image_convnet", **{"model": "resnet18", **options})
    assert isinstance(pruner, MapPruner) and isinstance(pruner.scorer, ImageScorer)
    return pruner.scorer


@torch.no_grad()
def test_map_is_the_channel_mean_of_timms_last_map(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = timm.create_model("resnet18", num_classes=9).eval()
    save_file(network.state_dict(), tmp_path / "net.safetensors")
    made = scorer(weights=tmp_path / "net.safetensors")
    given = frames()
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    pixels = ((given[:, 0] / 255 - mean) / std).permute(0, 3, 1, 2)
    expected = network.forward_features(pixels).mean(1)
    assert torch.allclose(made.cells(given, 1)[:, 0], expected, atol=1e-4)
    significance = made(given, TokenGrid(1, 4, 6))
    assert significance.shape == (2, 1, 4, 6)
    assert torch.allclose(made(given[1:], TokenGrid(1, 4, 6)), significance[1:], atol=1e-4)


@torch.no_grad()
def test_fused_branches_give_the_same_map() -> None:
    """MobileOne's branches are fused in the scorer; timm's network with the same seed has them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model("mobileone_s0", num_classes=0).eval()
    made = scorer(model="mobileone_s0", seed=0)
    assert sum(1 for _ in made.parameters()) < sum(1 for _ in network.parameters())
    given = frames(1, height=64, width=64)
    mean, std = torch.tensor(made.mean), torch.tensor(made.std)
    expected = network.forward_features(((given[:, 0] / 255 - mean) / std).permute(0, 3, 1, 2)).mean(1)
    assert torch.allclose(made.cells(given, 1)[:, 0], expected, atol=1e-4)


@torch.no_grad()
def test_clips_are_scored_frame_by_frame() -> None:
    made, clip = scorer(), frames(1, length=8, width=64)
    cells = made.cells(clip, 4)
    assert cells.shape[1] == 4
    for part, frame in enumerate((1, 3, 5, 7)):
        assert torch.allclose(made.cells(clip[:, frame : frame + 1], 1)[:, 0], cells[:, part], atol=1e-4)
    assert made(clip, TokenGrid(4, 8, 8)).shape == (1, 4, 8, 8)
    assert scorer(frames=2, size=32)(clip, TokenGrid(4, 8, 8)).shape == (1, 4, 8, 8)


@torch.no_grad()
def test_stage_and_class_activation_map(tmp_path: Path) -> None:
    """The map of an earlier stage, and the last one weighted by the predicted class, from timm's own parts."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = timm.create_model("resnet18", num_classes=9).eval()
    save_file(network.state_dict(), tmp_path / "net.safetensors")
    given = frames()
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    pixels = ((given[:, 0] / 255 - mean) / std).permute(0, 3, 1, 2)
    stages = network.forward_intermediates(pixels, intermediates_only=True)
    earlier = scorer(weights=tmp_path / "net.safetensors", stage="layer3").cells(given, 1)[:, 0]
    assert torch.allclose(earlier, stages[3].mean(1), atol=1e-4)
    rows = network.fc.weight[network(pixels).argmax(1)]
    expected = (stages[4] * rows[:, :, None, None]).sum(1)
    highest = network.fc(stages[4].movedim(1, -1)).amax(-1)
    for stage in (None, "layer4"):
        for recalibration, cells in (("cam", expected), ("none", highest)):
            made = scorer(weights=tmp_path / "net.safetensors", recalibration=recalibration, stage=stage)
            assert torch.allclose(made.cells(given, 1)[:, 0], cells, atol=1e-4)
    headless = {name: value for name, value in network.state_dict().items() if not name.startswith("fc.")}
    save_file(headless, tmp_path / "headless.safetensors")
    with pytest.raises(
        ConfigError, match=r"^pruner.recalibration=cam: pruner.model=resnet18 has no classifier"
    ):
        scorer(weights=tmp_path / "headless.safetensors", recalibration="cam")


def test_wrong_options_give_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ConfigError, match=r"^pruner.model=resnet1: timm .* has no such model. Did you mean 'resnet1"
    ):
        scorer(model="resnet1")
    with pytest.raises(ConfigError, match=r"^pruner.model=vit_tiny_patch16_224 gives no feature map"):
        scorer(model="vit_tiny_patch16_224")
    with pytest.raises(ConfigError, match=r"^pruner.size=0 must be at least 1"):
        scorer(size=0)
    with pytest.raises(
        ConfigError, match=r"^pruner.stage=layre3: pruner.model=resnet18 has no such .*mean 'layer3'"
    ):
        scorer(stage="layre3")
    with pytest.raises(ConfigError, match=r"^pruner.stage=global_pool gives no feature map"):
        scorer(stage="global_pool")
    with pytest.raises(
        ConfigError, match=r"^pruner.recalibration=cam: .* no classifier that reads the 288 channels"
    ):
        scorer(model="mobilenetv3_small_050", recalibration="cam")
    with pytest.raises(CheckpointError, match=r"^pruner.weights=/no/file is neither a file"):
        scorer(weights="/no/file")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match=r"^pruner.weights=timm/resnet18.* was not downloaded"):
        scorer(weights="pretrained")
