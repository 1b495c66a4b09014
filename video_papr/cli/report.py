"""`python tools/report.py RUN ...`: one report over any set of finished evaluations."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..core.console import fail
from ..core.errors import DataError, VideoPaprError
from ..evaluation.reports.comparison import write_comparison
from ..evaluation.reports.frontier import points
from ..evaluation.reports.runs import find_runs, named_apart, with_dense
from .common import USAGE_ERROR, print_written


def main(words: Sequence[str] | None = None) -> None:
    """Entry point of the command."""
    asked = build_parser().parse_args(words)
    try:
        written = run(asked.runs, asked.out or asked.runs[0], pdf=asked.pdf)
    except VideoPaprError as error:
        fail(error)
        sys.exit(USAGE_ERROR)
    print_written(written)


def build_parser() -> argparse.ArgumentParser:
    """What the command understands."""
    parser = argparse.ArgumentParser(
        prog="report",
        description="Compare finished evaluations: a table and plots of top-1 against GMACs and against time, with "
        "95 % intervals, agreement with the dense model, loss by class, and pictures of kept tubelets.",
        epilog="Example: python tools/eval.py experiment=frontier output_dir=outputs/frontier && "
        "python tools/report.py outputs/frontier",
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="output_dir of an evaluation or a sweep"
    )
    parser.add_argument("--out", type=Path, help="where to write the report (default: the first RUN)")
    parser.add_argument("--pdf", action="store_true", help="the plots as vector PDFs too, for papers")
    return parser


def run(paths: Sequence[Path], out: Path, *, pdf: bool = False) -> list[Path]:
    """Reads the runs, writes report.md, report.html and pictures. Raises DataError where runs do not compare."""
    runs = named_apart(with_dense(find_runs(paths)))
    settings = sorted({run.setting for run in runs})
    if len(settings) > 1:
        raise DataError(
            "these runs differ in dataset, backbone, weights or views, so their accuracies do not compare: "
            + "; ".join(" ".join(setting) for setting in settings)
        )
    return write_comparison(runs, points(runs), out, pdf=pdf)
