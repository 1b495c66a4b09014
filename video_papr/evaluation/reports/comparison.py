"""The report over many runs: tables, plots and pictures, as Markdown beside its files and as one HTML page."""

from __future__ import annotations

import html
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..results import write_text
from .frontier import CONTROL, Interval, Point
from .plots import AXES, frontier_plot
from .precision import EXACT, agreements
from .runs import DENSE, Run

CLASS_RATIO = 0.3  # per-class losses and pictures are shown at the keep ratio next to this
Cells = list[list[str]]


@dataclass(frozen=True)
class Section:
    """A heading, a sentence, and a table (first row: header) or pictures (name -> PNG)."""

    title: str
    text: str
    table: Cells | None = None
    pictures: Mapping[str, bytes] | None = None


def write_comparison(runs: Sequence[Run], points: Sequence[Point], out: Path) -> list[Path]:
    """Writes report.md with its PNG files, and the self-contained report.html, into `out`; returns their paths."""
    title, sections = f"Comparison of {len(runs)} runs", _sections(runs, points)
    out.mkdir(parents=True, exist_ok=True)
    written = [out / "report.md", out / "report.html"]
    for section in sections:
        for name, picture in (section.pictures or {}).items():
            (out / name).write_bytes(picture)
            written.append(out / name)
    write_text(written[0], to_markdown(title, sections))
    write_text(written[1], to_html(title, sections))
    return written


def _sections(runs: Sequence[Run], points: Sequence[Point]) -> list[Section]:
    plots = {f"top1_{axis}.png": plot for axis in AXES if (plot := frontier_plot(points, axis)) is not None}
    made = [
        Section(
            "Accuracy and compute",
            "Means with 95 % intervals (bootstrap over videos). Loss: points of top-1 lost against the dense model on "
            f"the same videos. Over {CONTROL}: points won over it at the same keep ratio. A star marks the points that "
            "no other one beats at its cost. ms and videos are on: " + "; ".join(_devices(runs)) + ".",
            table=_main_table(points),
        ),
        Section("Frontier", "Top-1 against what a view costs.", pictures=plots),
    ]
    classes = _class_table(runs, points)
    if len(classes) > 1:
        text = f"Points of top-1 lost against the dense model, at the keep ratio next to {CLASS_RATIO:g}."
        made.append(Section("Loss by class", text, table=classes))
    pictures = _gallery(runs, points)
    if pictures:
        made.append(Section("Kept tubelets", "One run of each method.", pictures=pictures))
    other = [
        [
            one.method,
            f"{one.keep_ratio:g}",
            one.dtype,
            f"{one.percent:.2f}",
            f"{one.num_same} of {one.num_videos}",
        ]
        for one in agreements(runs)
    ]
    if other:
        text = f"Videos to which a run gives the same class as the same run in {EXACT}."
        header = ["method", "keep", "precision", "same class %", "videos"]
        made.append(Section("Precision", text, table=[header, *other]))
    commands = [[str(i), run.results.get("command", "")] for i, run in enumerate(runs)]
    made.append(
        Section("Commands", "What made these runs.", table=[["run", "command"], *_distinct(commands)])
    )
    return made


def _main_table(points: Sequence[Point]) -> Cells:
    header = [
        "method",
        "keep",
        "top-1 %",
        "loss",
        f"over {CONTROL}",
        "agreement %",
        "tokens",
        "GMACs",
        "ms/view",
    ]
    rows = [
        [
            f"{point.method}{' *' if point.on_frontier else ''}",
            f"{point.keep_ratio:g}",
            _interval(point.top1),
            _interval(point.loss),
            _interval(point.gain),
            _number(point.agreement, 1),
            _number(point.kept_tokens, 0),
            _number(point.gmacs, 3),
            _number(point.latency_ms, 2),
            str(point.num_videos),
            str(point.num_runs),
        ]
        for point in points
    ]
    return [[*header, "videos", "runs"], *rows]


def _class_table(runs: Sequence[Run], points: Sequence[Point]) -> Cells:
    chosen = [point for point in nearest(points) if point.class_loss]
    names = _class_names(runs)
    labels = sorted({label for point in chosen for label in point.class_loss})
    rows = [
        [names.get(label, str(label)), *(_number(point.class_loss.get(label), 1) for point in chosen)]
        for label in labels
    ]
    return [["class", *(f"{point.method} {point.keep_ratio:g}" for point in chosen)], *rows]


def nearest(points: Sequence[Point]) -> list[Point]:
    """The point of each method whose keep ratio is next to `CLASS_RATIO`; without the dense model."""
    best: dict[str, Point] = {}
    for point in points:
        old = best.get(point.method)
        if point.method == DENSE or point.method.startswith(f"{DENSE} dtype="):
            continue
        if old is None or abs(point.keep_ratio - CLASS_RATIO) < abs(old.keep_ratio - CLASS_RATIO):
            best[point.method] = point
    return list(best.values())


def _class_names(runs: Sequence[Run]) -> dict[int, str]:
    """The directory of each class, where videos lie in one directory per class."""
    found: dict[int, set[str]] = {}
    for run in runs:
        for (_, path), answer in run.answers.items():
            if answer.label is not None:
                found.setdefault(answer.label, set()).add(Path(path).parent.name)
    distinct = {name for names in found.values() for name in names}
    one_each = all(len(names) == 1 and names != {""} for names in found.values())
    return (
        {label: names.pop() for label, names in found.items()}
        if one_each and len(distinct) == len(found)
        else {}
    )


def _gallery(runs: Sequence[Run], points: Sequence[Point]) -> dict[str, bytes]:
    pictures = {}
    for point in nearest(points):
        for run in runs:
            file = run.directory / "kept_tubelets.png"
            if (run.method, run.keep_ratio) == (point.method, point.keep_ratio) and file.is_file():
                name = "".join(c if c.isalnum() else "_" for c in point.method)
                pictures[f"kept_{name}.png"] = file.read_bytes()
                break
    return pictures


def _devices(runs: Sequence[Run]) -> list[str]:
    return sorted(
        {f"{run.results.get('device', 'unknown')}, {run.results.get('dtype', '?')}" for run in runs}
    )


def _distinct(rows: Cells) -> Cells:
    """One row per command of a sweep, which all of its jobs share."""
    groups: dict[str, list[str]] = {}
    for number, command in rows:
        groups.setdefault(command, []).append(number)
    return [
        [numbers[0] if len(numbers) == 1 else f"{numbers[0]} ... {numbers[-1]}", command]
        for command, numbers in groups.items()
    ]


def _interval(value: Interval | None) -> str:
    return "" if value is None else f"{value.mean:.2f} [{value.low:.2f}, {value.high:.2f}]"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


# ---- the two forms ----


def to_markdown(title: str, sections: Sequence[Section]) -> str:
    lines = [f"# {title}", ""]
    for section in sections:
        lines += [f"## {section.title}", "", section.text, ""]
        if section.table:
            header, *rows = section.table
            lines += [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)] + [""]
        for name in section.pictures or {}:
            lines += [f"![{name.removesuffix('.png').replace('_', ' ')}]({name})", ""]
    return "\n".join(lines)


STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:1100px;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse;font-size:13px}td,th{border:1px solid #ccc;padding:3px 8px;text-align:right}"
    "td:first-child,th:first-child{text-align:left}img{max-width:100%}"
)


def to_html(title: str, sections: Sequence[Section]) -> str:
    """One file without outside parts: pictures are embedded."""
    body = [f"<h1>{html.escape(title)}</h1>"]
    for section in sections:
        body.append(f"<h2>{html.escape(section.title)}</h2><p>{html.escape(section.text)}</p>")
        if section.table:
            rows = [
                "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
                for tag, row in zip(["th", *["td"] * len(section.table)], section.table, strict=False)
            ]
            body.append("<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>")
        for name, picture in (section.pictures or {}).items():
            body.append(
                f'<figure><img alt="{html.escape(name)}" '
                f'src="data:image/png;base64,{b64encode(picture).decode()}"></figure>'
            )
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n'
