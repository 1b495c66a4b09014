"""Writes the measured part of docs/performance.md, and its pictures, from the committed results of tools/bench.py.

    python benchmarks/performance_page.py

Reads every benchmarks/results/*/bench.json. Where none measures a goal, the page says that the figure is owed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from video_papr.benchmark.growth import growth_text
from video_papr.benchmark.plots import growth_plot, speedup_plot
from video_papr.benchmark.report import machine, speed_table, stage_table, title
from video_papr.core.tables import Table

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
PICTURE, GROWTH = (Path("images") / name for name in ("speedup.png", "growth.png"))  # below docs/

Record = Mapping[str, Any]
Read = Callable[[Record, Record, "Record | None"], "float | None"]

BEGIN = "<!-- measured: written by `python benchmarks/performance_page.py`; edit that, not this -->"
END = "<!-- end of measured -->"
RATIO = 0.3  # the keep ratio of the goals


@dataclass(frozen=True)
class Goal:
    """A figure that the project wants to reach.

    Attributes:
        backbone, device, dtype, batch_size, compiled, kernels: the setting; `device` is "cpu" or "cuda".
            compiled=None and kernels=None take results of both kinds.
        what: in words.
        read: (dense, pruned, transformers' dense or None) -> the figure, or None where it was not measured.
        least, most: bounds; one of them is None.
        unit: behind the figure.
    """

    backbone: str
    device: str
    dtype: str
    batch_size: int
    compiled: bool | None
    what: str
    read: Read
    least: float | None = None
    most: float | None = None
    unit: str = ""
    kernels: bool | None = None

    @property
    def asked(self) -> str:
        """E.g. "at least 3.8"."""
        if self.least is not None:
            return f"at least {self.least:g}{self.unit}"
        return f"at most {self.most:g}{self.unit}"

    def reached(self, value: float) -> bool:
        """Whether a figure is within the bounds."""
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)


def _faster(dense: Record, pruned: Record, theirs: Record | None) -> float:
    return pruned["speedup"]["median"]


def _scoring(dense: Record, pruned: Record, theirs: Record | None) -> float | None:
    return None if pruned["scoring_share"] is None else 100 * pruned["scoring_share"]


def _of_limit(dense: Record, pruned: Record, theirs: Record | None) -> float:
    return 100 * pruned["share_of_flop_limit"]


def _against_peer(dense: Record, pruned: Record, theirs: Record | None) -> float | None:
    return None if theirs is None else theirs["latency_ms"]["median"] / dense["latency_ms"]["median"]


FASTER = "times as fast as our dense model"
SCORING = "scoring and selection, share of the pruned time"


def _cpu(backbone: str, what: str, read: Read, *, dtype: str = "fp32", **bounds: Any) -> Goal:
    return Goal(backbone, "cpu", dtype, 1, None, what, read, **bounds)


def _gpu(backbone: str, what: str, read: Read, **bounds: Any) -> Goal:
    return Goal(backbone, "cuda", "bf16", 32, True, what, read, **bounds)


GOALS = (
    _cpu("videomae_b", FASTER, _faster, least=3.8),
    _cpu("videomae_b", SCORING, _scoring, most=10, unit=" %"),
    _cpu("vivit_b", FASTER, _faster, least=4),
    _cpu("videomae_b", FASTER, _faster, dtype="bf16", least=3.3),
    _gpu("videomae_b", FASTER, _faster, least=3.3),
    _gpu("videomae_l", FASTER, _faster, least=3.6),
    _gpu("vivit_b", FASTER, _faster, least=4),
    _gpu("videomae_b", SCORING, _scoring, most=15, unit=" %", kernels=False),
    _gpu("videomae_b", SCORING, _scoring, most=15, unit=" %", kernels=True),
    _gpu("videomae_b", "of the ratio of GMACs", _of_limit, least=90, unit=" %"),
    _gpu("videomae_b", "our dense model: times as fast as transformers'", _against_peer, least=1),
)


def measured_section(benchmarks: Mapping[str, Record], *, picture: str | None = None) -> str:
    """The part of the page between `BEGIN` and `END`, both included.

    Args:
        benchmarks: name of the folder of results -> content of its bench.json.
        picture: path of the plot, as the page names it; None: there is none.
    """
    parts = [BEGIN, "### Goals, and how far they are reached", goal_table(list(benchmarks.values()))]
    owed = [goal for goal in GOALS if not list(_figures(goal, list(benchmarks.values())))]
    if owed:
        devices = " and ".join(
            {"cpu": "processors", "cuda": "GPUs"}[name]
            for name in dict.fromkeys(goal.device for goal in owed)
        )
        parts.append(
            f"{len(owed)} of {len(GOALS)} figures are owed: no results for them (on {devices}) are in "
            "[`benchmarks/results/`](../benchmarks/). The commands that make them stand above."
        )
    if picture is not None and benchmarks:
        parts.append(f"![Times as fast as the dense model over the keep ratio]({picture})")
    for name, results in benchmarks.items():
        parts += [f"### `{name}`", machine(results)]
        if results.get("growth"):
            parts.append(growth_text(results["growth"]))
            continue
        for setting in results["settings"]:
            parts += [f"**{title(setting)}**", speed_table(setting)]
            if any(stage["ms"] for variant in setting["variants"] for stage in variant["stages"].values()):
                parts += ["Milliseconds and, in brackets, MiB of each stage:", stage_table(setting)]
    return "\n\n".join([*parts, END])


def goal_table(benchmarks: Sequence[Record]) -> str:
    """One line for each goal and device on which it was measured; "owed" where that is none."""
    rows = []
    for goal in GOALS:
        mode = f"{'processor' if goal.device == 'cpu' else 'GPU'}, {goal.dtype}, batches of {goal.batch_size}"
        where = f"{goal.backbone}, {mode}{', compiled' if goal.compiled else ''}"
        where += ", runtime.kernels=true" if goal.kernels else ""
        found = list(_figures(goal, benchmarks))
        if not found:
            rows.append([where, goal.what, goal.asked, "owed", ""])
        for value, device in found:
            verdict = "" if goal.reached(value) else " (not reached)"
            rows.append([where, goal.what, goal.asked, f"{value:.2f}{goal.unit}{verdict}", device])
    return Table(["setting, x3d_s at keep 0.3", "figure", "goal", "measured", "on"], rows).filled().markdown()


def _figures(goal: Goal, benchmarks: Sequence[Record]) -> Iterator[tuple[float, str]]:
    """(figure, device) of each result that measures a goal."""
    for results in benchmarks:
        compiled, kernels = bool(results["compile"]), bool(results.get("kernels"))
        if results["device"].split()[0] != goal.device:
            continue
        if goal.compiled not in (None, compiled) or goal.kernels not in (None, kernels):
            continue
        free = {
            "compiled": compiled and goal.compiled is None,
            "own kernels": kernels and goal.kernels is None,
        }
        device = ", ".join([results["device"], *(word for word, holds in free.items() if holds)])
        for setting in results["settings"]:
            if (setting["backbone"], setting["dtype"], setting["batch_size"]) != (
                goal.backbone,
                goal.dtype,
                goal.batch_size,
            ):
                continue
            variants = {variant["name"]: variant for variant in setting["variants"]}
            pruned = variants.get(f"x3d_s {RATIO:g}")
            value = (
                None if pruned is None else goal.read(variants["dense"], pruned, variants.get("huggingface"))
            )
            if value is not None:
                yield value, device


def with_section(page: str, section: str) -> str:
    """The page with its measured part replaced.

    Raises:
        ValueError: the page has no such part.
    """
    before, found, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not found or not end:
        raise ValueError(f"the page lacks {BEGIN!r} or {END!r}")
    return before + section + after


def committed() -> dict[str, Any]:
    """Folder of results -> content of its bench.json."""
    paths = sorted((ROOT / "benchmarks" / "results").glob("*/bench.json"))
    return {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def main() -> None:
    benchmarks = committed()
    picture = speedup_plot(list(benchmarks.values()))
    if picture is not None:
        (PAGE.parent / PICTURE).write_bytes(picture)
    lines = [line for results in benchmarks.values() for line in results.get("growth", ())]
    if lines and (picture := growth_plot(lines)) is not None:
        (PAGE.parent / GROWTH).write_bytes(picture)
    page = with_section(
        PAGE.read_text(encoding="utf-8"), measured_section(benchmarks, picture=PICTURE.as_posix())
    )
    PAGE.write_text(page, encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)} from {len(benchmarks)} results")


if __name__ == "__main__":
    main()
