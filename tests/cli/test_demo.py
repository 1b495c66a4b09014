"""`python -m video_papr.cli.demo`: what it offers, and what it refuses before it listens."""

from __future__ import annotations

import socket
import sys
from typing import Any

import pytest

from video_papr.cli import demo

SMALL = (
    *("backbone.num_frames=4", "backbone.input_size=16", "backbone.weights=null", "pruner=motion"),
    *("pruners=[center,similarity,motion]", "runtime=cpu", "examples=2"),
)


@pytest.fixture
def command(run, tmp_path, monkeypatch):
    pytest.importorskip("starlette", reason="the extra [app] is not installed")
    monkeypatch.setenv("VIDEO_PAPR_CACHE", str(tmp_path / "cache"))
    return lambda *words: run("demo", *SMALL, f"output_dir={tmp_path / 'out'}", *words)


def test_what_is_offered(command, monkeypatch, tmp_path):
    seen: dict[str, Any] = {}
    made: list[Any] = []

    def build_app(looker, jobs, offer):
        seen.update(looker=looker, offer=offer)
        jobs.close()

    monkeypatch.setattr("video_papr.inference.app.server.build_app", build_app)
    monkeypatch.setattr(demo, "serve", lambda app, config: made.append(config))
    status, _, errors = command("pruner.keep_ratio=0.4", "max_seconds=7", "host=localhost")
    assert status == 0, errors
    looker, offer = seen["looker"], seen["offer"]
    assert list(looker.pruners) == ["motion", "center", "similarity"]
    assert (looker.max_seconds, offer.pruner, offer.keep_ratio) == (7, "motion", 0.4)
    assert set(looker.pruners) <= set(offer.about)
    assert len(offer.examples) == 2 and all(example.path.is_file() for example in offer.examples)
    assert "*" not in offer.hosts
    assert made[0].port == 7860
    for example in offer.examples:  # it answers
        found = looker.look(example.path, pruner="similarity", keep_ratio=0.5, folder=tmp_path)
        assert found["tokens"] == {"all": 4, "kept": 2}


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
