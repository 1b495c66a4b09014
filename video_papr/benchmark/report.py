"""What a person reads of bench.json: Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.tables import Table
from .probes import STAGES

Record = Mapping[str, Any]


def report(results: Record) -> str:
    """All settings of one bench.json: a heading and three tables each, and what they were measured on."""
    parts = [machine(results)]
    for setting in results["settings"]:
        parts += [f"### {title(setting)}", speed_table(setting)]
        if setting["file_ms"]:
            decode, resize = setting["file_ms"]["decode"], setting["file_ms"]["resize"]
            parts.append(
                f"Before that, from the file: {decode:.1f} ms to decode and {resize:.1f} ms to resize and crop the "
                f"{_clips(setting['batch_size'])}."
            )
        if any(stage["ms"] for variant in setting["variants"] for stage in variant["stages"].values()):
            parts += ["Milliseconds and, in brackets, MiB of each stage:", stage_table(setting)]
        if setting["dtype"] in results["ceilings"]:
            parts += ["The stages against what the device can do:", roofline_table(setting), *_least(setting)]
    return "\n\n".join(parts) + "\n"


def machine(results: Record) -> str:
    """Where and how it was measured, in a sentence or two."""
    versions = results["versions"]
    with_peer = f", transformers {versions['transformers']}" if "transformers" in versions else ""
    ceilings = "".join(
        f" Its fastest matrix product in {dtype}: {top['gflops_per_s']:,.0f} GFLOP/s; its fastest copy: "
        f"{top['gigabytes_per_s']:,.1f} GB/s."
        for dtype, top in results["ceilings"].items()
    )
    return (
        f"Measured by `{results['command']}` at commit {results['git_commit']} on {results['device']}, torch "
        f"{versions['torch']}{with_peer}, {_compiled(results)}, medians (and "
        f"quartiles) of {results['repeats']} rounds.{ceilings}"
    )


def _compiled(results: Record) -> str:
    mode, engine = results["compile"], results.get("engine", "torch")
    if engine != "torch":
        return f"ours in {engine}"
    return f"compiled ({mode})" if isinstance(mode, str) else "compiled" if mode else "not compiled"


def title(setting: Record) -> str:
    """E.g. "videomae_b, 16 x 224 x 224, fp32, batches of 1 clip"."""
    size = setting["input_size"]
    return (
        f"{setting['backbone']}, {setting['num_frames']} x {size} x {size}, {setting['dtype']}, batches of "
        f"{_clips(setting['batch_size'])}"
    )


def speed_table(setting: Record) -> str:
    """One line for each variant: time, speed-up, and how near that comes to what the operations allow."""
    rows = []
    dense_bound = next(_bound(variant) for variant in setting["variants"] if variant["name"] == "dense")
    for variant in setting["variants"]:
        ms, faster, kept = variant["latency_ms"], variant["speedup"], variant["kept_tokens"]
        scoring, difference = variant["scoring_share"], variant["logit_difference"]
        bound, peak = _bound(variant), variant["peak_memory_mb"]
        rows.append(
            [
                variant["name"],
                "all" if kept is None else f"{kept:.0f} of {setting['num_tokens']}",
                f"{variant['gmacs']:.2f}",
                f"{ms['median']:.1f} ({ms['low']:.1f}-{ms['high']:.1f})",
                f"{variant['clips_per_second']:.2f}",
                f"{faster['median']:.2f} ({faster['low']:.2f}-{faster['high']:.2f})",
                f"{variant['flop_limit']:.2f}",
                f"{100 * variant['share_of_flop_limit']:.0f} %",
                f"{dense_bound / bound:.2f}" if dense_bound and bound else "",
                "" if not scoring else f"{100 * scoring:.1f} %",
                "" if peak is None else f"{peak:.0f}",
                "" if difference is None else f"{difference:.0e}",
            ]
        )
    columns = ["variant", "tokens", "GMACs", "ms per batch", "clips/s", "times as fast as dense"]
    columns += [
        "at most, by GMACs",
        "of that",
        "at most, by roofline",
        "scoring",
        "peak MiB",
        "logits differ by",
    ]
    return Table(columns, rows).filled().markdown()


def _bound(variant: Record) -> float | None:
    """The least milliseconds of all stages together; None where the device's ceilings were not measured."""
    bounds = [stage.get("bound_ms") for stage in variant["stages"].values()]
    return None if not bounds or None in bounds else sum(bounds)


def stage_table(setting: Record) -> str:
    """Milliseconds and memory of each stage, one line for each variant."""
    named = {stage for variant in setting["variants"] for stage in variant["stages"]}
    stages = [stage for stage in STAGES if stage in named]

    def cell(stage: Record | None) -> str:
        if stage is None or stage["ms"] is None:
            return ""
        memory = stage["peak_memory_mb"]
        return f"{stage['ms']['median']:.1f}" + ("" if memory is None else f" ({memory:.0f})")

    rows = [
        [variant["name"], *(cell(variant["stages"].get(stage)) for stage in stages)]
        for variant in setting["variants"]
    ]
    return Table(["variant", *stages], rows).filled().markdown()


def roofline_table(setting: Record) -> str:
    """Work of each stage, the least time that the device's ceilings allow its operators, and what it took."""
    rows = []
    for variant in setting["variants"]:
        for name, stage in variant["stages"].items():
            if stage.get("bound_ms") is None:
                continue
            ms = None if stage["ms"] is None else stage["ms"]["median"]
            rows.append(
                [
                    variant["name"],
                    name,
                    f"{2 * stage['gmacs']:.3g}",
                    f"{stage['gigabytes']:.3g}",
                    f"{stage['bound_ms']:.2f}",
                    "" if ms is None else f"{ms:.2f}",
                    "" if ms is None else f"{100 * stage['bound_ms'] / ms:.0f} %",
                ]
            )
    columns = ["variant", "stage", "GFLOP", "GB moved", "least ms", "ms", "least / measured"]
    return Table(columns, rows).filled().markdown()


def _least(setting: Record) -> list[str]:
    """A sentence for each scorer that is a ConvNet."""
    found: dict[tuple[Any, ...], list[str]] = {}
    for variant in setting["variants"]:
        least = variant["least_scoring"]
        if least is not None and variant["kind"] == "pruned":
            found.setdefault(tuple(least.values()), []).append(variant["name"])
    return [
        f"The convolutions of the scorer of {', '.join(names)} do {2 * gmacs:.2f} GFLOP and move {gigabytes:.3f} GB "
        f"when everything else is joined to them; that takes {bound:.1f} ms at least."
        for (gmacs, gigabytes, bound), names in found.items()
    ]


def _clips(count: int) -> str:
    return f"{count} clip" if count == 1 else f"{count} clips"
