"""Escaping of text from outside (names of files and classes, reasons of decoders) for every place that shows it.

A name may hold markup, terminal escape sequences, line breaks, bytes that are not UTF-8, formulas, and any number of
characters. The terminal is escaped in `console.make_console`, HTML by jinja2's autoescape with `printable` as its
`finalize`; both are set up once, see `tables`.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

# Control, surrogate (a byte that is not UTF-8), line and paragraph separator, and invisible format characters, of which
# those that turn the direction of writing make "exe.4pm" look like "mp4.exe".
_UNSEEN = {"Cc", "Cs", "Cf", "Zl", "Zp"}
_JOINERS = "\u200c\u200d"  # part of how Persian and Indic words and emoji are written
_MARKDOWN = {"|": "&#124;", "<": "&lt;", "&": "&amp;", "](": "]&#40;"}


def printable(text: Path | str, *, lines: bool = False) -> str:
    r"""The text in one line that is safe to show: what cannot be seen becomes `\x1b`, `\n`, `\u202e`, `\udce9`.

    Printing it again changes nothing.

    Args:
        lines: keep line breaks.
    """
    text = str(text)
    return text if text.isprintable() else "".join(_shown(char, lines) for char in text)


def _shown(char: str, lines: bool) -> str:
    seen = unicodedata.category(char) not in _UNSEEN or char in _JOINERS or (lines and char == "\n")
    return char if seen else char.encode("unicode_escape").decode("ascii")


def shorten(text: str, limit: int) -> str:
    """At most `limit` characters: the middle of a longer text is left out, so that the ending of a file stays."""
    if len(text) <= limit:
        return text
    tail = (limit - 1) // 2
    return f"{text[: limit - 1 - tail]}…{text[len(text) - tail :]}"


def markdown(text: str) -> str:
    """One line for a table cell or a list item of Markdown: no HTML, no link, no further cell; emphasis stays."""
    return re.sub(r"\||<|&(?=[#\w])|\]\(", lambda found: _MARKDOWN[found[0]], printable(text))


def spreadsheet(text: str) -> str:
    """One line for a cell of a CSV file that people open: Excel and its like run what begins with `=`, `+`, `-`, `@`.

    A leading apostrophe makes it text.
    """
    text = printable(text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
