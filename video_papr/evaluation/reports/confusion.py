"""Accuracy by class and confusion matrix of one evaluation.

Letters: C classes. A matrix is (C, C + 1): rows are true classes, columns predicted ones, the last column counts videos
without an answer.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from ...core.escape import spreadsheet

NO_ANSWER = "no answer"
Matrix = NDArray[np.int64]


def confusion_matrix(pairs: Iterable[tuple[int, int | None]], num_classes: int) -> Matrix:
    """Counts videos by true and predicted class.

    Args:
        pairs: true and predicted class of each video; None: no answer.
        num_classes: C.
    """
    matrix = np.zeros((num_classes, num_classes + 1), np.int64)
    for true, predicted in pairs:
        matrix[true, num_classes if predicted is None else predicted] += 1
    return matrix


def most_confused(matrix: Matrix, count: int) -> list[tuple[int, int]]:
    """Up to `count` pairs of true and predicted class that differ, those with most videos first."""
    wrong = matrix[:, :-1] * (1 - np.eye(len(matrix), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    return [
        (int(i), int(j)) for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True) if wrong[i, j]
    ]


def class_files(matrix: Matrix, names: Mapping[int, str]) -> dict[str, str]:
    """Returns the texts of classes.csv (accuracy of each class) and confusion.csv, with the classes that have videos.

    Args:
        matrix: see above.
        names: of the classes; those without one are shown by their number.
    """
    shown = [i for i, row in enumerate(matrix) if row.any() or matrix[:, i].any()]
    title = {i: spreadsheet(names.get(i, str(i))) for i in shown}
    totals, right = matrix.sum(axis=1), matrix.diagonal()
    accuracy = [
        [i, title[i], totals[i], right[i], f"{100 * right[i] / totals[i]:.2f}" if totals[i] else ""]
        for i in shown
    ]
    counts = [[title[i], *matrix[i, shown], matrix[i, -1]] for i in shown]
    return {
        "classes.csv": _csv([["label", "class", "videos", "correct", "top1"], *accuracy]),
        "confusion.csv": _csv([["true / predicted", *title.values(), NO_ANSWER], *counts]),
    }


def _csv(rows: Iterable[Iterable[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
