"""Crash consistency: killed before any of its file-system calls and resumed, a run ends with the same files."""

import os
import random
import signal
import sys
from functools import partial
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the folder is no package
import killing

from video_papr.cli.eval import main

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

POINTS = int(os.environ.get("CRASH_POINTS", 5))  # of about 50; more are tried if asked for
EVENTS = (
    "open",
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.truncate",
    "os.chmod",
)  # Python's names of such calls


def run(out, *, die_at=None):
    """The command; this process is killed before its file-system call number `die_at` that changes `out`."""
    calls = 0

    def count():
        nonlocal calls
        if calls == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        calls += 1

    def audit(event, arguments):
        reads = event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if event in EVENTS and not reads and str(arguments[0]).startswith(f"{out}/"):
            count()

    def counted(call):
        def before(handle, *arguments):
            count()
            return call(handle, *arguments)

        return before

    os.write, os.fsync = counted(os.write), counted(os.fsync)
    sys.addaudithook(audit)
    main()
    out.with_suffix(".calls").write_text(str(calls))


def test_a_kill_before_any_file_system_call_leaves_a_run_that_can_go_on(many_videos, small, tmp_path):
    root = many_videos(6)
    words = ("dataset=folder", f"dataset.root={root}", *small, "runtime.batch_size=3", "runtime.workers=0")
    whole = tmp_path / "whole"
    assert killing.finish(killing.start(words, whole, entry=partial(run, whole))) == 0
    calls = int(whole.with_suffix(".calls").read_text())
    assert calls > 20
    names = sorted(path.name for path in whole.iterdir())
    points = random.Random(0).sample(range(calls), min(POINTS, calls - 2))
    for point in {0, calls - 1, *points}:
        out = tmp_path / f"killed{point}"
        child = killing.start(words, out, entry=partial(run, out, die_at=point))
        assert killing.finish(child) == -signal.SIGKILL, point
        assert killing.finish(killing.start(words, out)) == 0, Path(f"{out}.log").read_text()
        killing.check_same_run(whole, out)
        killing.check_no_work_was_lost(out, videos=6, kills=1)
        assert sorted(path.name for path in out.iterdir()) == names, point
        picture = "kept_tubelets.png"
        assert (out / picture).read_bytes() == (whole / picture).read_bytes()
