"""Metrics agree with scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as reference

from hyps_bids.classification.metrics import METRICS, metrics
from hyps_bids.classification.tables import confusion_table


def made(n: int = 60, classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and probabilities that depend on them; some are equal."""
    rng = np.random.default_rng(0)
    label = np.arange(n) % classes
    score = rng.normal(size=(n, classes)) + np.eye(classes)[label]
    probability = np.exp(score) / np.exp(score).sum(axis=1, keepdims=True)
    probability = probability.round(1)
    return label, probability / probability.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("classes", [2, 3])
def test_metrics_agree_with_scikit_learn(classes: int) -> None:
    label, probability = made(90, classes)
    found = {k: v[0] for k, v in metrics(label, probability, np.zeros(90, dtype=int)).items()}
    called = probability.argmax(axis=1)
    expected = {
        "accuracy": reference.accuracy_score(label, called),
        "balanced_accuracy": reference.balanced_accuracy_score(label, called),
    }
    if classes == 2:
        positive, score = label == 0, probability[:, 0]
        expected |= {
            "auc": reference.roc_auc_score(positive, score),
            "sensitivity": reference.recall_score(label, called, pos_label=0),
            "specificity": reference.recall_score(label, called, pos_label=1),
            "f1": reference.f1_score(label, called, pos_label=0),
            "brier": reference.brier_score_loss(positive, score),
        }
        assert tuple(found) == METRICS == tuple(expected)
    else:
        expected |= {
            "auc": reference.roc_auc_score(label, probability, multi_class="ovr"),
            "f1": reference.f1_score(label, called, average="macro"),
            "sensitivity": reference.recall_score(label, called, average="macro"),
        }
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_weights_are_a_resampling() -> None:
    label, probability = made(40)
    fold = np.arange(40) // 10
    weights = np.random.default_rng(1).integers(0, 3, (3, 40))
    found = metrics(label, probability, fold, weights)
    for sample in range(3):
        drawn = np.repeat(np.arange(40), weights[sample])
        expected = metrics(label[drawn], probability[drawn], fold[drawn])
        for name in METRICS:
            assert found[name][sample] == pytest.approx(expected[name][0]), name


def test_auc_compares_within_folds_only() -> None:
    # The model of the second fold adds 0.5 for everybody, which does not change its ranking.
    label, fold = np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])
    first = np.array([0.2, 0.1, 0.7, 0.6])
    found = metrics(label, np.column_stack([first, 1 - first]), fold)
    assert found["auc"][0] == 1


def test_subjects_without_prediction_are_left_out() -> None:
    label, probability = made(20)
    fold = np.zeros(20, dtype=int)
    expected = metrics(label[4:], probability[4:], fold[4:])
    probability[:4] = np.nan
    found = metrics(label, probability, fold)
    for name in METRICS:
        assert found[name][0] == pytest.approx(expected[name][0]), name


def test_one_class_has_no_auc() -> None:
    found = metrics(np.zeros(4, dtype=int), np.full((4, 2), 0.5), np.zeros(4, dtype=int))
    assert np.isnan(found["auc"][0])
    assert found["accuracy"][0] == 1


def test_confusion_is_a_mean_over_repeats() -> None:
    label = np.array([0, 0, 1])
    called = np.array([[0, 1, 1], [0, 0, -1]])
    table = confusion_table(label, called, ("x", "y"))
    assert table.to_numpy().tolist() == [["x", 1.5, 0.5], ["y", 0.0, 0.5]]
