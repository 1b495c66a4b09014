"""The terminal: errors and warnings of one line, notes, tables on stdout, progress bars.

rich follows the width of the terminal, `COLUMNS` and `NO_COLOR`.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, Protocol

from rich.console import Console
from rich.text import Text
from tqdm import tqdm

from .errors import CheckpointWarning
from .escape import printable

PIPE_WIDTH = 10_000  # of a file or a pipe, which has no width of its own: nothing is folded there


class Answered(Protocol):
    """What a bar over videos needs to know of an answer."""

    @property
    def label(self) -> int | None: ...
    @property
    def top5(self) -> tuple[int, ...] | None: ...


class Terminal(Console):
    """A console that shows text as it is: no markup, no terminal escape sequences; lines wrap in the terminal alone."""

    def render_str(self, text: str, **options: Any) -> Text:
        plain = {"markup": False, "emoji": False, "highlight": False, "highlighter": None}
        return super().render_str(printable(text, lines=True), **{**options, **plain})


def make_console(file: IO[str] | None = None, *, stderr: bool = False, width: int | None = None) -> Terminal:
    """A console on stdout, stderr or `file`, as wide as the terminal or `COLUMNS` says; a pipe folds nothing."""
    target = file or (sys.stderr if stderr else sys.stdout)
    if width is None and not target.isatty() and not os.environ.get("COLUMNS", "").isdecimal():
        width = PIPE_WIDTH
    return Terminal(file=file, stderr=stderr, width=width, soft_wrap=True)


def fail(text: object) -> None:
    """Prints the one line of an error on stderr."""
    _say("error:", "red", text)


def warn(text: object) -> None:
    """Prints one line on stderr that the user should not overlook."""
    _say("warning:", "yellow", text)


def note(text: str) -> None:
    """Prints one line on stderr that explains a wait."""
    make_console(stderr=True).print(printable(text))


def _say(kind: str, color: str, text: object) -> None:
    make_console(stderr=True).print(Text.assemble((kind, color), " ", printable(str(text))))


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
                warn(entry.message)
    for entry in caught:
        if entry not in changes:
            warnings.warn_explicit(entry.message, entry.category, entry.filename, entry.lineno)


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
