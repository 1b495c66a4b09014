"""`tools/prepare_data.py` from its command line to its files, and the evaluation that uses them."""

import shutil
from functools import partial

import pytest

from video_papr.data.index import read_index

QUIET = ("progress=false", "runtime=debug")


@pytest.fixture
def prepare(run):
    return partial(run, "prepare_data")


def test_from_check_to_evaluation(prepare, evaluate, video_root, tmp_path):
    root, out = tmp_path / "videos", tmp_path / "out"
    shutil.copytree(video_root, root)
    (root / "right/broken.mp4").write_text("no video")
    given = ("dataset=folder", f"dataset.root={root}", f"output_dir={out}", *QUIET)
    status, shown, errors = prepare(*given, "min_frames=10")
    assert (status, errors) == (0, "")
    for words in (
        "corrupt",
        "cannot be decoded",
        f"wrote {out / 'report.md'}",
        f"dataset.index={out / 'index.csv'}",
    ):
        assert words in shown
    index = (out / "index.csv").read_bytes()
    statuses = [entry.status for entry in read_index(out / "index.csv").values()]
    assert statuses == ["ok", "ok", "short", "corrupt", "ok", "ok"]
    assert prepare(*given, "min_frames=10", "runtime.workers=2")[0] == 0
    assert (out / "index.csv").read_bytes() == index

    (root / "right/broken.mp4").write_text("still no")  # as long as before: the index is believed
    results = evaluate(root, f"dataset.index={out / 'index.csv'}")
    assert (results["num_evaluated"], results["num_failed"]) == (5, 1)
    (failed,) = [line for line in results["predictions"] if line["error"]]
    assert failed["path"] == "right/broken.mp4" and "says dataset.index" in failed["error"]
    assert (failed["label_name"], failed["pred_name"]) == ("right", None)


def test_too_short_follows_the_backbone(prepare, video_root, tmp_path):
    """16 frames, 4 apart, need 61; one from each of 16 segments needs 16."""
    given = (
        "dataset=folder",
        f"dataset.root={video_root}",
        f"output_dir={tmp_path}",
        "check=packets",
        *QUIET,
    )
    for sampling, ok in (("dense", 0), ("uniform", 3)):
        assert prepare(*given, f"dataset.sampling={sampling}", "backbone=videomae_b")[0] == 0
        assert (tmp_path / "index.csv").read_text().count(",ok,") == ok


def test_wrong_lines_are_listed_and_left_out(prepare, video_root, tmp_path):
    annotations = tmp_path / "list.csv"
    annotations.write_text("left/a.mp4,0\nleft/a.mp4,1\nleft/b.mp4,7\nright/d.mp4\ngone.mp4,1\n")
    (tmp_path / "names.txt").write_text("left\nright\n")
    given = (
        f"dataset.root={video_root}",
        f"dataset.annotations={annotations}",
        f"output_dir={tmp_path / 'out'}",
    )
    names = f"dataset.class_names={tmp_path / 'names.txt'}"
    status, _, errors = prepare("dataset=csv", *given, names, *QUIET)
    assert status == 0 and errors.startswith(
        "warning: 3 entries of the list are wrong and left out; the first: "
    )
    report = (tmp_path / "out/report.md").read_text()
    for words in (
        "list.csv:2: 'left/a.mp4' is listed already",
        "list.csv:3: label 7",
        "list.csv:4: expected",
    ):
        assert words in report
    assert "- gone.mp4: listed, but not on disk" in report
