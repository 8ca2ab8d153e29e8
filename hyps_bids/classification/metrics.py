"""Metrics of out-of-fold predictions.

The unit is the subject: probabilities of a subject's scans are averaged before. Classes are
numbered 0, 1, …; class 0, which is named first, is the positive class of two. With more than two
classes, AUC, sensitivity, specificity and F1 are means over the classes, each against the rest.

AUC is the share of pairs of one subject of a class and one of another, *both from the same fold*,
that are ranked right (ties count half). Pairs across folds would compare the scales of different
models, and would make chance look worse than 0.5 in small groups.

Arrays have the same names and shapes in all functions:

- ``label`` (subjects,): true classes
- ``probability`` (repeats, subjects, classes): NaN for subjects without a prediction, who are left
  out
- ``folds`` (repeats, subjects): folds in which the subjects were predicted
- ``called`` (repeats, subjects): classes that subjects are called (see ``threshold.py``)
- ``weights`` (samples, subjects): how often each subject counts in each sample
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Names of the metrics in the order of the tables; ``columns.json`` says what they mean.
METRICS = ("accuracy", "balanced_accuracy", "auc", "sensitivity", "specificity", "f1", "brier")


def metrics(
    label: Ints,
    probability: Array,
    fold: Ints,
    weights: Array | None = None,
    called: Ints | None = None,
) -> dict[str, Array]:
    """Compute all metrics of one repeat; every subject counts once without weights.

    `called` has the called classes, which are the most probable ones if it is missing. The arrays,
    one for each of :data:`METRICS`, have shape (samples,); NaN: not defined.
    """
    parts = parts_of_metrics(label, probability, fold, weights, called)
    one = positive(probability.shape[1])
    return {
        "accuracy": parts["accuracy"],
        "balanced_accuracy": parts["recall"].mean(axis=1),
        "auc": parts["auc"].mean(axis=1),
        "sensitivity": parts["recall"][:, one].mean(axis=1),
        "specificity": parts["specificity"][:, one].mean(axis=1),
        "f1": parts["f1"][:, one].mean(axis=1),
        "brier": parts["brier"],
    }


def parts_of_metrics(
    label: Ints,
    probability: Array,
    fold: Ints,
    weights: Array | None = None,
    called: Ints | None = None,
) -> dict[str, Array]:
    """Compute what the metrics are means of.

    Accuracy and Brier score have shape (samples,). All others have shape (samples, classes), for
    each class against the rest: ``recall``, ``specificity``, ``f1``, ``union`` (subjects who are of
    the class, or are called so, or both) and ``auc``, which has one column only for two classes.
    """
    known = np.isfinite(probability).all(axis=1)
    calls = (probability.argmax(axis=1) if called is None else called)[known]
    label, probability, fold = label[known], probability[known], fold[known]
    weights = np.ones((1, len(label))) if weights is None else weights[:, known].astype(float)
    classes = np.arange(probability.shape[1])
    truth = (label[:, None] == classes).astype(float)
    call = (calls[:, None] == classes).astype(float)
    one = positive(len(classes))
    areas = [_auc(truth[:, k] == 1, probability[:, k], fold, weights) for k in one]
    with np.errstate(invalid="ignore", divide="ignore"):
        total = weights.sum(axis=1)
        right = weights @ (truth * call)
        of_class = weights @ truth
        of_call = weights @ call
        return {
            "accuracy": right.sum(axis=1) / total,
            "recall": right / of_class,
            "specificity": 1 - (of_call - right) / (total[:, None] - of_class),
            "f1": 2 * right / (of_class + of_call),
            "union": of_class + of_call - right,
            "auc": np.stack(areas, axis=1),
            "brier": weights @ brier_losses(label, probability) / total,
        }


def brier_losses(label: Ints, probability: Array) -> Array:
    """Compute half the sum of squared errors of each subject's probabilities: from 0 to 1."""
    truth = label[:, None] == np.arange(probability.shape[1])
    return np.asarray(((probability - truth) ** 2).sum(axis=1) / 2)


def count_pairs(label: Ints, fold: Ints) -> tuple[int, int]:
    """Count the pairs that an AUC compares, and the folds that have some.

    A pair is of two subjects of the same fold and of different classes.

    Examples
    --------
    >>> count_pairs(np.array([0, 0, 1, 1, 1]), np.array([0, 0, 0, 1, -1]))
    (2, 1)
    """
    table = np.zeros((int(fold.max(initial=0)) + 1, int(label.max(initial=0)) + 1), dtype=np.int64)
    np.add.at(table, (fold[fold >= 0], label[fold >= 0]), 1)
    pairs = (table.sum(axis=1) ** 2 - (table**2).sum(axis=1)) // 2
    return int(pairs.sum()), int((pairs > 0).sum())


def positive(classes: int) -> list[int]:
    """List the classes that count as positive in turn: the first of two, or each of more."""
    return [0] if classes == 2 else list(range(classes))


def _auc(positive: NDArray[np.bool_], score: Array, fold: Ints, weights: Array) -> Array:
    won = np.zeros(len(weights))
    pairs = np.zeros(len(weights))
    for value in np.unique(fold):
        members = np.flatnonzero(fold == value)
        order = members[np.argsort(score[members], kind="stable")]
        ups = weights[:, order] * positive[order]
        downs = weights[:, order] * ~positive[order]
        # Subjects with the same score form one step, so that ties count half.
        starts = np.flatnonzero(np.r_[True, np.diff(score[order]) > 0])
        up, down = (np.add.reduceat(w, starts, axis=1) for w in (ups, downs))
        won += (up * (np.cumsum(down, axis=1) - down / 2)).sum(axis=1)
        pairs += up.sum(axis=1) * down.sum(axis=1)
    return np.divide(won, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)
