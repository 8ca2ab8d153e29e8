"""Whether probabilities are too extreme: logistic recalibration.

The slope is that of the logistic regression of the true class on the logit of its probability: 1
is right, below 1 probabilities are too extreme, above 1 too cautious. The intercept is that of the
same regression with the slope held at 1 (calibration in the large): 0 is right, above 0 the class
is more frequent than predicted (Van Calster et al. 2019, BMC Med 17: 230). Arrays are as in
:mod:`hyps_bids.classification.metrics`.
"""

from __future__ import annotations

import numpy as np
import statsmodels.api as sm
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
) -> list[dict[str, float | str]]:
    """Compute slope and intercept for the first of two classes, or for each of more.

    Both are means over repeats, with 95 % intervals from the standard errors of the regression.
    As for the metrics, the variance is larger if the tested subjects also trained the models. The
    slope is NaN if the probabilities separate the classes perfectly, because it is infinite then,
    or if they are all alike. Both are NaN if one class has no subject.
    """
    known = np.isfinite(probability).all(axis=(0, 2))
    factor = np.sqrt(TRAINING if trained_on else 1.0)
    rows: list[dict[str, float | str]] = []
    for k in positive(len(classes)):
        truth = label[known] == k
        logits = logit(np.clip(probability[:, known, k], _CLOSEST, 1 - _CLOSEST))
        row: dict[str, float | str] = {"class": classes[k]}
        for name, fit in (("slope", _slope), ("intercept", _intercept)):
            value, error = np.mean([fit(truth, one) for one in logits], axis=0)
            half = float(norm.ppf(0.975) * error * factor)
            row |= {name: float(value), f"{name}_low": value - half, f"{name}_high": value + half}
        rows.append(row | {"subjects": int(known.sum())})
    return rows


def calibration_sentence(row: dict[str, float | str]) -> str:
    """Say in words what slope and intercept of a row mean.

    Examples
    --------
    >>> calibration_sentence({"class": "AD", "slope": 0.5, "slope_low": 0.2, "slope_high": 0.8,
    ...     "intercept": 0.1, "intercept_low": -0.3, "intercept_high": 0.5})[:47]
    'the probabilities of AD are too extreme (slope '
    """
    slope, low, high = (float(row[f"slope{end}"]) for end in ("", "_low", "_high"))
    middle, below, above = (float(row[f"intercept{end}"]) for end in ("", "_low", "_high"))
    if not np.isfinite(slope):
        return (
            f"the slope of {row['class']} is not defined, because the probabilities separate the "
            "classes perfectly or are all alike"
        )
    verdict = (
        "are too extreme"
        if high < 1
        else "are too cautious"
        if low > 1
        else "may be right, too extreme or too cautious"
        if high - low > 1
        else "are neither clearly too extreme nor too cautious"
    )
    level = (
        "too low on average"
        if below > 0
        else "too high on average"
        if above < 0
        else "right on average, within the uncertainty"
    )
    return (
        f"the probabilities of {row['class']} {verdict} (slope {slope:.2f} [{low:.2f}, "
        f"{high:.2f}]; 1 is right) and {level} (intercept {middle:.2f} [{below:.2f}, "
        f"{above:.2f}]; 0 is right)"
    )


def _slope(truth: NDArray[np.bool_], logits: Array) -> tuple[float, float]:
    if truth.all() or not truth.any() or np.ptp(logits) < 1e-9:
        return _NOTHING
    inside, outside = logits[truth], logits[~truth]
    if inside.min() >= outside.max() or inside.max() <= outside.min():
        return _NOTHING
    fit = sm.GLM(truth.astype(float), sm.add_constant(logits), sm.families.Binomial()).fit()
    return float(fit.params[1]), float(fit.bse[1])


def _intercept(truth: NDArray[np.bool_], logits: Array) -> tuple[float, float]:
    if truth.all() or not truth.any():
        return _NOTHING
    model = sm.GLM(
        truth.astype(float), np.ones((len(truth), 1)), sm.families.Binomial(), offset=logits
    )
    fit = model.fit()
    return float(fit.params[0]), float(fit.bse[0])
