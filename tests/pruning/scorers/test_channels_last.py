"""The fast trunk gives the features of the plain one, and the same tokens are kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from video_papr.benchmark.work import convolution_work, count_work
from video_papr.core.pixels import normalize_pixels, resample_clip, resample_frames
from video_papr.core.types import TokenGrid
from video_papr.pruning.builders import build_pruner
from video_papr.pruning.map_pruner import MapPruner
from video_papr.pruning.scorers.channels_last import ChannelsLastTrunk, use_channels_last
from video_papr.pruning.scorers.x3d import MEAN, STD, X3DScorer
from video_papr.pruning.scorers.x3d_depth_pruned import X3D_BLOCKS, X3D_KINDS, depth_prune_x3d
from video_papr.pruning.scorers.x3d_trunk import STAGES, X3DTrunk, fold_norms

GRID = TokenGrid(8, 14, 14)
Shake = Callable[[X3DTrunk], X3DTrunk]
Draw = Callable[[int], Tensor]
Overlap = Callable[[Tensor, Tensor, float], float]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(STAGES),
    st.integers(1, 2),
    st.integers(1, 5),
    st.sampled_from([(32, 32), (48, 33), (40, 64)]),
    st.lists(st.sampled_from(X3D_KINDS), min_size=X3D_BLOCKS, max_size=X3D_BLOCKS),
)
def test_features_of_every_stage(
    shaken: Shake, stage: str, batch: int, frames: int, size: tuple[int, int], kinds: list[str]
) -> None:
    """Also where depth pruning has merged blocks."""
    trunk = X3DTrunk(stage)
    depth_prune_x3d(trunk, kinds)
    shaken(trunk)
    pixels = torch.randn(batch, 3, frames, *size)
    before = pixels.clone()
    expected = {name: features.clone() for name, features in trunk.stages(pixels)}
    fold_norms(trunk)
    fast = ChannelsLastTrunk(trunk)
    found = {name: features.clone() for name, features in fast.stages(pixels)}
    assert list(found) == list(expected)
    for name, features in found.items():
        torch.testing.assert_close(features, expected[name], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fast(pixels), expected[stage], rtol=1e-4, atol=1e-4)
    assert torch.equal(pixels, before)


def test_weights_keep_their_names() -> None:
    plain, fast = build_pruner("x3d_s", seed=3), use_channels_last(build_pruner("x3d_s", seed=3))
    assert isinstance(plain, MapPruner) and isinstance(fast, MapPruner)
    fold_norms(plain.scorer.trunk)  # type: ignore[arg-type]
    one, two = plain.state_dict(), fast.state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert not fast.scorer.training
    again = use_channels_last(fast)
    assert again is fast and isinstance(fast.scorer.trunk, ChannelsLastTrunk)


@pytest.mark.parametrize("keep_ratio", [0.1, 0.3, 0.5])
@pytest.mark.parametrize(
    "options",
    [
        {"name": "x3d_s", "weights": "x3d_s_synthetic", "frames": 8, "size": 96},
        {"name": "x3d_s", "weights": None, "frames": 8, "size": 96},
        {"name": "papr_plus", "weights": "x3d_s_synthetic", "frames": 4, "stages": ["res3", "res5"]},
    ],
    ids=lambda options: f"{options['name']}, {options['weights']}",
)
def test_the_same_tokens_are_kept(
    options: dict[str, Any], keep_ratio: float, clips: Draw, overlap: Overlap
) -> None:
    plain, fast = build_pruner(**options), use_channels_last(build_pruner(**options))
    assert isinstance(plain, MapPruner) and isinstance(fast, MapPruner)
    frames = clips(2)
    with torch.inference_mode():
        maps = [pruner.scorer(frames, GRID) for pruner in (plain, fast)]
    torch.testing.assert_close(maps[1], maps[0], rtol=1e-4, atol=1e-4)
    assert overlap(*maps, keep_ratio) >= 0.99


def test_trained_scorer_in_bf16_keeps_nearly_the_same_tokens(clips: Draw, overlap: Overlap) -> None:
    options = {"weights": "x3d_s_synthetic", "frames": 8, "size": 96}
    plain, fast = build_pruner("x3d_s", **options), use_channels_last(build_pruner("x3d_s", **options))
    assert isinstance(plain, MapPruner) and isinstance(fast, MapPruner)
    fast.bfloat16()
    with torch.inference_mode():
        maps = [pruner.scorer(clips(2), GRID) for pruner in (plain, fast)]
    assert overlap(*maps, 0.3) >= 0.97  # 0.99 in fp32; bf16 has 8 bits


def test_autocast_keeps_nearly_the_same_tokens(clips: Draw, overlap: Overlap) -> None:
    """As an evaluation in bf16 runs it."""
    options = {"weights": "x3d_s_synthetic", "frames": 8, "size": 96}
    pruner = use_channels_last(build_pruner("x3d_s", **options))
    assert isinstance(pruner, MapPruner)
    with torch.inference_mode():
        exact = pruner.scorer(clips(2), GRID)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = pruner.scorer(clips(2), GRID)
    assert overlap(exact, rounded, 0.3) >= 0.97


def test_trunk_on_another_device_runs_as_it_is() -> None:
    trunk = X3DTrunk("res2").eval().requires_grad_(False)
    fold_norms(trunk)
    fast = ChannelsLastTrunk(trunk).to("meta")
    assert fast(torch.empty(1, 3, 4, 32, 32, device="meta")).shape == (1, 24, 4, 8, 8)


@given(
    st.integers(1, 2),
    st.integers(1, 24),
    st.integers(1, 8),
    st.integers(2, 40),
    st.integers(2, 40),
    st.integers(2, 40),
)
@settings(max_examples=60, deadline=None)
def test_resampling_before_normalising_is_resampling_after_it(
    batch: int, length: int, frames: int, height: int, width: int, size: int
) -> None:
    clip = torch.randint(0, 256, (batch, length, height, width, 3), dtype=torch.uint8)
    expected = resample_clip(normalize_pixels(clip, mean=MEAN, std=STD), num_frames=frames, size=size)
    found = resample_frames(clip, num_frames=frames, size=(size, size))
    assert found.shape == (batch, 3, frames, size, size)
    torch.testing.assert_close((found / 255 - 0.45) / 0.225, expected, rtol=0, atol=1e-4)


def test_least_work_of_the_convolutions() -> None:
    """All arithmetic of the trunk, and fewer bytes than its operators move."""
    pruner = use_channels_last(build_pruner("x3d_s", frames=4, size=64))
    assert isinstance(pruner, MapPruner) and isinstance(pruner.scorer, X3DScorer)
    scorer, frames = pruner.scorer, torch.zeros(2, 4, 64, 64, 3, dtype=torch.uint8)
    least = convolution_work(scorer, frames)

    def run(clip: Tensor, mark: Any) -> Tensor:
        features = scorer.trunk(scorer.pixels(clip))
        mark("trunk")
        return features

    whole = count_work(run, frames)["trunk"]
    assert least.gmacs == pytest.approx(whole.gmacs, rel=1e-6)
    assert 0.1 * whole.gigabytes < least.gigabytes < 0.8 * whole.gigabytes
