"""`tools/export.py` from its command line to a server without torch, on a small random backbone."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from video_papr.inference.api import Pipeline

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("backbone.num_frames=4", "backbone.input_size=16", "backbone.weights=null", "check_clips=1")

TYPES = {"uint8": "tensor(uint8)", "int64": "tensor(int64)", "float32": "tensor(float)"}


@pytest.fixture
def export(run, tmp_path):
    return lambda *words: run("export", *SMALL, f"output_dir={tmp_path / 'out'}", *words)


def test_files_description_and_a_server_without_torch(export, tmp_path, write_video, monkeypatch):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="the extra [export] is not installed")
    monkeypatch.setenv("CXX", "no-such-compiler")
    status, shown, errors = export("pruner=motion", "pruner.keep_ratio=0.5", "seed=3")
    assert status == 0, errors
    assert "aot=auto: model.aot.pt2 is left out; AOTInductor needs a C++ compiler" in errors
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir() if path.is_file()} == {
        "model.onnx",
        "model.pt2",
        "model.json",
    }
    assert f"wrote {out / 'model.onnx'}" in shown
    facts = json.loads((out / "model.json").read_text())
    assert facts["files"] == list(facts["checked"]) == ["model.onnx", "model.pt2"]
    assert all(found["clips"] == found["same_answer"] == 3 for found in facts["checked"].values())
    assert [entry["shape"] for entry in facts["inputs"]] == [["batch", 4, 16, 16, 3]]
    assert [entry["shape"] for entry in facts["outputs"]] == [["batch", 12], ["batch", 2]]
    assert (facts["keep_ratio"], facts["tokens"]) == (0.5, {"grid": [1, 2, 2], "all": 4, "kept": 2})
    assert facts["pruner"]["name"] == "motion"
    check_graph(out / "model.onnx", facts)

    videos = [write_video(tmp_path / f"{seed}.mp4", 20 + seed, size=(48, 64), seed=seed) for seed in range(3)]
    served = serve(out, *videos)
    small = {"num_frames": 4, "input_size": 16, "weights": None}
    flow = Pipeline.from_config(
        backbone={"name": "videomae_tiny", **small},
        pruner={"name": "motion", "keep_ratio": 0.5},
        seed=3,
        runtime="cpu",
    )
    for path, line in zip(videos, served, strict=True):
        name, first, *_ = line.split("\t")
        guess = flow.predict(path, top_k=1)[0]
        probability, said = first.split(" ", 1)
        assert (name, said) == (str(path), guess.name)
        assert float(probability) == pytest.approx(
            guess.probability, abs=5e-3
        )  # Pillow resizes a little otherwise


def check_graph(path, facts):
    """The names and shapes of the file are those of its description."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for found, said in ((session.get_inputs(), facts["inputs"]), (session.get_outputs(), facts["outputs"])):
        assert [entry.name for entry in found] == [entry["name"] for entry in said]
        assert [entry.shape for entry in found] == [entry["shape"] for entry in said]
        assert [entry.type for entry in found] == [TYPES[entry["dtype"]] for entry in said]


def serve(folder, *videos):
    """The lines that the example of docs/deploy.md prints, in a process that has no torch."""
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "deploy.md").read_text(), re.DOTALL)
    blocked = "import sys; sys.modules.update(dict.fromkeys(['torch', 'video_papr']))\n" + example
    words = [sys.executable, "-c", blocked, str(folder), *map(str, videos)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_file_that_does_not_agree_is_removed(export, tmp_path, monkeypatch):
    def save(program, path):
        path.write_bytes(b"graph")
        return path

    monkeypatch.setattr("video_papr.inference.export.export_program", lambda pipeline: None)
    monkeypatch.setattr("video_papr.inference.export.save_program", save)
    monkeypatch.setattr(
        "video_papr.inference.export.run_program", lambda path: lambda frames: (torch.ones(len(frames), 12),)
    )
    status, _, errors = export("pruner=none", "onnx=false", "aot=false")
    assert status == 2
    assert re.search(r"^error: \S+model\.pt2: logits differ from the pipeline's by", errors, re.MULTILINE)
    assert [path for path in (tmp_path / "out").iterdir() if path.is_file()] == []
