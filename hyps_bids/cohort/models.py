"""Fit one linear model to one measure, by least squares or with random effects of subjects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from hyps_bids.cohort.cluster_robust import cluster_robust, heteroscedasticity_consistent
from hyps_bids.cohort.design import CannotFit, Design, too_few
from hyps_bids.cohort.mixed import MixedFit, MixedModel, fit_mixed
from hyps_bids.cohort.random_design import RandomPlan, plan_random_effects, random_columns
from hyps_bids.cohort.random_effects import Block
from hyps_bids.messages import format_count, join_names

#: Degrees of freedom below which a fit warns.
_FEW_DF = 10
#: Residual standard deviation, as a share of the outcome's range, of a perfect fit.
_PERFECT = 1e-8


@dataclass(frozen=True)
class Fit:
    """Estimates of a linear model."""

    estimate: np.ndarray  # (coefficients,)
    covariance: np.ndarray  # (coefficients, coefficients)
    sd: float  # residual standard deviation, including that between subjects
    method: Literal["ols", "ols_hc3", "wls", "wls_hc3", "mixed", "mixed_cr2"]
    converged: bool
    warnings: tuple[str, ...]
    freedom: Callable[[np.ndarray], np.ndarray]
    """Degrees of freedom of t of each contrast, the rows of (contrasts, coefficients)."""
    hotelling: Callable[[np.ndarray], float] | None = None
    """Degrees of freedom of Hotelling's T squared of several contrasts, if errors are CR2."""
    random: str | None = None  # the random effects, in the notation of lme4
    notes: tuple[str, ...] = ()  # what is ordinary, but should be known to readers of the table

    def variances(self, contrasts: np.ndarray) -> np.ndarray:
        """Return the variance of each contrast; NaN if it has a coefficient of unknown variance."""
        unknown = np.isnan(np.diag(self.covariance))
        known = np.where(np.isnan(self.covariance), 0.0, self.covariance)
        result = np.einsum("ci,ij,cj->c", contrasts, known, contrasts)
        return np.where((contrasts[:, unknown] != 0).any(axis=1), np.nan, result)


def fit_design(
    design: Design,
    requested: Sequence[Block] = (),
    *,
    robust: bool = False,
    errors: np.ndarray | None = None,
) -> Fit:
    """Fit by least squares, or with random effects of subjects if some have several scans.

    Least squares are weighted if the standard error of each outcome is known (`errors`). The
    weights are the inverse of its square plus the variance between subjects, which is estimated,
    so that no subject counts for much more than another where subjects differ far more than the
    measurement does.

    The mixed model is fitted by REML, with the degrees of freedom of Satterthwaite. Its random
    effects are those `requested`, or an intercept and the slopes that
    :func:`~hyps_bids.cohort.random_design.plan_random_effects` finds. If their fit does not
    converge, they lose their covariance. If that does not help, if the request cannot be estimated,
    or if something changes within subjects without having a random slope that was not asked to have
    none, the errors are cluster-robust (CR2): they hold whatever the covariance within subjects.
    A random intercept with the errors of its model would find differences in change that are not
    there.

    With `robust`, the errors are cluster-robust in all of these cases, and those of least squares
    are consistent under heteroscedasticity (HC3).
    """
    if design.n_subjects == len(design.outcome):
        fit = _least_squares(design, robust=robust, errors=errors)
        note = "no random effects were fitted, because no subject has several scans"
        return replace(fit, warnings=(*fit.warnings, note)) if requested else fit
    subjects, count = design.n_subjects, design.matrix.shape[1]
    if subjects <= count:
        raise CannotFit(too_few(subjects, "subject", count))
    return _mixed(design, requested, robust=robust)


def _least_squares(design: Design, *, robust: bool, errors: np.ndarray | None) -> Fit:
    from statsmodels.regression.linear_model import WLS

    scales, weights = design.scales, np.ones(len(design.outcome))
    matrix, least = design.matrix / scales, 0.0
    notes: tuple[str, ...] = ()
    if errors is not None:
        between = between_subjects(design.outcome, matrix, errors)
        # Weights of mean one leave the residual variance in the units of the outcome.
        least = 1 / float(np.mean(1 / (between + errors**2)))
        weights = least / (between + errors**2)
        notes = (
            "participants are weighted by their standard errors and the variance between "
            "participants",
        )
    result = WLS(design.outcome, matrix, weights=weights).fit()
    # The variance cannot be smaller than that of the measurement, as it may be by chance.
    variance = max(float(result.mse_resid), least)
    covariance = np.asarray(result.normalized_cov_params) * variance
    if robust:
        covariance = heteroscedasticity_consistent(result.wresid, result.model.wexog)
    sd, df = float(np.sqrt(variance)), float(result.df_resid)
    texts = _few_subjects(design, df)
    if not sd > _PERFECT * np.ptp(design.outcome):
        texts = (*texts, "the fit is perfect")
    texts = (*texts, *_unknown_errors(design, covariance))
    method: Literal["ols", "wls"] = "ols" if errors is None else "wls"
    return Fit(
        estimate=result.params / scales,
        covariance=covariance / np.outer(scales, scales),
        sd=sd,
        method=("ols_hc3" if method == "ols" else "wls_hc3") if robust else method,
        converged=True,
        warnings=texts,
        freedom=lambda contrasts: np.full(len(contrasts), df),
        notes=notes,
    )


def between_subjects(outcome: np.ndarray, matrix: np.ndarray, errors: np.ndarray) -> float:
    """Estimate the variance between subjects beyond their errors of measurement.

    It is the one at which the weighted sum of squared residuals equals its expectation (Paule &
    Mandel 1982, J. Res. Natl. Bur. Stand. 87, 377-385), or zero if the residuals are smaller than
    the errors. Standard errors of weighted least squares are then those of Knapp & Hartung (2003),
    Stat. Med. 22, 2693-2710.

    Parameters
    ----------
    outcome, errors : numpy.ndarray
        (subjects,): values and their standard errors, all above zero.
    matrix : numpy.ndarray
        (subjects, coefficients) of full rank.
    """
    from scipy.optimize import brentq
    from statsmodels.regression.linear_model import OLS, WLS

    plain = OLS(outcome, matrix).fit()
    freedom, largest = plain.df_resid, float(plain.mse_resid)

    def excess(variance: float) -> float:
        fit = WLS(outcome, matrix, weights=1 / (variance + errors**2)).fit()
        return float((fit.wresid**2).sum()) - freedom

    if freedom <= 0 or excess(0.0) <= 0:
        return 0.0
    # At the variance of the unweighted residuals, the sum is below its expectation.
    return float(brentq(excess, 0.0, largest, xtol=1e-6 * largest))


def _mixed(design: Design, requested: Sequence[Block], *, robust: bool) -> Fit:
    plan = plan_random_effects(design, requested)
    # Volumes and coefficients are brought to one size before the fit.
    scales, unit = design.scales, float(design.outcome.std())
    texts = list(_few_subjects(design, design.n_subjects - len(scales)))
    failed = []
    for blocks in (*plan.steps, (Block(True),)):
        columns = random_columns(design, blocks)
        sizes = tuple(block.intercept + len(block.slopes) for block in blocks)
        model = MixedModel(
            design.outcome / unit, design.matrix / scales, columns, sizes, design.subjects
        )
        fit = fit_mixed(model)
        if fit.converged:
            break
        failed.append(" + ".join(map(str, blocks)))
    lacking = blocks not in plan.steps
    asked = bool(requested)
    texts += _warnings(plan, failed, lacking=lacking, asked=asked, robust=robust)
    if not robust and not any(block.intercept for block in blocks):
        texts.append(
            "errors may be too small, because subjects may differ in level but have no random "
            "intercept; write (1 | subject) too, or use --robust-errors"
        )
    notes = _notes(plan, blocks, fit, explain=not (robust or lacking or asked))
    if fit.sd * unit <= _PERFECT * np.ptp(design.outcome):
        texts.append("the fit is perfect")
    by_subject = columns @ fit.factor
    size = unit / scales
    joint = None
    robust = robust or lacking or (bool(plan.uncovered) and not asked)
    if robust:
        residuals = design.outcome / unit - design.matrix / scales @ fit.estimate
        errors = cluster_robust(residuals, design.matrix / scales, by_subject, design.subjects)
        covariance, freedom = errors.covariance, errors.degrees_of_freedom
        joint = errors.hotelling
        texts += _unknown_errors(design, covariance)
    else:
        covariance, freedom = fit.covariance, fit.degrees_of_freedom
    return Fit(
        estimate=fit.estimate * size,
        covariance=covariance * np.outer(size, size),
        sd=fit.sd * unit * float(np.sqrt(1 + (by_subject**2).sum(axis=1).mean())),
        method="mixed_cr2" if robust else "mixed",
        converged=fit.converged,
        warnings=tuple(texts),
        freedom=lambda contrasts: freedom(contrasts * size),
        hotelling=joint and (lambda contrasts: joint(contrasts * size)),
        random=" + ".join(map(str, blocks)),
        notes=notes,
    )


def _warnings(
    plan: RandomPlan, failed: list[str], *, lacking: bool, asked: bool, robust: bool
) -> list[str]:
    """Say what was fitted instead of what was wanted, and which errors may be too small."""
    texts = [plan.refused] if plan.refused else []
    texts += [f"the fit with {text} did not converge" for text in failed]
    if lacking:
        texts.append("a random intercept with cluster-robust errors (CR2) was fitted instead")
    elif plan.uncovered and asked and not robust:
        texts.append(
            f"terms with {join_names(plan.uncovered)} may have errors that are too small, because "
            "subjects may differ in their effect but have no random slope; leave the random "
            "effects out of the formula, or use --robust-errors"
        )
    return texts


def _notes(
    plan: RandomPlan, blocks: tuple[Block, ...], fit: MixedFit, *, explain: bool
) -> tuple[str, ...]:
    """Explain errors that are robust without being asked for, and variances of zero."""
    notes = []
    if plan.uncovered and explain:
        notes.append(
            "errors are cluster-robust (CR2), because no random slope can be estimated for what "
            f"changes within subjects: {join_names(plan.uncovered)}"
        )
    names: list[str] = []
    for block in blocks:
        names += ["level"] * block.intercept + [f"effect of {name}" for name in block.slopes]
    zero = [name for name, singular in zip(names, fit.singular, strict=True) if singular]
    if zero:
        notes.append(
            f"boundary (singular) fit: subjects do not differ in {join_names(zero)}, or not "
            "independently of their other random effects"
        )
    return tuple(notes)


def _unknown_errors(design: Design, covariance: np.ndarray) -> tuple[str, ...]:
    unknown = np.isnan(np.diag(covariance))
    names = [name for name, is_not in zip(design.names, unknown, strict=True) if is_not]
    text = f"no robust errors of {join_names(names)}: one subject alone determines the estimate"
    return (text,) if names else ()


def _few_subjects(design: Design, df: float) -> tuple[str, ...]:
    count = design.matrix.shape[1]
    text = f"few subjects ({design.n_subjects}) for {format_count(count, 'coefficient')}"
    return (text,) if df < _FEW_DF else ()
