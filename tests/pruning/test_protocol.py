"""Pruners describe themselves: one file adds one, and all lists of names follow."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import video_papr as vp
from video_papr.adapters import prune as adapters
from video_papr.core.errors import ConfigError
from video_papr.pruning import RENAMED_OPTIONS, builders, scorers
from video_papr.pruning.builders import SPECS, build_pruner, pruner_names

ROOT = Path(__file__).resolve().parents[2]
EDGES = '''
"""Edge strength as a significance map."""

from functools import partial

from torch import nn
from torch.nn import functional as F

from video_papr.pruning.map_pruner import build_map_pruner
from video_papr.pruning.protocol import MAP_OPTIONS, PrunerSpec


class Edges(nn.Module):
    def forward(self, frames, grid):
        return F.adaptive_avg_pool3d(frames.float().mean(-1).diff(dim=2).abs(), grid.shape)


def build(spec, **options):
    return build_map_pruner(spec, Edges(), **options)


SPECS = (PrunerSpec("edges", "Keeps the strongest edges.", build, MAP_OPTIONS, for_images=True, shares_crops=True),)
'''


@pytest.fixture
def edges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file more among the pruners' own."""
    (tmp_path / "edges.py").write_text(EDGES)
    monkeypatch.setattr(scorers, "__path__", [*scorers.__path__, str(tmp_path)])
    for name, spec in builders._declared().items():
        monkeypatch.setitem(SPECS, name, spec)


@pytest.mark.usefixtures("edges")
def test_a_file_adds_a_pruner_everywhere() -> None:
    from video_papr.cli.demo import offered

    assert "edges" in pruner_names(lambda spec: spec.shares_crops)
    assert offered()["edges"] == "Keeps the strongest edges."
    with pytest.raises(
        ConfigError, match=r"^pruner='edge' is unknown; use one of none, .*edges.* Did you mean 'edges'\?"
    ):
        build_pruner("edge")
    backbone = vp.build_backbone("videomae_tiny", num_frames=8, input_size=32)
    flow = vp.Pipeline(backbone, build_pruner("edges", keep_ratio=0.25, compensation="merge"))
    frames = torch.randint(0, 256, (1, 8, 32, 32, 3), dtype=torch.uint8)
    assert flow(frames).isfinite().all()
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=3).eval()
    vp.prune(model, pruner="edges", keep_ratio=0.5, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert vp.kept_tokens(model, torch.rand(1, 3, 32, 32)).num_kept == 2
    with pytest.raises(ConfigError, match=r"pruner=similarity cannot be used here .*edges"):
        vp.prune(vp.unprune(model), pruner="similarity")


@pytest.mark.parametrize("name", SPECS)
def test_declarations_are_complete_and_true(name: str) -> None:
    spec = SPECS[name]
    assert spec.summary.endswith(".") and "\n" not in spec.summary
    assert (ROOT / f"conf/pruner/{name}.yaml").is_file()
    made = build_pruner(name)
    assert made is not None and made.spec is spec
    assert bool(made.after_blocks) == spec.reads_tokens
    assert made.budget.variable == spec.variable != spec.has_ratio
    assert any(True for _ in made.parameters()) == spec.trained


TRAITS = {
    "brightness": {"for_images", "shares_crops"},
    "center": {"for_images"},
    "image_convnet": {"for_images", "shares_crops", "trained"},
    "motion": {"compares_frames", "shares_crops"},
    "codec": {"compares_frames", "shares_crops", "reads_motion"},
    "papr_plus": {"shares_crops", "trained"},
    "pixel_rule": {"compares_frames", "shares_crops", "trained"},
    "random": {"for_images"},
    "run_length": {"compares_frames", "shares_crops", "variable"},
    "similarity": {"reads_tokens"},
    "uniform": {"for_images"},
    "video_convnet": {"shares_crops", "trained"},
    "x3d_m": {"shares_crops", "trained"},
    "x3d_s": {"shares_crops", "trained"},
    "x3d_xs": {"shares_crops", "trained"},
}


def test_traits_are_as_documented() -> None:
    """Who may use a pruner hangs on them: prune() for images, crops that share a map, packing, the demo's slider."""
    declared = {
        name: {trait.name for trait in fields(spec) if getattr(spec, trait.name) is True}
        for name, spec in SPECS.items()
    }
    assert declared == TRAITS


def test_no_other_module_lists_pruners_or_asks_for_their_class() -> None:
    """Three names in one statement are a list that a new pruner would be missing from."""
    names = "|".join(SPECS)
    for path in (ROOT / "video_papr").rglob("*.py"):
        if "pruning" in path.relative_to(ROOT).parts:
            continue
        text = path.read_text()
        offer = path.parts[-2:] == ("config", "commands.py")  # what the demo offers first, a choice
        assert offer or not re.search(rf'("({names})",\s*){{3}}', text), path
        assert not re.search(r"isinstance\([^)]*(MapPruner|SimilarityPruner|\bPruner\b)", text), path


OLD: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "motion",
        {"carry": "pool", "carry_cell": [1, 2, 2]},
        {"compensation": "pool", "compensation_cell": [1, 2, 2]},
    ),
    ("motion", {"budget": "mass", "mass": 0.4}, {"budget": "top_p", "top_p": 0.4}),
    (
        "papr_plus",
        {"floor": 0.25, "ground": 0.5, "frames": 4, "size": 32},
        {"min_per_frame": 0.25, "uniform_share": 0.5, "frames": 4, "size": 32},
    ),
]


@pytest.mark.parametrize(("name", "old", "new"), OLD)
def test_old_names_are_read_with_a_warning(name: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    with pytest.warns(FutureWarning, match="is now pruner") as said:
        one = build_pruner(name, **old)
    assert {warning.filename for warning in said} == {__file__}  # where the user's own line is
    two = build_pruner(name, **new)
    assert one is not None and two is not None and one.budget == two.budget
    for key in RENAMED_OPTIONS.values():
        assert getattr(one, key, None) == getattr(two, key, None)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_option_under_both_names_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^pruner\.compensation is given twice"):
        build_pruner("motion", carry="pool", compensation="pool")


def test_custom_scorers_are_pruners_too() -> None:
    class Zeros(nn.Module):
        def forward(self, frames: torch.Tensor, grid: Any) -> torch.Tensor:
            return torch.zeros(len(frames), *grid.shape)

    made = build_pruner("mine", scorer=Zeros, keep_ratio=0.5)
    assert made is not None and made.spec.name == made.name == "mine" and not made.after_blocks
    assert adapters.SPECS is SPECS and "mine" not in SPECS
