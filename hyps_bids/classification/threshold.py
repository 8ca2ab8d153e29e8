"""Which class a subject is called, given the probabilities.

The called class is the one with the largest ratio of probability to *cut*. Cuts sum to 1, so that
with two classes the cut of the positive class is the probability from which on it is called. The
rules of ``--threshold`` choose them, always on training subjects:

- ``0.5``: the same cut for all classes, so that the most probable class is called
- ``prevalence``: the share of each class among the training subjects. Where groups differ in size,
  the most probable class is nearly always the larger one; with these cuts, a class is called where
  its probability has risen most, which is best for balanced accuracy if probabilities are right
- ``youden``: of two classes, the cut with the largest sum of sensitivity and specificity (Youden
  1950) among out-of-fold predictions within the training set
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from sklearn.metrics import roc_curve

from hyps_bids.classification.contrast import Array, Ints

Rule = Literal["prevalence", "0.5", "youden"]


def call_classes(probability: Array, cuts: Array) -> Ints:
    """Call the class of each subject; -1 for subjects without a prediction.

    `probability` has shape (..., classes), and `cuts` can be broadcast to it. If nothing tells the
    classes apart, the one with the larger cut is called, which is usually the more frequent one.

    Examples
    --------
    >>> call_classes(np.array([[0.3, 0.7], [0.1, 0.9], [np.nan, np.nan]]), np.array([0.2, 0.8]))
    array([ 0,  1, -1])
    """
    known = np.isfinite(probability).all(axis=-1)
    # The second summand decides ties, and those that are ties but for rounding.
    ratio = np.nan_to_num(probability) / cuts + 1e-9 * cuts
    return np.where(known, np.argmax(ratio, axis=-1), -1)


def choose_cuts(rule: Rule, label: Ints, probability: Array | None, classes: int) -> Array:
    """Choose the cut of each class from training subjects.

    Parameters
    ----------
    rule : str
        Rule of ``--threshold``. ``youden`` becomes ``prevalence`` with more than two classes or
        without predictions.
    label : array of shape (subjects,)
        Classes of the training subjects.
    probability : array of shape (subjects, classes), optional
        Their out-of-fold predictions.
    classes : int
        Number of classes.

    Examples
    --------
    >>> choose_cuts("prevalence", np.array([0, 1, 1, 1]), None, 2)
    array([0.25, 0.75])
    """
    if rule == "0.5":
        return np.full(classes, 1 / classes)
    if rule == "youden" and classes == 2 and probability is not None:
        cut = _youden(label == 0, probability[:, 0])
        return np.array([cut, 1 - cut])
    return np.bincount(label, minlength=classes) / len(label)


def _youden(positive: np.ndarray, score: Array) -> float:
    false, true, thresholds = roc_curve(positive, score)
    best = int(np.argmax(true - false))
    # Halfway to the next lower score, because a cut on a subject's own score would be too narrow.
    lower = score[score < thresholds[best]]
    cut = (min(thresholds[best], 1.0) + (lower.max() if len(lower) else 0.0)) / 2
    # A cut of 0 or 1 would divide by zero.
    return float(np.clip(cut, 1e-6, 1 - 1e-6))
