"""Runs the commands inside the test's process, on small clips."""

import json
from functools import partial
from importlib import import_module

import pytest
import torch._inductor.config as inductor

# A backbone of four tokens, so that a run takes a fraction of a second.
SMALL = ("backbone.num_frames=4", "backbone.input_size=16", "pruner=motion", "progress=false", "runtime=cpu")


@pytest.fixture(autouse=True)
def compiler_as_it_was():
    """Commands that compile tell torch's compiler to pack weights, which is for the rest of a process."""
    with inductor.patch(freezing=False):
        yield


@pytest.fixture(scope="session")
def small():
    """Words that make a run small."""
    return SMALL


@pytest.fixture(scope="session")
def many_videos(tmp_path_factory, write_video):
    """A function (count) -> a folder of so many videos in two classes, one of them broken."""

    def call(count):
        root = tmp_path_factory.mktemp("many")
        for number in range(count):
            write_video(root / "ab"[number % 2] / f"{number:02}.mp4", 6 + number, seed=number)
        (root / "a/04.mp4").write_bytes(b"no video")
        return root

    return call


@pytest.fixture
def run(run_in_process):
    """A function (command, words) -> exit status, stdout, stderr that runs `tools/COMMAND.py`."""
    return lambda name, *words: run_in_process(
        f"{name}.py", import_module(f"video_papr.cli.{name}").main, *words
    )


@pytest.fixture
def command(run):
    """The same of `tools/eval.py`."""
    return partial(run, "eval")


@pytest.fixture
def evaluate(command, tmp_path):
    """A function (root, words) that runs `tools/eval.py` successfully: results.json with `predictions`, `out`, and
    what it printed, `shown` and `said`."""

    def call(root, *words):
        out = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        given = {word.split("=")[0] for word in words}
        defaults = ("dataset=folder", *SMALL, "runtime.workers=0", "visualize=0")
        small = [word for word in defaults if word.split("=")[0] not in given]
        status, shown, said = command(*small, f"dataset.root={root}", f"output_dir={out}", *words)
        assert status == 0, said
        results = json.loads((out / "results.json").read_text())
        lines = (out / "predictions.jsonl").read_text().splitlines()
        return {
            **results,
            "predictions": [json.loads(line) for line in lines],
            "out": out,
            "shown": shown,
            "said": said,
        }

    return call
