"""The documentation names what exists: its links lead somewhere, and the tables of options match conf/."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from video_papr.config import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
GROUPS = sorted(path.name for path in CONF.iterdir() if any(path.glob("*.yaml")))


def options(group):
    """Options of a group that a user may choose; a leading underscore marks what others share."""
    return {path.stem for path in (CONF / group).glob("*.yaml") if not path.stem.startswith("_")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    local = [target.split("#")[0] for target in targets if not target.startswith(("http:", "https:", "#"))]
    assert [target for target in local if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_that_a_page_names_exist(page):
    named = re.findall(r"`(tests/[\w/]+(?:\.py)?)`", page.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("group", GROUPS)
def test_readme_lists_the_options(group):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| `{group}` \| (.*?) \|", readme, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", row)) == options(group)


def test_tables_of_the_configuration_page_are_those_of_the_declarations():
    names = runpy.run_path(str(ROOT / "docs" / "option_tables.py"))
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert names["render"](page) == page, "run python docs/option_tables.py"
    tables = set(re.findall(r"<!-- (?:keys|options): (\w+) -->", page))
    assert tables == {*GROUPS, *names["GROUPS"], *COMMANDS} - {"depth_prune"}  # its keys are those of depth


def test_python_example_of_the_readme_runs():
    (example,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL
    )
    names: dict[str, Any] = {}
    exec(example, names)
    assert names["logits"].shape[0] == 2
    assert names["selection"].keep_idx.shape == (2, 470)
