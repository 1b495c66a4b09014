"""`tools/bench.py` from its command line to its files, on a backbone of a few tokens."""

import json

import pytest

from video_papr.benchmark import ceilings

SMALL = (
    *("backbones=[videomae_tiny]", "num_frames=[8]", "input_sizes=[32]", "repeats=2", "sample_ms=0"),
    *("pruners=[{name: x3d_s, frames: 4, size: 32}, random]", "progress=false", "runtime=cpu"),
)


@pytest.fixture
def bench(run, tmp_path):
    return lambda *words: run("bench", *SMALL, f"output_dir={tmp_path / 'out'}", *words)


def test_files_and_tables(bench, tmp_path, video_root, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setattr(ceilings, "SIDES", {"cpu": (64, 128)})
    monkeypatch.setattr(ceilings, "COPY_MIB", {"cpu": 1})
    status, shown, errors = bench(
        "keep_ratios=[0.3,0.5]", "tome=[2]", "dtypes=[fp32,bf16]", f"video={video_root / 'left' / 'a.mp4'}"
    )
    assert status == 0, errors
    out = tmp_path / "out"
    found = json.loads((out / "bench.json").read_text())
    assert found["command"].startswith("bench.py ")
    assert {"torch", "transformers"} <= set(found["versions"])
    assert [setting["dtype"] for setting in found["settings"]] == ["fp32", "bf16"] == list(found["ceilings"])
    for setting in found["settings"]:
        assert (setting["num_tokens"], setting["batch_size"]) == (32, 1)
        assert setting["file_ms"]["decode"] > 0
        names = [variant["name"] for variant in setting["variants"]]
        assert names[:2] == ["dense", "x3d_s 0.3 frames=4 size=32"]
        assert names[5:] == [
            "tome r=2",
            "huggingface",
            "huggingface x3d_s 0.3 frames=4 size=32",
            "huggingface x3d_s 0.5 frames=4 size=32",
        ]
        tolerance = 1e-5 if setting["dtype"] == "fp32" else 0.1
        gaps = [variant["logit_difference"] for variant in setting["variants"]]
        assert all(gap is None or gap < tolerance for gap in gaps)
        bounds = [
            stage["bound_ms"] for variant in setting["variants"] for stage in variant["stages"].values()
        ]
        assert min(bounds) > 0
    text = (out / "bench.md").read_text()
    assert (
        text.strip() == "\n".join(line.rstrip() for line in shown.split("\nwrote ")[0].splitlines()).strip()
    )
    assert text.count("| dense | all |") == 2
    assert (out / "speedup.png").read_bytes().startswith(b"\x89PNG")


def test_only_what_is_asked_for(bench, tmp_path):
    status, shown, errors = bench("pruners=[]", "huggingface=false", "stages=false", "ceilings=false")
    assert status == 0, errors
    found = json.loads((tmp_path / "out" / "bench.json").read_text())
    ((dense,),) = [setting["variants"] for setting in found["settings"]]
    assert dense["name"] == "dense"
    assert all(stage["ms"] is None for stage in dense["stages"].values())
    assert "Milliseconds and" not in shown and "against what the device" not in shown
    assert not (tmp_path / "out" / "speedup.png").exists()


def test_one_thing_at_a_time(bench, tmp_path):
    words = ("huggingface=false", "stages=false", "ceilings=false", "pruners=[random]", "repeats=1")
    lists = ("num_frames=[8,4]", "input_sizes=[32,64]", "batch_sizes=[1,2]")
    status, shown, errors = bench("vary=one", *lists, *words)
    assert status == 0, errors
    found = json.loads((tmp_path / "out" / "bench.json").read_text())
    clips = [(one["num_frames"], one["input_size"], one["batch_size"]) for one in found["settings"]]
    assert sorted(clips) == [(4, 32, 1), (8, 32, 1), (8, 32, 2), (8, 64, 1)]
    assert [one["values"] for one in found["growth"]] == [[4, 8]] * 2 + [[32, 64]] * 2 + [[1, 2]] * 2
    assert all(one["ms"][1] > 0 and one["gmacs"][1] > one["gmacs"][0] for one in found["growth"])
    assert "### Growth" in shown and "### Growth" in (tmp_path / "out" / "bench.md").read_text()
    assert (tmp_path / "out" / "growth.png").read_bytes().startswith(b"\x89PNG")
