"""Plots of a comparison: accuracy against compute and against time."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any

from .frontier import Point

# What each axis reads from a point; points without the value are left out.
AXES: dict[str, tuple[str, Callable[[Point], float | None]]] = {
    "gmacs": ("GMACs per view, scorer included", lambda point: point.gmacs),
    "latency": ("ms per view, scorer included, decoding left out", lambda point: point.latency_ms),
}


# Okabe and Ito (2008): colour-blind eyes tell them apart.
COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#000000")


def frontier_plot(points: Sequence[Point], axis: str, format: str = "png") -> bytes | None:
    """Top-1 with 95 % intervals over the cost named by `axis` (a key of `AXES`), one line per method.

    A merger at several `r` is one line, "dense + tome": r is to it what the keep ratio is to a pruner.

    Args:
        format: one of matplotlib's: "png", or "pdf" for vectors.

    Returns:
        the file's content, or None when no point knows that cost.
    """
    from matplotlib.figure import Figure

    title, read = AXES[axis]
    shown = [(point, cost) for point in points if (cost := read(point)) is not None]
    if not shown:
        return None
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for i, name in enumerate(dict.fromkeys(_line(point) for point, _ in shown)):
        own = sorted(
            ((cost, point.top1) for point, cost in shown if _line(point) == name), key=lambda pair: pair[0]
        )
        costs = [cost for cost, _ in own]
        tops = [top for _, top in own]
        bars = [[top.mean - top.low for top in tops], [top.high - top.mean for top in tops]]
        axes.errorbar(
            costs,
            [top.mean for top in tops],
            yerr=bars,
            label=name,
            marker="osD^vP*X<>"[i % 10],
            markersize=9 - 0.6 * (i % 10),  # hollow and ever smaller: at 100 % methods lie on one another
            markerfacecolor="none",
            color=COLORS[i % len(COLORS)],
            linestyle=("-", "--", "-.", ":")[i // len(COLORS) % 4],
            capsize=2,
            linewidth=1.2,
        )
    axes.set_xlabel(title)
    axes.set_ylabel("top-1, % of all videos")
    axes.grid(alpha=0.3)
    for text in axes.legend(fontsize="small").get_texts():
        text.set_parse_math(False)
    return encode(figure, format)


def encode(figure: Any, format: str) -> bytes:
    """A figure of matplotlib as the content of a file."""
    file = BytesIO()
    figure.savefig(file, format=format, dpi=130)
    return file.getvalue()


def _line(point: Point) -> str:
    return re.sub(r" r=\d+", "", point.method)
