"""Writes the measured part of docs/performance.md, and its pictures, from the committed results of tools/bench.py.

    python benchmarks/performance_page.py

Reads every benchmarks/results/*/bench.json. Where none measures a goal, the page says that the figure is owed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from video_papr.benchmark.page import measured_section, with_section
from video_papr.benchmark.plots import growth_plot, speedup_plot

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
PICTURE, GROWTH = (Path("images") / name for name in ("speedup.png", "growth.png"))  # below docs/


def committed() -> dict[str, Any]:
    """Folder of results -> content of its bench.json."""
    paths = sorted((ROOT / "benchmarks" / "results").glob("*/bench.json"))
    return {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def section(benchmarks: dict[str, Any]) -> str:
    """The measured part of the page."""
    return measured_section(benchmarks, picture=PICTURE.as_posix())


def main() -> None:
    benchmarks = committed()
    picture = speedup_plot(list(benchmarks.values()))
    if picture is not None:
        (PAGE.parent / PICTURE).write_bytes(picture)
    lines = [line for results in benchmarks.values() for line in results.get("growth", ())]
    if lines and (picture := growth_plot(lines)) is not None:
        (PAGE.parent / GROWTH).write_bytes(picture)
    page = with_section(PAGE.read_text(encoding="utf-8"), section(benchmarks))
    PAGE.write_text(page, encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)} from {len(benchmarks)} results")


if __name__ == "__main__":
    main()
