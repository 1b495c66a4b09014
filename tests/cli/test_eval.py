"""`tools/eval.py` from its command line to its files, on small videos and a small random backbone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from video_papr.assembly import build
from video_papr.core.engines import has_openvino

SCHEMA: dict[str, type | tuple[type, ...]] = {
    "dataset": str,
    "num_videos": int,
    "num_evaluated": int,
    "num_failed": int,
    "num_missing": int,
    "top1": float,
    "top5": float,
    "top1_standard_error": float,
    "pruner": str,
    "keep_ratio": float,
    "settings": dict,
    "mean_kept_tokens": float,
    "num_tokens": int,
    "actor_tokens_kept": (float, type(None)),
    "backbone": str,
    "weights": dict,
    "views": str,
    "gmacs_per_view": dict,
    "videos_per_second": float,
    "latency_ms": dict,
    "peak_memory_mb": float,
    "device": str,
    "engine": str,
    "dtype": str,
    "seed": int,
    "dataset_seed": (int, type(None)),
    "generator_version": (int, type(None)),
    "versions": dict,
    "git_commit": (str, type(None)),
    "command": str,
}


def test_files_and_table_of_a_run(evaluate, video_root):
    results = evaluate(video_root, "views=2x3", "pruner.keep_ratio=0.5", "visualize=2")
    predictions, out, shown, said = (results.pop(key) for key in ("predictions", "out", "shown", "said"))
    assert set(results) == {*SCHEMA, "timing", "sessions", "baseline", "comparison"}
    for part in (results, results["baseline"]):
        for key, kind in SCHEMA.items():
            assert isinstance(part[key], kind), key
        assert set(part["gmacs_per_view"]) == {"backbone", "scorer", "total", "dense"}
        assert set(part["latency_ms"]) == {"decode", "preprocess", "score", "backbone", "total"}
        counts = [part[f"num_{what}"] for what in ("videos", "evaluated", "failed", "missing")]
        assert counts == [5, 5, 0, 0]
    assert set(results["baseline"]) == set(SCHEMA)
    assert (results["dataset"], results["pruner"], results["views"]) == ("folder", "motion", "2x3")
    assert (results["keep_ratio"], results["mean_kept_tokens"], results["num_tokens"]) == (0.5, 2, 4)
    assert (results["baseline"]["pruner"], results["baseline"]["mean_kept_tokens"]) == ("none", 4)
    gmacs = results["gmacs_per_view"]
    assert gmacs["total"] == gmacs["backbone"] + gmacs["scorer"]
    assert gmacs["backbone"] < gmacs["dense"] == results["baseline"]["gmacs_per_view"]["total"]
    names = ["left/a.mp4", "left/b.mp4", "left/deeper/c.mp4", "right/d.mp4", "right/e.mkv"]
    assert [line["path"] for line in predictions] == names
    for line in predictions:
        keys = {"path", "label", "pred", "top5", "probs_top5", "kept_tokens", "error", "baseline_pred"}
        assert set(line) == keys | {"label_name", "pred_name"}
        assert line["label_name"] == line["path"].split("/")[0]
        assert line["pred_name"] == ("left", "right")[line["pred"]]
        assert line["label"] == int(line["path"].startswith("right"))
        assert line["top5"][0] == line["pred"]
        assert sorted(line["top5"]) == [0, 1]  # the dataset has two classes
        assert sum(line["probs_top5"]) == pytest.approx(1, abs=1e-5)
        assert (line["kept_tokens"], line["error"]) == (2, None)
    correct = sum(line["pred"] == line["label"] for line in predictions)
    assert results["top1"] == 20 * correct
    dense_correct = sum(line["baseline_pred"] == line["label"] for line in predictions)
    assert results["comparison"]["loss_points"] == pytest.approx(20 * (dense_correct - correct))
    assert (out / "kept_tubelets.png").read_bytes()[1:4] == b"PNG"
    assert not list(out.glob(".results*")), "no temporary file stays"
    header = next(line for line in shown.splitlines() if "dense" in line)
    assert "motion, keep 0.5" in header
    rows = ("top-1", "5 / 0 / 0", "tokens kept", "GMACs per view: total", "ms per view: score", "videos/s")
    written = [f"wrote {out / name}" for name in ("results.json", "predictions.jsonl", "kept_tubelets.png")]
    assert all(text in shown for text in (*rows, *written))
    warning = (
        "random weights (backbone.weights=null: accuracy is chance). Give a checkpoint file to change that."
    )
    assert said == f"warning: {warning}\n"


def test_predictions_do_not_depend_on_batches_and_workers(evaluate, video_root):
    words = ("pruner=x3d_s", "pruner.frames=4", "pruner.size=32", "views=2x3", "baseline=false")
    runs = [
        evaluate(video_root, *words, f"runtime.batch_size={batch_size}", f"runtime.workers={workers}")
        for batch_size, workers in ((6, 0), (1, 0), (3, 1), (64, 2))
    ]
    for lines in zip(*(run["predictions"] for run in runs), strict=True):
        one, *others = ((line.pop("probs_top5"), line) for line in lines)
        for other in others:
            assert other == (pytest.approx(one[0], abs=2e-6), one[1])


def test_broken_and_missing_videos_are_counted_and_the_run_goes_on(evaluate, video_root, tmp_path):
    root, listed = tmp_path / "videos", tmp_path / "list.csv"
    shutil.copytree(video_root, root)
    whole = (root / "left/a.mp4").read_bytes()
    (root / "left/empty.mp4").write_bytes(b"")
    (root / "left/cut.mp4").write_bytes(whole[: len(whole) // 2])
    (root / "right/text.mp4").write_text("not a video")
    names = ("left/a.mp4", "left/empty.mp4", "left/gone.mp4", "left/cut.mp4", "right/text.mp4", "right/d.mp4")
    listed.write_text("".join(f"{name},{number % 3}\n" for number, name in enumerate(names)))
    results = evaluate(root, "dataset=csv", f"dataset.annotations={listed}")
    counts = [results[f"num_{what}"] for what in ("videos", "evaluated", "failed", "missing")]
    assert counts == [6, 2, 3, 1]
    *lines, missing = results["predictions"]
    broken = {line["path"]: line for line in lines if line["error"]}
    assert set(broken) == {"left/empty.mp4", "left/cut.mp4", "right/text.mp4"}
    for name, line in broken.items():
        assert Path(name).name in line["error"] and "\n" not in line["error"]
        assert (line["pred"], line["top5"], line["kept_tokens"], line["baseline_pred"]) == (None,) * 4
    found = (missing["path"], missing["label"], missing["pred"], missing["error"])
    assert found == ("left/gone.mp4", None, None, "missing")
    assert sorted(lines[0]["top5"]) == [0, 1, 2]  # classes up to the largest label
    correct = sum(line["pred"] == line["label"] for line in lines)
    assert results["top1"] == pytest.approx(100 * correct / 6)  # they count as wrong


def test_video_deleted_during_the_run(evaluate, video_root, tmp_path, monkeypatch):
    root = tmp_path / "videos"
    shutil.copytree(video_root, root)
    listing = build.build_videos

    def list_then_delete(*args, **options):
        found = listing(*args, **options)
        (root / "right/d.mp4").unlink()
        return found

    monkeypatch.setattr(build, "build_videos", list_then_delete)
    results = evaluate(root)
    assert (results["num_evaluated"], results["num_failed"]) == (4, 1)
    assert "d.mp4" in next(line["error"] for line in results["predictions"] if line["error"])


def test_no_video_can_be_read(command, small, tmp_path):
    (tmp_path / "videos/a").mkdir(parents=True)
    (tmp_path / "videos/a/text.mp4").write_text("not a video")
    out = tmp_path / "out"
    words = ("dataset=folder", f"dataset.root={tmp_path / 'videos'}", f"output_dir={out}", *small)
    status, shown, errors = command(*words, "runtime.workers=0")
    assert status == 2
    assert errors.splitlines()[-1].startswith(f"error: no video of {tmp_path / 'videos'} could be read")
    assert "0 / 1 / 0" in shown
    assert json.loads((out / "results.json").read_text())["num_failed"] == 1


def test_dense_model_alone(evaluate, video_root):
    dense = evaluate(video_root, "pruner=none", "visualize=4", "--json")
    assert json.loads(dense["shown"]) == json.loads((dense["out"] / "results.json").read_text())
    assert dense["shown"].count("\n") == 1 and "top-1" in dense["said"]
    assert (dense["pruner"], dense["keep_ratio"], dense["mean_kept_tokens"]) == ("none", 1.0, 4)
    assert dense["baseline"] is dense["comparison"] is None
    assert dense["latency_ms"]["score"] == 0
    assert not (dense["out"] / "kept_tubelets.png").exists()
    pruned = evaluate(video_root, "pruner.keep_ratio=1")
    for one, other in zip(dense["predictions"], pruned["predictions"], strict=True):
        assert one["probs_top5"] == pytest.approx(other["probs_top5"], abs=2e-6)
        assert one["pred"] == other["pred"] == other["baseline_pred"]


def test_synthetic_videos_report_the_share_of_the_actor(evaluate, tmp_path):
    words = ("dataset=synthetic", "dataset.num_videos=4", f"dataset.cache_dir={tmp_path / 'cache'}")
    given = ("backbone.weights=null", "backbone.num_frames=16", "backbone.input_size=64")
    results = evaluate(Path("unused"), *words, *given)
    assert results["num_evaluated"] == 4
    assert 0 < results["actor_tokens_kept"] <= 1
    assert results["baseline"]["actor_tokens_kept"] == 1


@pytest.mark.parametrize(
    "words",
    [
        ("pruner=run_length",),
        ("pruner=motion", "pruner.budget=mass"),
        ("pruner=similarity", "pruner.mode=adaptive", "pruner.diversity=cluster", "pruner.after_block=2"),
        ("pruner=none", "merger=tome", "merger.r=1"),
    ],
    ids=lambda words: " ".join(words),
)
def test_clips_decide_how_much_is_kept(evaluate, video_root, words):
    size = ("backbone.num_frames=16", "backbone.input_size=32")
    results = evaluate(video_root, *size, *words, "views=2x3", "visualize=2")
    merged = "merger=tome" in words
    kept = [line["kept_tokens"] for line in results["predictions"]]
    assert results["mean_kept_tokens"] == pytest.approx(sum(kept) / 5)
    assert results["keep_ratio"] == pytest.approx(results["mean_kept_tokens"] / results["num_tokens"])
    gmacs, dense = results["gmacs_per_view"], results["baseline"]["gmacs_per_view"]
    assert gmacs["total"] == gmacs["backbone"] + gmacs["scorer"]
    assert gmacs["dense"] == dense["total"]
    assert (results["out"] / "kept_tubelets.png").exists() != merged
    assert results["settings"]["merger"]["name"] == ("tome" if merged else "none")
    assert results["baseline"]["settings"] == {}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_compiled_backbone_gives_the_same_answers(evaluate, video_root):
    plain, compiled = evaluate(video_root), evaluate(video_root, "runtime.compile=true")
    for one, other in zip(plain["predictions"], compiled["predictions"], strict=True):
        assert one["probs_top5"] == pytest.approx(other["probs_top5"], abs=1e-5)


@pytest.mark.skipif(not has_openvino(), reason="the extra [fast] is not installed")
def test_openvino_gives_the_same_answers(evaluate, video_root, capsys):
    words = ("pruner=x3d_s", "pruner.frames=2", "pruner.size=32", "backbone.input_size=32")
    plain = evaluate(video_root, *words)
    fast = evaluate(video_root, *words, "runtime.engine=openvino")
    assert "cannot run" not in capsys.readouterr().err
    assert plain["engine"] == "torch" and fast["engine"].startswith("openvino ")
    assert fast["gmacs_per_view"] == plain["gmacs_per_view"] and plain["pruner"] == "x3d_s"
    for one, other in zip(plain["predictions"], fast["predictions"], strict=True):
        assert one["probs_top5"] == pytest.approx(other["probs_top5"], abs=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mode", ["false", "reduce-overhead"])
def test_gpu_gives_the_answers_of_the_cpu(evaluate, video_root, mode):
    on_cpu = evaluate(video_root)
    on_gpu = evaluate(video_root, "runtime=gpu", "runtime.dtype=fp32", f"runtime.compile={mode}")
    assert on_gpu["device"].startswith("cuda (")
    for one, other in zip(on_cpu["predictions"], on_gpu["predictions"], strict=True):
        assert one["probs_top5"] == pytest.approx(other["probs_top5"], abs=1e-3)
