"""A demo of a backbone with four tokens, and its server on a free port of this machine."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from video_papr.backbones.builders import build_backbone
from video_papr.core.errors import CheckpointError
from video_papr.inference.app.jobs import Jobs
from video_papr.inference.app.look import Looker
from video_papr.inference.predict import Recipe
from video_papr.pruning.builders import build_pruner

MAX_SECONDS = 5
MAX_UPLOAD_MB = 0.2


@pytest.fixture(scope="session")
def looker():
    """Offers motion, similarity and center; takes videos of up to 5 s, from 2 s on in windows of one."""
    backbone = build_backbone("videomae_tiny", num_classes=6, num_frames=4, input_size=16)
    backbone.class_names = ("run", "jump", "<b>swim</b>", "fly", "sit", "stand")
    pruners: Any = {name: build_pruner(name) for name in ("motion", "similarity", "center")}
    return Looker(backbone, pruners, Recipe(sampling="uniform"), max_seconds=MAX_SECONDS, window_seconds=1)


@pytest.fixture(scope="session")
def demo_clip(tmp_path_factory, write_video):
    """A second of 64 x 48 pixels."""
    return write_video(tmp_path_factory.mktemp("demo") / "my clip.mp4", 25)


def not_downloaded():
    raise CheckpointError("it was not downloaded (no network)")


@contextmanager
def listening(looker, clip, **changes):
    """The address of a server, and its queue."""
    uvicorn = pytest.importorskip("uvicorn", reason="the extra [app] is not installed")
    pytest.importorskip("starlette", reason="the extra [app] is not installed")
    from video_papr.inference.app.offer import Example, Model, Offer
    from video_papr.inference.app.server import build_app

    jobs = Jobs(max_waiting=2)
    model = Model(
        looker=looker,
        pruner="motion",
        keep_ratio=0.5,
        about={"motion": "What moves.", "center": "The middle."},
        said={"backbone": "tiny", "device": "cpu", "classes": ["a"], "synthetic": True},
        words={},
    )
    real = replace(model, said={**model.said, "backbone": "large", "synthetic": False})
    offer = Offer(
        examples=[Example("left", clip), Example("right", clip)],
        models={"real": lambda: real, "k400": not_downloaded},
        max_upload_mb=MAX_UPLOAD_MB,
        hosts=["127.0.0.1"],
    )
    app = build_app(replace(model, **changes), jobs, offer)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", jobs
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture
def demo_server(looker, demo_clip):
    with listening(looker, demo_clip) as found:
        yield found
