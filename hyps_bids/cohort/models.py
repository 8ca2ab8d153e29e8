"""Fit one linear model to one measure, by least squares or with random intercepts."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from hyps_bids.cohort.design import CannotFit, Design

_LEVEL = 0.95
#: Cumulative probabilities at which a noncentral distribution has the interval's lower, upper end.
_ENDS = ((1 + _LEVEL) / 2, (1 - _LEVEL) / 2)
#: Noncentrality above which SciPy fails (F) or becomes very slow (t); such a fit is perfect.
_FARTHEST = 1e4
#: Degrees of freedom below which a fit warns.
_FEW_DF = 10
#: SciPy's L-BFGS is faster, but often steps so far that matrices become singular.
_OPTIMIZERS = ["bfgs", "powell"]

Row = dict[str, Any]


@dataclass(frozen=True)
class Fit:
    """Estimates of a linear model."""

    estimate: np.ndarray  # (coefficients,)
    covariance: np.ndarray  # (coefficients, coefficients)
    sd: float  # residual standard deviation, including that between subjects
    df: float  # degrees of freedom of t
    method: Literal["ols", "mixed"]
    converged: bool
    warnings: tuple[str, ...]

    def freedom(self, contrasts: np.ndarray) -> np.ndarray:
        """Return the degrees of freedom of each contrast, the rows of (contrasts, coefficients)."""
        return np.full(len(contrasts), self.df)


def fit_design(design: Design) -> Fit:
    """Fit by least squares, or with a random intercept per subject if some have several scans."""
    return _least_squares(design) if design.n_subjects == len(design.outcome) else _mixed(design)


def _least_squares(design: Design) -> Fit:
    from statsmodels.regression.linear_model import OLS

    scales = design.scales
    result = OLS(design.outcome, design.matrix / scales).fit()
    sd, df = float(np.sqrt(result.mse_resid)), float(result.df_resid)
    texts = _few_subjects(design, df)
    if not sd > 1e-8 * np.ptp(design.outcome):
        texts = (*texts, "the fit is perfect")
    return Fit(
        estimate=result.params / scales,
        covariance=np.asarray(result.cov_params()) / np.outer(scales, scales),
        sd=sd,
        df=df,
        method="ols",
        converged=True,
        warnings=texts,
    )


def _mixed(design: Design) -> Fit:
    from statsmodels.regression.mixed_linear_model import MixedLM

    scales, unit = design.scales, float(design.outcome.std())
    subjects, count = design.n_subjects, len(scales)
    if subjects <= count:
        raise CannotFit(f"{subjects} subjects for {count} coefficients")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model = MixedLM(design.outcome / unit, design.matrix / scales, design.subjects)
            result = model.fit(reml=True, method=_OPTIMIZERS)
        except np.linalg.LinAlgError as why:
            raise CannotFit(f"the mixed model cannot be solved ({why})") from why
        covariance = np.asarray(result.cov_params())[:count, :count]
        between = float(np.asarray(result.cov_re)[0, 0])
    texts = dict.fromkeys(" ".join(str(warning.message).split()) for warning in caught)
    covariance = covariance * unit**2 / np.outer(scales, scales)
    # Each subject counts as one observation: z-tests find too much in few subjects.
    df = float(subjects - count)
    return Fit(
        estimate=np.asarray(result.fe_params) * unit / scales,
        covariance=covariance,
        sd=float(np.sqrt(between + result.scale)) * unit,
        df=df,
        method="mixed",
        converged=bool(result.converged) and bool(np.isfinite(_errors(covariance)).all()),
        warnings=(*_few_subjects(design, df), *texts),
    )


def _errors(covariance: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.sqrt(np.diag(covariance))


def _few_subjects(design: Design, df: float) -> tuple[str, ...]:
    count = design.matrix.shape[1]
    text = f"few subjects ({design.n_subjects}) for {count} coefficients"
    return (text,) if df < _FEW_DF else ()


def coefficient_rows(design: Design, fit: Fit) -> Iterator[Row]:
    """Test each coefficient, and all coefficients of a term with several together."""
    from scipy import stats

    t = stats.t.ppf((1 + _LEVEL) / 2, fit.df)
    errors = _errors(fit.covariance)
    for term, where in design.terms.items():
        for i in range(len(design.names))[where]:
            estimate, error = fit.estimate[i], errors[i]
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
                "df": f"{fit.df:g}",
                "p": 2 * stats.t.sf(abs(statistic), fit.df),
            }
            if term != "Intercept":
                row |= _effect(design.matrix[:, i], row, fit)
            yield row
        if where.stop - where.start > 1:
            yield {"term": term, "coefficient": "(all)"} | _joint_test(where, fit)


def _effect(column: np.ndarray, row: Row, fit: Fit) -> Row:
    """Standardize a coefficient by the residual standard deviation."""
    from scipy.special import nctdtrinc

    is_indicator = set(np.unique(column)) <= {0.0, 1.0}
    scale = (1.0 if is_indicator else float(column.std(ddof=1))) / fit.sd
    low, high = row["ci_low"] * scale, row["ci_high"] * scale
    if fit.method == "ols":
        # The estimate and the SD are both uncertain.
        known = abs(row["statistic"]) < _FARTHEST
        ends = nctdtrinc(fit.df, _ENDS, row["statistic"] if known else np.nan)
        low, high = ends * row["se"] * scale
    return {
        "effect": row["estimate"] * scale,
        "effect_low": low,
        "effect_high": high,
        "effect_kind": "d" if is_indicator else "d_per_sd",
    }


def _joint_test(where: slice, fit: Fit) -> Row:
    """Test all coefficients of a term at once."""
    from scipy import stats
    from scipy.special import ncfdtrinc

    estimate, count = fit.estimate[where], where.stop - where.start
    wald = float(estimate @ np.linalg.solve(fit.covariance[where, where], estimate))
    f = wald / count
    test = {"statistic": f, "df": f"{count}, {fit.df:g}", "p": stats.f.sf(f, count, fit.df)}
    if fit.method != "ols":
        return test
    ends = ncfdtrinc(count, fit.df, _ENDS, f)
    ends = np.where(ends < _FARTHEST, ends, np.nan)
    low, high = ends / (ends + count + fit.df + 1)
    return test | {
        "effect": wald / (wald + fit.df),
        "effect_low": low,
        "effect_high": high,
        "effect_kind": "partial_eta2",
    }
