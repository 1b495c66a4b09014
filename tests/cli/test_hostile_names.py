"""Names that hold anything a file system allows: every command ends well, writes its files, and shows names as text."""

import csv
import json
import os
from functools import partial

import pytest

from video_papr.cli import predict, report

GOOD = (os.fsdecode(b"caf\xe9.mp4"), "=cmd|'x'!A1.mp4", f"{'long' * 60}.mp4")
BROKEN = ("b].mp4", "a\x1b[2J\x1b]0;pwn\x07bad.mp4", "two\nlines\u202e.mp4", "<img src=x>.mp4")


@pytest.fixture
def root(tmp_path, write_video):
    root = tmp_path / "videos"
    plain = write_video(tmp_path / "good.mp4", 8).read_bytes()
    for name in (*GOOD, *BROKEN):
        for directory in ("[", "<script>|"):
            path = root / directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(plain if name in GOOD else b"no video")
    return root


def check_shown(text):
    assert "\x1b" not in text and "\x07" not in text and "\u202e" not in text and "Traceback" not in text
    text.encode("utf-8")


def test_names_stay_text(root, tmp_path, command, run_in_process, small, capsys):
    out = tmp_path / "out"
    words = ("dataset=folder", *small, "runtime.workers=0", "baseline=false", f"dataset.root={root}")
    status, shown, errors = command(*words, f"output_dir={out}")
    assert status == 0, errors
    check_shown(shown + errors)
    assert r"a\x1b[2J\x1b]0;pwn\x07bad.mp4" in shown and "b].mp4" in shown
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert (results["num_videos"], results["num_failed"]) == (14, 8)
    lines = (out / "predictions.jsonl").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    assert len({json.loads(line)["path"] for line in lines}) == 14

    report.main([str(out)])
    check_shown(capsys.readouterr().out)
    for name in ("report.md", "report.html"):
        assert "<script>|" not in (out / name).read_text(encoding="utf-8")

    one = partial(run_in_process, "predict.py", predict.main, *small)
    status, shown, errors = one(f"video={root}", f"output_dir={tmp_path / 'p'}", "visualize=14")
    assert status == 1, errors  # some failed
    check_shown(shown + errors)
    with (tmp_path / "p/predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["video"] for row in rows}) == 14
    assert all(cell[:1] not in "=+-@" or not cell for row in rows for cell in row.values())
