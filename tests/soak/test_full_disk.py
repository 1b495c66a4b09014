"""A disk of one megabyte, which a run fills: it stops with one line, and goes on when there is space."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))
import killing

SMALL = ("backbone.num_frames=4", "backbone.input_size=16", "pruner=motion", "progress=false", "runtime=cpu")


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True)
    if done.returncode:
        pytest.skip("only root may mount a small disk")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
def test_a_disk_that_fills_up(tmp_path, small_disk, write_video, record):
    root = tmp_path / "videos"
    for number in range(12):
        write_video(root / "ab"[number % 2] / f"{number:02}.mp4", 6, seed=number)
    words = (
        "dataset=folder",
        f"dataset.root={root}",
        *SMALL,
        "runtime.batch_size=2",
        "visualize=0",
        "runtime.workers=1",
    )
    out = small_disk / "run"
    child = killing.start(words, out, pause_s=0.5, notes=tmp_path)
    journal = out / "progress/journal.jsonl"
    while not journal.exists() or b'"batch"' not in journal.read_bytes():
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
    with (small_disk / "ballast").open("wb", buffering=0) as ballast:
        try:
            while ballast.write(b"x" * 256):
                pass
        except OSError:
            pass
    assert killing.finish(child) == 2
    said = (tmp_path / "run.log").read_text().splitlines()[-1]
    assert said.startswith("error: cannot write") and "No space left on device" in said
    stored = sum(b'"batch"' in line for line in journal.read_bytes().splitlines())
    (small_disk / "ballast").unlink()
    assert killing.finish(killing.start(words, out, notes=tmp_path)) == 0
    assert killing.finish(killing.start(words, tmp_path / "whole")) == 0
    killing.check_same_run(tmp_path / "whole", out)
    sessions = [s["videos"] for s in json.loads((out / "results.json").read_text())["sessions"]]
    record("full disk", batches=6, stored_when_full=stored, videos_by_session=sessions)
