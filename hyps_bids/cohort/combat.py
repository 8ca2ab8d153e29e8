"""ComBat: remove the mean and variance of each site from several measures at once.

The model of a measure is ``value = mean + design · slope + shift(site) + scale(site) · residual``.
Shifts and scales are estimated from standardized values, and shrunk towards those of the site's
other measures (empirical Bayes). References: Johnson et al. 2007 for the equations, Fortin et al.
2018 for imaging, and Beer et al. 2020 for scans that are repeated within subjects.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Number of scans below which a site has no usable variance.
FEWEST_AT_A_SITE = 3
#: Spread relative to the mean below which a measure is constant.
_CONSTANT = 1e-12


def harmonize(
    values: Array,
    site: NDArray[np.intp],
    design: Array,
    subjects: NDArray[np.object_] | None,
    *,
    keep_variance: bool = False,
) -> Array:
    """Bring the measures of all sites to a common mean and variance.

    Parameters
    ----------
    values : ndarray of shape (scans, measures)
        The measures; NaN is a missing value, which stays missing.
    site : ndarray of shape (scans,)
        Number of the site of each scan, from 0.
    design : ndarray of shape (scans, terms)
        Effects to preserve. Constant and redundant columns do no harm.
    subjects : ndarray of shape (scans,) or None
        Whose scan it is. With repeated scans, the standardizing model has a random intercept for
        each subject (longitudinal ComBat, Beer et al. 2020, equations 3 to 8). None stands for one
        scan per subject.
    keep_variance : bool
        Scale all residuals of a measure by one factor, so that their variance within sites is the
        same as before. ComBat divides a variance by the number of scans where the degrees of
        freedom would be right, so that in small sites standard errors become too small; its
        longitudinal form makes them too large.

    Returns
    -------
    ndarray of shape (scans, measures)
        Harmonized values. A measure of which a site has fewer than three values is missing there;
        a measure that is constant within sites stays as it is.

    Raises
    ------
    numpy.linalg.LinAlgError
        If a mixed model cannot be solved.
    """
    member = (site[:, None] == np.arange(site.max() + 1)).astype(float)
    expected, sd = np.full(values.shape, np.nan), np.full(values.shape[1], np.nan)
    for m, column in enumerate(values.T):
        known = np.isfinite(column)
        if not known.any():
            continue
        sites, terms = member[known], _basis(design[known])
        if subjects is None:
            mean, slope, sd[m : m + 1] = standardizing_model(column[known, None], sites, terms)
            expected[known, m] = mean + terms @ slope[:, 0]
        else:
            expected[known, m], sd[m] = _with_intercepts(
                column[known], sites, terms, subjects[known]
            )
    residual = (values - expected) / sd
    shift, scale = site_effects(residual, member)
    if keep_variance:
        scale *= np.sqrt(_squares(residual / scale[site], member) / _squares(residual, member))
    harmonized = (residual - shift[site]) / scale[site] * sd + expected
    return np.where(np.isnan(sd), values, harmonized)


def standardizing_model(values: Array, member: Array, design: Array) -> tuple[Array, Array, Array]:
    """Fit sites and design by least squares (Johnson et al. 2007, equations 1 and 2).

    Parameters
    ----------
    values : ndarray of shape (scans, measures)
        Measures without missing values.
    member : ndarray of shape (scans, sites)
        1 where a scan is of a site.
    design : ndarray of shape (scans, terms)
        Centered columns.

    Returns
    -------
    mean : ndarray of shape (measures,)
        Mean over the scans, at the mean of the design.
    slope : ndarray of shape (terms, measures)
        Effects of the design within sites.
    sd : ndarray of shape (measures,)
        Residual standard deviation; NaN for a measure that is constant within sites.
    """
    model = np.hstack([member, design])
    slopes: Array = np.asarray(np.linalg.lstsq(model, values, rcond=None)[0], dtype=np.float64)
    sites = member.shape[1]
    mean = member.mean(axis=0) @ slopes[:sites]
    sd: Array = np.sqrt(np.mean((values - model @ slopes) ** 2, axis=0))
    sd[sd <= _CONSTANT * (1 + np.abs(mean))] = np.nan
    return mean, slopes[sites:], sd


def site_effects(residual: Array, member: Array, per_subject: int = 1) -> tuple[Array, Array]:
    """Estimate shift and scale of each site by empirical Bayes.

    Parameters
    ----------
    residual : ndarray of shape (scans, measures)
        Standardized values, from which mean and design, but not the sites, were removed. NaN is a
        missing value.
    member : ndarray of shape (scans, sites)
        1 where a scan is of a site.
    per_subject : int
        Number of rows of each subject, if they count together as one observation.

    Returns
    -------
    shift, scale : ndarray of shape (sites, measures)
        In units of the residual SD. They are 0 and 1 for a measure without any value, and NaN
        where a site has fewer than three values of a measure that others have.
    """
    shift = np.zeros((member.shape[1], residual.shape[1]))
    scale = np.ones_like(shift)
    known = np.isfinite(residual)
    for s in range(len(shift)):
        here = member[:, s] == 1
        enough = known[here].sum(axis=0) >= FEWEST_AT_A_SITE * per_subject
        shift[s, known.any(axis=0) & ~enough] = np.nan
        if enough.any():
            shift[s, enough], scale[s, enough] = _shrink(residual[here][:, enough], per_subject)
    return shift, scale


def _squares(residual: Array, member: Array) -> Array:
    """Sum the squares of each measure around the means of its sites."""
    known = np.isfinite(residual)
    sums, counts = member.T @ np.where(known, residual, 0), member.T @ known
    total = np.nansum(residual**2, axis=0) - (sums**2 / np.maximum(counts, 1)).sum(axis=0)
    return np.asarray(np.where(total > 0, total, 1.0))


def _basis(design: Array) -> Array:
    """Return orthonormal columns that span the centered design."""
    centered = design - design.mean(axis=0)
    size = np.abs(centered).max(axis=0, initial=0)
    kept = size > _CONSTANT * (1 + np.abs(design).max(axis=0, initial=0))
    left, singular, _ = np.linalg.svd(centered[:, kept] / size[kept], full_matrices=False)
    return np.asarray(left[:, singular > 1e-9 * singular.max(initial=0)])


def _with_intercepts(
    values: Array, member: Array, design: Array, subjects: NDArray[np.object_]
) -> tuple[Array, float]:
    """Return what is expected of each scan without its site, and the residual SD within subjects.

    The expected value includes the predicted intercept of the subject.
    """
    from statsmodels.regression.mixed_linear_model import MixedLM

    unit = values.std()
    if not unit > _CONSTANT * (1 + np.abs(values.mean())):
        return values, np.nan
    with warnings.catch_warnings():
        # A variance between subjects of zero is an estimate like any other here.
        warnings.simplefilter("ignore")
        model = MixedLM(values / unit, np.hstack([member, design]), subjects)
        fit = model.fit(reml=True, method=["bfgs", "powell"])
    of_sites = member @ fit.fe_params[: member.shape[1]]
    expected = np.asarray(fit.fittedvalues) - of_sites + of_sites.mean()
    return expected * unit, float(np.sqrt(fit.scale)) * unit


def _shrink(residual: Array, per_subject: int) -> tuple[Array, Array]:
    """Estimate shift and scale of one site for each measure, with priors from its other measures.

    Johnson et al. 2007, supplement, equations 3.1 and 3.2.
    """
    count = np.isfinite(residual).sum(axis=0) / per_subject
    shift, variance = np.nanmean(residual, axis=0), np.nanvar(residual, axis=0, ddof=per_subject)
    measures = residual.shape[1]
    variance = np.where(variance > _CONSTANT, variance, 1.0)
    spread = variance.var(ddof=1) if measures > 1 else 0.0
    prior_variance = shift.var(ddof=1) if measures > 1 else 0.0
    if spread == 0 or prior_variance == 0:
        return shift, np.sqrt(variance)
    prior_shift, center = shift.mean(), variance.mean()
    shape = (2 * spread + center**2) / spread
    rate = (center * spread + center**3) / spread
    new_shift, new_variance = shift, variance
    for _ in range(200):
        old = np.concatenate([new_shift, new_variance])
        new_shift = (count * prior_variance * shift + new_variance * prior_shift) / (
            count * prior_variance + new_variance
        )
        squares = np.nansum((residual - new_shift) ** 2, axis=0) / per_subject
        new_variance = (rate + squares / 2) / (count / 2 + shape - 1)
        change = np.abs(np.concatenate([new_shift, new_variance]) - old)
        if np.all(change <= 1e-4 * np.abs(old)):
            break
    return new_shift, np.sqrt(new_variance)
