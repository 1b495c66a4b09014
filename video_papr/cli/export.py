"""`python tools/export.py`: a pipeline as ONNX, torch.export and AOTInductor files, each checked against PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import ExportConfig
from ..core.console import make_console
from ..core.tables import Table
from .common import print_written, run_command


def main() -> None:
    """Entry point of the command."""
    run_command("export", run)


def run(config: ExportConfig, out: Path) -> dict[str, Any]:
    """Writes the files and prints how well they agree; see `inference.export_files`."""
    from ..inference.export_files import DESCRIPTION, export_files

    facts = export_files(config, out)
    _print(facts["checked"], [out / name for name in (*facts["files"], DESCRIPTION)])
    return facts


def _print(checked: Mapping[str, Mapping[str, Any]], written: list[Path]) -> None:
    console = make_console()
    keys = {"clips": "clips", "same tubelets": "same_choice", "equal ones swapped": "ties"}
    keys |= {"largest logit difference": "logit_difference", "same best class": "same_answer"}
    rows = [
        [
            name,
            *(str(found[key]) if key != "logit_difference" else f"{found[key]:.1e}" for key in keys.values()),
        ]
        for name, found in checked.items()
    ]
    Table(["file", *keys], rows, title="compared with PyTorch").print(console)
    print_written(written, console)
