"""The report over many runs: tables, plots and pictures, as Markdown beside its files and as one HTML page."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...core.files import atomic_write
from ...core.tables import Table, render
from .confusion import confusion_matrix, confusion_plot, most_confused
from .frontier import CONTROL, Interval, Point
from .plots import AXES, frontier_plot
from .precision import EXACT, agreements
from .runs import DENSE, Run

CONFUSIONS = 5  # shown of each method
CLASS_RATIO = 0.3  # per-class losses and pictures are shown at the keep ratio next to this


@dataclass(frozen=True)
class Section:
    """A heading, a sentence, and a table or pictures (name of the file -> PNG)."""

    title: str
    text: str
    table: Table | None = None
    pictures: Mapping[str, bytes] = field(default_factory=dict)


def write_comparison(
    runs: Sequence[Run], points: Sequence[Point], out: Path, *, pdf: bool = False
) -> list[Path]:
    """Writes report.md with its PNG files, and the self-contained report.html, into `out`; returns their paths.

    Args:
        pdf: the plots as vectors too, for papers.
    """
    title, sections = f"Comparison of {len(runs)} runs", _sections(runs, points)
    pictures = {name: png for section in sections for name, png in section.pictures.items()}
    encoded = {name: b64encode(png).decode() for name, png in pictures.items()}
    out.mkdir(parents=True, exist_ok=True)
    vectors = {
        f"top1_{axis}.pdf": plot for axis in AXES if pdf and (plot := frontier_plot(points, axis, "pdf"))
    }
    for name, content in {**pictures, **vectors}.items():
        (out / name).write_bytes(content)
    for file in ("report.md", "report.html"):
        template = f"evaluation/reports/{file}.j2"
        atomic_write(out / file, render(template, title=title, sections=sections, encoded=encoded))
    return [out / name for name in ("report.md", "report.html", *pictures, *vectors)]


def _sections(runs: Sequence[Run], points: Sequence[Point]) -> list[Section]:
    plots = {f"top1_{axis}.png": plot for axis in AXES if (plot := frontier_plot(points, axis)) is not None}
    devices = {f"{run.results.get('device', 'unknown')}, {run.results.get('dtype', '?')}" for run in runs}
    made = [
        Section(
            "Accuracy and compute",
            "Means with 95 % intervals (bootstrap over videos). Loss: points of top-1 lost against the dense model on "
            f"the same videos. Over {CONTROL}: points won over it at the same keep ratio. A star marks the points that "
            "no other one beats at its cost. ms and videos are on: " + "; ".join(sorted(devices)) + ".",
            table=_main_table(points),
        ),
        Section("Frontier", "Top-1 against what a view costs.", pictures=plots),
    ]
    names, chosen = _class_names(runs), [point for point in points if point.method == DENSE] + nearest(points)
    losses = _class_table(names, [(point, point.class_loss) for point in chosen if point.method != DENSE])
    if losses.rows:
        text = f"Points of top-1 lost against the dense model, at the keep ratio next to {CLASS_RATIO:g}."
        made.append(Section("Loss by class", text, table=losses))
    accuracy = _class_table(names, [(point, point.class_top1) for point in chosen])
    if accuracy.rows:
        made.append(Section("Accuracy by class", "Per cent of the videos of a class.", table=accuracy))
        made.append(_confusion(runs, chosen, names))
    pictures = _gallery(runs, points)
    if pictures:
        made.append(Section("Kept tubelets", "One run of each method.", pictures=pictures))
    other = [
        [one.method, f"{one.kept:g}", one.dtype, f"{one.percent:.2f}", f"{one.num_same} of {one.num_videos}"]
        for one in agreements(runs)
    ]
    if other:
        text = f"Videos to which a run gives the same class as the same run in {EXACT}."
        table = Table(["method", "keep", "precision", "same class %", "videos"], other)
        made.append(Section("Precision", text, table=table))
    commands = Table(["run", "command"], _distinct(runs), left=(0, 1))
    made.append(Section("Commands", "What made these runs.", table=commands))
    return made


def _main_table(points: Sequence[Point]) -> Table:
    columns = [
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
            f"{point.kept:g}",
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
    return Table([*columns, "videos", "runs"], rows)


def _class_table(names: Mapping[int, str], figures: Sequence[tuple[Point, Mapping[int, float]]]) -> Table:
    """One line for each class, one column for each point that has figures by class."""
    known = [(point, by_class) for point, by_class in figures if by_class]
    labels = sorted({label for _, by_class in known for label in by_class})
    rows = [
        [names.get(label, str(label)), *(_number(by_class.get(label), 1) for _, by_class in known)]
        for label in labels
    ]
    return Table(["class", *(f"{point.method} {point.kept:g}" for point, _ in known)], rows)


def _confusion(runs: Sequence[Run], chosen: Sequence[Point], names: Mapping[int, str]) -> Section:
    """The classes that are mistaken for others most often, and the matrices where there are few classes."""
    rows, pictures = [], {}
    for point in chosen:
        answers = [answer for run in _of(point, runs) for answer in run.answers.values()]
        pairs = [(answer.label, answer.pred) for answer in answers if answer.label is not None]
        if not pairs:
            continue
        size = 1 + max(max(label, pred or 0) for label, pred in pairs)
        matrix = confusion_matrix(pairs, size)
        title = [names.get(label, str(label)) for label in range(size)]
        for label, pred in most_confused(matrix, CONFUSIONS):
            share = matrix[label, pred] / matrix[label].sum()
            rows.append([f"{point.method} {point.kept:g}", title[label], title[pred], f"{100 * share:.1f}"])
        plot = confusion_plot(matrix, names, point.method)
        if plot is not None:
            pictures[f"confusion_{_plain(point.method)}.png"] = plot
    text = "What is mistaken for what most often, in per cent of the videos of the class."
    table = Table(["method", "class", "taken for", "%"], rows, left=(0, 1, 2))
    return Section("Confusion", text, table=table if rows else None, pictures=pictures)


def nearest(points: Sequence[Point]) -> list[Point]:
    """The point of each method whose keep ratio is next to `CLASS_RATIO`; without the dense model."""
    best: dict[str, Point] = {}
    for point in points:
        old = best.get(point.method)
        if point.method == DENSE or point.method.startswith(f"{DENSE} dtype="):
            continue
        if old is None or abs(point.kept - CLASS_RATIO) < abs(old.kept - CLASS_RATIO):
            best[point.method] = point
    return list(best.values())


def _class_names(runs: Sequence[Run]) -> dict[int, str]:
    """The names that the runs know; else the directory of each class, where videos lie in one directory per class."""
    known = {label: name for run in runs for label, name in run.class_names.items()}
    if known:
        return known
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


def _plain(method: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in method)


def _gallery(runs: Sequence[Run], points: Sequence[Point]) -> dict[str, bytes]:
    pictures = {}
    for point in nearest(points):
        files = [run.directory / "kept_tubelets.png" for run in _of(point, runs)]
        for file in [file for file in files if file.is_file()][:1]:
            pictures[f"kept_{_plain(point.method)}.png"] = file.read_bytes()
    return pictures


def _of(point: Point, runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if (run.method, run.kept) == (point.method, point.kept)]


def _distinct(runs: Sequence[Run]) -> list[list[str]]:
    """One row per command of a sweep, which all of its jobs share: the numbers of its runs, and the command."""
    groups: dict[str, list[int]] = {}
    for number, run in enumerate(runs):
        groups.setdefault(str(run.results.get("command", "")), []).append(number)
    return [
        [str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} ... {numbers[-1]}", command]
        for command, numbers in groups.items()
    ]


def _interval(value: Interval | None) -> str:
    return "" if value is None else f"{value.mean:.2f} [{value.low:.2f}, {value.high:.2f}]"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
