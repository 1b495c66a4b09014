from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest

from video_papr.core.console import make_console
from video_papr.evaluation.reports.tables import (
    print_failures,
    print_report,
    print_sweep,
    remarks,
    sweep_files,
    sweep_row,
    table_rows,
)


def results(*, baseline: bool = True, fast: float = 30.0, evaluated: int = 9) -> dict[str, Any]:
    def part(top1: float, tokens: int, speed: float, backbone: float, score: float) -> dict[str, Any]:
        return {
            "dataset": "synthetic",
            "num_videos": 10,
            "num_evaluated": evaluated,
            "num_failed": 1,
            "num_missing": 0,
            "top1": top1,
            "top5": top1 + 10,
            "top1_standard_error": 1.25,
            "pruner": "x3d_s",
            "keep_ratio": 0.3,
            "mean_kept_tokens": float(tokens),
            "actor_tokens_kept": None,
            "backbone": "videomae_b",
            "views": "1x1",
            "gmacs_per_view": {"backbone": backbone, "scorer": 1.0, "total": backbone + 1, "dense": 180.0},
            "videos_per_second": speed,
            "latency_ms": {
                "decode": 5.0,
                "preprocess": 1.0,
                "score": score,
                "backbone": backbone,
                "total": 50.0,
            },
            "peak_memory_mb": 900.0,
            "device": "cpu (test)",
            "dtype": "fp32",
        }

    paired = {"loss_points": 0.6, "loss_standard_error": 0.3, "agreement_percent": 97.5}
    dense = part(80.0, 1568, 10.0, 180.0, 0.0) if baseline else None
    return {**part(79.4, 470, fast, 45.0, 3.0), "baseline": dense, "comparison": paired if baseline else None}


def shown(found: dict[str, Any]) -> str:
    console = make_console(io.StringIO(), width=120)
    print_report(found, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_rows_compare_dense_and_pruned() -> None:
    rows = {row[0]: row[1:] for row in table_rows(results())}
    assert rows["top-1, % of all videos"] == ("80.00 ± 1.25", "79.40 ± 1.25", "-0.60 pt")
    assert rows["videos evaluated / failed / missing"] == ("9 / 1 / 0", "9 / 1 / 0", "")
    assert rows["tokens kept per view"] == ("1,568", "470", "3.34x")
    assert rows["GMACs per view: backbone"] == ("180.00", "45.00", "4.00x")
    assert rows["videos/s, decoding left out"] == ("10.0", "30.0", "3.00x")
    assert rows["peak memory, MB (whole process)"] == ("900", "900", "")  # one process ran both
    assert "actor tokens kept, %" not in rows
    both = "GMACs per view: backbone", "GMACs per view: total", "ms per view: backbone", "ms per view: total"
    costs = {name for name in rows if "per view: " in name}
    assert len(costs) == 8 and {name for name in costs if rows[name][2]} == set(both)


def test_actor_share_is_shown_where_it_is_known() -> None:
    found = {**results(baseline=False), "actor_tokens_kept": 0.891}
    rows = table_rows(found)
    assert rows[4] == ("actor tokens kept, %", "", "89.1", "") and rows[3][0] == "tokens kept per view"


def test_memory_of_a_gpu_is_compared() -> None:
    found = results()
    found["device"] = "cuda (test)"
    found["baseline"]["peak_memory_mb"] = 1800.0
    assert table_rows(found)[-1] == ("peak memory, MB", "1,800", "900", "2.00x")


def test_remarks() -> None:
    said = remarks(results())
    assert len(said) == 1
    assert said[0].startswith("Pruning loses 0.60 ± 0.30 points of top-1 (paired over 10 videos)")
    assert "97.5 %" in said[0]
    slower = remarks(results(fast=8.0))
    assert slower[1].startswith("Pruned is slower than dense here (8.0 against 10.0 videos/s): this pair")
    found = results()
    found["comparison"]["loss_points"] = -0.2
    assert remarks(found)[0].startswith("Pruning gains 0.20 ± 0.30 points")
    assert remarks(results(baseline=False)) == []
    assert remarks(results(evaluated=0)) == []


def test_no_top5_of_five_classes(capsys: pytest.CaptureFixture[str]) -> None:
    for classes, expected in ((5, False), (6, True), (None, True)):
        print_report(results(), make_console(), num_classes=classes)
        assert ("top-5" in capsys.readouterr().out) == expected


def test_failures_have_a_table_of_their_own() -> None:
    out = io.StringIO()
    print_failures([], make_console(out))
    assert out.getvalue() == ""
    print_failures([(f"[/b]{i}.mp4", f"broken\x1b[2J{i}") for i in range(12)], make_console(out))
    assert "12 videos without an answer" in out.getvalue() and "and 2 more" in out.getvalue()
    assert r"[/b]0.mp4 │ broken\x1b[2J0" in out.getvalue() and "broken\x1b" not in out.getvalue()


def test_printed_columns() -> None:
    text = shown(results())
    header = next(line for line in text.splitlines() if "keep 0.3" in line)
    assert header.index("dense") < header.index("x3d_s") < header.index("ratio")
    alone = shown({**results(baseline=False), "pruner": "none"})
    assert "ratio" not in alone
    assert "dense" in alone


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    return [
        sweep_row(0, ["dataset=k400", "pruner=x3d_s"], results(), None),
        sweep_row(1, ["dataset=k400", "pruner=none"], results(baseline=False), None),
        sweep_row(2, ["dataset=k400", "pruner.keep_ratio=2"], None, "pruner.keep_ratio=2: must be ..."),
    ]


def test_sweep_files(rows: list[dict[str, Any]]) -> None:
    files = sweep_files(rows)
    assert json.loads(files["summary.json"]) == rows
    assert '"loss ± ä"' in sweep_files([{**rows[0], "error": "loss ± ä"}])["summary.json"]
    table = list(csv.DictReader(io.StringIO(files["summary.csv"])))
    assert [line["top1"] for line in table] == ["79.4", "79.4", ""]
    assert [line["loss_points"] for line in table] == ["0.6", "", ""]
    assert table[2]["error"] == "pruner.keep_ratio=2: must be ..."
    lines = files["summary.md"].splitlines()
    assert lines[2].startswith("| 0 | pruner=x3d_s | 79.40 ± 1.25 | 0.60 ± 0.30 | 9/1/0 |")
    assert lines[4].startswith("| 2 | pruner.keep_ratio=2 | error |")
    assert len({line.count("|") for line in lines}) == 1
    assert "actor" not in lines[0]  # nobody knows an actor, so there is no column for it


def test_printed_sweep(rows: list[dict[str, Any]]) -> None:
    console = make_console(io.StringIO(), width=140)
    print_sweep(rows, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "3 jobs" in text and "jobs that failed" in text and "pruner.keep_ratio=2: must be ..." in text
    assert "pruner=none" in text


def test_one_job_keeps_all_its_words(rows: list[dict[str, Any]]) -> None:
    assert "dataset=k400 pruner=x3d_s" in sweep_files(rows[:1])["summary.md"]


def test_a_single_failure_and_a_run_in_sessions() -> None:
    out = io.StringIO()
    print_failures([("a.mp4", "broken")], make_console(out))
    assert "1 video without an answer" in out.getvalue() and "more" not in out.getvalue()
    for videos, said in (([4], False), ([4, 0], False), ([4, 1], True)):
        found = {**results(), "sessions": [{"videos": count} for count in videos]}
        assert ("This run was resumed: times are taken over 2 sessions." in shown(found)) == said


def test_remarks_stand_under_the_table() -> None:
    text = shown(results(fast=8.0))
    assert text.index("peak memory") < text.index("Pruning loses") < text.index("Pruned is slower")
