"""The terminal: warnings of one line, notes, tables on stdout, progress bars."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from tqdm import tqdm

from .errors import CheckpointWarning


class Answered(Protocol):
    """What a bar over videos needs to know of an answer."""

    @property
    def label(self) -> int | None: ...
    @property
    def top5(self) -> tuple[int, ...] | None: ...


def warn(text: str) -> None:
    """Prints one line on stderr that the user should not overlook."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"[yellow]warning:[/] {text}")


def note(text: str) -> None:
    """Prints one line on stderr that explains a wait."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(text)


@contextmanager
def loading_said_aloud() -> Iterator[None]:
    """Prints what loading changed about the weights as one line each; other warnings take their usual way."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", CheckpointWarning)
        try:
            yield
        finally:
            changes = [entry for entry in caught if issubclass(entry.category, CheckpointWarning)]
            for entry in changes:
                warn(str(entry.message))
    for entry in caught:
        if entry not in changes:
            warnings.warn_explicit(entry.message, entry.category, entry.filename, entry.lineno)


def make_console() -> Console:
    """A console on stdout; wide where it is a file or a pipe, which has no width of its own."""
    return Console() if sys.stdout.isatty() else Console(width=140)


class Progress:
    """A bar over the videos of a run, with running top-1 and the number of failed ones."""

    def __init__(self, total: int, *, show: bool, what: str | None = None) -> None:
        quiet = not sys.stderr.isatty()  # in a log file a line every ten seconds is enough
        self._bar = tqdm(
            total=total, desc=what, unit="video", disable=not show, mininterval=10 if quiet else 0.2
        )
        self._correct = self._failed = 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def __call__(self, answer: Answered) -> None:
        self._failed += answer.top5 is None
        self._correct += answer.top5 is not None and answer.top5[0] == answer.label
        self._bar.update()
        top1 = 100 * self._correct / max(self._bar.n, 1)
        self._bar.set_postfix_str(f"top-1 {top1:.1f} %, failed {self._failed}", refresh=False)
