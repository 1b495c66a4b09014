"""Plots of a comparison: accuracy against compute and against time, and confusion matrices."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np

from ...core.escape import printable, shorten
from .confusion import NO_ANSWER, Matrix, shown_part
from .frontier import Point

MOST_CLASSES = 40  # of a drawn confusion matrix
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
    return _content(figure, format)


def confusion_plot(matrix: Matrix, names: Mapping[int, str], title: str) -> bytes | None:
    """A confusion matrix (see `confusion`) as a PNG: each row in per cent of the videos of its class.

    Returns:
        None where there is nothing to draw, or more than `MOST_CLASSES` classes.
    """
    matrix, shown = shown_part(matrix, names)
    names_shown = list(shown.values())
    if not 0 < len(names_shown) <= MOST_CLASSES:
        return None
    from matplotlib.figure import Figure

    columns = [*names_shown, NO_ANSWER] if matrix[:, -1].any() else names_shown
    counts = matrix[:, : len(columns)]
    percent = 100 * counts / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = 2.5 + 0.32 * len(columns)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(picture, label="% of the videos of a class", shrink=0.8)
    for axis, own in ((axes.xaxis, columns), (axes.yaxis, names_shown)):
        axis.set_ticks(range(len(own)), [shorten(printable(name), 24) for name in own], parse_math=False)
    axes.tick_params(axis="x", labelrotation=90)
    for (row, column), value in np.ndenumerate(percent):
        if value >= 0.5:
            color = "white" if value > 50 else "black"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=color)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(shorten(printable(title), 60), parse_math=False, fontsize="medium")
    return _content(figure, "png")


def _content(figure: Any, format: str) -> bytes:
    file = BytesIO()
    figure.savefig(file, format=format, dpi=130)
    return file.getvalue()


def _line(point: Point) -> str:
    return re.sub(r" r=\d+", "", point.method)
