"""The fitted pixel rule: what it reads of a tubelet, and that it is a linear function of that."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import video_papr as vp
from video_papr.checkpoints.files import write_weights
from video_papr.core.errors import CheckpointError
from video_papr.core.types import TokenGrid
from video_papr.pruning.map_pruner import MapPruner
from video_papr.pruning.scorers.pixel_rule import NAMES, PixelRule, tubelet_statistics

GRID = TokenGrid(2, 3, 4)


def clips(count: int = 2, frames: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, frames, 24, 32, 3), dtype=torch.uint8, generator=generator)


def test_statistics_are_those_of_the_tubelets_own_pixels() -> None:
    """Against numpy, for one tubelet inside the clip."""
    frames = clips()
    found = dict(zip(NAMES, tubelet_statistics(frames, GRID)[1, : len(NAMES), 1, 1, 2].tolist(), strict=True))
    pixels = frames[1].numpy() / 255.0
    own, grey = pixels[2:4, 8:16, 16:24], pixels.mean(-1)
    cell = (slice(2, 4), slice(8, 16), slice(16, 24))
    change = np.abs(np.diff(grey, axis=0))
    expected = {
        **dict(zip(("red", "green", "blue"), own.mean((0, 1, 2)), strict=True)),
        "lightness": grey[cell].mean(),
        "saturation": (own.max(-1) - own.min(-1)).mean(),
        **dict(zip(("red_std", "green_std", "blue_std"), own.std((0, 1, 2)), strict=True)),
        "lightness_std": grey[cell].std(),
        "gradient_x": np.abs(np.diff(grey, axis=2, append=0))[cell].mean(),
        "gradient_y": np.abs(np.diff(grey, axis=1, append=0))[cell].mean(),
        "change_before": change[1:3, 8:16, 16:24].mean(),
        "change_after": np.concatenate([change[2:], change[-1:]])[:, 8:16, 16:24].mean(),
    }
    assert found == pytest.approx(expected, abs=1e-5)


def test_squares_follow_and_a_single_frame_changes_nothing() -> None:
    found = tubelet_statistics(clips(frames=1), TokenGrid(1, 3, 4))
    assert found.isfinite().all() and found.shape == (2, 2 * len(NAMES), 1, 3, 4)
    torch.testing.assert_close(found[:, len(NAMES) :], found[:, : len(NAMES)] ** 2)
    assert not found[:, [NAMES.index("change_before"), NAMES.index("change_after")]].any()


def test_pruner_keeps_the_tubelets_that_the_weights_prefer(tmp_path: Path) -> None:
    weight = torch.zeros(2 * len(NAMES))
    weight[NAMES.index("lightness")] = 1.0
    write_weights(tmp_path / "w.safetensors", {"weight": weight}, {}, half=False)
    pruner = vp.build_pruner("pixel_rule", weights=tmp_path / "w.safetensors", keep_ratio=0.5)
    brightness = vp.build_pruner("brightness", keep_ratio=0.5)
    assert pruner is not None and brightness is not None
    model = SimpleNamespace(grid=GRID)
    assert torch.equal(pruner.select(clips(), model).keep_idx, brightness.select(clips(), model).keep_idx)


def test_weights_of_another_rule_are_refused(tmp_path: Path) -> None:
    write_weights(tmp_path / "w.safetensors", {"weight": torch.zeros(3)}, {}, half=False)
    with pytest.raises(CheckpointError, match=r"^pruner\.weights=.*w\.safetensors does not fit PixelRule"):
        vp.build_pruner("pixel_rule", weights=tmp_path / "w.safetensors")


def test_the_bundled_rule_is_a_rule() -> None:
    pruner = vp.build_pruner("pixel_rule", weights="pixel_rule_synthetic", keep_ratio=0.3)
    assert isinstance(pruner, MapPruner) and isinstance(pruner.scorer, PixelRule)
    assert pruner.scorer.weight.isfinite().all() and pruner.scorer.weight.any()
