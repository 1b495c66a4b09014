"""Runs read back from disk, points with paired intervals, and the report in both forms."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from video_papr.cli.report import main, run
from video_papr.core.errors import DataError
from video_papr.evaluation.reports.frontier import bootstrap, points
from video_papr.evaluation.reports.precision import agreements
from video_papr.evaluation.reports.runs import find_runs, named_apart, with_dense

CLASSES = ("jump", "run", "sit")


def write_run(
    directory: Path,
    preds: Sequence[int],
    *,
    dense: Sequence[int] | None = None,
    pruner: str = "center",
    keep_ratio: float = 0.3,
    gmacs: float = 1.0,
    seed: int = 0,
    dataset_seed: int = 0,
    backbone: str = "videomae_tiny",
    settings: dict[str, dict[str, Any]] | None = None,
    dtype: str = "fp32",
) -> Path:
    """Video i has label i % 3. Writes what an evaluation would."""
    directory.mkdir(parents=True)
    results = {
        "dataset": "synthetic",
        "dataset_seed": dataset_seed,
        "pruner": pruner,
        "keep_ratio": keep_ratio,
        "backbone": backbone,
        "views": "1x1",
        "seed": seed,
        "mean_kept_tokens": 256 * keep_ratio,
        "gmacs_per_view": {"total": gmacs},
        "latency_ms": {"preprocess": 1.0, "score": 2.0, "backbone": 3.0},
        "device": "cpu",
        "dtype": dtype,
        "command": f"tools/eval.py pruner={pruner}",
        "baseline": None,
        "settings": settings or {},
    }
    if dense is not None:
        cost = {"gmacs_per_view": {"total": 2.0}, "mean_kept_tokens": 256.0, "settings": {}}
        results["baseline"] = {**results, **cost, "pruner": "none", "keep_ratio": 1.0}
    rows = []
    for i, pred in enumerate(preds):
        row = {"path": f"{CLASSES[i % 3]}/{i}.mp4", "label": i % 3, "pred": pred}
        rows.append(row if dense is None else {**row, "baseline_pred": dense[i]})
    (directory / "results.json").write_text(json.dumps(results))
    (directory / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def answers(count: int, accuracy: float, seed: int) -> list[int]:
    """Predictions for `count` videos of which about `accuracy` are right."""
    rng = np.random.default_rng(seed)
    return [i % 3 if rng.random() < accuracy else (i + 1) % 3 for i in range(count)]


def test_point_by_hand(tmp_path: Path) -> None:
    truth = [0, 1, 2, 0]
    write_run(tmp_path / "a", [0, 1, 0, 1], dense=[0, 1, 2, 2])
    write_run(tmp_path / "b", [1, 1, 0, 1], dense=[0, 1, 2, 2], pruner="random")
    center, dense, random = points(with_dense(find_runs([tmp_path])))
    assert [p.method for p in (center, dense, random)] == ["center", "dense", "random"]
    assert center.top1.mean == 50 and dense.top1.mean == 75 and random.top1.mean == 25
    assert center.loss is not None and center.loss.mean == 25
    assert center.gain is not None and center.gain.mean == 25
    assert random.gain is None and dense.loss is not None and dense.loss.mean == 0
    assert center.agreement == 50
    assert center.class_loss == {0: 0, 1: 0, 2: 100}
    assert center.latency_ms == 6
    assert center.num_videos == len(truth) and center.num_runs == 1


def test_seeds_are_runs_of_the_same_videos_and_dataset_seeds_are_other_videos(tmp_path: Path) -> None:
    """Three runs on the same videos leave the interval as wide as one does; other videos narrow it."""
    for seed in range(3):
        preds = answers(300, 0.6, 0)
        write_run(tmp_path / "same" / str(seed), preds, seed=seed)
        write_run(tmp_path / "other" / str(seed), answers(300, 0.6, seed), dataset_seed=seed)
    write_run(tmp_path / "one" / "0", answers(300, 0.6, 0))
    width = {}
    for kind in ("same", "other", "one"):
        (point,) = points(find_runs([tmp_path / kind]))
        width[kind] = point.top1.high - point.top1.low
        assert point.num_videos == (900 if kind == "other" else 300)
        assert point.num_runs == (1 if kind == "one" else 3)
    assert width["same"] == pytest.approx(width["one"])
    assert width["other"] < 0.75 * width["one"]


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = [bootstrap((rng.random(200) < 0.8).astype(float), seed=i) for i in range(200)]
    covered = np.mean([interval.low <= 80 <= interval.high for interval in held])
    assert 0.9 <= covered <= 0.99
    assert bootstrap([0.25] * 7) == bootstrap([0.25] * 3)  # nothing varies: no width


def test_dense_answers_come_from_a_dense_run_where_the_pruned_one_has_none(tmp_path: Path) -> None:
    write_run(tmp_path / "dense", answers(90, 0.9, 1), pruner="none", keep_ratio=1.0, gmacs=3.0)
    write_run(tmp_path / "pruned", answers(90, 0.7, 2))
    write_run(tmp_path / "elsewhere", answers(90, 0.7, 2), dataset_seed=5, pruner="motion")
    found = {point.method: point for point in points(with_dense(find_runs([tmp_path])))}
    expected = found["dense"].top1.mean - found["center"].top1.mean
    assert found["center"].loss is not None and found["center"].loss.mean == pytest.approx(expected)
    assert found["motion"].loss is None  # its videos have no dense answers


@pytest.mark.parametrize(
    ("settings", "method", "keep_ratio"),
    [
        ({}, "x3d_s", 0.32),
        ({"pruner": {"budget": "fixed", "keep_ratio": 0.3}}, "x3d_s", 0.3),
        ({"pruner": {"budget": "mass", "keep_ratio": 0.3}}, "x3d_s (mass)", 0.32),
        ({"pruner": {"mode": "adaptive", "keep_ratio": 0.3}}, "x3d_s (adaptive)", 0.32),
        ({"pruner": {"mode": "ratio", "keep_ratio": 0.3}}, "x3d_s", 0.3),
        ({"pruner": {"tau": 6.0}}, "x3d_s", 0.32),
        (
            {"pruner": {"keep_ratio": 0.5}, "merger": {"name": "tome", "r": 8, "schedule": "constant"}},
            "x3d_s + tome r=8",
            0.5,
        ),
        ({"pruner": {"keep_ratio": 0.5}, "merger": {"name": "none"}}, "x3d_s", 0.5),
    ],
)
def test_runs_are_named_after_what_was_done_to_their_tokens(
    tmp_path: Path, settings: dict[str, dict[str, Any]], method: str, keep_ratio: float
) -> None:
    write_run(
        tmp_path / "run", [0, 1, 2], dense=[0, 1, 2], pruner="x3d_s", keep_ratio=0.321, settings=settings
    )
    found = with_dense(find_runs([tmp_path]))
    assert [(run.method, run.kept) for run in found] == [(method, keep_ratio), ("dense", 1.0)]


def test_runs_that_were_set_differently_are_named_apart(tmp_path: Path) -> None:
    base: dict[str, Any] = {"stages": ["res3"], "floor": 0.5, "align_corners": False, "carry": "none"}
    for number, (ratio, own) in enumerate(
        [
            *((ratio, {"seed": seed}) for ratio in (0.1, 0.3) for seed in (0, 1)),
            (0.3, {"stages": ["res3", "res4"]}),
            (0.3, {"align_corners": True, "floor": 0.0}),
        ]
    ):
        settings = {"pruner": {**base, "keep_ratio": ratio, **own}}
        write_run(tmp_path / str(number), [0, 1], pruner="papr_plus", keep_ratio=ratio, settings=settings)
    for number, budget in enumerate((0.4, 0.6)):  # one curve
        settings = {"pruner": {"budget": "mass", "mass": budget}}
        write_run(tmp_path / f"m{number}", [0, 1], pruner="x3d_s", keep_ratio=budget, settings=settings)
    for stage in ("res3", "res4"):  # neither is the usual one
        settings = {"pruner": {"keep_ratio": 0.3, "stage": stage}}
        write_run(tmp_path / stage, [0, 1], pruner="x3d_xs", settings=settings)
    older = {"pruner": {"keep_ratio": 0.5}}  # of a version without these keys
    write_run(tmp_path / "old", [0, 1], pruner="papr_plus", keep_ratio=0.5, settings=older)
    found = points(named_apart(find_runs([tmp_path])))
    assert [(point.method, point.kept, point.num_runs) for point in found] == [
        ("papr_plus", 0.1, 2),
        ("papr_plus", 0.3, 2),
        ("papr_plus", 0.5, 1),
        ("papr_plus floor=0.0 align_corners=true", 0.3, 1),
        ("papr_plus stages=res3+res4", 0.3, 1),
        ("x3d_s (mass)", 0.4, 1),
        ("x3d_s (mass)", 0.6, 1),
        ("x3d_xs stage=res3", 0.3, 1),
        ("x3d_xs stage=res4", 0.3, 1),
    ]


def test_dense_runs_of_a_sweep_over_ratios_are_one_point(tmp_path: Path) -> None:
    for ratio in (0.1, 0.3):
        settings = {"pruner": {"keep_ratio": ratio}}
        write_run(tmp_path / str(ratio), [0, 1, 2], pruner="none", keep_ratio=1.0, settings=settings)
        write_run(tmp_path / f"r{ratio}", [0, 1, 0], pruner="random", keep_ratio=ratio, settings=settings)
    found = points(with_dense(find_runs([tmp_path])))
    assert [(p.method, p.kept, p.num_runs) for p in found] == [
        ("dense", 1.0, 2),
        ("random", 0.1, 1),
        ("random", 0.3, 1),
    ]
    assert all(point.loss is not None for point in found)


def test_frontier_keeps_what_no_cheaper_point_matches(tmp_path: Path) -> None:
    write_run(tmp_path / "a", answers(60, 0.9, 0), pruner="x3d_s", gmacs=2.0)
    write_run(tmp_path / "b", answers(60, 0.4, 1), pruner="motion", gmacs=2.5)
    write_run(tmp_path / "c", answers(60, 0.3, 2), pruner="random", gmacs=1.0)
    marks = {point.method: point.on_frontier for point in points(find_runs([tmp_path]))}
    assert marks == {"x3d_s": True, "motion": False, "random": True}


def test_report_of_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i, ratio in enumerate((0.2, 0.3, 0.5)):
        for pruner, gmacs in (("x3d_s", 1.0), ("random", 0.5)):
            write_run(
                tmp_path / "sweep" / f"{pruner}{i}",
                answers(60, 0.5 + ratio / 2, i),
                dense=answers(60, 0.9, 9),
                pruner=pruner,
                keep_ratio=ratio,
                gmacs=gmacs + ratio,
            )
    picture = b"\x89PNG\r\n\x1a\n"
    (tmp_path / "sweep" / "x3d_s1" / "kept_tubelets.png").write_bytes(picture)
    main([str(tmp_path / "sweep"), "--out", str(tmp_path / "out")])
    assert "report.html" in capsys.readouterr().out
    text = (tmp_path / "out" / "report.md").read_text()
    table = text.split("## Frontier")[0]
    assert table.count("\n| x3d_s") == 3 and table.count("\n| random") == 3
    assert "| jump |" in text
    for name in ("top1_gmacs.png", "top1_latency.png", "kept_x3d_s.png"):
        assert f"({name})" in text
        assert (tmp_path / "out" / name).read_bytes().startswith(picture)
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 6  # two plots, kept tubelets, and three confusion matrices
    assert 'src="top1' not in page and "http" not in page  # nothing from outside
    again = run([tmp_path / "sweep"], tmp_path / "again", pdf=True)
    vectors = [path.read_bytes() for path in again if path.suffix == ".pdf"]
    again = [path for path in again if path.suffix != ".pdf"]
    assert len(vectors) == 2 and all(content.startswith(b"%PDF") for content in vectors)
    assert (tmp_path / "again" / "report.md").read_text() == text and len(again) == 8


def test_names_of_classes_and_videos_stay_text(tmp_path: Path) -> None:
    """Of run directories with names that hold markup, line breaks and cells; and what is mistaken for what."""
    directory = write_run(tmp_path / "run", [0, 1, 2, 1, 1, None], dense=[0, 1, 2, 0, 1, 2])  # type: ignore[list-item]
    names = ("<script>alert(1)</script>", "a|b\u2028$x^", "c" * 500)
    rows = [json.loads(line) for line in (directory / "predictions.jsonl").read_text().splitlines()]
    for row in rows:
        row["label_name"] = names[row["label"]]
        row["pred_name"] = None if row["pred"] is None else names[row["pred"]]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (directory / "predictions.jsonl").write_text("".join(lines))
    written = run([tmp_path], tmp_path / "out")
    page, text = (tmp_path / "out/report.html").read_text(), (tmp_path / "out/report.md").read_text()
    assert page.count("<script") == 1 and "<script>alert" not in page  # the one that sorts the tables
    assert "<script" not in text and "\u2028" not in page + text
    assert "| a&#124;b\\u2028$x^ |" in text and "c" * 500 in text
    confused = text.split("## Confusion")[1]
    assert "| center 0.3 | &lt;script>alert(1)&lt;/script> | a&#124;b\\u2028$x^ | 50.0 |" in confused
    assert "| a&#124;b\\u2028$x^ | 100.0 | 100.0 |" in text.split("## Accuracy by class")[1]
    assert tmp_path / "out/confusion_center.png" in written


def test_what_cannot_be_compared_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "a" / "0", [0, 1])
    write_run(tmp_path / "b" / "0", [0, 1], backbone="videomae_b")
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path)])
    error = capsys.readouterr().err
    assert error.startswith("error: these runs differ in dataset, backbone") and error.count("\n") == 1
    for camera in ("calm", "shaky"):
        settings = {"dataset": {"camera": camera}}
        write_run(tmp_path / "c" / camera, [0, 1], dense=[0, 1], settings=settings)
    assert run([tmp_path / "c" / "calm"], tmp_path / "out")  # the dense baseline saw the same camera
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "c")])
    assert "synthetic (calm) videomae_tiny" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda d: (d / "results.json").unlink(), "holds no results.json"),
        (lambda d: (d / "results.json").write_text("{"), "results.json is no JSON"),
        (lambda d: (d / "results.json").write_text("{}"), "results.json lacks backbone"),
        (lambda d: (d / "results.json").write_text("[]"), "results.json is no JSON object"),
        (lambda d: (d / "predictions.jsonl").unlink(), "predictions.jsonl is missing"),
        (lambda d: (d / "predictions.jsonl").write_text("{}\n"), "a line lacks 'path'"),
        (lambda d: (d / "predictions.jsonl").write_text('{"a": 1}\nx'), "predictions.jsonl:2 is no JSON"),
    ],
)
def test_damaged_run_is_named(tmp_path: Path, damage, said: str) -> None:  # type: ignore[no-untyped-def]
    damage(write_run(tmp_path / "run", [0, 1, 2]))
    with pytest.raises(DataError) as error:
        find_runs([tmp_path / "run"])
    assert said in str(error.value) and "\n" not in str(error.value)


def test_absent_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent is no directory"):
        find_runs([tmp_path / "absent"])


def test_precision_is_compared_video_by_video(tmp_path: Path) -> None:
    truth = [0, 1, 2, 0, 1, 2]
    write_run(tmp_path / "a", truth, pruner="none")
    write_run(tmp_path / "b", [0, 1, 2, 0, 1, 0], pruner="none", dtype="bf16")
    write_run(tmp_path / "c", [0, 1, 2, 0, 0, 0])
    write_run(tmp_path / "d", [0, 1, 2, 0, 0, 0], dtype="bf16")
    write_run(tmp_path / "e", [1] * 6, pruner="motion", dtype="bf16")  # nothing to compare it with
    runs = named_apart(with_dense(find_runs([tmp_path])))
    found = [(one.method, one.dtype, one.num_same, one.num_videos) for one in agreements(runs)]
    assert found == [("center", "bf16", 6, 6), ("dense", "bf16", 5, 6)]
    named = {point.method: point for point in points(runs) if point.method != "motion"}
    assert set(named) == {
        f"{method} dtype={dtype}" for method in ("center", "dense") for dtype in ("fp32", "bf16")
    }
    assert named["center dtype=bf16"].agreement == pytest.approx(100 * 5 / 6)  # with dense in bf16
    written = run([tmp_path], tmp_path / "out")
    text = written[0].read_text()
    assert "| dense | 1 | bf16 | 83.33 | 5 of 6 |" in text and "## Precision" in text
    assert "| dense dtype" not in text.split("## Loss by class")[-1].split("\n\n")[1]


def test_one_precision_has_nothing_to_compare(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [0, 1, 2], dtype="bf16")
    runs = find_runs([tmp_path])
    assert agreements(runs) == []
    assert "Precision" not in run([tmp_path], tmp_path / "out")[0].read_text()


def test_intervals_are_drawn_with_seed_0() -> None:
    values = np.random.default_rng(1).random(37).tolist()
    assert bootstrap(values) == bootstrap(values, seed=0) != bootstrap(values, seed=1)
