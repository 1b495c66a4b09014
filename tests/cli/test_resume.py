"""A run that is killed and started again ends like one that nobody touched."""

import errno
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the folder is no package
import killing

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(scope="module")
def many(many_videos):
    return many_videos(12)


@pytest.fixture
def words(many, small):
    return ("dataset=folder", f"dataset.root={many}", *small, "runtime.batch_size=2", "runtime.workers=1")


def test_a_kill_takes_the_decoding_processes_along(words, tmp_path):
    child = killing.start(words, tmp_path / "run", pause_s=60)
    batches = tmp_path / "run.batches"
    while not batches.exists():
        time.sleep(0.05)
    (worker,) = Path(f"/proc/{child}/task/{child}/children").read_text().split()
    os.kill(child, signal.SIGKILL)
    killing.finish(child)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{worker}/stat").exists() and " Z " not in Path(f"/proc/{worker}/stat").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_same_command_again_does_nothing_twice_and_says_so(command, words, tmp_path):
    out = tmp_path / "run"
    status, _, said = command(*words, f"output_dir={out}")
    assert status == 0 and "resumed" not in said
    before, results = killing.figures(out), json.loads((out / "results.json").read_text())
    predictions, picture = (out / "predictions.jsonl").read_bytes(), (out / "kept_tubelets.png").read_bytes()
    status, shown, said = command(*words, f"output_dir={out}", "runtime.batch_size=64", "progress=true")
    assert status == 0
    assert "resumed: 12 of 12 videos were finished before, nothing is left to do; resume=false starts" in said
    assert "This run was resumed" not in shown  # one session did all the work
    assert killing.figures(out) == before
    assert (out / "predictions.jsonl").read_bytes() == predictions
    assert (out / "kept_tubelets.png").read_bytes() == picture
    again = json.loads((out / "results.json").read_text())
    assert again["latency_ms"] == results["latency_ms"]
    assert [session["videos"] for session in again["sessions"]] == [12, 0]

    status, _, said = command(*words, f"output_dir={out}", "pruner.keep_ratio=0.7", "seed=1")
    assert status == 2
    first, *lines = said[said.index("error: ") :].splitlines()
    assert f"output_dir={out} holds a run with another configuration" in first
    assert "  pruner.keep_ratio: 0.3 there, 0.7 now" in lines and "  seed: 0 there, 1 now" in lines
    assert any(line.startswith("  weights: ") for line in lines)  # the seed draws other weights
    assert len(lines) == 3
    assert (out / "predictions.jsonl").read_bytes() == predictions

    status, _, said = command(*words, f"output_dir={out}", "pruner.keep_ratio=0.7", "resume=false")
    assert status == 0 and "resumed" not in said
    assert json.loads((out / "results.json").read_text())["keep_ratio"] == 0.7

    journal = out / "progress/journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:4]) + lines[4][:50])
    status, shown, said = command(*words, f"output_dir={out}", "pruner.keep_ratio=0.7")
    assert status == 0 and "resumed: 4 of 12 videos were finished before, 8 are left" in said
    assert "This run was resumed: times are taken over 2 sessions." in shown
    sessions = json.loads((out / "results.json").read_text())["sessions"]
    assert [session["videos"] for session in sessions] == [4, 8]


def test_another_list_of_videos_is_refused(command, words, many, tmp_path):
    out = tmp_path / "run"
    listed = tmp_path / "list.csv"
    words = tuple("dataset=csv" if word == "dataset=folder" else word for word in words)
    words = (*words, f"dataset.annotations={listed}", f"output_dir={out}", "runtime.workers=0", "visualize=0")
    listed.write_text("a/00.mp4,0\nb/01.mp4,1\n")
    assert command(*words)[0] == 0
    listed.write_text("a/00.mp4,0\nb/01.mp4,0\n")
    status, _, said = command(*words)
    assert status == 2
    assert "  list of videos: 2 + 0 missing, " in said


def test_a_full_disk_is_one_line_and_keeps_what_was_finished(command, words, tmp_path, monkeypatch):
    write, left = os.write, 3

    def fill_up(handle, data):
        nonlocal left
        if b'{"batch"' in bytes(data[:20]):
            left -= 1
            if left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(handle, data)

    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", fill_up)
        status, _, said = command(*words, "runtime.workers=0", f"output_dir={out}")
    assert status == 2
    last = said.splitlines()[-1]
    assert last.startswith(f"error: cannot write {out / 'progress/journal.jsonl'}: No space left on device.")
    assert "What was finished before is kept; free some space" in last
    status, _, said = command(*words, f"output_dir={out}")
    assert status == 0 and "resumed: 6 of 12 videos were finished before" in said
