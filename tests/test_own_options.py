"""Pruners, datasets and backbones from outside of the repository, as docs/own_*.md describe them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import video_papr as vp
from video_papr.core.errors import ConfigError
from video_papr.core.types import TokenGrid

ROOT = Path(__file__).resolve().parents[1]
SMALL = (
    *("backbone.num_frames=4", "backbone.input_size=16", "backbone.weights=null"),
    *("runtime=cpu", "runtime.workers=0", "progress=false", "visualize=1"),
)
FRAMES = torch.randint(
    0, 256, (2, 4, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
GRID = TokenGrid(1, 2, 2)
MODEL = SimpleNamespace(grid=GRID)


def files_of(page):
    """The code blocks of a page that open with the name of a file."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w+\n(# (\S+\.(?:py|yaml))\n.*?)^```", text, re.MULTILINE | re.DOTALL)
    return {name: body for body, name in blocks}


def write_files(page, folder):
    files = files_of(page)
    for name, body in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(body)
    return files


def python_of(page):
    """The last block of Python on a page."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[-1]


def test_third_party_pruner(tmp_path, video_root, monkeypatch):
    """From the page to results.json, in another process and another folder."""
    files = write_files("own_pruner.md", tmp_path)
    assert set(files) == {"my_pruner.py", "my_conf/pruner/edges.yaml"}
    assert len(files["my_pruner.py"].splitlines()) <= 20
    words = [
        "--config-dir",
        "my_conf",
        "pruner=edges",
        "pruner.keep_ratio=0.5",
        "pruner.scorer_options.power=1.5",
    ]
    folder = ["dataset=folder", f"dataset.root={video_root}", "output_dir=out"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "eval.py"), *words, *SMALL, *folder],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["pruner"], results["keep_ratio"], results["num_evaluated"]) == ("edges", 0.5, 5)
    assert results["settings"]["pruner"]["scorer_options"] == {"power": 1.5}
    assert results["latency_ms"]["score"] > 0
    assert (tmp_path / "out" / "kept_tubelets.png").is_file()
    monkeypatch.syspath_prepend(tmp_path)
    names: dict[str, Any] = {}
    exec(python_of("own_pruner.md"), names)
    assert names["pruner"].name == "edges"
    assert len(names["logits"]) == 1


def test_dataset_and_backbone_from_a_folder(tmp_path, video_root, run_eval, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert set(write_files("own_dataset.md", tmp_path)) == {"my_conf/dataset/birds.yaml"}
    assert set(write_files("own_backbone.md", tmp_path)) == {"my_conf/backbone/mine.yaml"}
    mine = tmp_path / "my_conf/backbone/mine.yaml"
    mine.write_text(mine.read_text().replace("videomae_b", "videomae_tiny"))
    (tmp_path / "my_videos").symlink_to(video_root)
    entries = [
        {"file": path.relative_to(video_root).as_posix(), "action": path.relative_to(video_root).parts[0]}
        for path in sorted(video_root.rglob("*.m*"))
    ]
    (tmp_path / "annotations.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    exec(python_of("own_dataset.md"), {})  # writes the list
    assert (tmp_path / "classes.txt").read_text() == "left\nright\n"
    words = [word for word in SMALL if not word.startswith("backbone.num_frames")]
    status, _, errors = run_eval(
        *("--config-dir", "my_conf", "dataset=birds", "backbone=mine", "pruner=motion", "output_dir=out"),
        *words,
    )
    assert status == 0, errors
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert sorted(line["label"] for line in lines) == [0, 0, 0, 1, 1]
    assert json.loads((tmp_path / "out" / "results.json").read_text())["pruner"] == "motion"


@pytest.fixture
def run_eval(run_in_process):
    from video_papr.cli.eval import main

    return partial(run_in_process, "eval.py", main)


def test_backbone_of_the_page():
    names: dict[str, Any] = {}
    exec(python_of("own_backbone.md"), names)
    assert names["logits"].shape == (2, 5)
    assert names["features"].shape[1] == 48
    frames = names["frames"]
    assert names["pipeline"].select(frames).num_kept == 32
    everything = torch.arange(64).expand(2, -1)
    pixels = names["pipeline"].backbone.normalize(frames)
    torch.testing.assert_close(names["backbone"](pixels, everything), names["backbone"](pixels))


class Constant(nn.Module):
    """Gives what it was told, whatever it sees."""

    def __init__(self, answer=None):
        super().__init__()
        self.answer = answer

    def forward(self, frames, grid):
        return self.answer


def by_rows():
    """A scorer that is a plain function: later tokens of the grid are better."""
    return lambda frames, grid: (
        torch.arange(grid.num_tokens).float().view(1, *grid.shape).repeat(len(frames), 1, 1, 1)
    )


def test_plain_function_serves_as_well():
    pruner = vp.build_pruner("rows", scorer=by_rows, keep_ratio=0.5)
    assert pruner is not None
    assert pruner.select(FRAMES, MODEL).keep_idx.tolist() == [[2, 3], [2, 3]]
    variable = vp.build_pruner("rows", scorer=by_rows, budget="threshold", threshold=0.3)
    assert variable is not None
    assert variable.select(FRAMES, MODEL).keep_idx.tolist() == [[1, 2, 3], [1, 2, 3]]


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (torch.zeros(2, 2, 2), "torch.float32 (2, 2, 2)"),
        (torch.zeros(1, 1, 2, 2), "torch.float32 (1, 1, 2, 2)"),
        (torch.zeros(2, 1, 2, 2, dtype=torch.int64), "torch.int64 (2, 1, 2, 2)"),
        (None, "NoneType"),
    ],
)
def test_wrong_map_is_named(answer, named):
    pruner = vp.build_pruner("mine", scorer=Constant, scorer_options={"answer": answer})
    assert pruner is not None
    with pytest.raises(
        ConfigError, match=re.escape(f"pruner.scorer=Constant gives {named}; a map must be float (2, 1")
    ):
        pruner.select(FRAMES, MODEL)


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        (
            "mine",
            {"scorer": "nowhere_at_all:Edges"},
            "pruner.scorer=nowhere_at_all:Edges: no module 'nowhere_at_all'; install it",
        ),
        ("mine", {"scorer": "json:Edges"}, "pruner.scorer=json:Edges: json has no class or function 'Edges'"),
        (
            "mine",
            {"scorer": "json.Edges"},
            "pruner.scorer='json.Edges': must be an import path, package.module:name",
        ),
        (
            "mine",
            {"scorer": Constant, "scorer_options": {"x": 1}},
            "pruner.scorer=Constant refuses pruner.scorer_options (x=1)",
        ),
        (
            "mine",
            {"scorer": "json:dumps", "scorer_options": {"obj": 1}},
            "pruner.scorer=json:dumps gives str; it must give",
        ),
        (
            "mine",
            {"scorer": by_rows, "frames": 8},
            "unknown key pruner.frames for pruner=mine; it has keep_ratio",
        ),
        ("random", {"scorer": by_rows}, "pruner.name='random' is a pruner of this package"),
        ("random", {"scorer_options": {"x": 1}}, "unknown key pruner.scorer_options for pruner=random"),
        ("mine", {"scorer": by_rows, "keep_ratio": 0}, "pruner.keep_ratio=0"),
    ],
)
def test_mistakes_are_one_line(name, options, line):
    with pytest.raises(ConfigError) as caught:
        vp.build_pruner(name, **options)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_module_with_a_mistake_of_its_own_shows_it(tmp_path, monkeypatch):
    (tmp_path / "half_a_pruner.py").write_text("import nowhere_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="nowhere_at_all"):
        vp.build_pruner("mine", scorer="half_a_pruner:Edges")


def test_option_without_a_scorer(run_eval, tmp_path):
    (tmp_path / "pruner").mkdir()
    (tmp_path / "pruner" / "edges.yaml").write_text("defaults:\n  - _own\n\nname: edges\n")
    status, _, errors = run_eval("--config-dir", str(tmp_path), "pruner=edges")
    assert status == 2
    assert errors.startswith("error: pruner.name='edges': must be one of brightness, center, ")
    assert errors.endswith("A pruner of your own also needs pruner.scorer.\n")
