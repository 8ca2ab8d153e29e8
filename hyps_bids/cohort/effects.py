"""Test the coefficients of a fit, and express them as effect sizes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from hyps_bids.cohort.design import Design
from hyps_bids.cohort.models import Fit

LEVEL = 0.95
#: Methods whose effect sizes have exact intervals.
LEAST_SQUARES = ("ols", "wls")
#: Cumulative probabilities at which a noncentral distribution has the interval's lower, upper end.
_ENDS = ((1 + LEVEL) / 2, (1 - LEVEL) / 2)
#: Noncentrality above which SciPy fails (F) or becomes very slow (t); such a fit is perfect.
_FARTHEST = 1e4

Row = dict[str, Any]


def coefficient_rows(design: Design, fit: Fit) -> Iterator[Row]:
    """Test each coefficient, and all coefficients of a term with several together."""
    from scipy import stats

    with np.errstate(invalid="ignore"):
        errors = np.sqrt(np.diag(fit.covariance))
    freedom = fit.freedom(np.eye(len(errors)))
    for term, where in design.terms.items():
        for i in range(len(design.names))[where]:
            estimate, error, df = fit.estimate[i], errors[i], freedom[i]
            t = stats.t.ppf((1 + LEVEL) / 2, df)
            statistic = estimate / error
            row = {
                "term": term,
                "coefficient": design.names[i],
                "reference": design.references[i],
                "estimate": estimate,
                "se": error,
                "ci_low": estimate - t * error,
                "ci_high": estimate + t * error,
                "statistic": statistic,
                "df": f"{df:g}",
                "p": 2 * stats.t.sf(abs(statistic), df),
            }
            if term != "Intercept":
                row |= _effect(design.matrix[:, i], row, fit, df)
            yield row
        if where.stop - where.start > 1:
            test = joint_test(np.eye(len(errors))[where], fit)
            if fit.method in LEAST_SQUARES:
                count = where.stop - where.start
                test |= _partial_eta2(test["statistic"], count, float(freedom[0]))
            yield {"term": term, "coefficient": "(all)"} | test


def _effect(column: np.ndarray, row: Row, fit: Fit, df: float) -> Row:
    if set(np.unique(column)) <= {0.0, 1.0}:
        return standardized(row, fit, df) | {"effect_kind": "d"}
    spread = float(column.std(ddof=1))
    return standardized(row, fit, df, spread) | {"effect_kind": "d_per_sd"}


def standardized(row: Row, fit: Fit, df: float, spread: float = 1.0) -> Row:
    """Divide an estimate by the residual standard deviation.

    Parameters
    ----------
    row : dict
        With estimate, se, ci_low, ci_high and statistic.
    fit : Fit
        The fit that it comes from.
    df : float
        Its degrees of freedom.
    spread : float
        Standard deviation of the variable, for an estimate per unit of it.

    Returns
    -------
    dict
        effect, effect_low and effect_high.
    """
    from scipy.special import nctdtrinc

    scale = spread / fit.sd
    low, high = row["ci_low"] * scale, row["ci_high"] * scale
    if fit.method in LEAST_SQUARES:
        # The estimate and the SD are both uncertain.
        known = abs(row["statistic"]) < _FARTHEST
        ends = nctdtrinc(df, _ENDS, row["statistic"] if known else np.nan)
        low, high = ends * row["se"] * scale
    return {"effect": row["estimate"] * scale, "effect_low": low, "effect_high": high}


def joint_test(contrasts: np.ndarray, fit: Fit) -> Row:
    """Test several contrasts (contrasts, coefficients) at once by an F test.

    The denominator's degrees of freedom are those of lmerTest: the mean of the F distribution is
    that of the mean of the squared t statistics of uncorrelated contrasts. With cluster-robust
    errors, it is the test HTZ of clubSandwich, because the F test would be too liberal in few
    subjects; there is no test if they are too few.
    """
    from scipy import stats

    if np.isnan(fit.variances(contrasts)).any():
        return {"statistic": np.nan, "df": None, "p": np.nan}
    covariance = contrasts @ np.nan_to_num(fit.covariance) @ contrasts.T
    variances, vectors = np.linalg.eigh(covariance)
    rotated = vectors.T @ contrasts
    count = len(contrasts)
    f = float(((rotated @ fit.estimate) ** 2 / variances).mean())
    if fit.hotelling is None:
        df = _denominator(fit.freedom(rotated))
    else:
        total = fit.hotelling(contrasts)
        df = total - count + 1
        f *= df / total
        if df <= 0:
            return {"statistic": np.nan, "df": None, "p": np.nan}
    return {"statistic": f, "df": f"{count}, {df:g}", "p": stats.f.sf(f, count, df)}


def _denominator(freedom: np.ndarray) -> float:
    if np.ptp(freedom) < 1e-8:
        return float(freedom.mean())
    if freedom.min() <= 2:
        return 2.0
    expected = float((freedom / (freedom - 2)).sum())
    return 2 * expected / (expected - len(freedom))


def _partial_eta2(f: float, count: int, df: float) -> Row:
    """Return partial eta squared of least squares with its interval."""
    from scipy.special import ncfdtrinc

    ends = ncfdtrinc(count, df, _ENDS, f)
    ends = np.where(ends < _FARTHEST, ends, np.nan)
    low, high = ends / (ends + count + df + 1)
    return {
        "effect": f * count / (f * count + df),
        "effect_low": low,
        "effect_high": high,
        "effect_kind": "partial_eta2",
    }
