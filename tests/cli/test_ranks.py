"""One evaluation in several ranks, as torchrun starts them: the same files as from one process, whatever happens."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the folder is no package
import killing

from video_papr.cli.predict import main as predict
from video_papr.cli.train import main as train

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(scope="module")
def many(many_videos):
    return many_videos(13)


@pytest.fixture(scope="module")
def words(many, small):
    return ("dataset=folder", f"dataset.root={many}", *small, "runtime.batch_size=2", "runtime.workers=0")


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory):
    """The run directory of one process that nobody touched."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert killing.finish(killing.start(words, out)) == 0
    return out


def log(out):
    return Path(f"{out}.log").read_text()


@pytest.mark.parametrize("size", [3, 8])
def test_ranks_end_like_one_process(words, whole, tmp_path, size):
    """13 videos in batches of two are seven batches: shards are uneven, and the eighth rank has nothing to do."""
    out = tmp_path / "ranks"
    children = killing.start_ranks((*words, "progress=true"), out, size)
    assert [killing.finish(child) for child in children] == [0] * size, log(out)
    killing.check_same_run(whole, out)
    killing.check_no_work_was_lost(out, videos=13, kills=0)
    assert (out / "kept_tubelets.png").read_bytes() == (whole / "kept_tubelets.png").read_bytes()
    (session,) = json.loads((out / "results.json").read_text())["sessions"]
    assert (session["ranks"], session["videos"]) == (size, 13)
    said = log(out)
    assert said.count("wrote ") == 6 and said.count("top-1, % of all videos") == 1
    assert f"rank 0 of {size}" in said and "rank 1 of" not in said
    assert f"rank 1 of {size}" in (out / "rank_1.log").read_text()
    assert len(list(out.glob("rank_*.log"))) == size - 1
    assert [len(list(out.rglob(name))) for name in ("journal*.jsonl", ".hydra")] == [size, 1]


def test_lost_ranks_and_another_number_of_them(words, whole, tmp_path):
    """Runs of three, one and two ranks that lose one of them, and the last one of two that ends."""
    out, chance = tmp_path / "lossy", random.Random(0)
    for size in (3, 1, 2):
        children = killing.start_ranks(words, out, size, agent=True, pause_s=0.3)
        before = stored(out)
        while stored(out) <= before and not (out / "results.json").exists():
            time.sleep(0.02)
        lost = chance.randrange(size)
        os.kill(children[lost], signal.SIGKILL)
        for child in children:  # what torchrun does then
            os.kill(child, signal.SIGTERM)
        ends = [killing.finish(child) for child in children]
        assert ends[lost] == -signal.SIGKILL
        assert set(ends) <= {-signal.SIGKILL, 128 + signal.SIGTERM, 1, 2}, log(out)
        assert stored(out) < 13
    told = [line for line in log(out).splitlines() if line.startswith("error: ")]
    assert len(told) == 2, told  # one line for each run that had a rank left
    assert all("another rank is lost" in line and f"output_dir={out}" in line for line in told)
    assert [killing.finish(child) for child in killing.start_ranks(words, out, 2)] == [0, 0], log(out)
    killing.check_same_run(whole, out)
    killing.check_no_work_was_lost(out, videos=13, kills=3 + 1 + 2)
    sessions = json.loads((out / "results.json").read_text())["sessions"]
    assert [session["ranks"] for session in sessions] == [3, 1, 2, 2]
    assert sum(session["videos"] for session in sessions) == 13
    assert "resumed: " in log(out)


def stored(out):
    """Videos in whole lines of the journals."""
    lines = [line for path in out.glob("progress/journal*.jsonl") for line in path.read_bytes().splitlines()]
    return sum(line.count(b'"index"') for line in lines)


def stop_rank_1(out, *, until):
    """Stops rank 1 before its first video, waits until the others have stored so many, and returns its process."""
    lock = out / "progress/lock.1"
    while not lock.exists() or not lock.read_text():
        time.sleep(0.01)
    process = int(lock.read_text())
    os.kill(process, signal.SIGSTOP)
    deadline = time.monotonic() + 60
    while stored(out) < until:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def test_a_rank_that_waits_notices_a_loss_by_itself(words, tmp_path):
    """Without torchrun's signal, for other launchers: rank 0 has done its share when rank 1 is lost."""
    out = tmp_path / "run"
    children = killing.start_ranks(words, out, 2)
    os.kill(stop_rank_1(out, until=7), signal.SIGKILL)
    assert [killing.finish(child) for child in children] == [2, -signal.SIGKILL]
    assert "error: another rank is lost, so rank 0 on " in log(out)
    assert not (out / "results.json").exists()


def test_a_wrong_option_is_one_line(words, tmp_path):
    out = tmp_path / "run"
    children = killing.start_ranks((*words, "pruner.keep_ratio=2"), out, 3)
    assert [killing.finish(child) for child in children] == [2, 0, 0]
    (line,) = log(out).splitlines()
    assert line.startswith("error: pruner.keep_ratio=2: must be a number above 0 and at most 1")


def test_a_sweep_of_ranks(words, tmp_path):
    """Jobs one after the other, each by all ranks; the wrong one among them ends alone."""
    out = tmp_path / "sweep"
    sweep = ("-m", *words, "visualize=0", "baseline=false", "dataset.limit=5", "pruner.keep_ratio=0.25,2,0.5")
    children = killing.start_ranks(sweep, out, 2)
    assert [killing.finish(child) for child in children] == [2, 0]
    rows = json.loads((out / "summary.json").read_text())
    assert [row["kept_tokens"] for row in rows] == [1, None, 2]
    assert [row["num_evaluated"] for row in rows] == [4, None, 4]  # one is broken
    for job in (0, 2):
        (session,) = json.loads((out / f"{job}/results.json").read_text())["sessions"]
        assert session["ranks"] == 2
    assert log(out).count("error: ") == 1


def test_what_ranks_cannot_do_is_refused(run_in_process, words, tmp_path, monkeypatch):
    children = killing.start_ranks(("-m", "hydra/launcher=joblib", *words, "seed=1,2"), tmp_path / "run", 2)
    assert [killing.finish(child) for child in children] == [2, 0]
    (line,) = log(tmp_path / "run").splitlines()
    assert line.startswith(
        "error: hydra/launcher=joblib: its jobs run outside of torchrun's processes; leave"
    )
    for name, value in (
        ("RANK", "1"),
        ("WORLD_SIZE", "2"),
        ("MASTER_ADDR", "127.0.0.1"),
        ("MASTER_PORT", "1"),
    ):
        monkeypatch.setenv(name, value)
    status, _, said = run_in_process("predict.py", predict, "video=x.mp4")
    assert status == 2
    assert said.startswith("error: predict works in one process, and torchrun started 2; only eval and train")


def test_training_in_ranks(many, tmp_path):
    """The log says what one process says; what cannot be right is refused by rank 0 alone."""
    words = (
        *("dataset=folder", f"dataset.root={many}", "backbone.num_frames=4", "backbone.input_size=32"),
        *("runtime=cpu", "runtime.workers=0", "progress=false", f"+dataset.cache_dir={tmp_path}"),
        *("train.steps=3", "train.batch_size=6", "train.validate_every=1", "train.keep_ratio=[0.3,0.9]"),
    )
    one, several = tmp_path / "one", tmp_path / "several"
    run = partial(killing.start_ranks, words, entry=train)
    assert [killing.finish(child) for child in run(one, 1, fresh="train")] == [0], log(one)
    assert [killing.finish(child) for child in run(several, 2, fresh="train")] == [0, 0], log(several)
    assert log(several).count("wrote ") == log(one).count("wrote ") == 3
    assert "validation top-1" in log(several)
    rows, expected = losses(several), losses(one)
    assert rows == pytest.approx(expected, abs=1e-3) and len(rows) == 3

    (several / "checkpoint.pt").unlink()
    resumed = partial(killing.start_ranks, (*words, "train.resume=true"), several, entry=train)
    assert [killing.finish(child) for child in resumed(2)] == [2, 0]
    assert [killing.finish(child) for child in run(several, 4)] == [2, 0, 0, 0]
    said = [line for line in log(several).splitlines() if line.startswith("error: ")]
    assert "train.resume=true, but " in said[0] and "checkpoint.pt does not exist" in said[0]
    assert said[1].startswith(
        "error: train.batch_size=6 must be a multiple of 4: of train.accumulate=1 times 4"
    )
    assert len(said) == 2


def losses(out):
    with (out / "log.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def torchrun(script, *words, cwd):
    launch = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", ROOT / script, *words)
    return subprocess.run(
        [sys.executable, "-m", *map(str, launch)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_torchrun_ends_a_run_whose_rank_is_lost(words, whole, tmp_path):
    out = tmp_path / "run"
    with ThreadPoolExecutor() as pool:
        run = pool.submit(
            torchrun,
            "tools/eval.py",
            *words,
            f"output_dir={out}",
            "runtime.threads=1",
            "runtime.engine=torch",
            cwd=tmp_path,
        )
        os.kill(stop_rank_1(out, until=7), signal.SIGKILL)
        done = run.result()
    assert done.returncode != 0
    assert "rank      : 1" in done.stderr and "SIGKILL" in done.stderr  # torchrun's own report
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "another rank is lost" in line and f"Run again with output_dir={out}" in line
    assert killing.finish(killing.start(words, out)) == 0
    killing.check_same_run(whole, out)
    assert [s["ranks"] for s in json.loads((out / "results.json").read_text())["sessions"]] == [2, 1]
