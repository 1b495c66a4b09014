"""How time and memory grow with the length of a clip, its resolution and the batch, beside how the operations grow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log
from statistics import StatisticsError, linear_regression
from typing import Any

from ..core.tables import Table

Record = Mapping[str, Any]

AXES = {
    "num_frames": "frames of a clip",
    "input_size": "height and width in pixels",
    "batch_size": "clips in a batch",
}


def growth(settings: Sequence[Record]) -> list[dict[str, Any]]:
    """One record for each axis and variant, from settings that differ from the first of their kind along one axis.

    Args:
        settings: of bench.json; the first one of each backbone and precision is the base of the others.

    Returns:
        "backbone", "dtype", "axis" (one of `AXES`), "variant"; by rising "values" of the axis the lists "gmacs" and
        "ms" (of a batch, medians) and "peak_memory_mb"; and "exponent": ms grows as GMACs to its power, fitted by least
        squares of the logarithms. 1: time grows as the count. Axes with a single value are left out.
    """
    kinds: dict[tuple[str, str], list[Record]] = {}
    for setting in settings:
        kinds.setdefault((setting["backbone"], setting["dtype"]), []).append(setting)
    records = []
    for (backbone, dtype), found in kinds.items():
        for axis in AXES:
            fixed = [name for name in AXES if name != axis]
            line = [one for one in found if all(one[name] == found[0][name] for name in fixed)]
            line.sort(key=lambda one: one[axis])
            if len(line) < 2:
                continue
            for name in [variant["name"] for variant in line[0]["variants"]]:
                own = [_variant(one, name) for one in line]
                gmacs = [variant["gmacs"] * one["batch_size"] for variant, one in zip(own, line, strict=True)]
                ms = [variant["latency_ms"]["median"] for variant in own]
                records.append(
                    {
                        "backbone": backbone,
                        "dtype": dtype,
                        "axis": axis,
                        "variant": name,
                        "values": [one[axis] for one in line],
                        "gmacs": gmacs,
                        "ms": ms,
                        "peak_memory_mb": [variant["peak_memory_mb"] for variant in own],
                        "exponent": exponent(gmacs, ms),
                    }
                )
    return records


def exponent(counts: Sequence[float], times: Sequence[float]) -> float:
    """The power p for which times ~ counts ** p fits best: the slope of their logarithms.

    Raises ValueError: all counts are the same, or a value is not above 0.
    """
    try:
        return linear_regression([log(count) for count in counts], [log(time) for time in times]).slope
    except StatisticsError:
        raise ValueError(f"all counts are {counts[0]}: nothing grows") from None


def growth_text(records: Sequence[Record]) -> str:
    """One line for each axis and variant, and what the last but one column means."""
    rows = [
        [
            f"{record['backbone']} {record['dtype']}, {AXES[record['axis']]}: {_list(record['values'], 0)}",
            record["variant"],
            _list(record["gmacs"], 1),
            _list(record["ms"], 1),
            f"{record['exponent']:.2f}",
            "" if None in record["peak_memory_mb"] else _list(record["peak_memory_mb"], 0),
        ]
        for record in records
    ]
    columns = ["what grows", "variant", "GMACs per batch", "ms per batch", "exponent", "peak MiB"]
    return (
        "Each line varies one thing; the exponent p says that time grows as GMACs to the power p (1: as the count).\n\n"
        + Table(columns, rows).filled().markdown()
    )


def _variant(setting: Record, name: str) -> Record:
    found: Record = next(variant for variant in setting["variants"] if variant["name"] == name)
    return found


def _list(values: Sequence[float], digits: int) -> str:
    return ", ".join(f"{value:,.{digits}f}" for value in values)
