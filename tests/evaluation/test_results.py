from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from video_papr.evaluation import results
from video_papr.evaluation.answers import Evaluation, VideoAnswer
from video_papr.evaluation.cost import StageTimes
from video_papr.evaluation.reports.confusion import confusion_matrix, confusion_plot, confusion_table
from video_papr.evaluation.results import RunInfo, build_results, prediction_lines, write_results

INFO = RunInfo(
    dataset="folder",
    backbone="videomae_b",
    pruner="x3d_s",
    keep_ratio=0.3,
    views="5x3",
    num_tokens=1568,
    gmacs_per_view={"backbone": 45.8, "scorer": 1.3, "total": 47.1, "dense": 180.5},
    weights={"backbone": None, "scorer": None},
    device="cpu (test)",
    engine="torch",
    dtype="fp32",
    seed=3,
    extra={"shown": 1.0},
)


def evaluation() -> Evaluation:
    """Two right, one wrong, one failed, one missing; the dense model is right on three."""
    right = {"probs_top5": (0.7, 0.3), "kept_tokens": 470}
    return Evaluation(
        answers=[
            VideoAnswer("a", 0, (0, 1), baseline_top5=(0, 1), extra={"shown": 0.5}, **right),  # type: ignore[arg-type]
            VideoAnswer("b", 1, (1, 0), baseline_top5=(1, 0), extra={"shown": 1.0}, **right),  # type: ignore[arg-type]
            VideoAnswer("c", 0, (1, 0), baseline_top5=(0, 1), **right),  # type: ignore[arg-type]
            VideoAnswer("d", 1, error="broken"),
            VideoAnswer("e", None, error="missing"),
        ],
        pruned=StageTimes([(30, 3)], [(3, 3)], [(6, 3), (30, 3), (9, 3)], [(6, 3), (6, 3), (6, 3)], 100.0),
        dense=StageTimes([(30, 3)], [(3, 3)], [], [(30, 3), (60, 3), (30, 3)], 200.0),
    )


def test_figures_follow_from_the_answers() -> None:
    results = build_results(evaluation(), INFO)
    counts = ("num_videos", "num_evaluated", "num_failed", "num_missing")
    assert [results[key] for key in counts] == [5, 3, 1, 1]
    assert (results["top1"], results["top5"]) == (40.0, 60.0)
    assert results["top1_standard_error"] == pytest.approx(100 * (0.4 * 0.6 / 5) ** 0.5)
    assert (results["mean_kept_tokens"], results["shown"]) == (470, 0.75)
    assert results["latency_ms"] == {"decode": 10, "preprocess": 1, "score": 3, "backbone": 2, "total": 16}
    assert results["videos_per_second"] == pytest.approx(3 / 0.066)
    assert results["comparison"]["loss_points"] == pytest.approx(20)
    assert results["comparison"]["agreement_percent"] == pytest.approx(100 * 2 / 3)
    dense = results["baseline"]
    assert [dense[key] for key in counts] == [5, 3, 1, 1]
    assert (dense["top1"], dense["pruner"], dense["keep_ratio"]) == (60.0, "none", 1.0)
    assert (dense["mean_kept_tokens"], dense["peak_memory_mb"]) == (1568, 200.0)
    assert dense["gmacs_per_view"] == {"backbone": 180.5, "scorer": 0.0, "total": 180.5, "dense": 180.5}
    assert dense["latency_ms"] == {"decode": 10, "preprocess": 1, "score": 0, "backbone": 10, "total": 21}


def test_nothing_evaluated_gives_nulls_and_no_division_by_zero() -> None:
    found = Evaluation(answers=[VideoAnswer("a", 0, error="broken")], dense=StageTimes())
    results = json.loads(json.dumps(build_results(found, INFO), allow_nan=False))
    assert (results["top1"], results["num_failed"]) == (0, 1)
    for part in (results, results["baseline"]):
        empty = (part["mean_kept_tokens"], part["videos_per_second"], part["peak_memory_mb"])
        assert empty == (None, None, None)
        assert set(part["latency_ms"].values()) == {None}


def test_lines_keep_the_order_and_say_why() -> None:
    rows = [json.loads(line) for line in prediction_lines(evaluation().answers, baseline=True)]
    assert rows[2] == {
        "path": "c",
        "label": 0,
        "pred": 1,
        "top5": [1, 0],
        "probs_top5": [0.7, 0.3],
        "kept_tokens": 470,
        "error": None,
        "baseline_pred": 0,
    }
    assert [row["error"] for row in rows] == [None, None, None, "broken", "missing"]
    assert all("baseline_pred" not in line for line in prediction_lines(evaluation().answers, baseline=False))


def test_files_hold_what_was_given(tmp_path: Path) -> None:
    found = evaluation()
    results = build_results(found, INFO)
    paths = write_results(tmp_path / "new", results, found)
    assert [path.name for path in paths] == [
        "results.json",
        "predictions.jsonl",
        "classes.csv",
        "confusion.csv",
        "confusion.png",
    ]
    assert paths[-1].read_bytes().startswith(b"\x89PNG")
    assert json.loads(paths[0].read_text()) == json.loads(json.dumps(results))
    assert len(paths[1].read_text().splitlines()) == 5


def test_results_are_written_whatever_the_names_hold(tmp_path: Path) -> None:
    names = ("=cmd()", "b\udce9\n\x1b[2J")
    found = evaluation()
    found.answers[0] = replace(found.answers[0], name="caf\udce9\u2028.mp4")
    paths = write_results(tmp_path, build_results(found, INFO), found, class_names=names)
    lines = paths[1].read_text(encoding="utf-8").removesuffix("\n").split("\n")
    assert [json.loads(line)["path"] for line in lines] == ["caf\udce9\u2028.mp4", "b", "c", "d", "e"]
    assert json.loads(lines[1])["label_name"] == names[1]  # JSON gives back what was there
    assert paths[2].read_text().splitlines() == [
        "label,class,videos,correct,top1",
        "0,'=cmd(),2,1,50.00",
        r"1,b\udce9\n\x1b[2J,2,1,50.00",
    ]
    assert paths[3].read_text().splitlines() == [
        r"true / predicted,'=cmd(),b\udce9\n\x1b[2J,no answer",
        "'=cmd(),1,1,0",
        r"b\udce9\n\x1b[2J,0,1,1",
    ]


def test_what_ran_is_recorded() -> None:
    assert (
        results.versions()["torch"] == torch.__version__.split("+")[0] or "+" in results.versions()["torch"]
    )
    assert {"python", "numpy", "timm"} <= set(results.versions())
    assert results.describe_device(torch.device("cpu")).startswith("cpu (")
    commit = results.git_commit()
    assert commit is None or len(commit.removesuffix("-dirty")) == 40


def test_commit_is_unknown_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert results.git_commit() is None


def test_a_confusion_matrix_shows_the_classes_that_occur() -> None:
    matrix = confusion_matrix([(3, 3), (3, 7), (7, None)], 1000)
    table = confusion_table(matrix, {3: "jump"})
    assert table is not None
    assert table.columns == ["true / predicted", "jump", "7", "no answer", "correct, %"]
    assert table.rows == [["jump", "1", "1", "0", "50.0"], ["7", "0", "0", "1", "0.0"]]
    assert confusion_table(np.eye(11, 12, dtype=np.int64), {}) is None
    assert confusion_table(confusion_matrix([], 0), {}) is None
    assert confusion_plot(np.eye(41, 42, dtype=np.int64), {}, "too many") is None


def test_json_is_for_people_too() -> None:
    assert results.to_json({"a": {"b": "ä"}}) == '{\n  "a": {\n    "b": "ä"\n  }\n}\n'


def test_five_guesses_count_and_an_unlisted_video_has_no_place() -> None:
    """A sixth guess is one too many. The place of a video in its dataset is no part of what is said about it."""
    found = Evaluation([VideoAnswer("a", label, (0, 1, 2, 3, 4, 5)) for label in (0, 1, 4, 5)])
    results = build_results(found, INFO)
    assert (results["top1"], results["top5"]) == (found.top1, found.top5) == (25.0, 75.0)
    assert found.failed == [] and VideoAnswer("a", 1).index == -1
    assert VideoAnswer("a", 1, index=4) == VideoAnswer("a", 1, index=5)


def test_lines_name_classes_round_and_are_strict_json() -> None:
    answers = [
        VideoAnswer("é", 1, (0, 2), (0.123456789, 0.1)),
        VideoAnswer("b", 2, error="broken"),
        VideoAnswer("c", None, error="missing"),
    ]
    lines = prediction_lines(answers, baseline=True, class_names=("null", "eins"))
    assert lines[0].startswith('{"path": "é"')
    rows = [json.loads(line) for line in lines]
    assert [(row["label_name"], row["pred_name"]) for row in rows] == [
        ("eins", "null"),
        (None, None),
        (None, None),
    ]
    assert [row["probs_top5"] for row in rows] == [[0.123457, 0.1], None, None]
    assert [row["baseline_pred"] for row in rows] == [None, None, None]
    for write in (
        results.to_json,
        lambda value: prediction_lines([VideoAnswer("a", 0, kept_tokens=value["a"])], baseline=False),
    ):
        with pytest.raises(ValueError, match="Out of range float values"):
            write({"a": float("nan")})


def test_the_commit_is_that_of_the_tree_that_holds_this_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "results.py"
    source.touch()
    monkeypatch.setattr(results, "__file__", str(source))
    assert results.git_commit() is None  # no repository

    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=tmp_path, check=True)

    git("init", "--quiet")
    assert results.git_commit() is None  # somebody else's
    git("add", "results.py")
    git("commit", "--quiet", "--message", "a")
    clean = results.git_commit()
    assert clean is not None and re.fullmatch("[0-9a-f]{40}", clean)
    source.write_text("changed")
    assert results.git_commit() == f"{clean}-dirty"


def test_the_device_has_a_name_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Path, "read_text", lambda path: "vendor_id\t: A\nmodel name\t: B: C \nmodel name\t: D\n"
    )
    assert results.describe_device(torch.device("cpu")).startswith("cpu (B: C, ")

    def absent(path: Path) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", absent)
    for processor, said in (("P", "cpu (P, "), ("", "cpu (M, ")):
        monkeypatch.setattr(results.platform, "processor", lambda processor=processor: processor)
        monkeypatch.setattr(results.platform, "machine", lambda: "M")
        assert results.describe_device(torch.device("cpu")).startswith(said)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"number {device.index}")
    assert results.describe_device(torch.device("cuda", 3)) == "cuda (number 3)"
