"""Writes the measured part of docs/performance.md, and its pictures, from the committed results of tools/bench.py.

python benchmarks/performance_page.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from video_papr.benchmark.growth import growth_text
from video_papr.benchmark.plots import growth_plot, speedup_plot
from video_papr.core.tables import Table

ROOT = Path(__file__).resolve().parents[1]
DOCS, RESULTS = ROOT / "docs", ROOT / "benchmarks" / "results"
PAGE = DOCS / "performance.md"
BEGIN = "<!-- measured: written by `python benchmarks/performance_page.py`; edit that, not this -->"
END = "<!-- end of measured -->"
SHOWN = ("dense", "x3d_s 0.3", "random 0.3", "tome r=150", "huggingface")
HEADER = ["result", "model", "mode", "variant", "GMACs", "ms per clip", "times as fast as dense", "scoring"]


def rows(benchmarks: Mapping[str, Any]) -> Iterator[list[str]]:
    """One row for each variant of `SHOWN` in each setting of each result."""
    for name, results in benchmarks.items():
        engine = results.get("engine", "torch")
        words = ["compiled"] * bool(results["compile"]) + ([engine] if engine != "torch" else [])
        for setting in [] if results.get("growth") else results["settings"]:
            found = {variant["name"]: variant for variant in setting["variants"]}
            for variant in (found[shown] for shown in SHOWN if shown in found):
                speedup = variant["speedup"]
                yield [
                    name,
                    setting["backbone"],
                    ", ".join([setting["dtype"], *words]),
                    variant["name"],
                    f"{variant['gmacs']:.1f}",
                    f"{variant['latency_ms']['median'] / setting['batch_size']:.0f}",
                    f"{speedup['median']:.2f} ({speedup['low']:.2f}-{speedup['high']:.2f})",
                    "" if not variant["scoring_share"] else f"{100 * variant['scoring_share']:.1f} %",
                ]


def measured_section(benchmarks: Mapping[str, Any]) -> str:
    """The part of the page between `BEGIN` and `END`, both included."""
    growth = [growth_text(results["growth"]) for results in benchmarks.values() if results.get("growth")]
    return "\n\n".join([BEGIN, Table(HEADER, list(rows(benchmarks))).filled().markdown(), *growth, END])


def with_section(page: str, section: str) -> str:
    """The page with its measured part replaced."""
    before, _, rest = page.partition(BEGIN)
    return before + section + rest.partition(END)[2]


def committed() -> dict[str, Any]:
    """Folder of results -> content of its bench.json."""
    paths = sorted(RESULTS.glob("*/bench.json"))
    return {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def main() -> None:
    benchmarks = committed()
    lines = [line for results in benchmarks.values() for line in results.get("growth", ())]
    pictures = {"speedup.png": speedup_plot(list(benchmarks.values())), "growth.png": growth_plot(lines)}
    for name, picture in pictures.items():
        if picture is not None:
            (DOCS / "images" / name).write_bytes(picture)
    page = with_section(PAGE.read_text(encoding="utf-8"), measured_section(benchmarks))
    PAGE.write_text(page, encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)} from {len(benchmarks)} results")


if __name__ == "__main__":
    main()
