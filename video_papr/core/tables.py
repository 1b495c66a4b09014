"""Tables for the terminal (rich), Markdown and HTML (jinja2): one description, three forms, each escaped."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .escape import markdown, printable, shorten

if TYPE_CHECKING:
    from rich.console import Console

PACKAGE = Path(__file__).resolve().parents[1]
LONGEST_CELL = 300  # characters in the terminal; files get all of them


@dataclass(frozen=True)
class Table:
    """Columns and rows of text. `title`, `caption`: over and under it, in the terminal only."""

    columns: Sequence[str]  # their names
    rows: Sequence[Sequence[str]]  # as many cells each
    title: str = ""
    caption: str = ""
    left: Sequence[int] = (0,)  # the columns that hold words; the others hold figures and are aligned right
    lines: bool = False  # draw a line between rows in the terminal

    def filled(self) -> Table:
        """Without the columns that are empty in every row; the first one stays."""
        kept = [
            i for i in range(len(self.columns)) if not i or not self.rows or any(row[i] for row in self.rows)
        ]
        return replace(
            self,
            columns=[self.columns[i] for i in kept],
            rows=[[row[i] for i in kept] for row in self.rows],
            left=[place for place, i in enumerate(kept) if i in self.left],
        )

    def markdown(self) -> str:
        """A table of GitHub's Markdown, without a line break at its end."""
        rule = ("---" if i in self.left else "---:" for i in range(len(self.columns)))
        body = (f"| {' | '.join(map(markdown, row))} |" for row in (self.columns, *self.rows))
        head = next(body)
        return "\n".join([head, f"|{'|'.join(rule)}|", *body])

    def print(self, console: Console) -> None:
        """Prints it as wide as the console allows; long cells are folded."""
        from rich.table import Table as Drawn

        drawn = Drawn(
            title=printable(self.title) or None,
            title_justify="left",
            caption=printable(self.caption) or None,
            caption_justify="left",
            show_lines=self.lines,
        )
        for i, name in enumerate(self.columns):
            drawn.add_column(printable(name), justify="left" if i in self.left else "right", overflow="fold")
        for row in self.rows:
            drawn.add_row(*(shorten(printable(cell), LONGEST_CELL) for cell in row))
        console.print(drawn)


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Rows as CSV; None is an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def render(template: str, **values: Any) -> str:
    """Fills in a jinja2 template.

    Args:
        template: its path below `video_papr/`; everything is escaped in one that ends with `.html.j2`.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PACKAGE),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        finalize=lambda value: printable(value, lines=True) if type(value) is str else value,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["markdown"] = markdown
    return environment.get_template(template).render(values)
