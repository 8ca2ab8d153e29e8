"""Transformers that remove effects of site and head size, fitted on training subjects only.

Stored models name these classes by their path: do not move or rename them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from hyps_bids.cohort.combat import FEWEST_AT_A_SITE, site_effects, standardizing_model

Array = NDArray[np.float64]

#: Number of controls below which a regression on them would be noise.
FEWEST_CONTROLS = 3


class SiteHarmonizer(TransformerMixin, BaseEstimator):
    """Remove the mean and variance of each site from some columns (ComBat, Johnson et al. 2007).

    The equations are in :mod:`hyps_bids.cohort.combat`. Effects of the design, age for example, are
    kept. `fit` ignores `y`: it never sees the diagnosis.

    Rows without a site, and rows of a site that had fewer than 3 subjects in fitting, stay as they
    are. With fewer than 2 usable sites nothing is changed at all.

    `columns` and `design` are positions of columns; `site` is that of the column with the number
    of the site, where NaN or a negative number means no site. Fitted ``shift_`` and ``scale_`` of
    shape (sites, columns) are in units of the residual SD.
    """

    def __init__(
        self, columns: tuple[int, ...] = (), site: int = 0, design: tuple[int, ...] = ()
    ) -> None:
        self.columns = columns
        self.site = site
        self.design = design

    def fit(self, X: Array, y: Any = None, per_subject: int = 1) -> SiteHarmonizer:
        """Estimate the sites' shifts and scales from complete rows, some for each subject."""
        columns = list(self.columns)
        site = X[:, self.site]
        found, counts = np.unique(site[site >= 0], return_counts=True)
        self.sites_ = found[counts >= FEWEST_AT_A_SITE * per_subject]
        if len(self.sites_) < 2:
            self.sites_ = self.sites_[:0]
            return self
        rows = np.isin(site, self.sites_)
        values, design = X[rows][:, columns], X[rows][:, list(self.design)]
        member = (site[rows, None] == self.sites_[None]).astype(float)
        self.design_mean_ = design.mean(axis=0)
        self.mean_, self.slope_, sd = standardizing_model(
            values, member, design - self.design_mean_
        )
        residual = (values - self._expected(X[rows])) / sd
        self.shift_, self.scale_ = site_effects(residual, member, per_subject)
        # A constant column stays as it is.
        self.sd_ = np.where(np.isnan(sd), 1.0, sd)
        return self

    def transform(self, X: Array) -> Array:
        """Bring the rows of known sites to the common mean and variance."""
        check_is_fitted(self, "sites_")
        out = np.array(X, dtype=float)
        if not len(self.sites_):
            return out
        rows = np.isin(X[:, self.site], self.sites_)
        which = np.searchsorted(self.sites_, X[rows, self.site])
        expected = self._expected(X[rows])
        columns = list(self.columns)
        harmonized = out[rows]
        residual = (harmonized[:, columns] - expected) / self.sd_
        residual = (residual - self.shift_[which]) / self.scale_[which]
        harmonized[:, columns] = residual * self.sd_ + expected
        out[rows] = harmonized
        return out

    def _expected(self, X: Array) -> Array:
        design = X[:, list(self.design)] - self.design_mean_
        return np.asarray(self.mean_ + design @ self.slope_)


class IcvAdjuster(TransformerMixin, BaseEstimator):
    """Adjust volumes for intracranial volume (ICV) by linear regression.

    ``adjusted = volume - slope · (ICV - mean ICV)``. Slope and mean are those of the controls
    among the training rows if there are at least 3, and of all training rows otherwise. The
    column `control` is 1 for controls.
    """

    def __init__(self, columns: tuple[int, ...] = (), icv: int = 0, control: int = 0) -> None:
        self.columns = columns
        self.icv = icv
        self.control = control

    def fit(self, X: Array, y: Any = None, per_subject: int = 1) -> IcvAdjuster:
        """Estimate one slope per column from rows, some for each subject."""
        control = X[:, self.control] == 1
        enough = control.sum() >= FEWEST_CONTROLS * per_subject
        rows = control if enough else np.ones(len(X), dtype=bool)
        volumes, icv = X[rows][:, list(self.columns)], X[rows, self.icv]
        self.mean_ = icv.mean()
        centered = icv - self.mean_
        variance = centered @ centered
        self.slope_ = (
            centered @ (volumes - volumes.mean(axis=0)) / variance
            if variance > 0
            else np.zeros(len(self.columns))
        )
        return self

    def transform(self, X: Array) -> Array:
        """Subtract the effect of ICV."""
        check_is_fitted(self, "slope_")
        out = np.array(X, dtype=float)
        out[:, list(self.columns)] -= np.outer(X[:, self.icv] - self.mean_, self.slope_)
        return out
