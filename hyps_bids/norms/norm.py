"""The normative model of one measure, and the scores that it gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import t as student

from hyps_bids.norms import sample as codes
from hyps_bids.norms.design import SCALE_SITE, SITE, Design
from hyps_bids.norms.family import Shape, normal_score, residual, score_slopes
from hyps_bids.norms.penalized import Fit
from hyps_bids.norms.sample import Array, NormSample, NormScores, NormSettings, Texts

#: Largest z-score. Further out, a score would rest on the shape of the distribution alone.
MOST_Z = 5.0
#: The uncertainty that centiles are averaged over is that of no larger score than this.
_CENTRAL_Z = 3.0
#: Fewest degrees of freedom of intervals.
_LEAST_DEGREES = 4.0


@dataclass(frozen=True)
class Norm:
    """The distribution of a measure by age, sex, intracranial volume and site.

    Attributes
    ----------
    settings : NormSettings
        How it was fitted.
    facts : mapping
        Counts and ranges of the controls, in plain JSON: ``Participants``, ``Scans``, ``Ages``
        (youngest, oldest), ``Sexes`` (sex → participants), ``Sites`` (name → participants), ``ICV``
        (smallest, largest in mm³, or None if the model has none), ``Values`` (smallest, largest),
        ``Distribution``, ``DegreesOfFreedom``.
    remarks : tuple of str
        What the user should know about the fit, in sentences.
    design : Design
        What its columns are made of.
    log : bool
        Whether logarithms of the values are modeled.
    center, unit : float
        What is subtracted from values (or their logarithms), and what they are divided by then.
    shaped : bool
        Whether the distribution is sinh-arcsinh or normal.
    fit : Fit
        The coefficients and their uncertainty.
    """

    settings: NormSettings
    facts: Mapping[str, Any]
    remarks: tuple[str, ...]
    design: Design
    log: bool
    center: float
    unit: float
    shaped: bool
    fit: Fit

    def score(self, sample: NormSample, values: Array) -> NormScores:
        """Return z-scores and centiles of scans, or the reasons why there are none.

        The centile is the mean over what the model may be, given its uncertainty. It is therefore
        somewhat closer to 50 than that of the best fit, the more so the fewer controls there are.
        """
        values = np.asarray(values, dtype=np.float64)
        reason = self.reasons(sample, values)
        z, low, high = (np.full(len(sample), np.nan) for _ in range(3))
        remark = np.full(len(sample), "", dtype=object)
        rows = reason == ""
        if rows.any():
            z[rows], low[rows], high[rows] = self._score(sample.take(rows), values[rows])
            unknown, beyond = ~self.is_known(sample), np.abs(z) >= MOST_Z
            codes.add_remark(remark, rows & beyond, codes.BEYOND_TAIL)
            codes.add_remark(remark, rows & unknown, codes.UNCALIBRATED)
        centile, below, above = (np.asarray(100 * ndtr(each)) for each in (z, low, high))
        return NormScores(z, centile, below, above, reason, remark)

    @property
    def known_sites(self) -> list[str]:
        """Sites whose offset is used, because it was measured from enough controls."""
        return [site for site, n in self.facts["Sites"].items() if n >= codes.FEWEST_AT_SITE]

    def is_known(self, sample: NormSample) -> NDArray[np.bool_]:
        """Tell for each scan whether its site has enough controls."""
        return np.isin(sample.site, self.known_sites)

    def reasons(self, sample: NormSample, values: Array) -> Texts:
        """Say for each scan why it has no score, or give an empty text."""
        reason = self.design.reasons(sample)
        if self.log:
            reason[~(values > 0)] = codes.NOT_POSITIVE
        reason[~np.isfinite(values)] = codes.NO_VALUE
        return reason

    def standardized(self, values: Array) -> Array:
        """Return values in the units of the model."""
        return np.asarray(((np.log(values) if self.log else values) - self.center) / self.unit)

    @property
    def shape(self) -> Shape | None:
        """Skew and log tail; None for the normal distribution."""
        return Shape(*map(float, self.fit.coefficients[-2:])) if self.shaped else None

    def _score(self, sample: NormSample, values: Array) -> tuple[Array, Array, Array]:
        """Return z-scores and the ends of their intervals."""
        rows = Rows(self, sample)
        r = (self.standardized(values) - rows.location) / rows.scale
        z = normal_score(r, self.shape)
        central = residual(np.clip(z, -_CENTRAL_Z, _CENTRAL_Z), self.shape)
        mean = z / np.sqrt(1 + rows.error(central) ** 2)
        degrees = self.facts["Participants"] - self.fit.freedom
        wide = student.ppf(0.975, max(degrees, _LEAST_DEGREES)) * rows.error(r)
        low, high = np.minimum(z - wide, mean), np.maximum(z + wide, mean)
        mean, low, high = (np.clip(each, -MOST_Z, MOST_Z) for each in (mean, low, high))
        return mean, low, high

    def curves(
        self, ages: Array, sex: str, icv: float, site: str, centiles: Sequence[float]
    ) -> Array:
        """Return the values at centiles (percent), of shape (ages, centiles); NaN if unsupported.

        An `icv` of NaN stands for the controls' geometric mean, and a `site` with too few controls
        for an average site.
        """
        if not np.isfinite(icv) and self.design.icv:
            icv = float(np.exp(self.design.icv[0]))
        sample = NormSample(
            participant=np.full(len(ages), "", dtype=object),
            age=np.asarray(ages, dtype=np.float64),
            sex=np.full(len(ages), sex, dtype=object),
            icv=np.full(len(ages), icv, dtype=np.float64),
            site=np.full(len(ages), site, dtype=object),
        )
        values = np.full((len(ages), len(centiles)), np.nan)
        valid = self.design.reasons(sample) == ""
        if not valid.any():
            return values
        rows = Rows(self, sample.take(valid), known_site=True)
        for k, centile in enumerate(centiles):
            wanted = float(ndtri(centile / 100))
            z = np.full(int(valid.sum()), wanted)
            # The score that belongs to a centile depends on its own uncertainty.
            for _ in range(20):
                central = residual(np.clip(z, -_CENTRAL_Z, _CENTRAL_Z), self.shape)
                z = wanted * np.sqrt(1 + rows.error(central) ** 2)
            raw = (rows.location + rows.scale * residual(z, self.shape)) * self.unit + self.center
            values[valid, k] = np.exp(raw) if self.log else raw
        return values

    def to_arrays(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """Return facts that JSON can hold, and arrays."""
        design, arrays = self.design.to_json()
        fit = asdict(self.fit)
        arrays |= {name: fit.pop(name) for name in ("coefficients", "covariance", "precision")}
        facts = {
            "settings": asdict(self.settings),
            "facts": dict(self.facts),
            "remarks": list(self.remarks),
            "design": design,
            "fit": fit,
        }
        facts |= {name: getattr(self, name) for name in ("log", "center", "unit", "shaped")}
        return facts, arrays

    @classmethod
    def from_arrays(cls, facts: Mapping[str, Any], arrays: Mapping[str, Array]) -> Norm:
        """Make the model from what :meth:`to_arrays` returned."""
        names = ("coefficients", "covariance", "precision")
        fit: dict[str, Any] = {**facts["fit"], **{name: arrays[name] for name in names}}
        parts = {
            "settings": NormSettings(**facts["settings"]),
            "remarks": tuple(facts["remarks"]),
            "design": Design.from_json(facts["design"], arrays),
            "fit": Fit(**fit),
        }
        return cls(**{**facts, **parts})


class Rows:
    """Location, scale and their uncertainty, of scans that the model is valid for.

    With `known_site`, unknown sites are taken for an average one, whose offsets are known to be 0.
    """

    def __init__(self, norm: Norm, sample: NormSample, *, known_site: bool = False) -> None:
        self.norm = norm
        known = norm.is_known(sample)
        self.columns = norm.design.columns(sample, known)
        split, end = self.columns.location.shape[1], len(self.columns.groups)
        at = norm.fit.coefficients
        self.location: Array = self.columns.location @ at[:split]
        self.scale: Array = np.exp(self.columns.scale @ at[split:end])
        self.unknown: NDArray[np.bool_] = ~known & (not known_site)

    def error(self, r: Array) -> Array:
        """Return the standard errors of the z-scores that belong to residuals."""
        slopes = score_slopes(r, self.scale, self.norm.shape)
        parts = [
            slopes[0][:, None] * self.columns.location,
            slopes[1][:, None] * self.columns.scale,
            *(slope[:, None] for slope in slopes[2:]),
        ]
        gradient = np.hstack(parts)
        variance = ((gradient @ self.norm.fit.covariance) * gradient).sum(axis=1)
        precision = self.norm.fit.precision
        between = slopes[0] ** 2 / precision[SITE] + slopes[1] ** 2 / precision[SCALE_SITE]
        return np.sqrt(variance + np.where(self.unknown, between, 0.0))
