"""The actor of a synthetic video: its place in a view, the tokens that it covers, and its motion."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from video_papr.core.types import TokenGrid
from video_papr.synthetic import drawing, scenes
from video_papr.synthetic.scenes import ACTIONS
from video_papr.synthetic.tracks import COVERAGE, LIMIT, MOTION, actor_motion, actor_tokens, in_view


@settings(deadline=None, max_examples=40)
@given(
    grid=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)),
    frames_per_token=st.integers(1, 3),
    height=st.integers(24, 60),
    width=st.integers(24, 60),
    seed=st.integers(0, 99),
)
def test_actor_tokens_are_those_that_the_circles_cover(grid, frames_per_token, height, width, seed):
    """Against counting a fine raster of each tubelet by itself."""
    rng = np.random.default_rng(seed)
    num_frames = grid[0] * frames_per_token
    low, high = (-5, -5, 3, 0, 0), (width + 5, height + 5, 20, 6, 1)
    track = rng.uniform(low, high, (num_frames, 5))
    found = actor_tokens(in_view(track, (height, width)), TokenGrid(*grid))
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    raster = (np.arange(40) + 0.5) / 40
    for t, i, j in np.ndindex(*grid):
        columns, rows = left + (j + raster) / grid[2] * side, top + (i + raster) / grid[1] * side
        covered = []
        for x, y, radius in track[t * frames_per_token : (t + 1) * frames_per_token, :3]:
            covered.append(((columns[None] - x) ** 2 + (rows[:, None] - y) ** 2 < radius**2).mean())
        share = float(np.mean(covered))
        if abs(share - COVERAGE) > 0.04:  # closer than that the coarser raster may decide otherwise
            assert bool(found[t, i, j]) == (share > COVERAGE)


def test_a_batch_is_its_clips():
    tracks = torch.rand(3, 6, 5, generator=torch.Generator().manual_seed(0))
    tokens, motion = actor_tokens(tracks, TokenGrid(2, 4, 4)), actor_motion(tracks, 3)
    assert (tokens.shape, motion.shape) == ((3, 2, 4, 4), (3, 3, len(MOTION)))
    for i in range(3):
        assert torch.equal(tokens[i], actor_tokens(tracks[i], TokenGrid(2, 4, 4)))
        assert torch.equal(motion[i : i + 1], actor_motion(tracks[i : i + 1], 3))


@pytest.mark.parametrize("action", ACTIONS)
def test_motion_names_the_action(action):
    """Each action stands out in its own column, with its sign."""
    column, sign = {
        "move_left": ("x", -1),
        "move_right": ("x", 1),
        "move_up": ("y", -1),
        "move_down": ("y", 1),
        "rotate_cw": ("angle", 1),
        "rotate_ccw": ("angle", -1),
        "zoom_in": ("growth", 1),
        "zoom_out": ("growth", -1),
        "circle_cw": ("turn", 1),
        "circle_ccw": ("turn", -1),
        "zigzag": ("angle", 0),
        "blink": ("visible", -1),
    }[action]
    for seed in range(8):
        scene = scenes.sample_scene(np.random.default_rng(seed), action, clutter=0)
        path = scene.shapes[-1].path
        circles = drawing.render(scene, np.random.default_rng(0))[1]
        track = np.column_stack([circles, path.angle, path.visible])
        track = track[(np.arange(16) * len(track)) // 16]
        motion = actor_motion(in_view(track, (scene.height, scene.width))[None], 4)[0]
        assert motion.isfinite().all() and motion.abs().max() <= LIMIT
        mean = dict(zip(MOTION, motion.mean(0).tolist(), strict=True))
        if sign == 0:
            assert mean["angle"] == mean["growth"] == 0
            assert motion[:, :2].abs().sum() > 2
        elif column == "visible":
            assert motion[:, -1].min() < 0.6
        else:
            assert sign * mean[column] > 0.25
            others = [abs(mean[name]) for name in ("angle", "growth") if name != column]
            assert max(others) < 1e-3
