"""The notebooks run from start to finish, and what is committed shows their outputs."""

import importlib.util
import re
from pathlib import Path

import pytest

EXTRA = "{} is not installed; it is part of the extra dev"
nbformat = pytest.importorskip("nbformat", reason=EXTRA.format("nbformat"))
for package in ("nbclient", "ipykernel"):
    pytest.importorskip(package, reason=EXTRA.format(package))

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LARGEST_BYTES = 3_000_000  # all of them together
PICTURE = "image/png"


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def pictures(notebook):
    """Pictures in each code cell."""
    return [
        sum(PICTURE in output.get("data", {}) for output in cell.outputs) for cell in code_cells(notebook)
    ]


@pytest.fixture(scope="module")
def runner():
    spec = importlib.util.spec_from_file_location("execute_notebooks", FOLDER / "execute.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One cache for all notebooks: what the first makes, the next may read."""
    return tmp_path_factory.mktemp("cache")


def test_there_are_notebooks():
    assert [path.name[0] for path in NOTEBOOKS] == ["1", "2", "3", "4", "5", "6", "7"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, runner, cache, monkeypatch):
    if path.name[0] in "36":
        pytest.importorskip("transformers")
    if path.name.startswith("5"):
        pytest.importorskip("sklearn")
    monkeypatch.setenv("VIDEO_PAPR_CACHE", str(cache))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = runner.execute(path)  # raises where a cell does
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    said = "".join(output.get("text", "") for cell in cells for output in cell.outputs)
    assert "error:" not in said  # of the commands that a cell runs
    assert "No module named" not in said
    assert pictures(notebook) == pictures(nbformat.read(path, as_version=4))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_committed_shows_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "run `make notebooks`"
    assert sum(bool(cell.outputs) for cell in cells) >= len(cells) // 2
    kinds = {output.output_type for cell in cells for output in cell.outputs}
    assert "error" not in kinds
    assert not any(
        output.get("name") == "stderr" and "Traceback" in output.text for c in cells for output in c.outputs
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_text_names_no_figures(path):
    """Weights and videos change; figures stand in outputs only, which `make notebooks` renews."""
    notebook = nbformat.read(path, as_version=4)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert re.findall(r"\d+(?:\.\d+)? ?(?:%|points|GMACs|ms|seconds|times|x faster)", text) == []


def test_notebooks_are_small():
    assert sum(path.stat().st_size for path in NOTEBOOKS) < LARGEST_BYTES
