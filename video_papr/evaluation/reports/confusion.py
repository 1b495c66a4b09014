"""Accuracy by class and confusion matrix of one evaluation.

Letters: C classes. A matrix is (C, C + 1): rows are true classes, columns predicted ones, the last column counts videos
without an answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...core.escape import printable, shorten, spreadsheet
from ...core.files import atomic_write
from ...core.tables import Table, csv_text
from ..answers import VideoAnswer
from .plots import encode

NO_ANSWER = "no answer"
MOST_PRINTED = 10  # classes of a matrix in the terminal
MOST_DRAWN = 40  # classes of a drawn one
Matrix = NDArray[np.int64]


def confusion_matrix(pairs: Iterable[tuple[int, int | None]], num_classes: int) -> Matrix:
    """Counts videos by true and predicted class. `pairs`: true and predicted class of each video; None: no answer."""
    matrix = np.zeros((num_classes, num_classes + 1), np.int64)
    for true, predicted in pairs:
        matrix[true, num_classes if predicted is None else predicted] += 1
    return matrix


def answer_matrix(answers: Iterable[VideoAnswer]) -> Matrix:
    """The confusion matrix of the answers whose class is known."""
    pairs = [(answer.label, answer.top5[0] if answer.top5 else None) for answer in answers]
    labelled = [(label, pred) for label, pred in pairs if label is not None]
    return confusion_matrix(
        labelled, 1 + max((max(label, pred or 0) for label, pred in labelled), default=-1)
    )


def write_classes(
    run_dir: Path, matrix: Matrix, class_names: Sequence[str] | None, *, title: str
) -> list[Path]:
    """Writes classes.csv, confusion.csv and, where there are few classes, confusion.png; returns their paths."""
    names = dict(enumerate(class_names or ()))
    files: dict[str, str | bytes | None] = {**class_files(matrix, names)}
    files["confusion.png"] = confusion_plot(matrix, names, title)
    made = {name: content for name, content in files.items() if content is not None}
    for name, content in made.items():
        atomic_write(run_dir / name, content)
    return [run_dir / name for name in made]


def most_confused(matrix: Matrix, count: int) -> list[tuple[int, int]]:
    """Up to `count` pairs of true and predicted class that differ, those with most videos first."""
    wrong = matrix[:, :-1] * (1 - np.eye(len(matrix), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    return [
        (int(i), int(j)) for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True) if wrong[i, j]
    ]


def shown_part(matrix: Matrix, names: Mapping[int, str]) -> tuple[Matrix, dict[int, str]]:
    """The part of a matrix whose classes have videos or predictions, and their names; numbers where there is none."""
    shown = [i for i, row in enumerate(matrix) if row.any() or matrix[:, i].any()]
    return matrix[np.ix_(shown, [*shown, -1])], {i: names.get(i, str(i)) for i in shown}


def confusion_table(matrix: Matrix, names: Mapping[int, str]) -> Table | None:
    """Counts and accuracy of each class for the terminal; None for more than `MOST_PRINTED` classes."""
    part, title = shown_part(matrix, names)
    if not 0 < len(part) <= MOST_PRINTED:
        return None
    totals, right = part.sum(axis=1), part.diagonal()
    rows = [
        [name, *map(str, counts), f"{100 * hits / total:.1f}" if total else ""]
        for name, counts, hits, total in zip(title.values(), part.tolist(), right, totals, strict=True)
    ]
    if not part[:, -1].any():  # every video has an answer
        rows = [[*row[:-2], row[-1]] for row in rows]
    columns = ["true / predicted", *title.values(), NO_ANSWER][: len(rows[0]) - 1]
    return Table([*columns, "correct, %"], rows)


def confusion_plot(matrix: Matrix, names: Mapping[int, str], title: str) -> bytes | None:
    """A confusion matrix as a PNG: each row in per cent of the videos of its class.

    Returns:
        None where there is nothing to draw, or more than `MOST_DRAWN` classes.
    """
    matrix, shown = shown_part(matrix, names)
    names_shown = list(shown.values())
    if not 0 < len(names_shown) <= MOST_DRAWN:
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
    return encode(figure, "png")


def class_files(matrix: Matrix, names: Mapping[int, str]) -> dict[str, str]:
    """Returns the texts of classes.csv (accuracy of each class) and confusion.csv, with the classes that have videos.

    Args:
        names: of the classes; those without one are shown by their number.
    """
    part, title = shown_part(matrix, names)
    title = {i: spreadsheet(name) for i, name in title.items()}
    totals, right = part.sum(axis=1), part.diagonal()
    accuracy = [
        [i, name, total, hits, f"{100 * hits / total:.2f}" if total else ""]
        for (i, name), total, hits in zip(title.items(), totals, right, strict=True)
    ]
    counts = [[name, *row] for name, row in zip(title.values(), part, strict=True)]
    return {
        "classes.csv": csv_text([["label", "class", "videos", "correct", "top1"], *accuracy]),
        "confusion.csv": csv_text([["true / predicted", *title.values(), NO_ANSWER], *counts]),
    }
