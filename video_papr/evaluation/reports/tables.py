"""What a person reads: the table of one evaluation (dense beside pruned), and the summary of a sweep."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ...core.console import Terminal
from ...core.escape import spreadsheet
from ...core.tables import Table, csv_text

Results = Mapping[str, Any]
FAILURES_SHOWN = 10  # predictions.jsonl has all of them


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _ratio(more: float | None, less: float | None) -> str:
    return f"{more / less:.2f}x" if more and less else ""


def table_rows(results: Results) -> list[tuple[str, str, str, str]]:
    """Returns (what, dense, pruned, comparison) of each line; the dense cells are empty without a baseline."""
    dense: Results | None = results["baseline"]

    def row(what: str, value: Any, compare: str = "") -> tuple[str, str, str, str]:
        return (what, "" if dense is None else value(dense), value(results), compare)

    def cost(what: str, section: str, key: str, *, compare: bool = False) -> tuple[str, str, str, str]:
        less = _ratio(dense[section][key], results[section][key]) if compare and dense is not None else ""
        return row(what, lambda r: _number(r[section][key], 2), less)

    top1, top5, faster, tokens, memory = "", "", "", "", ""
    on_gpu = results["device"].startswith("cuda")
    if dense is not None:
        top1 = f"{results['top1'] - dense['top1']:+.2f} pt"
        top5 = f"{results['top5'] - dense['top5']:+.2f} pt"
        tokens = _ratio(dense["mean_kept_tokens"], results["mean_kept_tokens"])
        faster = _ratio(results["videos_per_second"], dense["videos_per_second"])
        memory = _ratio(dense["peak_memory_mb"], results["peak_memory_mb"]) if on_gpu else ""
    process = "" if on_gpu else " (whole process)"
    rows = [
        row("top-1, % of all videos", lambda r: f"{r['top1']:.2f} ± {r['top1_standard_error']:.2f}", top1),
        row("top-5, % of all videos", lambda r: f"{r['top5']:.2f}", top5),
        row(
            "videos evaluated / failed / missing",
            lambda r: f"{r['num_evaluated']} / {r['num_failed']} / {r['num_missing']}",
        ),
        row("tokens kept per view", lambda r: _number(r["mean_kept_tokens"], 0), tokens),
        cost("GMACs per view: backbone", "gmacs_per_view", "backbone", compare=True),
        cost("GMACs per view: scorer", "gmacs_per_view", "scorer"),
        cost("GMACs per view: total", "gmacs_per_view", "total", compare=True),
        cost("ms per view: decode", "latency_ms", "decode"),
        cost("ms per view: resize, crop", "latency_ms", "preprocess"),
        cost("ms per view: score", "latency_ms", "score"),
        cost("ms per view: backbone", "latency_ms", "backbone", compare=True),
        cost("ms per view: total", "latency_ms", "total", compare=True),
        row("videos/s, decoding left out", lambda r: _number(r["videos_per_second"], 1), faster),
        row(f"peak memory, MB{process}", lambda r: _number(r["peak_memory_mb"], 0), memory),
    ]
    if results["actor_tokens_kept"] is not None:
        rows.insert(4, row("actor tokens kept, %", lambda r: _number(100 * r["actor_tokens_kept"], 1)))
    if results.get("frames_without_vectors") is not None:
        unknown = row("frames without motion vectors", lambda r: _number(r["frames_without_vectors"], 2))
        rows.insert(4, unknown)
    return rows


def remarks(results: Results) -> list[str]:
    """Returns the sentences under the table: the paired loss, and whether pruning gained time."""
    dense, paired = results["baseline"], results["comparison"]
    if dense is None or paired is None or not results["num_evaluated"]:
        return []
    loss = paired["loss_points"]
    said = [
        f"Pruning {'loses' if loss >= 0 else 'gains'} {abs(loss):.2f} ± {paired['loss_standard_error']:.2f} points of "
        f"top-1 (paired over {results['num_videos']} videos); both models give the same answer to "
        f"{paired['agreement_percent']:.1f} % of the videos."
    ]
    slow, fast = dense["videos_per_second"], results["videos_per_second"]
    if fast < slow:
        said.append(
            f"Pruned is slower than dense here ({fast:.1f} against {slow:.1f} videos/s): this pair of backbone and "
            "scorer is too small to gain time, the scorer costs more than the dropped tokens save."
        )
    return said


def _name(results: Results) -> str:
    """What stands over the column: the pruner and the merger, or that there is neither."""
    merger = results.get("settings", {}).get("merger", {}).get("name", "none")
    pruned = results["pruner"] != "none"
    words = [f"{results['pruner']}, keep {results['keep_ratio']:.3g}"] if pruned else []
    return " + ".join(words + ([merger] if merger != "none" else [])) or "dense"


def print_report(results: Results, console: Terminal, *, num_classes: int | None = None) -> None:
    """Prints the table of one evaluation and the remarks under it; no top-5 where there are five classes or fewer."""
    rows = table_rows(results)
    if num_classes is not None and num_classes <= 5:
        rows = [row for row in rows if not row[0].startswith("top-5")]
    engine = results.get("engine", "torch")
    words = [results["dataset"], results["backbone"], f"views {results['views']}", results["dtype"]]
    title = " · ".join(words + ([engine] if engine != "torch" else []))
    columns = ["", "dense", _name(results), "ratio"]
    Table(columns, rows, title=title, caption=results["device"]).filled().print(console)
    for sentence in remarks(results):
        console.print(sentence)
    sessions = sum(session["videos"] > 0 for session in results.get("sessions", ()))
    if sessions > 1:
        console.print(f"This run was resumed: times are taken over {sessions} sessions.")


def print_failures(failures: Sequence[tuple[str, str]], console: Terminal) -> None:
    """Prints a table of the first videos without an answer, and how many more there are."""
    if not failures:
        return
    more = len(failures) - FAILURES_SHOWN
    caption = f"and {more} more, see predictions.jsonl" if more > 0 else ""
    title = f"{len(failures)} {'video' if len(failures) == 1 else 'videos'} without an answer"
    shown = failures[:FAILURES_SHOWN]
    Table(["video", "reason"], shown, title=title, caption=caption, left=(0, 1), lines=True).print(console)


SWEEP_COLUMNS = {  # column -> how to read it from results.json
    "top1": lambda r: r["top1"],
    "top1_standard_error": lambda r: r["top1_standard_error"],
    "loss_points": lambda r: (r["comparison"] or {}).get("loss_points"),
    "loss_standard_error": lambda r: (r["comparison"] or {}).get("loss_standard_error"),
    "num_evaluated": lambda r: r["num_evaluated"],
    "num_failed": lambda r: r["num_failed"],
    "num_missing": lambda r: r["num_missing"],
    "kept_tokens": lambda r: r["mean_kept_tokens"],
    "actor_tokens_kept": lambda r: r["actor_tokens_kept"],
    "gmacs_total": lambda r: r["gmacs_per_view"]["total"],
    "gmacs_dense": lambda r: r["gmacs_per_view"]["dense"],
    "ms_per_view": lambda r: r["latency_ms"]["total"],
    "videos_per_second": lambda r: r["videos_per_second"],
}


def sweep_row(
    job: int, overrides: Sequence[str], results: Results | None, error: str | None
) -> dict[str, Any]:
    """Returns one line of a sweep's summary; without results, the error says why."""
    figures = {name: None if results is None else read(results) for name, read in SWEEP_COLUMNS.items()}
    return {"job": job, "overrides": " ".join(overrides), **figures, "error": error}


def sweep_files(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Returns the texts of summary.json, summary.csv and summary.md."""
    columns = ["job", "overrides", *SWEEP_COLUMNS, "error"]
    cells = [[row[name] for name in columns] for row in rows]
    shown = [[spreadsheet(cell) if isinstance(cell, str) else cell for cell in row] for row in cells]
    return {
        "summary.json": json.dumps(list(rows), indent=2, ensure_ascii=False) + "\n",
        "summary.csv": csv_text([columns, *shown]),
        "summary.md": _sweep_table(rows).markdown() + "\n",
    }


def print_sweep(rows: Sequence[Mapping[str, Any]], console: Terminal) -> None:
    """Prints one line per job of a sweep, and the jobs that failed with their reasons."""
    _sweep_table(rows).print(console)
    failed = [[str(row["job"]), row["error"]] for row in rows if row["error"] is not None]
    if failed:
        Table(["job", "error"], failed, title="jobs that failed", left=(1,)).print(console)


def _sweep_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The short table, without the columns that say nothing."""
    common = set.intersection(*(set(row["overrides"].split()) for row in rows)) if len(rows) > 1 else set()

    def own(row: Mapping[str, Any]) -> str:  # what this job has and not every other one
        return " ".join(word for word in row["overrides"].split() if word not in common)

    cells = []
    for row in rows:
        if row["error"] is not None:
            cells.append([str(row["job"]), own(row), "error", *[""] * 7])
            continue
        loss = row["loss_points"]
        share = row["actor_tokens_kept"]
        cells.append(
            [
                str(row["job"]),
                own(row),
                f"{row['top1']:.2f} ± {row['top1_standard_error']:.2f}",
                "" if loss is None else f"{loss:.2f} ± {row['loss_standard_error']:.2f}",
                f"{row['num_evaluated']}/{row['num_failed']}/{row['num_missing']}",
                _number(row["kept_tokens"], 0),
                "" if share is None else f"{100 * share:.1f}",
                _number(row["gmacs_total"], 2),
                _number(row["ms_per_view"], 2),
                _number(row["videos_per_second"], 1),
            ]
        )
    columns = [
        "job",
        "overrides",
        "top-1 %",
        "loss",
        "eval/fail/miss",
        "tokens",
        "actor %",
        "GMACs",
        "ms/view",
    ]
    title = f"{len(rows)} {'job' if len(rows) == 1 else 'jobs'}"
    return Table([*columns, "videos/s"], cells, title=title, left=(1,)).filled()
