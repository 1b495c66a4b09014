from __future__ import annotations

from math import sqrt
from statistics import fmean, variance

import pytest
from hypothesis import given
from hypothesis import strategies as st

from video_papr.evaluation.metrics import compare_paired, percent_correct, standard_error

CLASSES = 6
ranking = st.none() | st.permutations(range(CLASSES)).map(tuple)
videos = st.lists(st.tuples(ranking, ranking, st.integers(0, CLASSES - 1)), min_size=2, max_size=30)


@given(videos, st.integers(1, 5), st.integers(0, 5))
def test_percent_correct_against_counting(cases: list, k: int, absent: int) -> None:
    answers, _, labels = zip(*cases, strict=True)
    total = len(cases) + absent
    hits = 0
    for answer, label in zip(answers, labels, strict=True):
        if answer is not None:
            for place in range(k):
                hits += answer[place] == label
    assert percent_correct(answers, labels, k=k, total=total) == pytest.approx(100 * hits / total)


@given(videos, st.integers(0, 5))
def test_paired_comparison_against_the_definition(cases: list, absent: int) -> None:
    dense, pruned, labels = zip(*cases, strict=True)
    total = len(cases) + absent
    differences = [0.0] * absent
    same = []
    for d, p, label in cases:
        differences.append(float(d is not None and d[0] == label) - float(p is not None and p[0] == label))
        if d is not None and p is not None:
            same.append(d[0] == p[0])
    found = compare_paired(dense, pruned, labels, total=total)
    assert found.loss_points == pytest.approx(100 * fmean(differences))
    assert found.loss_standard_error == pytest.approx(100 * sqrt(variance(differences) / total), abs=1e-9)
    assert found.agreement_percent == pytest.approx(100 * fmean(same) if same else 0.0)


@given(videos)
def test_loss_is_the_difference_of_the_accuracies(cases: list) -> None:
    dense, pruned, labels = zip(*cases, strict=True)
    loss = percent_correct(dense, labels) - percent_correct(pruned, labels)
    assert compare_paired(dense, pruned, labels).loss_points == pytest.approx(loss)


def test_failed_and_missing_videos_count_as_wrong() -> None:
    answers = [(1, 0), None, (0, 1), (1, 0)]
    labels = [1, 1, 1, 1]
    assert percent_correct(answers, labels) == 50.0
    assert percent_correct(answers, labels, k=2) == 75.0
    assert percent_correct(answers, labels, total=8) == 25.0


def test_equal_models_differ_by_nothing() -> None:
    answers = [(1, 0), (0, 1), None]
    found = compare_paired(answers, answers, [1, 1, 0])
    assert (found.loss_points, found.loss_standard_error, found.agreement_percent) == (0.0, 0.0, 100.0)


def test_standard_error() -> None:
    assert standard_error(50.0, 100) == pytest.approx(5.0)
    assert standard_error(100.0, 100) == 0.0


def test_no_videos() -> None:
    assert percent_correct([], []) == 0.0
    assert standard_error(0.0, 0) == 0.0
    found = compare_paired([], [], [])
    assert (found.loss_points, found.loss_standard_error, found.agreement_percent) == (0.0, 0.0, 0.0)


def test_lists_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        percent_correct([(0,)], [0, 1])
    with pytest.raises(ValueError, match="do not fit"):
        percent_correct([(0,), (1,)], [0, 1], total=1)
    with pytest.raises(ValueError, match="less than"):
        compare_paired([(0,), (1,)], [(0,), (1,)], [0, 1], total=1)


def test_a_single_video_has_no_spread() -> None:
    found = compare_paired([(0,)], [(1,)], [0])
    assert (found.loss_points, found.loss_standard_error, found.agreement_percent) == (100.0, 0.0, 0.0)
