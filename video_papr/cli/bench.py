"""`python tools/bench.py`: latency, throughput and memory of dense and pruned models and of their peers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..config import BenchConfig
from ..core.console import make_console
from ..core.files import atomic_write
from .common import print_written, run_command


def main() -> None:
    """Entry point of the command."""
    run_command("bench", run)


def run(config: BenchConfig, out: Path) -> dict[str, Any]:
    """Measures every setting; writes and returns bench.json, beside it bench.md and pictures of speed and growth."""
    from ..assembly.bench import run_benchmark
    from ..benchmark.growth import growth_text
    from ..benchmark.plots import growth_plot, speedup_plot
    from ..benchmark.report import report
    from ..evaluation.results import to_json

    results = run_benchmark(config)
    text, pictures = report(results), {"speedup.png": speedup_plot([results])}
    if "growth" in results:
        text += f"\n### Growth\n\n{growth_text(results['growth'])}\n"
        pictures["growth.png"] = growth_plot(results["growth"])
    console = make_console()
    console.print(text)
    drawn = {name: picture for name, picture in pictures.items() if picture is not None}
    # The last one says that all is done.
    files: dict[str, str | bytes] = {**drawn, "bench.md": text, "bench.json": to_json(results)}
    for name, content in files.items():
        atomic_write(out / name, content)
    print_written([out / name for name in files], console)
    return results
