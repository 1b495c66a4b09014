"""The linear classifier: scikit-learn's own pipeline in one layer, judged on groups that it did not see."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from video_papr.core.errors import DataError
from video_papr.training.probe import STRENGTHS, draw_folds, fit_probe


def clusters(count: int, classes: int, width: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, F) of very unequal scale around a centre for each class, one of them constant; labels (n,)."""
    rng = np.random.default_rng(classes)
    labels = np.arange(count) % classes
    centres = rng.normal(size=(classes, width))
    features = (centres[labels] + rng.normal(size=(count, width))) * 10.0 ** np.linspace(-2, 3, width) + 7
    features[:, 3] = 4.0
    return features, labels


@pytest.mark.parametrize("classes", [2, 4])
def test_one_layer_answers_like_a_pipeline_of_scikit_learn(classes: int) -> None:
    features, labels = clusters(60, classes)
    folds = np.arange(60) // classes % 3
    fitted = fit_probe(features, labels, folds, progress=False)
    assert (
        fitted.strength in STRENGTHS
        and max(fitted.likelihoods, key=fitted.likelihoods.__getitem__) == fitted.strength
    )
    plain = make_pipeline(StandardScaler(), LogisticRegression(C=fitted.strength, max_iter=5000, tol=1e-8))
    expected = plain.fit(features, labels).predict_proba(features)
    logits = torch.from_numpy(features) @ fitted.weight.double().T + fitted.bias.double()
    assert np.abs(logits.softmax(1).numpy() - expected).max() < 2e-3
    assert np.allclose(fitted.held_out.sum(1), 1)
    held = folds == 1  # whatever strength was chosen, the fold's answers come from the other folds
    answers = [
        make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=5000, tol=1e-8))
        .fit(features[~held], labels[~held])
        .predict_proba(features[held])
        for strength in STRENGTHS
    ]
    assert min(np.abs(fitted.held_out[held] - answer).max() for answer in answers) < 2e-3


def test_a_scene_never_stands_on_both_sides() -> None:
    """Features that name the scene alone: it gives the class away as long as clips of it are on the other side."""
    rng = np.random.default_rng(0)
    scenes = np.repeat(np.arange(40), 5)
    labels = rng.permutation(np.arange(40) % 2)[scenes]
    features = np.eye(40)[scenes]
    apart = draw_folds(labels, scenes, 5, seed=0)
    assert all(len(set(apart[scenes == scene])) == 1 for scene in range(40))
    mixed = draw_folds(labels, None, 5, seed=0)
    accuracy = {
        name: (fit_probe(features, labels, folds, progress=False).held_out.argmax(1) == labels).mean()
        for name, folds in (("apart", apart), ("mixed", mixed))
    }
    assert accuracy["mixed"] == 1.0 and accuracy["apart"] < 0.65


def test_a_class_that_a_fold_has_alone_counts_as_wrong() -> None:
    features, labels = clusters(30, 3)
    folds = np.where(labels == 2, 0, 1 + np.arange(30) % 2)
    fitted = fit_probe(features, labels, folds, progress=False)
    assert (fitted.held_out[labels == 2, 2] == 0).all() and fitted.weight.shape == (3, 12)


def test_what_cannot_be_fitted_is_one_line() -> None:
    features, labels = clusters(8, 2)
    with pytest.raises(DataError, match="without fold 0 a single class is left"):
        fit_probe(features, labels, 1 - labels, progress=False)
    with pytest.raises(DataError, match="not finite"):
        fit_probe(features * np.inf, labels, np.arange(8) % 2, progress=False)
    with pytest.raises(DataError, match="a class has a single clip"):
        draw_folds(np.array([0, 0, 1]), None, 5, seed=0)
    with pytest.raises(DataError, match="all clips are of one group"):
        draw_folds(labels, np.zeros(8), 5, seed=0)
    assert set(draw_folds(np.array([0, 0, 0, 1, 1]), None, 5, seed=0)) == {0, 1}
