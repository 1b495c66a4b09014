"""From a folder of two classes to a model that answers on a new clip: probe, eval and predict as commands."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import video_papr as vp
from video_papr.cli.eval import main as evaluate
from video_papr.cli.predict import main as predict
from video_papr.cli.train import main as train

Command = Callable[..., tuple[int, str, str]]
NETWORK = (
    *("backbone=image_vit", "backbone.model=vit_tiny_patch16_224", "backbone.input_size=32"),
    *("backbone.num_frames=2", "runtime=cpu", "runtime.engine=torch", "runtime.workers=0", "progress=false"),
)
PRUNED = ("pruner=center", "pruner.keep_ratio=0.5")


def never(*given: object, **options: object) -> None:
    raise AssertionError("the features are in the cache")


def shaded(count: int, bright: bool, seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield rng.integers(150 * bright, 100 + 150 * bright, (40, 48, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory, write_video: Callable[..., Path]) -> Path:
    """Six clips of each class, one of them broken, and a table of their scenes; two more of each below new/."""
    root = tmp_path_factory.mktemp("clips")
    rows = [("file", "scene")]
    for number in range(8):
        for label in ("dark", "light"):
            folder = "new" if number > 5 else "train"
            name = f"{label}/{number}.mp4"
            write_video(
                root / folder / name, shaded(4 + number, label == "light", 2 * number + (label == "dark"))
            )
            rows.append((name, str(number // 2)))
    (root / "train/light/0.mp4").write_bytes(b"no video")
    with (root / "scenes.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    torch.manual_seed(3)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    save_file(
        {key: value.contiguous() for key, value in model.state_dict().items()}, root / "vit.safetensors"
    )
    return root


@pytest.fixture
def fit(run_in_process: Command, clips: Path, tmp_path: Path) -> Command:
    """A function (output folder, words) that runs `tools/train.py experiment=probe` on these clips."""

    def call(out: str, *words: str) -> tuple[int, str, str]:
        own = (
            f"dataset.root={clips}/train",
            f"output_dir={tmp_path / out}",
            f"dataset.cache_dir={tmp_path}/cache",
        )
        given = (f"backbone.weights={clips}/vit.safetensors", *own, *NETWORK)
        taken = [word for word in given if word.split("=")[0] not in {own.split("=")[0] for own in words}]
        return partial(run_in_process, "train.py", train)("experiment=probe", *taken, *words)

    return call


def test_from_a_folder_to_answers(
    fit: Command, run_in_process: Command, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, said, errors = fit("probe", f"probe.folds={clips}/scenes.csv", "probe.num_folds=3", *PRUNED)
    assert status == 0, errors
    assert "1 of 12 videos cannot be read and are left out, e.g. light/0.mp4" in errors
    assert "held-out top-1 100.0 ± 0.0 % (11 videos in 3 folds" in said and "true / predicted" in said
    results = json.loads((tmp_path / "probe/probe.json").read_text())
    assert (results["num_videos"], results["num_failed"], results["num_features"]) == (11, 1, 192)
    assert (tmp_path / "probe/confusion.png").is_file()
    rows = [json.loads(line) for line in (tmp_path / "probe/predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 12 and [row["path"] for row in rows if row["error"]] == ["light/0.mp4"]

    # The features of the first run serve the second, and the file is the same to the bit.
    monkeypatch.setattr("video_papr.assembly.features.classify_views", never)
    assert fit("again", f"probe.folds={clips}/scenes.csv", "probe.num_folds=3", *PRUNED)[0] == 0
    probe = tmp_path / "probe/probe.safetensors"
    first, second = load_file(probe), load_file(tmp_path / "again/probe.safetensors")
    assert all(torch.equal(first[key], second[key]) for key in ("head.weight", "head.bias"))
    monkeypatch.undo()

    chosen = (
        "backbone=probe",
        f"backbone.weights={probe}",
        "runtime=cpu",
        "runtime.engine=torch",
        "progress=false",
    )
    found = []
    for number, words in enumerate((["runtime.batch_size=1"], ["runtime.batch_size=5", "runtime.workers=2"])):
        out = tmp_path / f"eval{number}"
        given = (f"dataset.root={clips}/new", f"output_dir={out}", *words)
        status, said, errors = run_in_process("eval.py", evaluate, "dataset=folder", *given, *chosen)
        assert status == 0 and errors == "", errors
        results = json.loads((out / "results.json").read_text())
        assert (results["top1"], results["pruner"], results["keep_ratio"]) == (100.0, "center", 0.5)
        assert results["mean_kept_tokens"] == 4 and "top-5" not in said
        found.append([json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()])
    for one, two in zip(*found, strict=True):
        assert one["top5"] == two["top5"] and one["probs_top5"] == pytest.approx(two["probs_top5"], abs=1e-5)

    video = clips / "new/light/7.mp4"
    out = f"output_dir={tmp_path / 'predict'}"
    status, said, errors = run_in_process("predict.py", predict, str(video), *chosen, out)
    assert status == 0 and "light" in said and errors == "", errors
    options = {"name": "probe", "weights": str(probe)}
    pipeline = vp.Pipeline.from_config(backbone=options, runtime={"name": "cpu", "engine": "torch"})
    assert pipeline.pruner is not None and pipeline.pruner.budget.value == 0.5
    assert pipeline.predict(video, top_k=1)[0].name == "light"


def test_a_pruner_that_the_probe_does_not_know_is_told_of(
    fit: Command, run_in_process: Command, clips: Path, tmp_path: Path
) -> None:
    assert fit("probe", "backbone.pool=concat", "probe.num_folds=2")[0] == 0
    chosen = (
        "backbone=probe",
        f"backbone.weights={tmp_path}/probe/probe.safetensors",
        *PRUNED,
        "runtime=cpu",
    )
    out = f"output_dir={tmp_path / 'predict'}"
    status, _, errors = run_in_process(
        "predict.py", predict, f"video={clips}/new", *chosen, out, "progress=false"
    )
    assert status == 0
    assert (
        "pruner=center at keep 0.5: the probe was fitted with pruner=none, which pruner=fitted takes"
        in errors
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("backbone.weights=null",), "backbone.weights is not set: a probe needs trained features"),
        (("pruner=fitted",), "name what a probe is fitted on"),
        (("probe.folds=none.csv",), "probe.folds=none.csv does not exist"),
        (("dataset.limit=1",), "all videos are of one class"),
        (("train.target=backbone", *PRUNED), "goes with train.target=probe"),
    ],
)
def test_wrong_input_is_one_line(fit: Command, words: tuple[str, ...], message: str) -> None:
    status, _, errors = fit("out", *words)
    assert status == 2 and message in errors and errors.count("\n") == 1


def test_a_probe_is_needed_for_its_pruner(run_in_process: Command, tmp_path: Path) -> None:
    status, _, errors = run_in_process("eval.py", evaluate, "pruner=fitted", f"output_dir={tmp_path}")
    assert status == 2 and "pruner=fitted: goes with backbone=probe" in errors
    given = ("backbone=probe", f"output_dir={tmp_path}")
    status, _, errors = run_in_process("eval.py", evaluate, *given)
    assert status == 2 and "backbone=probe needs the file that experiment=probe wrote" in errors
