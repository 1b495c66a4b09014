"""`pruner=codec` from the command line: the same answers whatever reads the videos, and what had no vectors is said."""

import json

import pytest


@pytest.fixture(scope="module")
def root(tmp_path_factory, write_video):
    """Two videos with vectors and one of a codec that exports none, of which 4 frames are read each."""
    folder = tmp_path_factory.mktemp("codecs")
    for number, name in enumerate(("left/a.mp4", "right/b.mkv")):
        write_video(folder / name, 40, seed=number, options={"preset": "medium", "bf": "2"})
    write_video(folder / "right/c.webm", 24, codec="libvpx")
    return folder


def test_answers_do_not_depend_on_workers_batches_and_cache(evaluate, root, tmp_path):
    cache = (f"dataset.cache_dir={tmp_path / 'cache'}", "dataset.clip_cache=auto")
    how = [(), ("runtime.workers=2", "runtime.batch_size=2"), cache, cache]
    runs = [evaluate(root, "pruner=codec", "pruner.keep_ratio=0.5", "visualize=1", *words) for words in how]
    assert all(run["predictions"] == runs[0]["predictions"] for run in runs)
    assert runs[0]["frames_without_vectors"] == pytest.approx(4 / 3)
    assert runs[3]["frames_without_vectors"] == pytest.approx(4 / 3)
    assert "frames without motion vectors" in runs[0]["shown"] and "1.33" in runs[0]["shown"]
    other = evaluate(root, "pruner=motion", "pruner.keep_ratio=0.5", *cache)
    assert "frames_without_vectors" not in other and "motion vectors" not in other["shown"]
    # The views of the two are kept apart: with and without a plane.
    assert len(list((tmp_path / "cache/views").glob("*/*.npz"))) == 6


def test_predictions_say_it_too(run, root, tmp_path, small):
    out = tmp_path / "out"
    words = (
        *small[:2],
        "runtime=cpu",
        "backbone.weights=null",
        "pruner=codec",
        "progress=false",
        f"output_dir={out}",
    )
    status, shown, _ = run("predict", *words, f"video={root}", "window_seconds=0.8")
    assert status == 0 and "frames of a view have no motion vectors" in shown
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    told = {
        line["video"][-4:]: [window["frames_without_vectors"] for window in line["windows"]] for line in lines
    }
    assert told == {".mp4": [0, 0], ".mkv": [0, 0], "webm": [4, 4]}


def test_decord_has_no_vectors(command, root):
    status, _, said = command(
        "dataset=folder", f"dataset.root={root}", "pruner=codec", "dataset.decoder=decord"
    )
    assert status == 2 and said.count("error:") == 1 and "exports no motion vectors" in said
