"""The pictures of a benchmark: speed-up against keep ratio, and time against operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

from .growth import AXES
from .report import title


def speedup_plot(benchmarks: Sequence[Mapping[str, Any]]) -> bytes | None:
    """Times as fast as the dense model over the keep ratio, with quartiles: one panel for each setting.

    A dashed line shows what the operations alone would allow.

    Returns:
        a PNG, or None where nothing was pruned at a given ratio.
    """
    panels = [
        (f"{title(setting)}{', compiled' if results.get('compile') else ''}", found)
        for results in benchmarks
        if not results.get("growth")  # many settings at one ratio; they have a picture of their own
        for setting in results["settings"]
        if (found := _lines(setting))
    ]
    if not panels:
        return None
    curves = [panel for panel in panels if any(len(variants) > 1 for variants in panel[1].values())]
    panels = curves or panels  # beside curves, single points say no more than the table
    figure, axes = _panels(len(panels), columns=2, width=6)
    for place, (heading, found) in enumerate(panels):
        for number, (name, variants) in enumerate(found.items()):
            ratios = [variant["settings"]["keep_ratio"] for variant in variants]
            faster = [variant["speedup"] for variant in variants]
            middle = [one["median"] for one in faster]
            bars = [
                [one["median"] - one["low"] for one in faster],
                [one["high"] - one["median"] for one in faster],
            ]
            color = f"C{number % 10}"
            axes[place].errorbar(ratios, middle, yerr=bars, label=name, marker="o", capsize=2, color=color)
            limits = [variant["flop_limit"] for variant in variants]
            axes[place].plot(ratios, limits, "--", color=color, linewidth=1)
        axes[place].axhline(1, color="gray", linewidth=0.8)
        axes[place].set_title(heading, fontsize="medium")
        axes[place].set_xlabel("keep ratio (dashed: the ratio of GMACs)")
        axes[place].set_ylabel("times as fast as dense")
        axes[place].grid(alpha=0.3)
        axes[place].legend(fontsize="small")
    return _png(figure)


def growth_plot(records: Sequence[Mapping[str, Any]]) -> bytes | None:
    """Milliseconds against GMACs of a batch, both logarithmic: one panel for each backbone, precision and axis.

    A dashed line through the middle of each curve shows time that grows as the count.

    Returns:
        a PNG, or None where nothing grows.
    """
    panels: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for record in records:
        panels.setdefault((record["backbone"], record["dtype"], record["axis"]), []).append(record)
    if not panels:
        return None
    figure, axes = _panels(len(panels), columns=3, width=5)
    for place, ((backbone, dtype, axis), found) in enumerate(panels.items()):
        for number, record in enumerate(found):
            color, gmacs, ms = f"C{number % 10}", record["gmacs"], record["ms"]
            label = f"{record['variant']}: exponent {record['exponent']:.2f}"
            axes[place].plot(gmacs, ms, marker="o", color=color, label=label)
            middle = len(gmacs) // 2
            proportional = [ms[middle] * value / gmacs[middle] for value in gmacs]
            axes[place].plot(gmacs, proportional, "--", color=color, linewidth=1)
            for value, x, y in zip(record["values"], gmacs, ms, strict=True):
                axes[place].annotate(
                    str(value), (x, y), fontsize="x-small", xytext=(3, -9), textcoords="offset points"
                )
        axes[place].set_xscale("log", base=2)
        axes[place].set_yscale("log", base=2)
        for scale in (axes[place].xaxis, axes[place].yaxis):
            scale.set_major_formatter("{x:g}")
        axes[place].set_title(f"{backbone}, {dtype}: {AXES[axis]}", fontsize="medium")
        axes[place].set_xlabel("GMACs of a batch (dashed: time as the count)")
        axes[place].set_ylabel("ms")
        axes[place].grid(alpha=0.3, which="both")
        axes[place].legend(fontsize="small")
    return _png(figure)


def _panels(count: int, *, columns: int, width: float) -> tuple[Any, Any]:
    """A figure, and the axes of `count` panels, at most `columns` of them side by side, each `width` inches wide."""
    from matplotlib.figure import Figure

    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, 4.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for empty in axes[count:]:
        empty.set_axis_off()
    return figure, axes[:count]


def _png(figure: Any) -> bytes:
    file = BytesIO()
    figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
    return file.getvalue()


def _lines(setting: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Pruner -> its variants by rising keep ratio."""
    lines: dict[str, list[Any]] = {}
    for variant in setting["variants"]:
        if variant["kind"] == "pruned" and variant["settings"].get("keep_ratio") is not None:
            own = {key: value for key, value in variant["settings"].items() if key != "keep_ratio"}
            extra = "".join(f" {key}={value}" for key, value in own.items() if key != "pruner")
            lines.setdefault(f"{own['pruner']}{extra}", []).append(variant)
    return {
        name: sorted(found, key=lambda one: one["settings"]["keep_ratio"]) for name, found in lines.items()
    }
