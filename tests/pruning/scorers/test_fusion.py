"""PaPr+ is the sum of what its parts say alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from video_papr.core.errors import ConfigError
from video_papr.core.types import TokenGrid
from video_papr.pruning.builders import build_pruner
from video_papr.pruning.scorers.fusion import FusedScorer, standardize
from video_papr.pruning.scorers.rules import motion
from video_papr.pruning.scorers.x3d import X3DScorer
from video_papr.pruning.scorers.x3d_network import X3D
from video_papr.pruning.scorers.x3d_trunk import STAGES

GRID = TokenGrid(2, 4, 4)
SETTINGS = {"frames": 4, "size": 64, "align_corners": False, "cell_center": 0.0}


def clips(count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 8, 64, 64, 3), dtype=torch.uint8, generator=generator)


@settings(deadline=None)
@given(
    values=arrays.arrays("float64", (3, 2, 3, 4), elements=st.floats(-100, 100, width=16)),
    scale=st.floats(0.01, 100),
    shift=st.floats(-100, 100),
)
def test_standardised_maps_have_one_scale_and_the_same_order(values, scale: float, shift: float) -> None:
    given_map = torch.from_numpy(values)
    found = standardize(given_map)
    for one, out in zip(given_map, found, strict=True):
        if one.std(correction=0) > 1e-3 * one.abs().max():
            assert out.mean().abs() < 1e-6
            assert out.square().mean() == pytest.approx(1)
            assert torch.equal(
                out.flatten().sort(stable=True).indices, one.flatten().sort(stable=True).indices
            )
            changed = scale * one + shift
            if changed.std(correction=0) > 1e-3 * changed.abs().max():  # or the shift drowns it
                torch.testing.assert_close(standardize(changed[None])[0], out, rtol=1e-4, atol=1e-4)


def test_a_map_without_contrast_says_nothing() -> None:
    flat = torch.tensor([0.0, 7.3, 1e30])[:, None, None, None].expand(3, 2, 4, 4)
    assert torch.equal(standardize(flat), torch.zeros(3, 2, 4, 4))


@pytest.mark.parametrize("stages", [("res3",), ("res4", "res2"), ("head", "res5", "res3")])
@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_the_map_is_the_sum_of_the_standardised_maps_of_its_stages(
    stages: tuple[str, ...], weight: float
) -> None:
    torch.manual_seed(0)
    state = X3D(3).state_dict()
    fused = FusedScorer(stages=stages, motion=weight, **SETTINGS).eval()
    fused.trunk.load_classifier(state, source="test")
    expected = weight * standardize(motion(clips(), GRID, 0))
    for stage in stages:
        alone = X3DScorer(stage=stage, **SETTINGS).eval()
        alone.trunk.load_classifier(state, source="test")
        with torch.inference_mode():
            expected = expected + standardize(alone(clips(), GRID))
    with torch.inference_mode():
        torch.testing.assert_close(fused(clips(), GRID), expected)
    assert fused.trunk.stage == max(stages, key=STAGES.index)  # nothing is computed beyond


def test_every_frame_has_its_floor() -> None:
    frames = torch.zeros(1, 8, 64, 64, 3, dtype=torch.uint8)
    frames[:, 5] = 255  # all that moves is in the second half
    for floor, sure in ((0.0, 0), (0.5, 4), (1.0, 8)):
        pruner = build_pruner(
            "papr_plus",
            keep_ratio=0.5,
            stages=["res2"],
            motion=100,
            min_per_frame=floor,
            uniform_share=0.0,
            frames=4,
            size=32,
        )
        assert pruner is not None
        kept = pruner.choose(pruner.scorer(frames, GRID)).mask().sum((2, 3))[0].tolist()
        assert sum(kept) == 16 and kept[0] >= sure


WRONG = [
    (
        {"stages": []},
        r"^pruner\.stages=\[\] must name one or more of res2, res3, res4, res5, head, each once$",
    ),
    ({"stages": ["res6"]}, r"^pruner\.stages=\['res6'\] must name"),
    ({"stages": ["res3", "res3"]}, r"each once$"),
    ({"motion": -1}, r"^pruner\.motion=-1 must be a number from 0 to 100"),
    ({"min_per_frame": 1.5}, r"^pruner\.min_per_frame=1\.5 must be a number from 0 to 1"),
    ({"uniform_share": -0.1}, r"^pruner\.uniform_share=-0\.1 must be a number from 0 to 1"),
    ({"scope": "frame"}, r"^unknown key pruner\.scope for pruner=papr_plus; it has weights, frames, "),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_wrong_options(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_pruner("papr_plus", **{"stages": ["res3"], **options})
