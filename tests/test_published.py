"""What the documentation says about real data is what the committed answers give."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = runpy.run_path(str(ROOT / "benchmarks" / "real_page.py"), run_name="script")
FOLDERS = sorted(path.parent for path in (ROOT / "benchmarks" / "results").glob("*/answers.csv.xz"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_accuracies_follow_from_the_answers(folder: Path) -> None:
    answers = SCRIPT["read_answers"](folder)
    assert answers.runs
    for run, results in answers.results.items():
        assert answers.top1(run) == pytest.approx(results.get("top1", results.get("top1_held_out"))), run
        assert len(answers.labels) == results["num_videos"]


def test_tables_of_the_pages_are_those_of_the_answers() -> None:
    depth = runpy.run_path(str(ROOT / "benchmarks" / "depth_image.py"), run_name="script")
    page, other = SCRIPT["PAGE"].read_text("utf-8"), depth["PAGE"].read_text("utf-8")
    assert SCRIPT["with_tables"](page) == page
    assert depth["with_table"](other) == other
    assert all(f"<!-- {folder.name}:" in page + other for folder in FOLDERS)
