"""Names of any kind stay text in the terminal, Markdown, HTML, and spreadsheets."""

from __future__ import annotations

import io
import warnings
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from video_papr.core import tables
from video_papr.core.console import fail, loading_said_aloud, make_console, warn
from video_papr.core.errors import CheckpointError, CheckpointWarning
from video_papr.core.escape import markdown, printable, shorten, spreadsheet
from video_papr.core.tables import Table, render

HOSTILE = {
    "a\x1b[2J\x1b]0;pwn\x07.mp4": r"a\x1b[2J\x1b]0;pwn\x07.mp4",
    "two\nlines\r\x85\u2028": r"two\nlines\r\x85\u2028",
    "caf\udce9.mp4": r"caf\udce9.mp4",
    "\u202e4pm.exe\u2066": r"\u202e4pm.exe\u2066",
    "[red]x[/b] :smile: [link=x]": "[red]x[/b] :smile: [link=x]",
    "Straße 日本\u3000語 👩\u200d🚀": "Straße 日本\u3000語 👩\u200d🚀",
}
names = st.text(st.characters(), max_size=40) | st.sampled_from(sorted(HOSTILE))  # surrogates too


@pytest.mark.parametrize("name", HOSTILE)
def test_what_cannot_be_seen_is_spelled_out(name):
    assert printable(name) == printable(Path(name)) == HOSTILE[name]


@given(names)
def test_printable_is_one_line_and_stable(name):
    shown = printable(name)
    assert printable(shown) == shown and len(shown.splitlines()) <= 1
    assert "\x1b" not in shown
    shown.encode("utf-8")
    assert printable(name, lines=True).split("\n") == [printable(line) for line in name.split("\n")]


@given(names, st.integers(5, 30))
def test_shortened_text_keeps_both_ends(text, limit):
    short = shorten(text, limit)
    assert len(short) <= limit and (short == text) == (len(text) <= limit)
    assert short[: (limit - 1) // 2] == text[: (limit - 1) // 2] and short[-2:] == text[-2:]


@given(names)
def test_a_cell_of_a_spreadsheet_is_no_formula(name):
    cell = spreadsheet(name)
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    assert cell.removeprefix("'") == printable(name).removeprefix("'")


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(names, min_size=2, max_size=2), min_size=1, max_size=4))
def test_a_table_has_its_cells_in_every_form(rows):
    table = Table(["video", "<class>"], rows, title="[b]title", caption="\x1b[1m")
    lines = table.markdown().split("\n")
    assert len(lines) == 2 + len(rows) and {line.count("|") for line in lines} == {3}
    assert "<" not in table.markdown()
    out = io.StringIO()
    table.print(make_console(out))
    assert "\x1b" not in out.getvalue() and "[b]title" in out.getvalue()
    shown = "".join(out.getvalue().split())  # long cells are folded
    assert all("".join(printable(cell).split())[:20] in shown for row in rows for cell in row)


def test_html_holds_no_markup_of_a_name(monkeypatch, tmp_path):
    (tmp_path / "page.html.j2").write_text('<p title="{{ name }}">{{ name }}</p>')
    (tmp_path / "page.md.j2").write_text("{{ name | markdown }}")
    monkeypatch.setattr(tables, "PACKAGE", tmp_path)
    name = "<script>\"'&\x1b\udce9"
    found: list[tuple[str, object]] = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag, attrs):
            found.append((tag, dict(attrs)))

        def handle_data(self, data):
            found.append(("text", data))

    Parser().feed(render("page.html.j2", name=name))
    assert found == [("p", {"title": printable(name)}), ("text", printable(name))]
    assert render("page.md.j2", name="<b>|[a](b)") == markdown("<b>|[a](b)") == "&lt;b>&#124;[a]&#40;b)"


def test_the_width_is_that_of_the_terminal_or_of_columns(monkeypatch):
    long = Table(["name", "error"], [["x" * 250, "y" * 400]], left=(0, 1))

    def width(columns):
        monkeypatch.delenv("COLUMNS", raising=False)
        if columns is not None:
            monkeypatch.setenv("COLUMNS", columns)
        out = io.StringIO()
        long.print(make_console(out))
        return max(map(len, out.getvalue().splitlines()))

    assert width("60") == 60
    assert width(None) == 250 + tables.LONGEST_CELL + 7  # a pipe: one line, and nothing endless
    assert Table(["a", "b"], [["1", ""]]).filled().columns == ["a"]


def test_messages_are_one_line_without_colors_in_a_pipe(capsys):
    warn("[/b]\x1b[2J\n" + "z" * 300)
    fail(ValueError("a\udce9"))
    assert capsys.readouterr().err == f"warning: [/b]\\x1b[2J\\n{'z' * 300}\nerror: a\\udce9\n"


def test_what_loading_changed_about_weights_is_said_and_other_warnings_go_on(capsys):
    with pytest.warns(DeprecationWarning, match="old") as caught, loading_said_aloud():
        warnings.warn("the head is new", CheckpointWarning, stacklevel=1)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    assert [entry.category for entry in caught] == [DeprecationWarning]
    with pytest.raises(CheckpointError), loading_said_aloud():
        warnings.warn("before an error too", CheckpointWarning, stacklevel=1)
        raise CheckpointError("but")
    assert capsys.readouterr().err == "warning: the head is new\nwarning: before an error too\n"
