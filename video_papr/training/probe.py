"""Fits a linear classifier on features by logistic regression, and says how good it is on features that it never saw.

The features are standardised, and the standardisation is folded into the head: what is used is one linear layer.

Letters: n features (clips), F their length, C classes, S strengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ..core.errors import ConfigError, DataError

# scikit-learn's C, the weaker the smaller. With fewer clips than features the best is far below its default, 1.
STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
ROUNDS = 1000  # of L-BFGS; few are needed on standardised features

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Fitted:
    """A linear classifier, and what it said about features that were held out.

    Attributes:
        weight, bias: (C, F) and (C,) float32.
        strength: scikit-learn's C, chosen by the likelihood of what was held out.
        likelihoods: strength -> mean log-likelihood of the true class, of what was held out.
        held_out: (n, C) float64, probabilities from the classifier that was fitted on the other folds.
    """

    weight: Tensor
    bias: Tensor
    strength: float
    likelihoods: dict[float, float]
    held_out: Floats


def draw_folds(labels: Ints, groups: Ints | None, count: int, *, seed: int) -> Ints:
    """labels (n,), groups (n,) or None -> the fold of each, (n,) from 0; classes are spread over all folds.

    Args:
        groups: what must not be torn apart, such as the scene that a clip was cut from.
        count: of folds; fewer where a class has fewer clips, or where there are fewer groups.

    Raises:
        DataError: a class has a single clip, or all clips are of one group.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    sizes = np.bincount(labels)
    smallest = int(sizes[sizes > 0].min())
    count = min(count, smallest, len(labels) if groups is None else len(np.unique(groups)))
    if count < 2:
        what = "a class has a single clip" if smallest < 2 else "all clips are of one group"
        raise DataError(
            f"{what}: nothing can be held out to choose the strength of the fit by; two are needed"
        )
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    split = kind(count, shuffle=True, random_state=seed)
    folds = np.empty(len(labels), np.int64)
    for fold, (_, held) in enumerate(split.split(np.zeros((len(labels), 1)), labels, groups)):
        folds[held] = fold
    return folds


def fit_probe(features: Floats, labels: Ints, folds: Ints, *, progress: bool = True) -> Fitted:
    """Fits the classifier of all features, and one for each fold without it.

    The strength of a fold's classifier is chosen on the other folds, so the held-out answers choose nothing for
    themselves.

    Args:
        features: (n, F).
        labels: (n,) from 0 to C - 1, each of them there.
        folds: (n,).

    Raises:
        ConfigError: scikit-learn is not installed.
        DataError: without one of the folds a single class is left, or the features are not finite.
    """
    if not np.isfinite(features).all():
        raise DataError(
            "the features are not finite (NaN or infinite); check backbone.weights and runtime.dtype"
        )
    names = np.unique(folds).tolist()
    for fold in names:
        if len(np.unique(labels[folds != fold])) < 2:
            raise DataError(f"without fold {fold} a single class is left; each class must lie in two folds")
    said = np.zeros((len(STRENGTHS), len(labels), int(labels.max()) + 1))
    with tqdm(
        total=len(STRENGTHS) * (len(names) + 1), desc="fitting", unit="fit", disable=not progress
    ) as bar:
        for fold in names:
            held = folds == fold
            for place, (weight, bias) in enumerate(_path(features[~held], labels[~held], bar)):
                said[place, held] = _probabilities(features[held], labels[~held], weight, bias, said.shape[2])
        true = np.log(np.maximum(said[:, np.arange(len(labels)), labels], 1e-12))  # (S, n)
        best = int(true.mean(1).argmax())
        held_out = np.empty_like(said[0])
        for fold in names:
            held = folds == fold
            others = true[:, ~held].mean(1) if len(names) > 1 else true.mean(1)
            held_out[held] = said[int(others.argmax()), held]
        weight, bias = list(_path(features, labels, bar))[best]
    return Fitted(
        torch.from_numpy(weight).float(),
        torch.from_numpy(bias).float(),
        STRENGTHS[best],
        dict(zip(STRENGTHS, true.mean(1).tolist(), strict=True)),
        held_out,
    )


def _path(features: Floats, labels: Ints, bar: tqdm) -> Sequence[tuple[Floats, Floats]]:
    """A head (C', F), (C',) for each strength, of the C' classes that occur; the weaker one starts the stronger."""
    from sklearn.linear_model import LogisticRegression

    mean, scale = features.mean(0), features.std(0)
    scale[scale < 1e-12] = 1.0  # a feature that never changes
    standard = (features - mean) / scale
    model, found = LogisticRegression(max_iter=ROUNDS, warm_start=True), []
    for strength in STRENGTHS:
        model.set_params(C=strength).fit(standard, labels)
        coef, intercept = model.coef_, model.intercept_
        if len(coef) == 1:  # two classes: one logit, against 0
            coef, intercept = np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
        weight = coef / scale
        found.append((weight, intercept - weight @ mean))
        bar.update()
    return found


def _probabilities(features: Floats, seen: Ints, weight: Floats, bias: Floats, classes: int) -> Floats:
    """(m, F) -> (m, C); 0 for classes that were not among those `seen` in the fit."""
    logits = features @ weight.T + bias
    exact = np.exp(logits - logits.max(1, keepdims=True))
    found = np.zeros((len(features), classes))
    found[:, np.unique(seen)] = exact / exact.sum(1, keepdims=True)
    return found


def check_installed() -> None:
    """Raises ConfigError where scikit-learn is missing."""
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise ConfigError('train.target=probe needs scikit-learn: pip install "video_papr[train]"') from None
