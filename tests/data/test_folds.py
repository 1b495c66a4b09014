"""The table of files and folds."""

from __future__ import annotations

from pathlib import Path

import pytest

from video_papr.core.errors import DataError
from video_papr.data.annotations.folds import read_folds
from video_papr.data.annotations.records import VideoRecord


def found(tmp_path: Path, text: str) -> tuple[list[str] | None, list[str] | None]:
    (tmp_path / "table").write_text(text)
    records = [VideoRecord(tmp_path / name, 0, name) for name in ("a/1.mp4", "b/2, x.mp4")]
    return read_folds(tmp_path / "table", records, tmp_path, key="probe.folds")


def test_columns_are_found_by_their_titles(tmp_path: Path) -> None:
    tabs = "file\tscene\tfold\nb/2, x.mp4\t7\tB\n\na/1.mp4\t8\tA\nother.mp4\t9\tA\n"
    assert found(tmp_path, tabs) == (["A", "B"], ["8", "7"])
    assert found(tmp_path, 'path,Group\n"b/2, x.mp4",7\n./a/1.mp4,8\n') == (None, ["8", "7"])
    assert found(tmp_path, f"fold;video\n1;{tmp_path}/a/1.mp4\n2;b/2, x.mp4\n") == (["1", "2"], None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "its first line must name a column for the file and one of fold, group, scene; found ''"),
        ("a/1.mp4,0\nb.mp4,1\n", "its first line must name"),
        ("file,fold\na/1.mp4,0\n", "has no line for b/2, x.mp4"),
        ("file,fold\na/1.mp4\n", ":2: 1 fields under 2 titles"),
        ("file\tfold\tscene\na/1.mp4\t0\ts\nb/2, x.mp4\t1\ts\n", "group 's' lies in two folds"),
    ],
)
def test_wrong_tables_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match="probe.folds=|table:2") as caught:
        found(tmp_path, text)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_table_names_its_key(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="probe.folds=.*does not exist"):
        read_folds(tmp_path / "none", [], tmp_path, key="probe.folds")
