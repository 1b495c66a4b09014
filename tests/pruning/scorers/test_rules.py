"""The scorers without a network."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from video_papr.core.errors import ConfigError
from video_papr.core.types import TokenGrid
from video_papr.pruning.builders import build_pruner
from video_papr.pruning.scorers import rules
from video_papr.pruning.scorers.rules import RULES
from video_papr.pruning.select import select_tokens


def clips(batch: int = 3, frames: int = 8, height: int = 24, width: int = 32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, frames, height, width, 3), dtype=torch.uint8, generator=generator)


GRID = TokenGrid(4, 3, 4)  # tubelets of 2 x 8 x 8


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=15, deadline=None)
@given(
    frames=st.integers(1, 9),
    size=st.integers(4, 20),
    grid=st.tuples(st.integers(1, 9), st.integers(1, 4), st.integers(1, 4)),
)
def test_every_rule_gives_a_finite_map_on_the_grid(
    name: str, frames: int, size: int, grid: tuple[int, int, int]
) -> None:
    significance = RULES[name](clips(2, frames, size, size + 3), TokenGrid(*grid), 0)
    assert significance.shape == (2, *grid)
    assert significance.dtype == torch.float32
    assert significance.isfinite().all()


@pytest.mark.parametrize("name", RULES)
def test_a_clips_map_does_not_depend_on_its_batch(name: str) -> None:
    frames = clips(4)
    together = RULES[name](frames, GRID, 3)
    alone = torch.cat([RULES[name](frames[i : i + 1], GRID, 3) for i in (2, 0, 3, 1)])
    assert torch.equal(together[[2, 0, 3, 1]], alone)


def test_random_differs_between_clips_and_seeds_and_is_no_one_elses_randomness() -> None:
    frames = clips(2)
    torch.manual_seed(1)
    one = rules.random(frames, GRID, 0)
    torch.manual_seed(2)
    assert torch.equal(rules.random(frames, GRID, 0), one)
    assert not torch.equal(one[0], one[1])
    assert not torch.equal(rules.random(frames, GRID, 1), one)


def test_random_is_the_same_map_in_every_release() -> None:
    frames = clips(2)
    for clip, found in zip(frames, rules.random(frames, GRID, 5), strict=True):
        generator = torch.Generator().manual_seed(5 * 1_000_003 + int(clip.sum(dtype=torch.int64)))
        assert torch.equal(found, torch.rand(GRID.shape, generator=generator))


def test_random_keeps_every_token_equally_often() -> None:
    grid, count = TokenGrid(2, 4, 4), 600
    kept = select_tokens(rules.random(clips(count, 1, 4, 4), grid, 0), keep_ratio=0.25).mask().float().mean(0)
    assert (kept - 0.25).abs().max() < 5 * math.sqrt(0.25 * 0.75 / count)


def test_motion_is_the_mean_absolute_difference_to_the_previous_frame() -> None:
    frames = clips(2)
    found = rules.motion(frames, GRID, 0)
    grey = frames.numpy().astype(float).mean(-1)
    for b, t, y, x in np.ndindex(2, *GRID.shape):
        total = 0.0
        for frame in (2 * t, 2 * t + 1):
            before = 1 if frame == 0 else frame - 1  # the first frame is compared with the second
            window = np.s_[8 * y : 8 * y + 8, 8 * x : 8 * x + 8]
            total += np.abs(grey[b, frame][window] - grey[b, before][window]).mean() / 2
        assert found[b, t, y, x].item() == pytest.approx(total, abs=1e-3)


def test_motion_finds_the_only_thing_that_moves_also_across_the_whole_range_of_a_byte() -> None:
    frames = torch.zeros(1, 8, 24, 32, 3, dtype=torch.uint8)
    frames[:, 5, 8:16, 24:] = 255
    found = rules.motion(frames, GRID, 0)
    assert found.flatten().nonzero().flatten().tolist() == [2 * 12 + 7, 3 * 12 + 7]  # it comes, and it goes


def test_brightness_is_the_mean_of_a_tubelet() -> None:
    frames = clips(2)
    expected = frames.numpy().astype(float).reshape(2, 4, 2, 3, 8, 4, 8, 3).mean((2, 4, 6, 7))
    np.testing.assert_allclose(rules.brightness(frames, GRID, 0).numpy(), expected, rtol=0, atol=1e-3)


def test_clip_of_one_frame() -> None:
    frames, grid = clips(2, frames=1), TokenGrid(1, 3, 4)
    assert torch.equal(rules.motion(frames, grid, 0), torch.zeros(2, 1, 3, 4))
    expected = frames.numpy().astype(float).reshape(2, 1, 3, 8, 4, 8, 3).mean((3, 5, 6))
    np.testing.assert_allclose(rules.brightness(frames, grid, 0).numpy(), expected, rtol=0, atol=1e-3)


def test_center_keeps_the_middle_of_every_frame() -> None:
    mask = select_tokens(rules.center(clips(1), TokenGrid(2, 6, 6), 0), keep_ratio=4 / 36).mask()
    expected = torch.zeros(6, 6, dtype=torch.bool)
    expected[2:4, 2:4] = True
    assert torch.equal(mask, expected.expand(1, 2, 6, 6))
    wide = rules.center(clips(1), TokenGrid(1, 4, 8), 0)[0, 0]
    assert torch.equal(wide, wide.flip(0)) and torch.equal(wide, wide.flip(1))


@settings(deadline=None, max_examples=60)
@given(
    grid=st.tuples(st.integers(3, 16), st.integers(4, 16), st.integers(4, 16)), percent=st.integers(20, 99)
)
def test_uniform_leaves_no_hole(grid: tuple[int, int, int], percent: int) -> None:
    """From every token a kept one is at most two steps away, diagonal ones included; with 8 x 14 x 14 one step."""
    mask = select_tokens(rules.uniform(clips(1), TokenGrid(*grid), 0), keep_ratio=percent / 100).mask()
    steps = 1 if grid == (8, 14, 14) else 2
    reached = torch.nn.functional.max_pool3d(mask.float(), 2 * steps + 1, stride=1, padding=steps)
    assert reached.all()


@pytest.mark.parametrize("ratio", [0.2, 0.3, 0.5, 0.7])
def test_uniform_serves_every_frame_row_and_column_alike(ratio: float) -> None:
    mask = select_tokens(rules.uniform(clips(1), TokenGrid(8, 14, 14), 0), keep_ratio=ratio).mask()[0].float()
    for axes in ((1, 2), (0, 2), (0, 1)):
        assert ((mask.mean(axes) - ratio).abs() < 0.2 * ratio).all()
    near = torch.nn.functional.max_pool3d(mask[None], 3, stride=1, padding=1)
    assert near.all()


def test_uniform_is_the_same_for_every_clip_and_seed() -> None:
    assert torch.equal(rules.uniform(clips(2, seed=0), GRID, 0), rules.uniform(clips(2, seed=1), GRID, 9))


@pytest.mark.parametrize("tau", [0, 255, 6.5])
def test_tau_is_a_difference_of_pixels(tau: float) -> None:
    """From 0, which keeps all, to 255, which only the first tubelets and black that turns white reach."""
    frames = torch.zeros(1, 4, 4, 4, 3, dtype=torch.uint8)
    frames[:, 2:, :, 2:] = 255
    kept = (
        build_pruner("run_length", tau=tau, min_keep=0.1)
        .select(frames, SimpleNamespace(grid=TokenGrid(2, 2, 2)))
        .mask()
    )
    assert kept[0, 0].all() and kept[0, 1].tolist() == [[tau == 0, True]] * 2


@pytest.mark.parametrize("tau", [-0.01, 255.01, math.nan, math.inf, "6", True, None])
def test_tau_out_of_range(tau: object) -> None:
    with pytest.raises(ConfigError, match=r"^pruner\.tau=.* must be a number from 0 to 255$"):
        build_pruner("run_length", tau=tau)
