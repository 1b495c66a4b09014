"""`Pipeline.from_config`: the pipeline of the command line, with the same names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module

import video_papr as vp
from video_papr.core.errors import ConfigError
from video_papr.inference.predict import Recipe

SMALL: dict[str, Any] = {
    "backbone": {"weights": None, "num_frames": 4, "input_size": 16, "num_classes": 3},
    "runtime": "cpu",
}


def test_defaults_are_the_bundled_weights():
    pipeline = vp.Pipeline.from_config(runtime="cpu")
    assert pipeline.backbone.class_names is not None
    assert pipeline.pruner is not None and pipeline.pruner.name == "x3d_s"
    assert pipeline.recipe == Recipe(sampling="uniform", short_side=64)  # as the bundled weights say
    frames = torch.randint(0, 256, (20, 48, 64, 3), dtype=torch.uint8)
    guesses = pipeline.predict(frames, top_k=2)
    assert len(guesses) == 2
    assert guesses[0].name == pipeline.backbone.class_names[guesses[0].label]


def test_options_and_keys():
    pipeline = vp.Pipeline.from_config(
        **SMALL, dataset="folder", pruner={"name": "random", "keep_ratio": 0.5}, views="2x3", seed=7
    )
    assert pipeline.pruner is not None
    assert (pipeline.pruner.name, pipeline.pruner.budget.value) == ("random", 0.5)
    assert pipeline.pruner.scorer.seed == 7
    assert pipeline.recipe == Recipe(clips=2, crops=3)
    assert not pipeline.training
    assert vp.Pipeline.from_config(**SMALL, pruner="none", merger={"name": "tome", "r": 1}).merger is not None
    several = vp.Pipeline.from_config(**SMALL, pruner={"name": "similarity", "after_block": [1, 2]})
    assert several.pruner is not None and several.pruner.after_blocks == (1, 2)


def test_composed_configuration_of_another_script():
    words = [
        "runtime=cpu",
        "backbone.weights=null",
        "backbone.num_frames=4",
        "backbone.input_size=16",
        "pruner=center",
    ]
    with initialize_config_module("video_papr.conf", version_base="1.3"):
        config = compose("eval", overrides=words)
        pipeline = vp.Pipeline.from_config(config)
    assert pipeline.pruner is not None and pipeline.pruner.name == "center"
    with pytest.raises(ConfigError, match=r"^give a configuration or groups, not both \(pruner\)"):
        vp.Pipeline.from_config(config, pruner="none")


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"prunner": "none"}, "prunner: no such key. Did you mean 'pruner'?"),
        ({"pruner": "x3dd"}, "pruner=x3dd: no such option. Did you mean 'x3d_s'?"),
        ({"pruner": {"keepratio": 1}}, "pruner.keepratio: no such key. Did you mean 'keep_ratio'?"),
        ({"pruner": {"keep_ratio": 2}}, "pruner.keep_ratio=2: must be a number above 0 and at most 1"),
        ({"backbone": {"weights": "it's, {here}\\"}}, "backbone.weights=it's, {here}\\ "),
        ({"seed": -1}, "seed=-1: must be a whole number of at least 0."),
    ],
)
def test_wrong_groups(groups, message):
    with pytest.raises(ValueError) as caught:
        vp.Pipeline.from_config(runtime="cpu", **groups)
    assert str(caught.value).startswith(message)


def test_example_of_the_documentation_runs(tmp_path, monkeypatch):
    page = (Path(__file__).resolve().parents[2] / "docs" / "predict.md").read_text(encoding="utf-8")
    example = page.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(example, names)
    assert (tmp_path / "features.npy").is_file()
    assert names["vectors"].shape == (1, 192)
    assert len(names["tokens"].tokens) == len(names["tokens"].keep_idx) == 76
    assert names["answer"].end_seconds == 3
