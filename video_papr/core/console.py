"""The terminal: errors and warnings of one line, notes, tables on stdout.

rich follows the width of the terminal, `COLUMNS` and `NO_COLOR`.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from rich.console import Console
from rich.text import Text

from .errors import CheckpointWarning
from .escape import printable

PIPE_WIDTH = 10_000  # of a file or a pipe, which has no width of its own: nothing is folded there


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
    """One line; details of an error stand below it, indented by two blanks each."""
    lines = "\n  ".join(printable(line) for line in str(text).split("\n  "))
    make_console(stderr=True).print(Text.assemble((kind, color), " ", lines))


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


@contextmanager
def quiet_tracers() -> Iterator[None]:
    """What torch and other tools log about their passes, while they make a graph, is not the user's."""
    disabled = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)
