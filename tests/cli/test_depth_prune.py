"""`tools/depth_prune.py` from its command line to weights that `tools/eval.py` takes: few steps on two dozen videos."""

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hydra import compose, initialize_config_module
from PIL import Image
from safetensors.torch import save_file

from video_papr.backbones.builders import build_backbone
from video_papr.checkpoints.files import read_weights, write_weights
from video_papr.config import DepthRunConfig, check
from video_papr.synthetic.scenes import ACTIONS

ROOT = Path(__file__).resolve().parents[2]
QUIET = ("runtime=cpu", "runtime.workers=0", "progress=false")
EVAL = (*QUIET, "visualize=0", "dataset.num_videos=12")
SMALL = (
    *(*QUIET, "backbone.num_frames=8", "backbone.input_size=32", "depth.batch_size=4"),
    *(
        "depth.supernet_steps=2",
        "depth.progressive_steps=2",
        "depth.finetune_steps=1",
        "depth.validate_every=2",
    ),
    *("depth.calibration_clips=4", "depth.latency_clips=1", "depth.latency_repeats=1"),
)
SYNTHETIC = ("dataset.num_videos=13", "depth.val_videos=12")
SCORER = (
    *("depth.target=scorer", "depth.prune=3", "depth.scorer_frames=2", "depth.scorer_size=32"),
    *("depth.exhaustive=0", "depth.population=2", "depth.generations=0", "depth.search_clips=4"),
)


@pytest.fixture
def prune(run):
    """A function (words) -> exit status, stdout, stderr that runs `tools/depth_prune.py`."""
    return partial(run, "depth_prune")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return f"dataset.cache_dir={tmp_path_factory.mktemp('cache')}"


def composed(*words):
    with initialize_config_module("video_papr.conf", version_base="1.3"):
        return check(DepthRunConfig, compose("depth_prune", overrides=list(words)))


@pytest.fixture(scope="module")
def pruned(tmp_path_factory, cache):
    """A run of the real command in a process of its own: its folder, its words, and what it printed."""
    out = tmp_path_factory.mktemp("run")
    words = (*SMALL, *SYNTHETIC, cache, f"output_dir={out}", "depth.mode=block", "depth.prune=2")
    words = (*words, "depth.keep_ratio=[0.3,0.9]", "depth.keep_by=actor", "depth.augment=hflip_actions")
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/depth_prune.py"), *words], capture_output=True, text=True, cwd=out
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return out, words, done.stdout


def test_pruned_backbone_is_an_ordinary_checkpoint(pruned, run, tmp_path):
    out, words, shown = pruned
    assert "videomae_tiny: 12 classes, 13 clips, 12 for validation" in shown
    for name in ("weights.safetensors", "depth.json"):
        assert f"wrote {out / name}" in shown
    report = json.loads((out / "depth.json").read_text())
    assert sorted(report["blocks"]) == ["removed", "removed", "whole", "whole"]
    assert report["scored"] == 6 == len(json.loads((out / "search.json").read_text())["scores"])
    state, described = read_weights(out / "weights.safetensors")
    assert (described["model"], described["blocks"]) == ("videomae_tiny", report["blocks"])
    assert not [key for key in state if key.startswith(("blocks.2", "blocks.3"))]
    net = build_backbone("videomae_tiny", weights=out / "weights.safetensors", num_frames=8, input_size=32)
    assert net.class_names == tuple(sorted(ACTIONS)) and len(net.blocks) == 2
    cached = next(word for word in words if word.startswith("dataset.cache_dir"))
    status, _, errors = run(
        *("eval", *EVAL, "pruner=similarity", f"backbone.weights={out / 'weights.safetensors'}"),
        *("backbone.num_frames=8", "backbone.input_size=32", cached, f"output_dir={tmp_path}"),
    )
    assert status == 0 and "random weights" not in errors, errors
    assert json.loads((tmp_path / "results.json").read_text())["num_evaluated"] == 12


def test_resume_goes_on_and_refuses_another_run(pruned, prune, tmp_path):
    out, words, _ = pruned
    shutil.copytree(out, tmp_path / "copy")
    words = (*(w for w in words if not w.startswith("output_dir")), f"output_dir={tmp_path / 'copy'}")
    (tmp_path / "copy" / "weights.safetensors").unlink()
    status, _, errors = prune(*words, "depth.resume=true", "runtime.threads=1")
    assert (status, errors) == (0, "")
    before, after = (read_weights(path / "weights.safetensors")[0] for path in (out, tmp_path / "copy"))
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    status, _, errors = prune(*words, "depth.resume=true", "depth.prune=1")
    assert status == 2
    assert errors == (
        f"error: depth.resume=true: {tmp_path / 'copy'} was begun with depth.prune=2, now 1; start without it, or in "
        "another output_dir\n"
    )


def test_pruned_scorer_becomes_a_pruner(prune, run, cache, tmp_path):
    words = (*SMALL, *SYNTHETIC, cache, *SCORER, "depth.fitness=map", "depth.mode=dense")
    status, shown, errors = prune(*words, f"output_dir={tmp_path / 'run'}")
    assert (status, errors) == (0, "")
    assert "19 blocks can be pruned" in shown  # of 26: the map is read behind res4
    report = json.loads((tmp_path / "run" / "depth.json").read_text())
    assert report["blocks"].count("dense") == 3 and report["blocks"][19:] == ["whole"] * 7
    status, _, errors = run(
        *("eval", *EVAL, f"pruner.weights={tmp_path / 'run' / 'weights.safetensors'}", "pruner.frames=2"),
        *("pruner.size=32", cache, f"output_dir={tmp_path / 'eval'}"),
    )
    assert status == 0, errors
    assert json.loads((tmp_path / "eval" / "results.json").read_text())["num_evaluated"] == 12


def test_pruned_weights_are_not_pruned_again(pruned, prune, tmp_path):
    out, words, _ = pruned
    state, described = read_weights(out / "weights.safetensors")
    words = (*(w for w in words if not w.startswith("output_dir")), f"output_dir={tmp_path / 'out'}")
    status, _, errors = prune(*words, f"backbone.weights={out / 'weights.safetensors'}")
    assert status == 2
    assert errors.endswith("its depth was pruned before; start from whole weights\n")
    fewer = {**state, "head.weight": state["head.weight"][:3], "head.bias": state["head.bias"][:3]}
    write_weights(tmp_path / "w.safetensors", fewer, {**described, "class_names": ["a", "b", "c"]})
    status, _, errors = prune(*words, f"backbone.weights={tmp_path / 'w.safetensors'}")
    assert status == 2
    assert "knows 3 classes, the dataset has 12; fine-tune first" in errors


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of 2 x 4 pictures, and a file of ConvNeXt weights for its classes in timm's own names."""
    root = tmp_path_factory.mktemp("pictures")
    for number in range(8):
        (root / "images" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / "images" / "ab"[number % 2] / f"{number}.png")
    state = timm.create_model("test_convnext", num_classes=2).state_dict()
    save_file(state, root / "whole.safetensors")
    save_file(
        timm.create_model("test_vit", num_classes=2, img_size=32).state_dict(), root / "vit.safetensors"
    )
    return root


IMAGES = ("dataset=images", "depth.batch_size=4", "depth.val_share=0.5", "depth.search_clips=4", *SMALL[:3])
SHORT = (*SMALL[5:], "backbone.input_size=32")
HOSTS = {
    "dense": ("timm_convnext", "test_convnext", "whole", "depth.prune=8"),
    "pointwise": ("timm_convnext", "test_convnext", "whole", "depth.prune=9"),
    "block": ("timm_convnext", "test_convnext", "whole", "depth.prune=8"),
    "ffn": ("timm_vit", "test_vit", "vit", "depth.prune=5"),
}


@pytest.mark.parametrize("mode", HOSTS)
def test_images_from_command_to_evaluation(mode, prune, run, pictures, cache, tmp_path):
    name, model, file, count = HOSTS[mode]
    host = (f"backbone={name}", f"backbone.model={model}", f"dataset.root={pictures / 'images'}", cache)
    words = (
        *IMAGES,
        *SHORT,
        *host,
        f"backbone.weights={pictures / file}.safetensors",
        count,
        f"depth.mode={mode}",
    )
    status, _, errors = prune(*words, f"output_dir={tmp_path / 'run'}")
    assert (status, errors) == (0, "")
    report = json.loads((tmp_path / "run" / "depth.json").read_text())
    word = {"block": "removed", "ffn": "linear"}.get(mode, mode)
    assert report["blocks"].count(word) == int(count[-1]) == len(report["pruned"])
    assert report["parameters"] != report["parameters_unpruned"]
    assert report["merge_error"] < 1e-3
    weights = tmp_path / "run" / "weights.safetensors"
    done = (f"backbone.weights={weights}", "pruner=random", f"output_dir={tmp_path / 'eval'}")
    status, _, errors = run("eval", "dataset=images", *host, *QUIET, "visualize=0", *done)
    assert status == 0, errors
    results = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert (results["num_evaluated"], results["num_failed"]) == (8, 0)
    status, _, errors = prune(*words, f"backbone.weights={weights}", f"output_dir={tmp_path / 'again'}")
    assert status == 2 and errors.endswith("its depth was pruned before; start from whole weights\n")


WRONG = {
    "depth.prune=10": "depth.prune=10: must be 1 to 9 blocks (there are no more)",
    "depth.mode=block depth.prune=9": "depth.prune=9: must be 1 to 8 blocks (of 9, one must stay)",
    "depth.keep_ratio=[0.3,0.9]": "depth.keep_ratio=[0.3, 0.9]: timm_convnext trains on all places; leave it out",
    "backbone.weights=null": "backbone.weights=null: there is nothing to learn from a random model",
    "backbone.input_size=[32,64]": "backbone.input_size=[32, 64]: depth pruning reads square images, give one number",
    "backbone=timm_swin": "dataset=images, backbone=timm_swin, depth.target=backbone: depth pruning is for VideoMAE,",
    "depth.target=scorer": "dataset=images, backbone=timm_convnext, depth.target=scorer: depth pruning is for Vide",
    "backbone=timm_vit depth.mode=dense": "depth.mode='dense': backbone=timm_vit has auto, ffn, block.",
    "backbone.num_classes=3": "backbone.weights=",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_input_with_images(wrong, prune, pictures, cache, tmp_path):
    host = (
        "backbone=timm_convnext",
        "backbone.model=test_convnext",
        f"dataset.root={pictures / 'images'}",
        cache,
    )
    words = (
        *IMAGES,
        *SHORT,
        *host,
        f"backbone.weights={pictures / 'whole.safetensors'}",
        f"output_dir={tmp_path}",
    )
    words = tuple(
        word for word in words if word.split("=")[0] not in {w.split("=")[0] for w in wrong.split()}
    )
    status, _, errors = prune(*words, *wrong.split())
    assert status == 2
    assert errors.startswith(f"error: {WRONG[wrong]}") and errors.count("\n") == 1


def test_recipes_search_and_train_away_from_the_test_split():
    for name, weights in (("depth_backbone", "videomae_tiny_synthetic"), ("depth_scorer", "x3d_s_synthetic")):
        config = composed(f"experiment={name}")
        assert config.dataset.split == "train"
        chosen = config.backbone.weights if config.depth.target == "backbone" else config.depth.weights
        assert chosen == weights
        assert composed(f"experiment={name}", "depth.prune=3").depth.prune == 3


def test_scorer_is_timed_as_the_evaluation_runs_it():
    depth = composed("experiment=depth_scorer").depth
    with initialize_config_module("video_papr.conf", version_base="1.3"):
        pruner = compose("eval", overrides=["pruner=x3d_s"]).pruner
    timed = (depth.scorer_size, depth.scorer_frames, depth.stage, depth.align_corners, depth.cell_center)
    assert timed == tuple(pruner[key] for key in ("size", "frames", "stage", "align_corners", "cell_center"))
