"""`tools/train.py` from its command line to weights that load: two steps on a dozen small videos."""

import csv
import json
import shutil
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from hypothesis import given, settings
from hypothesis import strategies as st

from video_papr.assembly.build_train import hold_out, tensorboard_log
from video_papr.backbones.builders import build_backbone
from video_papr.checkpoints.files import read_weights
from video_papr.config import TrainRunConfig, check
from video_papr.core.errors import DataError
from video_papr.core.pixels import IMAGENET_MEAN, IMAGENET_STD
from video_papr.core.reading import ReadConfig
from video_papr.data.annotations import VideoList, VideoRecord
from video_papr.pipeline import Pipeline
from video_papr.pruning.builders import build_pruner
from video_papr.synthetic.scenes import ACTIONS

ROOT = Path(__file__).resolve().parents[2]
QUIET = ("runtime=cpu", "runtime.workers=0", "progress=false")
SHORT = (*QUIET, "train.steps=2", "train.batch_size=4", "train.validate_every=1")
SMALL = (*SHORT, "backbone.num_frames=8", "backbone.input_size=32")
SYNTHETIC = ("dataset.num_videos=14", "train.val_videos=12", "train.curriculum=[[0.0,12]]")


@pytest.fixture
def train(run):
    """A function (words) -> exit status, stdout, stderr that runs `tools/train.py`."""
    return partial(run, "train")


def composed(*words):
    with initialize_config_module("video_papr.conf", version_base="1.3"):
        return check(TrainRunConfig, compose("train", overrides=list(words)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of the real command in a process of its own: its folder, its words, and what it printed."""
    out = tmp_path_factory.mktemp("run")
    words = (
        *(*SMALL, *SYNTHETIC, f"dataset.cache_dir={tmp_path_factory.mktemp('cache')}", f"output_dir={out}"),
        *("train.augment=hflip_actions", "train.colors=true", "train.location_loss=1"),
    )
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/train.py"), *words], capture_output=True, text=True, cwd=out
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return out, words, done.stdout


def test_run_writes_weights_that_load_with_their_class_names(trained):
    out, _, shown = trained
    assert "videomae_tiny: 12 classes, 14 clips, 12 for validation" in shown
    for name in ("weights.safetensors", "log.csv", "checkpoint.pt"):
        assert f"wrote {out / name}" in shown
    with (out / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2"]
    state, described = read_weights(out / "weights.safetensors")
    read = ReadConfig.from_metadata(described["read"], source="weights.safetensors")
    assert read == ReadConfig("uniform", None, 8, 32, 32, IMAGENET_MEAN, IMAGENET_STD)
    assert {key: described[key] for key in ("model", "trained_on", "steps")} == {
        "model": "videomae_tiny",
        "trained_on": "synthetic",
        "steps": 2,
    }
    assert described["top1_val"] == float(rows[-1]["top1"])
    assert not any(key.startswith("probe") for key in state)  # the head of `train.location_loss` stays behind
    model = build_backbone("videomae_tiny", weights=out / "weights.safetensors", num_frames=8, input_size=32)
    assert model.class_names == tuple(sorted(ACTIONS))
    logits = Pipeline(model)(torch.zeros(1, 8, 32, 32, 3, dtype=torch.uint8))
    assert logits.shape == (1, 12) and logits.isfinite().all()
    assert (model.head.weight - build_backbone("videomae_tiny").head.weight).abs().max() > 1e-4


def test_resume_continues_the_same_run_and_no_other(trained, train, tmp_path):
    out, words, _ = trained
    shutil.copytree(out, tmp_path / "copy")
    words = (*(w for w in words if not w.startswith("output_dir")), f"output_dir={tmp_path / 'copy'}")
    before = read_weights(out / "weights.safetensors")[0]
    status, _, errors = train(*words, "train.resume=true")
    assert (status, errors) == (0, "")
    after = read_weights(tmp_path / "copy" / "weights.safetensors")[0]
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    status, _, errors = train(*words, "train.resume=true", "train.learning_rate=0.5")
    assert status == 2
    assert errors.startswith(
        f"error: {tmp_path / 'copy' / 'checkpoint.pt'} was written under another schedule: "
    )
    assert len(errors.splitlines()) == 1
    fresh = (*(w for w in words if not w.startswith("output_dir")), f"output_dir={tmp_path / 'fresh'}")
    status, _, errors = train(*fresh, "train.resume=true")
    assert status == 2
    assert "does not exist; start without it" in errors


def test_scorer_becomes_a_pruner(trained, train, tmp_path):
    _, words, _ = trained  # the videos are in the cache already
    words = (*(w for w in words if not w.startswith("output_dir")), f"output_dir={tmp_path}")
    scorer = ("train.target=scorer", "train.scorer_frames=4", "train.scorer_size=32", "train.accumulate=2")
    status, shown, errors = train(*words, *scorer)
    assert (status, errors) == (0, "")
    assert "x3d_s: 12 classes, 14 clips, 12 for validation" in shown
    pruner = build_pruner("x3d_s", weights=tmp_path / "weights.safetensors", frames=4, size=32)
    assert pruner is not None
    assert pruner.scorer.cells(torch.zeros(1, 8, 32, 32, 3, dtype=torch.uint8)).shape == (1, 4, 1, 1)
    assert read_weights(tmp_path / "weights.safetensors")[1]["class_names"] == sorted(ACTIONS)


def test_fine_tuning_on_a_folder(trained, train, tmp_path, video_root):
    out, words, _ = trained
    cache = next(word for word in words if word.startswith("dataset.cache_dir"))
    root = tmp_path / "videos"
    shutil.copytree(video_root, root)
    (root / "right" / "text.mp4").write_text("not a video")
    (root / "right" / "empty.mp4").write_bytes(b"")
    status, shown, errors = train(
        *(*SMALL, "dataset=folder", "backbone=videomae_tiny", f"dataset.root={root}"),
        *(cache.replace("dataset.", "+dataset."), f"output_dir={tmp_path / 'out'}"),
        *(f"train.weights={out / 'weights.safetensors'}", "train.keep_ratio=[0.3,0.9]"),
    )
    assert status == 0, errors
    assert "videomae_tiny: 2 classes" in shown
    said = [line for line in errors.splitlines() if "cannot be read and are left out" in line]
    assert said and all(line.startswith("warning: ") for line in said)
    assert read_weights(tmp_path / "out" / "weights.safetensors")[1]["class_names"] == ["left", "right"]


# ---- the configuration ----


def test_recipes_win_over_the_defaults_and_the_command_line_over_both():
    plain, scorer = composed(), composed("experiment=train_scorer")
    assert (plain.train.target, scorer.train.target) == ("backbone", "scorer")
    assert plain.train.curriculum == ()
    for recipe in (scorer, composed("experiment=train_backbone")):
        assert recipe.dataset.split == "train" and recipe.dataset.num_videos >= 8000
        assert len(recipe.train.curriculum) >= 2
        assert recipe.train.augment == "hflip_actions"
    assert composed("train.steps=5", "experiment=train_scorer", "train.augment=none").train.steps == 5
    for target, weights in (("backbone", "videomae_tiny_synthetic"), ("scorer", "x3d_s_synthetic")):
        words = ("experiment=finetune_folder", "dataset.root=videos", f"train.target={target}")
        assert composed(*words).train.weights == weights


# ---- holding videos out ----


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(2, 30), min_size=1, max_size=6),
    share=st.floats(0.01, 1.0),
    seed=st.integers(0, 99),
)
def test_held_out_videos_are_a_part_of_every_class(sizes, share, seed):
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    order = np.random.default_rng(seed).permutation(len(labels))
    records = tuple(VideoRecord(Path(f"{i}.mp4"), labels[i], f"{i}.mp4") for i in order)
    videos = VideoList(records, None, ("missing.mp4",))
    kept, held = hold_out(videos, share, seed=seed)
    assert sorted((*kept.records, *held.records), key=lambda r: r.name) == sorted(
        records, key=lambda r: r.name
    )
    for part in (kept, held):
        assert list(part.records) == [record for record in records if record in part.records]
    counts = Counter(record.label for record in held.records)
    for label, size in enumerate(sizes):
        assert counts[label] == min(size - 1, max(1, round(share * size)))
    assert hold_out(videos, share, seed=seed) == (kept, held)


def test_class_of_a_single_video_cannot_be_held_out():
    records = tuple(VideoRecord(Path(name), label, name) for name, label in (("a", 0), ("b", 0), ("c", 1)))
    with pytest.raises(DataError, match=r"^c: its class has a single video; two are needed"):
        hold_out(VideoList(records, None), 0.5, seed=0)


def test_tensorboard_events(tmp_path):
    pytest.importorskip("tensorboard")
    log = tensorboard_log(tmp_path)
    log({"step": 3, "loss": 1.5, "top1": 20.0, "learning_rate": "0.001", "clips": 6, "seconds": 1.0})
    assert [path.name.split(".")[0] for path in tmp_path.iterdir()] == ["events"]


def test_finetuned_networks_are_evaluated_as_they_were_trained(run, video_root, tmp_path):
    """The two commands of docs/finetune.md, and the third that reads what they wrote."""
    cache = f"dataset.cache_dir={tmp_path / 'cache'}"
    for target in ("backbone", "scorer"):
        words = ("experiment=finetune_folder", f"train.target={target}", "train.scorer_size=64", *SHORT)
        given = (cache, f"dataset.root={video_root}", f"output_dir={tmp_path / target}")
        status, _, errors = run("train", *words, *given)
        assert status == 0, errors
    status, _, errors = run(
        *("eval", "experiment=finetuned_folder", f"dataset.root={video_root}", *QUIET, "visualize=0"),
        f"output_dir={tmp_path / 'out'}",
        f"backbone.weights={tmp_path / 'backbone' / 'weights.safetensors'}",
        f"pruner.weights={tmp_path / 'scorer' / 'weights.safetensors'}",
    )
    assert status == 0, errors
    assert "random weights" not in errors and "accuracy means nothing" not in errors
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["num_evaluated"], results["num_failed"]) == (5, 0)
