"""Metrics of out-of-fold predictions, and their intervals.

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
- ``weights`` (samples, subjects): how often each subject counts in each bootstrap sample
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm, t
from statsmodels.stats.proportion import proportion_confint

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

_LEVEL = 0.95
_NOTHING = (float("nan"), float("nan"))
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
    known = np.isfinite(probability).all(axis=1)
    calls = (probability.argmax(axis=1) if called is None else called)[known]
    label, probability, fold = label[known], probability[known], fold[known]
    weights = np.ones((1, len(label))) if weights is None else weights[:, known].astype(float)
    classes = np.arange(probability.shape[1])
    truth = (label[:, None] == classes).astype(float)
    call = (calls[:, None] == classes).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        total = weights.sum(axis=1)
        right = weights @ (truth * call)
        of_class = weights @ truth
        of_call = weights @ call
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


def metric_rows(
    label: Ints, probability: Array, folds: Ints, weights: Array, called: Ints | None = None
) -> list[dict[str, float | str]]:
    """Compute the rows of ``figures.tsv`` for one estimator, one for each metric."""
    called = probability.argmax(axis=2) if called is None else called
    known = np.isfinite(probability).all(axis=(0, 2))
    counts = np.bincount(label[known], minlength=probability.shape[2]).tolist()
    repeats = list(zip(probability, folds, called, strict=True))
    once = [metrics(label, one, fold, called=calls) for one, fold, calls in repeats]
    drawn = [metrics(label, one, fold, weights, calls) for one, fold, calls in repeats]
    rows: list[dict[str, float | str]] = []
    for name in METRICS:
        values = np.array([one[name][0] for one in once])
        row = {"value": float(values.mean())}
        row["low"], row["high"] = interval(np.mean([one[name] for one in drawn], axis=0))
        row["score_low"], row["score_high"] = score_interval(name, row["value"], counts)
        row["repeats_low"], row["repeats_high"] = repeats_interval(values)
        rows.append({"figure": name, **row, "subjects": int(known.sum())})
    return rows


def bootstrap_weights(label: Ints, samples: int, rng: np.random.Generator) -> Array:
    """Draw subjects with replacement, as many of each class as there are."""
    weights = np.zeros((samples, len(label)))
    for value in np.unique(label):
        members = np.flatnonzero(label == value)
        share = np.full(len(members), 1 / len(members))
        weights[:, members] = rng.multinomial(len(members), share, size=samples)
    return weights


def interval(values: Array) -> tuple[float, float]:
    """Take the central 95 % of bootstrap values; NaN if there are none.

    Examples
    --------
    >>> low, high = interval(np.linspace(0, 1, 1001))
    >>> round(low, 3), round(high, 3)
    (0.025, 0.975)
    """
    values = values[np.isfinite(values)]
    if not len(values):
        return _NOTHING
    low, high = np.quantile(values, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)


def repeats_interval(values: Array) -> tuple[float, float]:
    """Compute the t interval of the mean over repeats, which differ by their folds only.

    Examples
    --------
    >>> repeats_interval(np.array([0.8]))
    (nan, nan)
    """
    if len(values) < 2 or not np.isfinite(values).all():
        return _NOTHING
    half = t.ppf((1 + _LEVEL) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    # All metrics lie between 0 and 1.
    low, high = np.clip([values.mean() - half, values.mean() + half], 0, 1)
    return float(low), float(high)


def score_interval(name: str, value: float, counts: Sequence[int]) -> tuple[float, float]:
    """Compute the 95 % interval of a proportion (Wilson) or an AUC (Newcombe 2006).

    It does not shrink to nothing when all subjects are right, as a bootstrap does. It is NaN for
    metrics that are no proportion, and for more than two classes.

    Examples
    --------
    >>> [round(x, 3) for x in score_interval("sensitivity", 1.0, (4, 4))]
    [0.51, 1.0]
    >>> [round(x, 3) for x in score_interval("auc", 1.0, (12, 9))]
    [0.806, 1.0]
    """
    if len(counts) != 2 or not np.isfinite(value):
        return _NOTHING
    if name == "auc":
        return _auc_interval(value, (counts[0], counts[1]))
    sizes = {"accuracy": sum(counts), "sensitivity": counts[0], "specificity": counts[1]}
    if name not in sizes:
        return _NOTHING
    n = sizes[name]
    low, high = proportion_confint(value * n, n, alpha=1 - _LEVEL, method="wilson")
    return float(low), float(high)


def compare(
    label: Ints,
    first: Array,
    second: Array,
    folds: Ints,
    weights: Array,
    called: tuple[Ints, Ints] | None = None,
) -> list[dict[str, float | str]]:
    """Compare two sets of predictions of the same subjects in the same folds.

    Two answers are given, which rest on different assumptions. The interval is a paired bootstrap
    over subjects with the predictions held fixed. The p-value is the corrected resampled t test
    (Nadeau and Bengio 2003) on the differences per fold: the variance is multiplied by
    ``1/J + n_test/n_train`` instead of ``1/J``, because training sets overlap.
    """
    if called is None:
        called = first.argmax(axis=2), second.argmax(axis=2)
    sides = list(zip((first, second), called, strict=True))
    once, drawn = (
        [
            [metrics(label, one[r], fold, w, calls[r]) for one, calls in sides]
            for r, fold in enumerate(folds)
        ]
        for w in (None, weights)
    )
    tests = [(r, fold == k) for r, fold in enumerate(folds) for k in np.unique(fold)]
    by_fold = [
        [
            metrics(label[test], one[r, test], folds[r, test], called=calls[r, test])
            for one, calls in sides
        ]
        for r, test in tests
    ]
    test_share = np.mean([test.mean() for _, test in tests])
    rows: list[dict[str, float | str]] = []
    for name in ("auc", "balanced_accuracy", "brier"):
        low, high = interval(np.mean([a[name] - b[name] for a, b in drawn], axis=0))
        differences = np.array([a[name][0] - b[name][0] for a, b in by_fold])
        differences = differences[np.isfinite(differences)]
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


def _auc_interval(value: float, counts: tuple[int, int]) -> tuple[float, float]:
    z = float(norm.ppf((1 + _LEVEL) / 2))
    extra = sum(counts) / 2 - 1

    def excess(area: float, sign: float) -> float:
        spread = 1 + extra * (1 - area) / (2 - area) + extra * area / (1 + area)
        variance = area * (1 - area) * spread / (counts[0] * counts[1])
        return float(value + sign * z * np.sqrt(variance) - area)

    # Find the true areas that make the estimate just unlikely enough; 0 and 1 solve it always.
    low = 0.0 if value <= 0 else brentq(excess, 0, min(value, 1 - 1e-9), args=(-1,))
    high = 1.0 if value >= 1 else brentq(excess, max(value, 1e-9), 1, args=(1,))
    return float(low), float(high)


def _corrected_t_test(differences: Array, test_to_train: float) -> float:
    if len(differences) < 2:
        return float("nan")
    variance = differences.var(ddof=1) * (1 / len(differences) + test_to_train)
    if variance == 0:
        return 1.0 if differences.mean() == 0 else float("nan")
    return float(2 * t.sf(abs(differences.mean()) / np.sqrt(variance), len(differences) - 1))
