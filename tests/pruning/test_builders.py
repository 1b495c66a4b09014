"""Pruners by name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from video_papr.core.errors import CheckpointError, ConfigError
from video_papr.core.types import TokenGrid
from video_papr.pruning.builders import PRUNERS, SPECS, build_pruner

GRID = TokenGrid(4, 4, 4)
MODEL = SimpleNamespace(grid=GRID)  # what a pruner of frames asks of a backbone
SMALL = {"frames": 4, "size": 32}


def options(name: str) -> dict[str, Any]:
    if name == "papr_plus":
        return {**SMALL, "stages": ["res2", "res3"], "motion": 0.5, "min_per_frame": 0.5}
    return SMALL if name.startswith("x3d") else {}


NO_MAPS = ("none", "similarity", "run_length", "pixel_rule")  # the last has no random weights
MAPS = [name for name in PRUNERS if name not in NO_MAPS]


@pytest.mark.parametrize("name", MAPS)
def test_every_pruner_keeps_its_share_and_does_not_depend_on_the_batch(name: str) -> None:
    pruner = build_pruner(name, keep_ratio=0.29, **options(name))
    assert pruner is not None
    assert (pruner.name, pruner.training) == (name, False)
    assert not any(p.requires_grad for p in pruner.parameters())
    frames = torch.randint(
        0, 256, (3, 8, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    selection = pruner.select(frames, MODEL)
    assert selection.num_kept == 18
    assert selection.grid == GRID
    assert torch.equal(selection.keep_idx, selection.keep_idx.sort(1).values)
    significance = pruner.significance(frames, MODEL)
    assert (significance.shape, significance.dtype) == ((3, 4, 4, 4), torch.float32)
    alone = torch.cat([pruner.select(frames[i : i + 1], MODEL).keep_idx for i in range(3)])
    assert torch.equal(selection.keep_idx, alone)


def test_frame_scope_reaches_the_selection() -> None:
    pruner = build_pruner("brightness", keep_ratio=0.5, scope="frame")
    assert pruner is not None
    frames = torch.zeros(1, 8, 32, 32, 3, dtype=torch.uint8)
    frames[:, :2] = 255  # a global ranking would keep the first frame whole
    assert pruner.select(frames, MODEL).mask().sum((2, 3)).tolist() == [[8, 8, 8, 8]]


@pytest.mark.parametrize("budget", [{}, {"budget": "top_p", "top_p": 0.4}])
def test_place_scope_keeps_the_places_of_the_highest_mean_in_every_frame(budget: dict[str, Any]) -> None:
    """Whichever way the number of places is found, they are the best ones of the mean over time."""
    pruner = build_pruner("motion", keep_ratio=0.3, scope="place", **budget)
    assert pruner is not None
    significance = torch.rand(3, *GRID.shape, generator=torch.Generator().manual_seed(0))
    selection = pruner.choose(significance)
    mask, mean = selection.mask(), significance.mean(1)
    assert selection.grid == GRID
    for clip, values in zip(mask, mean, strict=True):
        assert torch.equal(clip, clip[:1].expand_as(clip))
        assert values[clip[0]].min() > values[~clip[0]].max()
    if not budget:
        assert mask[:, 0].sum((1, 2)).tolist() == [4, 4, 4]  # 0.3 of 16 places


@pytest.mark.parametrize("name", [*MAPS, "run_length"])
@pytest.mark.parametrize("budget", ["top_p", "threshold"])
def test_every_clip_gets_its_own_number_of_tokens_whatever_its_batch(name: str, budget: str) -> None:
    extra = (
        {"min_keep": 0.1} if name == "run_length" else {"budget": budget, "min_keep": 0.1, "max_keep": 0.7}
    )
    pruner = build_pruner(name, **options(name), **extra)
    assert pruner is not None
    frames = torch.randint(
        0, 256, (4, 8, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    frames[1, :, :16] = 90  # half of the picture stands still
    frames[2] = 0
    frames[3] = frames[3, :1]
    selection = pruner.select(frames, MODEL)
    counts = selection.counts().tolist()
    assert all(6 <= count <= (64 if name == "run_length" else 44) for count in counts)
    if name == "motion":
        assert counts[1] < counts[0] or budget == "threshold"
        assert counts[2] == counts[3] == 6  # nothing moves: the least that is allowed
    if name == "run_length":
        assert counts == [64, 16 + 24, 16, 16]  # the first tubelets, and what changes
    for row in range(4):
        alone = pruner.select(frames[row : row + 1], MODEL)
        assert torch.equal(selection.mask()[row], alone.mask()[0])


@pytest.mark.parametrize("name", SPECS)
def test_a_pruner_without_options_is_the_one_of_its_configuration(name: str) -> None:
    """A library's user and the command line get the same pruner; options that follow others are left out."""
    folder = Path(__file__).parents[2] / "conf" / "pruner"
    own: Any = OmegaConf.to_container(OmegaConf.load(folder / f"{name}.yaml"))
    for base in own.pop("defaults", ()):
        own = {**OmegaConf.to_container(OmegaConf.load(folder / f"{base}.yaml")), **own}  # type: ignore[dict-item]
    said = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in own.items()
        if key in SPECS[name].options and value is not None and not str(value).startswith("${")
    }

    def described(pruner: Any) -> dict[tuple[str, str], Any]:
        parts = {"pruner": pruner, "scorer": getattr(pruner, "scorer", pruner), "budget": pruner.budget}
        plain = (bool, int, float, str, tuple, frozenset)
        return {
            (part, key): value
            for part, owner in parts.items()
            for key, value in vars(owner).items()
            if isinstance(value, plain)
        }

    assert described(build_pruner(name)) == described(build_pruner(name, **said))


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
        seen[name] = (pruner.scorer.frames, pruner.scorer.size, pruner.scorer.resizing["align_corners"])
    assert seen == {"x3d_xs": (4, 160, True), "x3d_s": (8, 160, True), "x3d_m": (16, 224, True)}


WRONG = [
    (("x3d", {}), r"^pruner='x3d' is unknown; use one of none, papr_plus, .*Did you mean 'x3d_"),
    (("random", {"keep_ratio": 0}), r"^pruner\.keep_ratio=0 must be a number"),
    (("random", {"scope": "clip"}), r"^pruner\.scope='clip' is unknown"),
    (
        ("motion", {"size": 32}),
        r"^unknown key pruner\.size for pruner=motion; it has seed, keep_ratio, budget,",
    ),
    (("motion", {"weights": "x3d.pyth"}), r"^unknown key pruner\.weights for pruner=motion; it has seed,"),
    (
        ("similarity", {"weights": "x3d.pyth"}),
        r"^unknown key pruner\.weights for pruner=similarity; it has mode,",
    ),
    (
        ("run_length", {"keep_ratio": 0.3}),
        r"^unknown key pruner\.keep_ratio for pruner=run_length; it has tau,",
    ),
    (
        ("motion", {"budget": "some"}),
        r"^pruner\.budget='some' is unknown; use one of fixed, top_p, threshold$",
    ),
    (("motion", {"budget": "top_p", "top_p": 0}), r"^pruner\.top_p=0 must be a number with 0 < top_p <= 1"),
    (("motion", {"threshold": 2}), r"^pruner\.threshold=2 must be a number from 0 to 1$"),
    (("motion", {"min_keep": 0}), r"^pruner\.min_keep=0 must be a number with 0 < min_keep <= 1"),
    (
        ("motion", {"min_keep": 0.5, "max_keep": 0.4}),
        r"^pruner\.min_keep=0\.5 must be at most pruner\.max_keep=0\.4$",
    ),
    (("run_length", {"tau": 300}), r"^pruner\.tau=300 must be a number from 0 to 255$"),
    (("similarity", {"tau": float("nan")}), r"^pruner\.tau=nan must be a number from -1 to 1$"),
    (("similarity", {"deviations": "a"}), r"^pruner\.deviations=a must be a number$"),
    (
        ("similarity", {"mode": "top"}),
        r"^pruner\.mode='top' is unknown; use one of ratio, threshold, adaptive$",
    ),
    (
        ("similarity", {"diversity": "k"}),
        r"^pruner\.diversity='k' is unknown; use one of none, cluster, grid$",
    ),
    (("similarity", {"cluster_tau": 2}), r"^pruner\.cluster_tau=2 must be a number from -1 to 1$"),
    (("similarity", {"after_block": -1}), r"^pruner\.after_block=-1 must be a whole number of at least 0$"),
    (
        ("x3d_s", {"sizes": 32}),
        r"^unknown key pruner\.sizes for pruner=x3d_s; it has weights, recipe, frames, size,",
    ),
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
    with pytest.raises(CheckpointError, match=r"^pruner\.weights=.*vit\.pyth holds no X3D of pytorchvideo"):
        build_pruner("x3d_s", weights=tmp_path / "vit.pyth")
