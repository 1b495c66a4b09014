"""Runs the notebooks from start to finish and writes them back with fresh outputs: `make notebooks`.

    python notebooks/execute.py                            # all of them
    python notebooks/execute.py 2_sweep_keep_ratios.ipynb  # these only

Each runs in a new kernel, in an empty folder, on the package of this checkout. What names the machine or the moment
(versions, times, warnings) is not written. Needs the extra `dev`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

HERE = Path(__file__).resolve().parent
TIMEOUT_SECONDS = 900  # of one cell; far above what a cell takes on an idle machine
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def notebooks() -> list[Path]:
    """The notebooks of this folder, in reading order."""
    return sorted(HERE.glob("*.ipynb"))


def execute(path: Path) -> NotebookNode:
    """Runs every cell of a notebook in a new kernel.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed; the text is its traceback.
    """
    notebook = nbformat.read(path, as_version=4)
    packages = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    client = NotebookClient(notebook, timeout=TIMEOUT_SECONDS, kernel_name="python3", record_timing=False)
    with tempfile.TemporaryDirectory() as folder:
        client.execute(cwd=folder, env={**os.environ, "PYTHONPATH": packages})
    return cleaned(notebook, folder)


def cleaned(notebook: NotebookNode, folder: str) -> NotebookNode:
    """The notebook without stderr and the name of the `folder` it ran in, with one picture for each picture."""
    notebook.metadata = NotebookNode(METADATA)
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        cell.metadata = NotebookNode()
        kept: list[NotebookNode] = []
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stderr":
                continue
            if output.output_type == "stream":
                output.text = output.text.replace(f"{folder}/", "")
            if "data" in output and "image/png" in output.data:
                output.data.pop("image/jpeg", None)  # IPython gives both
            if kept and output.output_type == kept[-1].output_type == "stream":
                kept[-1].text += output.text
            else:
                kept.append(output)
        cell.outputs = kept
    return notebook


def main(names: list[str]) -> None:
    paths = [HERE / name for name in names] or notebooks()
    for path in paths:
        if not path.is_file():
            sys.exit(f"error: no notebook {path.name}; there are {', '.join(p.name for p in notebooks())}")
    for path in paths:
        nbformat.write(execute(path), path)
        print(f"wrote {path.name}, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
