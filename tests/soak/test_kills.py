"""Kills at random moments, by the clock: of runs with and without decoding processes, and of ranks of one run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))
import killing

SMALL = ("backbone.num_frames=4", "backbone.input_size=16", "pruner=motion", "progress=false", "runtime=cpu")


Words = tuple[str, ...]

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(scope="module")
def words(tmp_path_factory, write_video):
    """A run over forty videos, one of them broken."""
    root = tmp_path_factory.mktemp("videos")
    for number in range(40):
        write_video(root / "ab"[number % 2] / f"{number:02}.mp4", 6 + number % 9, seed=number)
    (root / "a/04.mp4").write_bytes(b"no video")
    return ("dataset=folder", f"dataset.root={root}", *SMALL, "runtime.batch_size=2")


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory):
    """The run that is left alone, and its seconds."""
    out, begin = tmp_path_factory.mktemp("whole") / "run", time.monotonic()
    assert killing.finish(killing.start((*words, "runtime.workers=1"), out, pause_s=0.05)) == 0
    return out, time.monotonic() - begin


def test_kills(tmp_path, words, whole, amount, record):
    wanted, begin, seconds = amount("KILLS", 50), time.monotonic(), whole[1]
    killed = runs = 0
    lost: Counter[str] = Counter()
    while killed < wanted:
        out = tmp_path / f"run{runs}"
        given = (*words, f"runtime.workers={runs % 3}")
        killed += killing.kill_until_done(given, out, kills=6, seconds=seconds, seed=runs, pause_s=0.05)
        killing.check_same_run(whole[0], out)
        lost.update(killing.check_no_work_was_lost(out, videos=40, kills=6))
        runs += 1
    record(
        "kills",
        kills=killed,
        runs_like_one_left_alone=runs,
        videos_per_run=40,
        **lost,
        seconds=round(time.monotonic() - begin),
    )


def test_killed_ranks(tmp_path, words, whole, amount, record):
    """One rank is killed at a random moment, half of the time while they answer, and the others are told to stop, as
    torchrun does; the next start has another number of them."""
    wanted, begin, seconds = amount("RANK_KILLS", 50), time.monotonic(), whole[1]
    killed = runs = 0
    chance = random.Random(0)
    ends: Counter[int] = Counter()
    lost: Counter[str] = Counter()
    while killed < wanted:
        out, ended = tmp_path / f"run{runs}", 0
        given = (*words, f"runtime.workers={runs % 2}")
        for _ in range(5):
            size = chance.choice([1, 2, 2, 3, 4])
            answered = worked(out)
            children = killing.start_ranks(given, out, size, pause_s=0.1)
            if chance.random() < 0.5:
                time.sleep(chance.uniform(0, seconds))
            else:  # while they answer, which is a short part of their time
                while worked(out) == answered and not ended_by_itself(children[0]):
                    time.sleep(0.01)
                time.sleep(chance.uniform(0, 0.5))
            os.kill(chance.choice(children), signal.SIGKILL)
            for child in children:
                os.kill(child, signal.SIGTERM)
            found = [killing.finish(child) for child in children]
            ends.update(found)
            killed += -signal.SIGKILL in found
            ended += size
        size = chance.choice([1, 2, 3])
        assert [killing.finish(child) for child in killing.start_ranks(given, out, size)] == [0] * size
        killing.check_same_run(whole[0], out)
        lost.update(killing.check_no_work_was_lost(out, videos=40, kills=ended))
        assert "Traceback" not in Path(f"{out}.log").read_text()
        runs += 1
    record(
        "killed ranks",
        kills=killed,
        runs_like_one_left_alone=runs,
        videos_per_run=40,
        **lost,
        exit_statuses={f"{status}": number for status, number in sorted(ends.items())},
        seconds=round(time.monotonic() - begin),
    )


def worked(out):
    """The number of batches that were answered so far."""
    notes = out.parent / f"{out.name}.batches"
    return len(notes.read_text().splitlines()) if notes.exists() else 0


def ended_by_itself(child):
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def test_torchrun_goes_on_by_itself(tmp_path, words, whole, amount, record):
    """Real ranks under torchrun --max-restarts, one of which is killed again and again."""
    wanted, begin, out = amount("RESTARTS", 3), time.monotonic(), tmp_path / "run"
    command = (
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        f"--max-restarts={wanted}",
    )
    run = subprocess.Popen(
        [sys.executable, *command, "tools/eval.py", *words, "runtime.workers=1", f"output_dir={out}"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    victims: list[int] = []
    while len(victims) < wanted and run.poll() is None:
        lock = out / f"progress/lock{'.1' * (len(victims) % 2 == 0)}"  # rank 1, rank 0, rank 1 ...
        process = int(lock.read_text() or 0) if lock.exists() else 0
        if process and process not in victims and Path(f"/proc/{process}").exists():
            os.kill(process, signal.SIGKILL)
            victims.append(process)
        time.sleep(0.05)
    said = run.communicate()[1]
    assert run.returncode == 0, said
    assert len(victims) == wanted
    killing.check_same_run(whole[0], out)
    record(
        "torchrun restarts", kills=wanted, exit_status=run.returncode, seconds=round(time.monotonic() - begin)
    )
