"""Kills at random moments, by the clock: at least fifty, over runs with and without decoding processes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))
import killing

SMALL = ("backbone.num_frames=4", "backbone.input_size=16", "pruner=motion", "progress=false", "runtime=cpu")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kills(tmp_path: Path, write_video: Callable[..., Path], amount: Callable[[str, int], int]) -> None:
    wanted, root = amount("KILLS", 50), tmp_path / "videos"
    for number in range(40):
        write_video(root / "ab"[number % 2] / f"{number:02}.mp4", 6 + number % 9, seed=number)
    (root / "a/04.mp4").write_bytes(b"no video")
    words = ("dataset=folder", f"dataset.root={root}", *SMALL, "runtime.batch_size=2")
    begin = time.monotonic()
    assert killing.finish(killing.start((*words, "runtime.workers=1"), tmp_path / "whole", pause_s=0.05)) == 0
    seconds = time.monotonic() - begin
    killed = runs = 0
    while killed < wanted:
        out = tmp_path / f"run{runs}"
        given = (*words, f"runtime.workers={runs % 3}")
        now = killing.kill_until_done(given, out, kills=6, seconds=seconds, seed=runs, pause_s=0.05)
        killing.check_same_run(tmp_path / "whole", out)
        killing.check_no_work_was_lost(out, videos=40, kills=6)
        killed, runs = killed + now, runs + 1
    print(
        f"\n{killed} kills in {runs} runs of 40 videos: {runs} of {runs} ended like the run that was left alone"
    )
