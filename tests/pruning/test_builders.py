"""Pruners by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from video_papr.errors import CheckpointError, ConfigError
from video_papr.pruning.builders import PRUNERS, build_pruner
from video_papr.structures import TokenGrid

GRID = TokenGrid(4, 4, 4)
SMALL = {"frames": 4, "size": 32}


def options(name: str) -> dict[str, int]:
    return SMALL if name.startswith("x3d") else {}


@pytest.mark.parametrize("name", [name for name in PRUNERS if name != "none"])
def test_every_pruner_keeps_its_share_and_does_not_depend_on_the_batch(name: str) -> None:
    pruner = build_pruner(name, keep_ratio=0.29, **options(name))
    assert pruner is not None
    assert (pruner.name, pruner.training) == (name, False)
    assert not any(p.requires_grad for p in pruner.parameters())
    frames = torch.randint(
        0, 256, (3, 8, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    selection = pruner(frames, GRID)
    assert selection.num_kept == 18
    assert selection.grid == GRID
    assert torch.equal(selection.keep_idx, selection.keep_idx.sort(1).values)
    significance = pruner.significance(frames, GRID)
    assert (significance.shape, significance.dtype) == ((3, 4, 4, 4), torch.float32)
    alone = torch.cat([pruner(frames[i : i + 1], GRID).keep_idx for i in range(3)])
    assert torch.equal(selection.keep_idx, alone)


def test_frame_scope_reaches_the_selection() -> None:
    pruner = build_pruner("brightness", keep_ratio=0.5, scope="frame")
    assert pruner is not None
    frames = torch.zeros(1, 8, 32, 32, 3, dtype=torch.uint8)
    frames[:, :2] = 255  # a global ranking would keep the first frame whole
    assert pruner(frames, GRID).mask().sum((2, 3)).tolist() == [[8, 8, 8, 8]]


def test_none_is_the_dense_model() -> None:
    assert build_pruner("none") is None


def test_seed_decides_random_weights_and_leaves_the_callers_randomness_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = (build_pruner("x3d_xs", seed=seed, **SMALL) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    weights = [pruner.scorer.trunk.pre_conv.weight for pruner in (one, same, other)]  # type: ignore[union-attr]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_clips_of_the_published_recipe() -> None:
    seen = {}
    for name in ("x3d_xs", "x3d_s", "x3d_m"):
        pruner = build_pruner(name)
        assert pruner is not None
        seen[name] = (pruner.scorer.frames, pruner.scorer.size, pruner.scorer.align_corners)
    assert seen == {"x3d_xs": (4, 160, True), "x3d_s": (8, 160, True), "x3d_m": (16, 224, True)}


WRONG = [
    (("x3d", {}), r"^pruner=x3d is unknown; use one of none, x3d_xs, .*Did you mean x3d_"),
    (("random", {"keep_ratio": 0}), r"^pruner\.keep_ratio=0 must be a number"),
    (("random", {"scope": "clip"}), r"^pruner\.scope='clip' is unknown"),
    (("motion", {"size": 32}), r"^pruner\.size is no option of pruner=motion; it has seed$"),
    (("motion", {"weights": "x3d.pyth"}), r"^pruner\.weights is no option of pruner=motion; it has seed$"),
    (("x3d_s", {"sizes": 32}), r"^pruner\.sizes is no option of pruner=x3d_s; it has frames, size,"),
    (("x3d_s", {"size": 0}), r"^pruner\.frames=8 must be >= 1 and pruner\.size=0 >= 32"),
    (("x3d_s", {"frames": 0}), r"^pruner\.frames=0 must be >= 1"),
    (("x3d_s", {"stage": "stem"}), r"^pruner\.stage='stem' is unknown"),
]


@pytest.mark.parametrize(("call", "line"), WRONG, ids=[str(call) for call, _ in WRONG])
def test_wrong_options_are_refused_when_the_pruner_is_built(call: tuple, line: str) -> None:
    name, given = call
    with pytest.raises(ConfigError, match=line) as caught:
        build_pruner(name, **given)
    assert "\n" not in str(caught.value)


def test_weights_that_are_missing_or_of_another_model(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"^pruner\.weights=.*absent\.pyth is neither a file nor a bundled model"
    ):
        build_pruner("x3d_s", weights=tmp_path / "absent.pyth")
    torch.save({"model_state": {"head.weight": torch.zeros(2, 2)}}, tmp_path / "vit.pyth")
    with pytest.raises(
        CheckpointError, match=r"^pruner\.weights=.*vit\.pyth does not fit X3DTrunk; missing: "
    ):
        build_pruner("x3d_s", weights=tmp_path / "vit.pyth")
