"""`python -m video_papr.cli.demo`: what it offers, and what it refuses before it listens."""

from __future__ import annotations

import csv
import socket
import sys
from typing import Any

import pytest

from video_papr.checkpoints.files import BUNDLED
from video_papr.cli import demo
from video_papr.core.errors import CheckpointError
from video_papr.inference.app.look import TABLE

SMALL = (
    *("backbone.num_frames=4", "backbone.input_size=16", "backbone.weights=null", "pruner=motion"),
    *("pruners=[center,similarity,motion]", "runtime=cpu", "examples=2"),
)


@pytest.fixture
def command(run, tmp_path, monkeypatch):
    pytest.importorskip("starlette", reason="the extra [app] is not installed")
    monkeypatch.setenv("VIDEO_PAPR_CACHE", str(tmp_path / "cache"))
    return lambda *words: run("demo", *SMALL, f"output_dir={tmp_path / 'out'}", *words)


def test_what_is_offered(command, run, monkeypatch, tmp_path):
    seen: dict[str, Any] = {}
    made: list[Any] = []

    def build_app(model, jobs, offer):
        seen.update(model=model, offer=offer)
        jobs.close()

    monkeypatch.setattr("video_papr.inference.app.server.build_app", build_app)
    monkeypatch.setattr(demo, "serve", lambda app, config: made.append(config))
    words = "pruner.keep_ratio=0.4", "max_seconds=7", "host=localhost"
    status, _, errors = command(*words)
    assert status == 0, errors
    model, offer = seen["model"], seen["offer"]
    assert list(model.looker.pruners) == ["motion", "center", "similarity"]
    assert (model.looker.max_seconds, model.pruner, model.keep_ratio) == (7, "motion", 0.4)
    assert set(model.looker.pruners) <= set(model.about)
    assert len(offer.examples) == 2 and all(example.path.is_file() for example in offer.examples)
    assert (
        "*" not in offer.hosts and not offer.models
    )  # real weights are offered beside the bundled ones only
    assert made[0].port == 7860
    assert model.words["motion"] == [*SMALL[:3], "runtime=cpu"]
    for example in offer.examples:  # it answers, as the command does that it names
        out = tmp_path / example.path.stem
        found = model.looker.look(example.path, pruner="similarity", keep_ratio=0.5, out=out)
        assert (found["dense"]["tokens"], found["pruned"]["tokens"]) == (4, 2)
        said = [*model.words["similarity"], *found["words"], "pruner=similarity", "pruner.keep_ratio=0.5"]
        alone = tmp_path / f"{example.path.stem}_alone"
        status, _, errors = run("predict", f"video={example.path}", *said, f"output_dir={alone}")
        assert status == 0, errors
        one, other = ([row[1:] for row in csv.reader((folder / TABLE).open())][1:] for folder in (out, alone))
        assert one == other and len(one) == 5


def test_bundled_weights_where_they_gain_and_kinetics_weights_without_a_network(run, monkeypatch, tmp_path):
    seen: dict[str, Any] = {}
    monkeypatch.setattr(demo, "serve", lambda app, config: None)
    monkeypatch.setattr(
        "video_papr.inference.app.server.build_app",
        lambda model, jobs, offer: seen.update(model=model, offer=offer),
    )
    own = tmp_path / "own.safetensors"
    own.write_bytes((BUNDLED / "x3d_s_synthetic.safetensors").read_bytes())
    for words, side in {(): 112, (f"pruner.weights={own}",): 64, ("backbone.input_size=96",): 96}.items():
        status, _, errors = run("demo", "examples=0", "pruners=[motion]", *words, f"output_dir={tmp_path}")
        assert status == 0, errors
        assert seen["model"].looker.backbone.frame_size == (side, side)
        assert ("experiment=demo" in seen["model"].words["motion"]) == (not words or side == 96)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set") as caught:
        seen["offer"].models["k400"]()
    assert "\n" not in str(caught.value)


def test_a_port_in_use(command):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        status, _, errors = command(f"port={port}", "examples=0")
    assert status == 2
    assert f"host=127.0.0.1 port={port}: cannot listen: another program listens there" in errors


def test_without_the_extra(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "video_papr.inference.app.server", None)
    monkeypatch.delitem(sys.modules, "video_papr.inference.app.server")
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    status, _, errors = command()
    assert status == 2
    assert 'pip install "video_papr[app]"' in errors
