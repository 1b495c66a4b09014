"""The documentation site builds, and every warning (a dead link, a docstring that cannot be read) is an error."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for module in ("sphinx", "myst_parser", "furo", "sphinxcontrib.mermaid"):
        pytest.importorskip(module, reason=f"{module} is not installed; it is part of the extra docs")
    built = tmp_path_factory.mktemp("site")
    words = ("-W", "--keep-going", "-q", "-b", "html", "-d", str(built / "doctrees"))
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *words, str(DOCS), str(built / "html")],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return built / "html"


def text_of(page: Path) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8")))


def test_every_page_is_built_and_in_the_contents(site: Path) -> None:
    pages = {path.stem for path in DOCS.glob("*.md")}
    assert pages <= {path.stem for path in site.glob("*.html")}
    index = (site / "index.html").read_text(encoding="utf-8")
    assert [page for page in sorted(pages - {"index"}) if f'href="{page}.html"' not in index] == []


def test_reference_comes_from_the_docstrings(site: Path) -> None:
    text = text_of(site / "reference.html")
    for name in ("build_backbone", "build_pruner", "prune", "select_tokens"):
        assert f"{name}(" in text
    assert "Makes a model drop tokens before its first block." in text  # of `prune`


def test_links_out_of_the_site_leave_their_text(site: Path) -> None:
    for page in site.glob("*.html"):
        assert not re.search(r'href="[^"]*\.\./', page.read_text(encoding="utf-8")), page.name
    assert "Predict and look" in text_of(site / "get_started.html")
