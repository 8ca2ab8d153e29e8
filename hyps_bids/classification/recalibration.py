"""Whether probabilities are too extreme: logistic recalibration.

The slope is that of the logistic regression of the true class on the logit of its probability: 1
is right, below 1 probabilities are too extreme, above 1 too cautious. The intercept is that of the
same regression with the slope held at 1 (calibration in the large): 0 is right, above 0 the class
is more frequent than predicted (Van Calster et al. 2019, BMC Med 17: 230). Arrays are as in
:mod:`hyps_bids.classification.metrics`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit
from scipy.stats import norm

from hyps_bids.classification.intervals import TRAINING
from hyps_bids.classification.metrics import Array, Ints, positive

#: Probabilities of 0 and 1, of trees for example, have no logit: they count as this close to them.
_CLOSEST = 0.001
_NOTHING = (float("nan"), float("nan"))


def recalibration_rows(
    label: Ints, probability: Array, classes: tuple[str, ...], *, trained_on: bool = True
) -> list[dict[str, float | str | None]]:
    """Compute slope and intercept for the first of two classes, or for each of more.

    Both are means over repeats, with 95 % intervals from the standard errors of the regression.
    As for the metrics, the variance is larger if the tested subjects also trained the models. The
    slope is NaN if the probabilities of any repeat separate the classes perfectly, because it is
    infinite then, or if they are all alike. Both are NaN if one class has no subject. The reason is
    in `undefined`, which is None where slope and intercept are defined.
    """
    known = np.isfinite(probability).all(axis=(0, 2))
    factor = np.sqrt(TRAINING if trained_on else 1.0)
    rows: list[dict[str, float | str | None]] = []
    for k in positive(len(classes)):
        truth = label[known] == k
        logits = logit(np.clip(probability[:, known, k], _CLOSEST, 1 - _CLOSEST))
        row: dict[str, float | str | None] = {"class": classes[k]}
        for name, fit in (("slope", _slope), ("intercept", _intercept)):
            value, error = np.mean([fit(truth, one) for one in logits], axis=0)
            half = float(norm.ppf(0.975) * error * factor)
            row |= {name: float(value), f"{name}_low": value - half, f"{name}_high": value + half}
        reason = _reason([_obstacle(truth, one) for one in logits], classes[k])
        rows.append(row | {"undefined": reason, "subjects": int(known.sum())})
    return rows


def calibration_sentence(row: Mapping[str, Any]) -> str:
    """Say in words what slope and intercept of a row mean.

    Examples
    --------
    >>> calibration_sentence({"class": "AD", "slope": 0.5, "slope_low": 0.2, "slope_high": 0.8,
    ...     "intercept": 0.1, "intercept_low": -0.3, "intercept_high": 0.5})[:47]
    'the probabilities of AD are too extreme (slope '
    """
    slope, low, high = (float(row[f"slope{end}"]) for end in ("", "_low", "_high"))
    middle, below, above = (float(row[f"intercept{end}"]) for end in ("", "_low", "_high"))
    if not np.isfinite(middle):
        return f"slope and intercept of {row['class']} are not defined, because {row['undefined']}"
    level = (
        "too low on average"
        if below > 0
        else "too high on average"
        if above < 0
        else "right on average, within the uncertainty"
    )
    of_level = f"{level} (intercept {middle:.2f} [{below:.2f}, {above:.2f}]; 0 is right)"
    if not np.isfinite(slope):
        return (
            f"the slope of {row['class']} is not defined, because {row['undefined']}; the "
            f"probabilities are {of_level}"
        )
    return (
        f"{_verdict(str(row['class']), slope, low, high)} (slope {slope:.2f} [{low:.2f}, "
        f"{high:.2f}]; 1 is right); they are {of_level}"
    )


def _verdict(name: str, slope: float, low: float, high: float) -> str:
    """Say what a slope and its interval mean."""
    if slope <= 0:
        certain = "" if high < 0 else ", as far as can be told"
        return f"higher probabilities of {name} do not go with the class {name}{certain}"
    if high < 1:
        doubt = ", if they go with the class at all" if low <= 0 else ""
        return f"the probabilities of {name} are too extreme{doubt}"
    if low > 1:
        return f"the probabilities of {name} are too cautious"
    if high - low > 1:
        return f"whether the probabilities of {name} are too extreme or cautious cannot be told"
    return f"the probabilities of {name} are neither clearly too extreme nor too cautious"


def _obstacle(truth: NDArray[np.bool_], logits: Array) -> str | None:
    """Say why the slope of one repeat is not defined; None if it is."""
    if not len(truth):
        return "there is no prediction"
    if truth.all() or not truth.any():
        return "one class"
    if np.ptp(logits) < 1e-9:
        return "the probabilities are all alike"
    inside, outside = logits[truth], logits[~truth]
    if inside.min() >= outside.max():
        return "the probabilities separate the classes perfectly"
    if inside.max() <= outside.min():
        return "the probabilities separate the classes perfectly, but the wrong way round"
    return None


def _reason(obstacles: Sequence[str | None], name: str) -> str | None:
    """Join the reasons of all repeats, with their numbers where they are not all the same."""
    counts = Counter(one for one in obstacles if one)
    if not counts:
        return None
    if counts["one class"]:
        return f"the tested subjects are all {name}, or none of them is"
    if counts.most_common(1)[0][1] == len(obstacles):
        return next(iter(counts))
    texts = [f"in {n} of {len(obstacles)} repeats {text}" for text, n in counts.items()]
    return " and ".join(texts)


def _slope(truth: NDArray[np.bool_], logits: Array) -> tuple[float, float]:
    if _obstacle(truth, logits):
        return _NOTHING
    return _logistic(truth, np.column_stack([np.ones(len(logits)), logits]))


def _intercept(truth: NDArray[np.bool_], logits: Array) -> tuple[float, float]:
    if truth.all() or not truth.any():
        return _NOTHING
    return _logistic(truth, np.ones((len(truth), 1)), offset=logits)


def _logistic(
    truth: NDArray[np.bool_], design: Array, offset: Array | None = None
) -> tuple[float, float]:
    """Return the last coefficient of a logistic regression, and its standard error."""
    # The report, which needs the sentences of this module, starts without this library.
    import statsmodels.api as sm

    fit = sm.GLM(truth.astype(float), design, sm.families.Binomial(), offset=offset).fit()
    return float(fit.params[-1]), float(fit.bse[-1])
