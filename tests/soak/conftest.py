"""Attacks that take minutes: `make soak` runs them (`pytest -m slow tests/soak`), any other run leaves them out."""

import json
import os
import platform
from pathlib import Path

import pytest

from video_papr.evaluation.results import git_commit, versions

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config, items):
    asked = "slow" in (config.getoption("-m") or "")
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.slow)
            if not asked:
                item.add_marker(pytest.mark.skip(reason="takes minutes: make soak"))


@pytest.fixture
def amount():
    """A function (name, default) -> how much of it; SOAK_KILLS=200 make soak asks for more, or for less."""
    return lambda name, default: int(os.environ.get(f"SOAK_{name}", default))


@pytest.fixture
def record():
    """A function (attack, figures) that prints what came of it as one JSON line and adds that to build/soak.jsonl."""

    def write(attack, **figures):
        machine = {"cores": os.cpu_count(), "machine": platform.machine(), "torch": versions()["torch"]}
        line = json.dumps({"attack": attack, **figures, **machine, "git_commit": git_commit()})
        print(f"\n{line}")
        place = HERE.parents[1] / "build"
        place.mkdir(exist_ok=True)
        with (place / "soak.jsonl").open("a") as file:
            file.write(f"{line}\n")

    return write
