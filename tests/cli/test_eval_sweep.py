"""`tools/eval.py -m`: several jobs, one summary."""

import csv
import json

import pytest

from video_papr.cli.sweep import SweepSummary


@pytest.fixture
def words(small, video_root, tmp_path):
    """Of a sweep into tmp_path, over whatever pruners."""
    kept = [word for word in small if word != "pruner=motion"]
    quick = ("visualize=0", "runtime.workers=0", "baseline=false")
    return ("-m", "dataset=folder", f"dataset.root={video_root}", f"output_dir={tmp_path}", *kept, *quick)


def summary(tmp_path):
    return json.loads((tmp_path / "summary.json").read_text())


def test_sweep_is_summed_up_and_goes_on_after_a_job_with_an_error(command, words, tmp_path, monkeypatch):
    """With `optimize` a job answers with a number, for sweepers, and the summary is the same."""
    answers = []
    on_job_end = SweepSummary.on_job_end

    def spy(self, config, job_return, **rest):
        answers.append(job_return.return_value)
        on_job_end(self, config, job_return, **rest)

    monkeypatch.setattr(SweepSummary, "on_job_end", spy)
    swept = ("optimize=kept_tokens", "pruner=motion,none", "pruner.keep_ratio=0.25,2,0.5")
    status, shown, errors = command(*words, *swept)
    assert status == 2 and errors.count("error: pruner.keep_ratio=2: must be") == 2
    rows = summary(tmp_path)
    assert [row["job"] for row in rows] == list(range(6))
    assert [row["kept_tokens"] for row in rows] == [1, None, 2, 4, None, 4]
    assert [answers[job] for job in (0, 2, 3, 5)] == [1.0, 2.0, 4.0, 4.0]
    for row in rows:
        if row["job"] % 3 == 1:
            assert row["error"].startswith("pruner.keep_ratio=2") and row["top1"] is None
            continue
        results = json.loads((tmp_path / str(row["job"]) / "results.json").read_text())
        assert (row["top1"], row["gmacs_total"]) == (results["top1"], results["gmacs_per_view"]["total"])
        assert f"pruner={results['pruner']}" in row["overrides"]
        assert (row["error"], row["num_evaluated"]) == (None, 5)
    table = list(csv.DictReader((tmp_path / "summary.csv").open()))
    assert [line["top1"] and float(line["top1"]) for line in table] == [row["top1"] or "" for row in rows]
    lines = (tmp_path / "summary.md").read_text().splitlines()
    assert len(lines) == 8
    assert "pruner=motion pruner.keep_ratio=0.25" in lines[2]
    assert "dataset.root" not in lines[2]  # what all jobs share is left out
    assert "6 jobs" in shown and "error" in shown
    assert f"wrote {tmp_path / 'summary.csv'}" in shown


def test_runs_share_a_clip_cache(evaluate, video_root, tmp_path):
    cache = f"dataset.clip_cache={tmp_path / 'views'}"
    plain = evaluate(video_root, "views=2x3")
    first = evaluate(video_root, "views=2x3", cache)
    assert len(list((tmp_path / "views").rglob("*.npz"))) == 5
    second = evaluate(video_root, "views=2x3", cache, "pruner=center")
    third = evaluate(video_root, "views=2x3", cache)
    assert len(list((tmp_path / "views").rglob("*.npz"))) == 5
    assert plain["predictions"] == first["predictions"] == third["predictions"]
    assert second["baseline"]["top1"] == plain["baseline"]["top1"]
    assert third["latency_ms"]["decode"] == first["latency_ms"]["decode"]
    evaluate(video_root, "views=1x1", cache, "dataset.decode_size=short_side")
    assert len(list((tmp_path / "views").rglob("*.npz"))) == 10


LAUNCHERS = {
    "joblib": ("hydra/launcher=two_at_once",),
    "submitit": (
        *("hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5", "hydra.launcher.cpus_per_task=1"),
    ),
}


@pytest.mark.parametrize("name", LAUNCHERS)
def test_jobs_in_other_processes_are_summed_up(command, words, tmp_path, name):
    """They share nothing with this process but the sweep's directory. submitit runs here what Slurm would run."""
    pytest.importorskip(f"hydra_plugins.hydra_{name}_launcher")
    (tmp_path / ".jobs").mkdir()
    (tmp_path / ".jobs" / "7.json").write_text("of an earlier sweep")
    status, shown, said = command(*words, *LAUNCHERS[name], "pruner=motion", "pruner.keep_ratio=0.25,2")
    assert status == 2, said
    rows = summary(tmp_path)
    assert [(row["job"], row["kept_tokens"]) for row in rows] == [(0, 1), (1, None)]
    assert rows[1]["error"].startswith("pruner.keep_ratio=2: must be")
    assert "2 jobs" in shown
    assert name == "joblib" or list((tmp_path / ".submitit").iterdir())  # what the jobs said


def test_a_sweep_goes_on_where_it_was(command, words):
    assert command(*words, "pruner=motion,center")[0] == 0
    status, _, errors = command(*words, "pruner=motion,center,none")
    assert status == 0
    assert errors.count("resumed: 5 of 5 videos were finished before, nothing is left to do") == 2
