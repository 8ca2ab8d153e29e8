"""Intervals of metrics, and comparisons of two sets of predictions, by one rule.

The interval of a metric is the wider of two. The first is a t interval on the logit scale, whose
variance is a jackknife over subjects. The second is a score interval, which does not shrink to
nothing when all subjects are predicted right.

The jackknife holds the predictions fixed, so it knows about the subjects as those who are tested
only. In cross-validation the same subjects also train the models. Where the effect is weak, a
subject may change the metric as much by training as by being tested. No estimate of the whole
variance from one cross-validation is without bias (Bengio and Grandvalet 2004, J Mach Learn Res 5:
1089), and the correction of Nadeau and Bengio (2003, Mach Learn 52: 239) was too small in pilot
simulations. There the variance between cohorts was 0.6 to 2.6 times the jackknife's, most for the
AUC of weak effects. The factor is therefore 2.5, which is too much for strong effects and in large
cohorts; ``benchmarks/statistics/coverage.py`` shows the coverage. Models that are tested on new
subjects have the factor 1.

Arrays are as in :mod:`hyps_bids.classification.metrics`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import norm, t

from hyps_bids.classification.metrics import (
    METRICS,
    Array,
    Ints,
    brier_losses,
    count_pairs,
    metrics,
    parts_of_metrics,
    positive,
)

Limits = tuple[float, float]

_LEVEL = 0.95
_NOTHING = (float("nan"), float("nan"))
#: Subjects are left out in at most so many groups, each with the same share of the classes.
_GROUPS = 200
#: Factor of the variance where the tested subjects also train the models.
TRAINING = 2.5
_COMPARED = ("auc", "balanced_accuracy", "brier")


def metric_rows(
    label: Ints,
    probability: Array,
    folds: Ints,
    called: Ints | None = None,
    *,
    trained_on: bool = True,
) -> list[dict[str, float | str]]:
    """Compute the rows of ``figures.tsv`` for one estimator, one for each metric.

    `trained_on` says that the models of the other folds were trained on the tested subjects, as in
    cross-validation.
    """
    called = probability.argmax(axis=2) if called is None else called
    known = np.isfinite(probability).all(axis=(0, 2))
    label, probability = label[known], probability[:, known]
    folds, called = folds[:, known], called[:, known]
    counts = np.bincount(label, minlength=probability.shape[2]).tolist()
    repeats = list(zip(probability, folds, called, strict=True))
    values = [metrics(label, one, fold, called=calls) for one, fold, calls in repeats]
    variances = _variances(_jackknife(label, probability, folds, called), label, trained_on)
    scores = score_intervals(label, probability, folds, called)
    baselines = baseline(counts)
    pairs = np.array([count_pairs(label, fold) for fold in folds])
    rows: list[dict[str, float | str]] = []
    for name in METRICS:
        by_repeat = np.array([one[name][0] for one in values])
        value = float(by_repeat.mean())
        around = t_interval(value, variances[name], len(label) - len(counts))
        ends = np.array([around, scores[name]])
        low, high = float(np.fmin(*ends[:, 0])), float(np.fmax(*ends[:, 1]))
        rows.append(
            {
                "figure": name,
                "value": value,
                "low": low,
                "high": high,
                "baseline": baselines.get(name, float("nan")),
                "repeats_sd": float(by_repeat.std(ddof=1)) if len(by_repeat) > 1 else float("nan"),
                "subjects": len(label),
                "pairs": float(pairs[:, 0].mean()) if name == "auc" else float("nan"),
                "folds_with_pairs": float(pairs[:, 1].mean()) if name == "auc" else float("nan"),
            }
        )
    return rows


def baseline(counts: Sequence[int]) -> dict[str, float]:
    """Compute the metrics of a classifier that knows only how frequent the classes are.

    Examples
    --------
    >>> {name: round(value, 3) for name, value in baseline([70, 30]).items()}
    {'accuracy': 0.7, 'balanced_accuracy': 0.5, 'auc': 0.5, 'brier': 0.21}
    """
    share = np.array(counts) / max(sum(counts), 1)
    return {
        "accuracy": float(share.max()),
        "balanced_accuracy": 1 / len(share),
        "auc": 0.5,
        "brier": float(1 - (share**2).sum()) / 2,
    }


def compare(
    label: Ints,
    first: Array,
    second: Array,
    folds: Ints,
    called: tuple[Ints, Ints] | None = None,
    *,
    trained_on: bool = True,
) -> list[dict[str, float | str]]:
    """Compare two sets of predictions of the same subjects in the same folds.

    Interval and p-value are of one t test, whose variance is that of the intervals: a jackknife of
    the difference over subjects, times 2.5 if the tested subjects also trained the models. It is at
    least what one subject more or less can change. The interval excludes 0 exactly if p < 0.05.
    """
    calls = (first.argmax(axis=2), second.argmax(axis=2)) if called is None else called
    known = np.isfinite(first).all(axis=(0, 2)) & np.isfinite(second).all(axis=(0, 2))
    label, folds = label[known], folds[:, known]
    pairs = list(zip((first[:, known], second[:, known]), calls, strict=True))
    once = [_mean_metrics(label, one, folds, call[:, known]) for one, call in pairs]
    drawn = [_jackknife(label, one, folds, call[:, known]) for one, call in pairs]
    variances = _variances({k: drawn[0][k] - drawn[1][k] for k in drawn[0]}, label, trained_on)
    counts = np.bincount(label, minlength=first.shape[2])
    # One subject of the smallest class, and one probability that moves from sure to even.
    step = 1 / max(len(counts) * int(counts.min()), 1)
    least = {"auc": step, "balanced_accuracy": step, "brier": 0.25 / max(len(label), 1)}
    df = len(label) - len(counts)
    compared = float(np.mean([count_pairs(label, fold)[0] for fold in folds]))
    rows: list[dict[str, float | str]] = []
    for name in _COMPARED:
        difference = float(once[0][name][0] - once[1][name][0])
        error = np.sqrt(np.maximum(variances[name], least[name] ** 2))
        half = float(t.ppf((1 + _LEVEL) / 2, df) * error)
        rows.append(
            {
                "figure": name,
                "difference": difference,
                "low": float(np.clip(difference - half, -1, 1)),
                "high": float(np.clip(difference + half, -1, 1)),
                "p": float(2 * t.sf(abs(difference) / error, df)),
                "subjects": len(label),
                "pairs": compared if name == "auc" else float("nan"),
            }
        )
    return rows


def t_interval(value: float, variance: float, df: int) -> Limits:
    """Compute the 95 % interval of a metric from its variance, on the logit scale.

    It is NaN where the metric is 0 or 1, or where it does not vary.

    Examples
    --------
    >>> [round(x, 3) for x in t_interval(0.8, 0.0016, 1000)]
    [0.71, 0.867]
    """
    if not (0 < value < 1 and variance > 0 and df > 0):
        return _NOTHING
    half = t.ppf((1 + _LEVEL) / 2, df) * np.sqrt(variance) / (value * (1 - value))
    return float(expit(logit(value) - half)), float(expit(logit(value) + half))


def score_intervals(
    label: Ints, probability: Array, folds: Ints, called: Ints
) -> dict[str, Limits]:
    """Compute 95 % score intervals of all metrics, which never are without width.

    Proportions have Wilson's interval, AUC has Newcombe's (2006, Stat Med 25: 559, method 5). F1
    follows from the share TP / (TP + FP + FN), of which it is a monotone function. The Brier score
    has the interval of the share of subjects whose most probable class is wrong, times what such
    a subject costs more than the others. Means over classes follow from the intervals of the
    classes: recalls are of different subjects and combine by MOVER (Zou and Donner 2008, Stat Med
    27: 1693), the others may depend on each other in any way, so their limits are averaged.
    """
    repeats = zip(probability, folds, called, strict=True)
    each = [parts_of_metrics(label, one, fold, None, calls) for one, fold, calls in repeats]
    part = {name: np.mean([one[name][0] for one in each], axis=0) for name in each[0]}
    n, counts = len(label), np.bincount(label, minlength=probability.shape[2])
    one = positive(len(counts))
    recalls = [wilson(part["recall"][k], counts[k]) for k in range(len(counts))]
    return {
        "accuracy": wilson(float(part["accuracy"]), n),
        "balanced_accuracy": _mover_mean(part["recall"], recalls),
        "auc": _mean_limits(
            [newcombe(part["auc"][i], (counts[k], n - counts[k])) for i, k in enumerate(one)]
        ),
        "sensitivity": _mover_mean(part["recall"][one], [recalls[k] for k in one]),
        "specificity": _mean_limits([wilson(part["specificity"][k], n - counts[k]) for k in one]),
        "f1": _mean_limits([_f1_limits(part["f1"][k], part["union"][k]) for k in one]),
        "brier": _brier_limits(label, probability),
    }


def wilson(share: float, n: float) -> Limits:
    """Compute Wilson's 95 % interval of a proportion; NaN without subjects.

    Examples
    --------
    >>> [round(x, 3) for x in wilson(1.0, 4)]
    [0.51, 1.0]
    """
    if not n or not np.isfinite(share):
        return _NOTHING
    # The report, which imports this module, starts without this library.
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(share * n, n, alpha=1 - _LEVEL, method="wilson")
    # Rounding must not put the end beyond a share of 0 or 1.
    return min(float(low), share), max(float(high), share)


def newcombe(area: float, counts: tuple[int, int]) -> Limits:
    """Compute Newcombe's 95 % interval of an AUC (2006, Stat Med 25: 559, method 5).

    Examples
    --------
    >>> [round(x, 3) for x in newcombe(1.0, (12, 9))]
    [0.806, 1.0]
    """
    if not np.isfinite(area):
        return _NOTHING
    z = float(norm.ppf((1 + _LEVEL) / 2))
    extra = sum(counts) / 2 - 1

    def excess(true: float, sign: float) -> float:
        spread = 1 + extra * (1 - true) / (2 - true) + extra * true / (1 + true)
        variance = true * (1 - true) * spread / (counts[0] * counts[1])
        return float(area + sign * z * np.sqrt(variance) - true)

    # Find the true areas that make the estimate just unlikely enough; 0 and 1 solve it always.
    low = 0.0 if area <= 0 else brentq(excess, 0, min(area, 1 - 1e-9), args=(-1,))
    high = 1.0 if area >= 1 else brentq(excess, max(area, 1e-9), 1, args=(1,))
    return float(low), float(high)


def _f1_limits(f1: float, union: float) -> Limits:
    low, high = wilson(f1 / (2 - f1), union)
    return 2 * low / (1 + low), 2 * high / (1 + high)


def _brier_limits(label: Ints, probability: Array) -> Limits:
    loss = np.stack([brier_losses(label, one) for one in probability])
    wrong = probability.argmax(axis=2) != label
    share, value = float(wrong.mean()), float(loss.mean())
    # A wrong subject costs 1 at most, which is assumed where there is none.
    dearer = (loss[wrong].mean() if wrong.any() else 1.0) - (
        loss[~wrong].mean() if not wrong.all() else 0.0
    )
    low, high = wilson(share, len(label))
    return (
        float(max(value - (share - low) * dearer, 0)),
        float(min(value + (high - share) * dearer, 1)),
    )


def _mover_mean(values: Array, limits: Sequence[Limits]) -> Limits:
    """Combine the intervals of independent estimates into that of their mean."""
    low, high = np.array(limits).T
    mean = float(values.mean())
    below, above = (np.sqrt(((values - end) ** 2).sum()) / len(values) for end in (low, high))
    return mean - float(below), mean + float(above)


def _mean_limits(limits: Sequence[Limits]) -> Limits:
    low, high = np.mean(limits, axis=0)
    return float(low), float(high)


def _mean_metrics(
    label: Ints, probability: Array, folds: Ints, called: Ints, weights: Array | None = None
) -> dict[str, Array]:
    repeats = zip(probability, folds, called, strict=True)
    each = [metrics(label, one, fold, weights, calls) for one, fold, calls in repeats]
    return {name: np.mean([one[name] for one in each], axis=0) for name in METRICS}


def _groups(label: Ints) -> Ints:
    """Deal subjects into groups with about the same share of each class."""
    order = np.random.default_rng(0).permutation(len(label))
    order = order[np.argsort(label[order], kind="stable")]
    group = np.empty(len(label), dtype=np.int64)
    group[order] = np.arange(len(label)) % min(len(label), _GROUPS)
    return group


def _jackknife(label: Ints, probability: Array, folds: Ints, called: Ints) -> dict[str, Array]:
    """Compute the metrics, each a mean over repeats, without each group in turn."""
    group = _groups(label)
    weights = (group != np.unique(group)[:, None]).astype(float)
    return _mean_metrics(label, probability, folds, called, weights)


def _variances(without: Mapping[str, Array], label: Ints, trained_on: bool) -> dict[str, float]:
    """Compute variances from the values without each group; NaN if one is not defined.

    The share of a class that stays when a group is left out is the factor of a jackknife within
    classes, which gives DeLong's variance of the AUC. A group of several classes has the smallest.
    """
    members = (_groups(label) == np.arange(len(next(iter(without.values()))))[:, None]).astype(int)
    of_class = label == np.unique(label)[:, None]
    kept = 1 - (members @ of_class.T / of_class.sum(axis=1)).max(axis=1)
    factor = TRAINING if trained_on else 1.0
    return {
        name: float(factor * (kept * (values - values.mean()) ** 2).sum())
        for name, values in without.items()
    }
