"""`tools/eval.py -m`: several jobs, one summary."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from video_papr.cli.sweep import SweepSummary

Command = Callable[..., tuple[int, str, str]]


def test_sweep_is_summed_up(
    command: Command, small: tuple[str, ...], video_root: Path, tmp_path: Path
) -> None:
    words = ("dataset=folder", f"dataset.root={video_root}", f"output_dir={tmp_path}", *small, "visualize=0")
    words = tuple(word for word in words if word != "pruner=motion")
    status, shown, _ = command(
        *words, "runtime.workers=0", "-m", "pruner=motion,none", "pruner.keep_ratio=0.25,0.5"
    )
    assert status == 0
    rows = json.loads((tmp_path / "summary.json").read_text())
    assert [row["job"] for row in rows] == [0, 1, 2, 3]
    for row in rows:
        results = json.loads((tmp_path / str(row["job"]) / "results.json").read_text())
        assert row["top1"] == results["top1"]
        assert row["gmacs_total"] == results["gmacs_per_view"]["total"]
        assert f"pruner={results['pruner']}" in row["overrides"]
        assert row["error"] is None
    assert [row["kept_tokens"] for row in rows] == [1, 2, 4, 4]
    table = list(csv.DictReader((tmp_path / "summary.csv").open()))
    assert [float(line["top1"]) for line in table] == [row["top1"] for row in rows]
    lines = (tmp_path / "summary.md").read_text().splitlines()
    assert len(lines) == 6
    assert "pruner=motion pruner.keep_ratio=0.25" in lines[2]
    assert "dataset.root" not in lines[2]  # what all jobs share is left out
    assert "4 jobs" in shown
    assert f"wrote {tmp_path / 'summary.csv'}" in shown


def test_sweep_goes_on_after_a_job_with_an_error(
    command: Command, small: tuple[str, ...], video_root: Path, tmp_path: Path
) -> None:
    words = ("dataset=folder", f"dataset.root={video_root}", f"output_dir={tmp_path}", *small, "visualize=0")
    status, shown, errors = command("-m", *words, "runtime.workers=0", "pruner.keep_ratio=2,0.5")
    assert status == 2
    assert "error: pruner.keep_ratio=2: must be" in errors
    rows = json.loads((tmp_path / "summary.json").read_text())
    assert rows[0]["error"].startswith("pruner.keep_ratio=2")
    assert rows[0]["top1"] is None
    assert rows[1]["error"] is None
    assert rows[1]["num_evaluated"] == 5
    assert "error" in shown


def test_runs_share_a_clip_cache(
    evaluate: Callable[..., dict[str, Any]], video_root: Path, tmp_path: Path
) -> None:
    cache = f"dataset.clip_cache={tmp_path / 'views'}"
    plain = evaluate(video_root, "views=2x3", "visualize=0")
    first = evaluate(video_root, "views=2x3", "visualize=0", cache)
    assert len(list((tmp_path / "views").rglob("*.npz"))) == 5
    second = evaluate(video_root, "views=2x3", "visualize=0", cache, "pruner=center")
    third = evaluate(video_root, "views=2x3", "visualize=0", cache)
    assert len(list((tmp_path / "views").rglob("*.npz"))) == 5
    assert plain["predictions"] == first["predictions"] == third["predictions"]
    assert second["baseline"]["top1"] == plain["baseline"]["top1"]
    assert third["latency_ms"]["decode"] == first["latency_ms"]["decode"]
    evaluate(video_root, "views=1x1", "visualize=0", cache)
    assert len(list((tmp_path / "views").rglob("*.npz"))) == 10
    evaluate(video_root, "views=1x1", "visualize=0", cache, "dataset.decode_size=short_side")
    assert len(list((tmp_path / "views").rglob("*.npz"))) == 15


def test_jobs_in_other_processes_are_summed_up(
    command: Command, small: tuple[str, ...], video_root: Path, tmp_path: Path
) -> None:
    """joblib's processes share nothing with this one but the sweep's directory."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = ("dataset=folder", f"dataset.root={video_root}", f"output_dir={tmp_path}", *small, "visualize=0")
    (tmp_path / ".jobs").mkdir()
    (tmp_path / ".jobs" / "7.json").write_text("of an earlier sweep")
    launcher = ("hydra/launcher=two_at_once", "runtime.workers=0", "baseline=false")
    status, shown, _ = command("-m", *words, *launcher, "pruner.keep_ratio=0.25,0.5,2")
    assert status == 2
    rows = json.loads((tmp_path / "summary.json").read_text())
    assert [row["job"] for row in rows] == [0, 1, 2]
    assert [row["kept_tokens"] for row in rows] == [1, 2, None]
    assert rows[2]["error"].startswith("pruner.keep_ratio=2: must be")
    assert "3 jobs" in shown


def test_figure_for_a_sweeper(
    command: Command,
    small: tuple[str, ...],
    video_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With `optimize` the job answers with a number, and the summary is the same."""
    answers = []
    on_job_end = SweepSummary.on_job_end

    def spy(self: SweepSummary, config: Any, job_return: Any, **rest: Any) -> None:
        answers.append(job_return.return_value)
        on_job_end(self, config, job_return, **rest)

    monkeypatch.setattr(SweepSummary, "on_job_end", spy)
    words = ("dataset=folder", f"dataset.root={video_root}", f"output_dir={tmp_path}", *small, "visualize=0")
    status, _, errors = command(
        "-m", *words, "runtime.workers=0", "optimize=kept_tokens", "pruner.keep_ratio=0.25,0.5"
    )
    assert status == 0, errors
    assert answers == [1.0, 2.0]
    assert [row["kept_tokens"] for row in json.loads((tmp_path / "summary.json").read_text())] == [1, 2]


def test_unknown_figure_stops_before_the_run(command: Command, tmp_path: Path) -> None:
    status, _, errors = command("optimize=top2", f"output_dir={tmp_path}")
    assert status == 2
    assert errors.startswith("error: optimize='top2': must be one of ")
    assert "Did you mean 'top1'?" in errors


def test_jobs_of_submitit_are_summed_up(
    command: Command, small: tuple[str, ...], video_root: Path, tmp_path: Path
) -> None:
    """What Slurm would run, in processes that submitit starts on this machine."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    words = ("dataset=folder", f"dataset.root={video_root}", f"output_dir={tmp_path}", *small, "visualize=0")
    launcher = (
        "hydra/launcher=submitit_local",
        "hydra.launcher.timeout_min=5",
        "hydra.launcher.cpus_per_task=1",
    )
    status, shown, said = command(
        "-m", *words, *launcher, "runtime.workers=0", "baseline=false", "pruner.keep_ratio=0.25,2"
    )
    assert status == 2, said
    rows = json.loads((tmp_path / "summary.json").read_text())
    assert [row["kept_tokens"] for row in rows] == [1, None]
    assert rows[1]["error"].startswith("pruner.keep_ratio=2: must be")
    assert "2 jobs" in shown
    assert list((tmp_path / ".submitit").iterdir())  # what the jobs said
