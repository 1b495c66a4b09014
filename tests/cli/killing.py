"""Runs of `tools/eval.py` in forked processes that are killed: shared by the short test and the long one.

A fork of this process needs no second to import torch. It computes with one thread: threads do not survive a fork.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from torch.distributed import TCPStore

from video_papr.cli.eval import main
from video_papr.evaluation.answers import Evaluation
from video_papr.evaluation.journal import Journal

# What depends on the clock, on the number of starts, and on who works on this checkout meanwhile.
STORES: list[TCPStore] = []  # of `start_ranks`, kept as long as this process lives
VARIES = ("latency_ms", "videos_per_second", "peak_memory_mb", "sessions", "command", "git_commit")


def start(words, out, *, pause_s=0.0, notes=None, environment=None, entry=main, fresh=None):
    """Forks a run of `entry` and returns its process.

    Each batch is noted in NAME.batches before it is stored, what the run says in NAME.log; both lie in `notes`, or
    beside `out`. `fresh` names a command to start in a new interpreter instead: once a process has computed gradients
    in threads, as some tests do, its forks cannot compute any.
    """
    notes = notes or out.parent
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        os.environ.update(environment or {})
        store: Callable[[Journal, Evaluation], None] = Journal.on_batch

        def note(journal, part):
            with (notes / f"{out.name}.batches").open("a") as file:
                file.write(json.dumps([answer.index for answer in part.answers]) + "\n")
            time.sleep(pause_s)
            store(journal, part)

        Journal.on_batch = note
        silence = os.open(notes / f"{out.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        words = [*words, f"output_dir={out}", "runtime.threads=1"]
        if fresh:
            os.execv(sys.executable, [sys.executable, "-m", "video_papr", fresh, *words])
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        sys.argv = ["eval.py", *words]
        entry()
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def start_ranks(words, out, size, *, agent=False, **options):
    """Forks the ranks of one run, as torchrun would start them; a single one knows nothing about ranks.

    With `agent`, this process keeps the ranks' store as torchrun's agent does, so that it outlives each of them;
    otherwise it is rank 0's.
    """
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    shared = {"WORLD_SIZE": f"{size}", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
    if agent:
        shared["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    children = [
        start(words, out, environment={**shared, "RANK": f"{rank}", "LOCAL_RANK": f"{rank}"}, **options)
        for rank in range(size)
    ]
    if agent:  # after the forks, because it has threads; the ranks wait for it
        STORES.append(TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False))
    return children


def finish(child):
    """The exit status; negative: the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_until_done(words, out, *, kills, seconds, seed, **options):
    """Starts the run again and again, kills it at random moments within `seconds`, lets the last start end.

    Returns:
        how many starts were killed before they ended by themselves.
    """
    chance = random.Random(seed)
    killed = 0
    for _ in range(kills):
        child = start(words, out, **options)
        time.sleep(chance.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
        killed += finish(child) == -signal.SIGKILL
    assert finish(start(words, out)) == 0, Path(f"{out}.log").read_text()
    return killed


def check_same_run(one, other):
    """The same predictions to the byte, and the same figures, but for those that depend on the clock."""
    assert (one / "predictions.jsonl").read_bytes() == (other / "predictions.jsonl").read_bytes()
    first, second = figures(one), figures(other)
    different = {key: (first[key], second[key]) for key in first if first[key] != second[key]}
    assert first.keys() == second.keys() and not different, different


def figures(out):
    results = json.loads((out / "results.json").read_text())
    for part in (results, results["baseline"] or {}):
        for name in VARIES:
            part.pop(name, None)
    return results


def check_no_work_was_lost(out, *, videos, kills):
    """Each video is stored once, and each kill costs one batch at most.

    Returns:
        how many videos are stored twice, and how many batches had been answered but not stored when they were lost.
    """
    stored: Counter[int] = Counter()
    batches = 0
    for journal in (out / "progress").glob("journal*.jsonl"):
        for line in journal.read_bytes().splitlines():
            record = json.loads(line[9:])
            if "batch" in record:
                batches += 1
                stored.update(answer["index"] for answer in record["batch"]["answers"])
    assert stored == Counter(range(videos))
    worked = (out.parent / f"{out.name}.batches").read_text().splitlines()
    assert batches <= len(worked) <= batches + kills
    twice = sum(times > 1 for times in stored.values())
    return Counter({"videos_stored_twice": twice, "batches_lost": len(worked) - batches})
