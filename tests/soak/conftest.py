"""Attacks that take minutes: `make soak` runs them (`pytest -m slow tests/soak`), any other run leaves them out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    asked = "slow" in (config.getoption("-m") or "")
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.slow)
            if not asked:
                item.add_marker(pytest.mark.skip(reason="takes minutes: make soak"))


@pytest.fixture
def amount() -> object:
    """A function (name, default) -> how much of it; SOAK_KILLS=200 make soak asks for more, or for less."""
    return lambda name, default: int(os.environ.get(f"SOAK_{name}", default))
