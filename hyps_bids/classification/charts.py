"""Figures of merit of out-of-fold predictions, and how uncertain they are.

The unit is the subject: the probabilities of a subject's scans are averaged first. Classes are
numbered 0, 1, …; class 0, the first-named one, is the positive class of two. The predicted class
is the most probable one. With more than two classes, AUC, sensitivity, specificity and F1 are
means over the classes, each against the rest.

AUC is the share of pairs of one subject of a class and one of another, *both from the same fold*,
that are ranked right (ties count half). Pairs across folds would compare the scales of different
models, and would make chance look worse than 0.5 in small groups.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm, t

__all__ = [
    "FIGURES",
    "bootstrap_weights",
    "compare",
    "confusion",
    "figures",
    "interval",
    "repeats_interval",
    "score_interval",
]

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

#: name → meaning, in the order of the tables
FIGURES = {
    "accuracy": "Share of subjects whose most probable class is the right one.",
    "balanced_accuracy": "Mean over classes of the share of subjects recognized.",
    "auc": "Area under the ROC curve: share of pairs from one fold that are ranked right.",
    "sensitivity": "Share of the positive class that is recognized; mean over classes if > 2.",
    "specificity": "Share of the others that are not called positive; mean over classes if > 2.",
    "f1": "Harmonic mean of precision and sensitivity; mean over classes if > 2.",
    "brier": "Mean squared error of the probabilities; 0 is best.",
}


def figures(
    label: Ints, probability: Array, fold: Ints, weights: Array | None = None
) -> dict[str, Array]:
    """Compute all figures of one set of predictions.

    Parameters
    ----------
    label : ndarray of shape (subjects,)
        True classes.
    probability : ndarray of shape (subjects, classes)
        Predicted probabilities; a subject without a prediction (NaN) is left out.
    fold : ndarray of shape (subjects,)
        In which fold each subject was predicted.
    weights : ndarray of shape (samples, subjects), optional
        How often each subject counts in each bootstrap sample; once if None.

    Returns
    -------
    dict of str to ndarray of shape (samples,)
        By the names of :data:`FIGURES`; NaN where a figure is not defined.

    Examples
    --------
    >>> label, fold = np.array([0, 0, 1, 1]), np.zeros(4, dtype=int)
    >>> found = figures(label, np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]]), fold)
    >>> [round(float(found[name][0]), 3) for name in ("accuracy", "auc", "sensitivity", "brier")]
    [0.75, 1.0, 0.5, 0.125]
    """
    known = np.isfinite(probability).all(axis=1)
    label, probability, fold = label[known], probability[known], fold[known]
    weights = np.ones((1, len(label))) if weights is None else weights[:, known].astype(float)
    classes = np.arange(probability.shape[1])
    truth = (label[:, None] == classes).astype(float)
    called = (probability.argmax(axis=1)[:, None] == classes).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        total = weights.sum(axis=1)
        right = weights @ (truth * called)
        of_class = weights @ truth
        of_call = weights @ called
        recall = right / of_class
        specificity = 1 - (of_call - right) / (total[:, None] - of_class)
        f1 = 2 * right / (of_class + of_call)
        brier = weights @ ((probability - truth) ** 2).sum(axis=1) / 2 / total
    one = [0] if len(classes) == 2 else classes
    areas = [_auc(truth[:, k] == 1, probability[:, k], fold, weights) for k in one]
    return {
        "accuracy": right.sum(axis=1) / total,
        "balanced_accuracy": recall.mean(axis=1),
        "auc": np.mean(areas, axis=0),
        "sensitivity": recall[:, one].mean(axis=1),
        "specificity": specificity[:, one].mean(axis=1),
        "f1": f1[:, one].mean(axis=1),
        "brier": brier,
    }


def bootstrap_weights(label: Ints, samples: int, rng: np.random.Generator) -> Array:
    """Draw subjects with replacement, as many of each class as there are.

    Parameters
    ----------
    label : ndarray of shape (subjects,)
        Classes.
    samples : int
        Number of bootstrap samples.
    rng : Generator
        Source of randomness.

    Returns
    -------
    ndarray of shape (samples, subjects)
        How often each subject was drawn.
    """
    weights = np.zeros((samples, len(label)))
    for value in np.unique(label):
        members = np.flatnonzero(label == value)
        share = np.full(len(members), 1 / len(members))
        weights[:, members] = rng.multinomial(len(members), share, size=samples)
    return weights


def interval(values: Array, level: float = 0.95) -> tuple[float, float]:
    """Take the central interval of bootstrap values; NaN if there are none.

    Examples
    --------
    >>> low, high = interval(np.linspace(0, 1, 1001))
    >>> round(low, 3), round(high, 3)
    (0.025, 0.975)
    """
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def repeats_interval(values: Array, level: float = 0.95) -> tuple[float, float]:
    """Give the t interval of the mean over repeats: what the folds matter, not the subjects.

    Examples
    --------
    >>> repeats_interval(np.array([0.8]))
    (nan, nan)
    """
    if len(values) < 2 or not np.isfinite(values).all():
        return float("nan"), float("nan")
    half = t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    # all figures are shares
    low, high = np.clip([values.mean() - half, values.mean() + half], 0, 1)
    return float(low), float(high)


def score_interval(
    figure: str, value: float, counts: Sequence[int], level: float = 0.95
) -> tuple[float, float]:
    """Give the interval of a proportion (Wilson) or an AUC (Newcombe 2006) from group sizes.

    It does not shrink to nothing when all subjects are right, as a bootstrap does: in small
    groups the wider of the two is the one to read.

    Parameters
    ----------
    figure : str
        ``accuracy``, ``sensitivity``, ``specificity`` or ``auc``, of two classes.
    value : float
        The estimate.
    counts : sequence of int
        Subjects of class 0 and of class 1.
    level : float
        Confidence.

    Returns
    -------
    tuple of float
        Low and high; NaN for other figures and for more than two classes.

    Examples
    --------
    >>> [round(x, 3) for x in score_interval("sensitivity", 1.0, (4, 4))]
    [0.51, 1.0]
    >>> [round(x, 3) for x in score_interval("auc", 1.0, (12, 9))]
    [0.806, 1.0]
    """
    sizes = {"accuracy": sum(counts), "sensitivity": counts[0], "specificity": counts[-1]}
    z = float(norm.ppf((1 + level) / 2))
    if len(counts) != 2 or not np.isfinite(value):
        return float("nan"), float("nan")
    if figure == "auc":
        return _auc_interval(value, (counts[0], counts[1]), z)
    if figure not in sizes:
        return float("nan"), float("nan")
    n = sizes[figure]
    center = (value + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(value * (1 - value) / n + z**2 / (4 * n**2))
    return float(max(0.0, center - half)), float(min(1.0, center + half))


def compare(
    label: Ints, first: Array, second: Array, folds: Ints, weights: Array
) -> list[dict[str, float | str]]:
    """Compare two sets of predictions of the same subjects in the same folds.

    Two answers that need different assumptions are given. The interval is a paired bootstrap over
    subjects with the predictions held fixed. The p-value is the corrected resampled t test
    (Nadeau and Bengio 2003) on the differences per fold: the variance is multiplied by
    ``1/J + n_test/n_train`` instead of ``1/J``, because training sets overlap.

    Parameters
    ----------
    label : ndarray of shape (subjects,)
        True classes.
    first, second : ndarray of shape (repeats, subjects, classes)
        Probabilities.
    folds : ndarray of shape (repeats, subjects)
        The fold of each subject.
    weights : ndarray of shape (samples, subjects)
        From :func:`bootstrap_weights`.

    Returns
    -------
    list of dict
        For AUC, balanced accuracy and Brier score: ``figure``, ``difference`` (first minus
        second), ``low``, ``high``, ``p``, ``folds``.
    """
    repeats = range(len(folds))
    once, drawn = (
        [[figures(label, one[r], folds[r], w) for one in (first, second)] for r in repeats]
        for w in (None, weights)
    )
    by_fold = _fold_differences(label, first, second, folds)
    test_share = np.mean([np.mean(folds[r] == k) for r in repeats for k in np.unique(folds[r])])
    rows: list[dict[str, float | str]] = []
    for name in ("auc", "balanced_accuracy", "brier"):
        low, high = interval(np.mean([a[name] - b[name] for a, b in drawn], axis=0))
        differences = by_fold[name][np.isfinite(by_fold[name])]
        rows.append(
            {
                "figure": name,
                "difference": float(np.mean([a[name] - b[name] for a, b in once])),
                "low": low,
                "high": high,
                "p": _corrected_t_test(differences, test_share / (1 - test_share)),
                "folds": len(differences),
            }
        )
    return rows


def confusion(label: Ints, probability: Array) -> Array:
    """Count true (rows) against predicted classes (columns), mean over repeats.

    Parameters
    ----------
    label : ndarray of shape (subjects,)
        True classes.
    probability : ndarray of shape (repeats, subjects, classes)
        Probabilities; subjects without a prediction are left out.

    Returns
    -------
    ndarray of shape (classes, classes)
        Subjects.
    """
    counts = np.zeros((probability.shape[2],) * 2)
    for one in probability:
        known = np.isfinite(one).all(axis=1)
        np.add.at(counts, (label[known], one[known].argmax(axis=1)), 1)
    return counts / len(probability)


def _auc(positive: NDArray[np.bool_], score: Array, fold: Ints, weights: Array) -> Array:
    won = np.zeros(len(weights))
    pairs = np.zeros(len(weights))
    for value in np.unique(fold):
        members = np.flatnonzero(fold == value)
        order = members[np.argsort(score[members], kind="stable")]
        ups = weights[:, order] * positive[order]
        downs = weights[:, order] * ~positive[order]
        # ties: what has the same score forms one step
        starts = np.flatnonzero(np.r_[True, np.diff(score[order]) > 0])
        up, down = (np.add.reduceat(w, starts, axis=1) for w in (ups, downs))
        won += (up * (np.cumsum(down, axis=1) - down / 2)).sum(axis=1)
        pairs += up.sum(axis=1) * down.sum(axis=1)
    return np.divide(won, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)


def _auc_interval(value: float, counts: tuple[int, int], z: float) -> tuple[float, float]:
    extra = sum(counts) / 2 - 1

    def excess(area: float, sign: float) -> float:
        spread = 1 + extra * (1 - area) / (2 - area) + extra * area / (1 + area)
        variance = area * (1 - area) * spread / (counts[0] * counts[1])
        return float(value + sign * z * np.sqrt(variance) - area)

    # where the true area would make the estimate just unlikely enough; 0 and 1 are no answer
    low = 0.0 if value <= 0 else brentq(excess, 0, min(value, 1 - 1e-9), args=(-1,))
    high = 1.0 if value >= 1 else brentq(excess, max(value, 1e-9), 1, args=(1,))
    return float(low), float(high)


def _fold_differences(label: Ints, first: Array, second: Array, folds: Ints) -> dict[str, Array]:
    differences: dict[str, list[float]] = {name: [] for name in FIGURES}
    for r, fold in enumerate(folds):
        for value in np.unique(fold):
            rows = fold == value
            a, b = (figures(label[rows], p[r, rows], fold[rows]) for p in (first, second))
            for name in FIGURES:
                differences[name].append(float(a[name][0] - b[name][0]))
    return {name: np.array(values) for name, values in differences.items()}


def _corrected_t_test(differences: Array, test_to_train: float) -> float:
    if len(differences) < 2:
        return float("nan")
    variance = differences.var(ddof=1) * (1 / len(differences) + test_to_train)
    if variance == 0:
        return 1.0 if differences.mean() == 0 else float("nan")
    return float(2 * t.sf(abs(differences.mean()) / np.sqrt(variance), len(differences) - 1))
