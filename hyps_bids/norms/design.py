"""The columns of a normative model, and which scans it is valid for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyps_bids.norms import sample as codes
from hyps_bids.norms.age import TOLERANCE, AgeBasis, age_basis, stretched, supported_ages
from hyps_bids.norms.sample import Array, NormSample, Texts

#: Share of the controls' range of age that the nearest control, and the nearest of the same sex,
#: may be away.
_NEAR, _NEAR_OF_SEX = 0.1, 0.2
#: Factor by which an intracranial volume may lie outside the controls' range.
ICV_TOLERANCE = 1.1
#: Columns of curvature that interactions and the scale have.
_FEW_COLUMNS = 4
_EARLY_COLUMNS = 6
SEXES = ("F", "M")
#: Controls younger than this have columns of their own for the fast changes of childhood.
_CHILDHOOD = 20.0
#: Groups of columns whose variance is estimated, by number; 0 is for columns without.
CURVE, EARLY, SEX_LINE, SEX_CURVE, SITE = 1, 2, 3, 4, 5
SCALE_LINE, SCALE_SEX, SCALE_CURVE, SCALE_SITE = 6, 7, 8, 9
#: Expected SD of the coefficients of each group, in units of the SD of the controls or of its
#: logarithm, and how many coefficients the expectation is worth. That of sites is what sites are
#: known to differ by; it is all there is to go by if there is only one.
EXPECTED_SD = np.array([np.inf, 0.1, 0.1, 0.1, 0.1, 0.3, 0.1, 0.1, 0.1, 0.15])
PRIOR_COUNT = np.array([0.0, 1, 1, 1, 1, 2, 1, 1, 1, 2])


class Columns(NamedTuple):
    """Columns of location and log scale, and the group of each, those of the location first."""

    location: Array
    scale: Array
    groups: NDArray[np.intp]


@dataclass(frozen=True)
class Design:
    """What the columns are made of.

    Attributes
    ----------
    age, early : AgeBasis
        Functions of age, and of a scale on which childhood is long (empty without children).
    ages : mapping of str to ndarray
        Supported ranges of age, of everybody (empty text) and of each sex.
    sexes : tuple of str
        Sexes of the controls; empty if none of them is known, and then sex does not matter.
    icv : tuple of float
        Mean and SD of the logarithm, then the smallest and the largest volume; empty if the model
        has no intracranial volume.
    sites : tuple of str
        Names of the sites of controls.
    site_columns : tuple of str
        Those with offsets of their own: all of them if there are several, and sites that were added
        later. None stands for an offset that a later one has replaced.
    """

    age: AgeBasis
    early: AgeBasis
    ages: Mapping[str, Array]
    sexes: tuple[str, ...]
    icv: tuple[float, ...]
    sites: tuple[str, ...]
    site_columns: tuple[str | None, ...]

    def columns(self, sample: NormSample, known: NDArray[np.bool_] | None = None) -> Columns:
        """Make the columns of scans that :meth:`reasons` does not refuse.

        Scans whose site is not `known`, if that is given, are taken for those of an average site.
        """
        ones, sex, site = np.ones((len(sample), 1)), self._sex(sample), self._site(sample)
        if known is not None:
            site *= known[:, None]
        line, curve = self.age.line(sample.age), self.age.curvature(sample.age)
        few = curve[:, :_FEW_COLUMNS]
        location = [
            (0, ones),
            (0, line),
            (0, sex),
            (0, self._icv(sample)),
            (CURVE, curve),
            (EARLY, self.early.curvature(stretched(sample.age))[:, :_EARLY_COLUMNS]),
            (SEX_LINE, _product(sex, line)),
            (SEX_CURVE, _product(sex, few)),
            (SITE, site),
        ]
        scale = [
            (0, ones),
            (SCALE_LINE, line),
            (SCALE_SEX, sex),
            (SCALE_CURVE, few),
            (SCALE_SITE, site),
        ]
        groups = [group for group, column in [*location, *scale] for _ in range(column.shape[1])]
        return Columns(
            np.hstack([column for _, column in location]),
            np.hstack([column for _, column in scale]),
            np.array(groups, dtype=np.intp),
        )

    def reasons(self, sample: NormSample) -> Texts:
        """Say for each scan why the model is not valid for it, or give an empty text."""
        reason = np.full(len(sample), "", dtype=object)

        def refuse(rows: NDArray[np.bool_], code: str) -> None:
            reason[rows & (reason == "")] = code

        if self.sexes:
            refuse(~np.isin(sample.sex, SEXES), codes.NO_SEX)
            refuse(~np.isin(sample.sex, self.sexes), codes.SEX_OUTSIDE)
        refuse(~np.isfinite(sample.age), codes.NO_AGE)
        refuse(~_within(sample.age, self.ages[""]), codes.AGE_OUTSIDE)
        for sex in self.sexes:
            outside = ~_within(sample.age, self.ages[sex])
            refuse((sample.sex == sex) & outside, codes.AGE_OUTSIDE)
        if self.icv:
            low, high = self.icv[2] / ICV_TOLERANCE, self.icv[3] * ICV_TOLERANCE
            refuse(~np.isfinite(sample.icv), codes.NO_ICV)
            refuse(~((sample.icv >= low) & (sample.icv <= high)), codes.ICV_OUTSIDE)
        return reason

    def _sex(self, sample: NormSample) -> Array:
        if len(self.sexes) < 2:
            return np.empty((len(sample), 0))
        return np.where(sample.sex == SEXES[0], -0.5, 0.5)[:, None]

    def _icv(self, sample: NormSample) -> Array:
        if not self.icv or not self.icv[1]:
            return np.empty((len(sample), 0))
        return ((np.log(sample.icv) - self.icv[0]) / self.icv[1])[:, None]

    def _site(self, sample: NormSample) -> Array:
        names = np.array(self.site_columns, dtype=object)
        return np.asarray(sample.site[:, None] == names, dtype=np.float64)

    def to_json(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """Return plain facts, and arrays."""
        facts, arrays = asdict(self), {}
        for name in ("age", "early"):
            for array in ("knots", "transform"):
                arrays[f"{name}_{array}"] = facts[name].pop(array)
        facts["ages"] = {sex: ranges.tolist() for sex, ranges in self.ages.items()}
        return facts, arrays

    @classmethod
    def from_json(cls, facts: Mapping[str, Any], arrays: Mapping[str, Array]) -> Design:
        """Make a design from what :meth:`to_json` returned."""
        parts: dict[str, Any] = {
            name: AgeBasis(
                **facts[name],
                knots=arrays[f"{name}_knots"],
                transform=arrays[f"{name}_transform"],
            )
            for name in ("age", "early")
        }
        parts["ages"] = {sex: np.array(ranges) for sex, ranges in facts["ages"].items()}
        for name in ("sexes", "icv", "sites", "site_columns"):
            parts[name] = tuple(facts[name])
        return cls(**parts)


def make_design(sample: NormSample, weight: Array, *, icv: bool, sites: bool) -> Design:
    """Make the design of controls that have all that it needs."""
    sexes = tuple(sex for sex in SEXES if (sample.sex == sex).any())
    ages = {"": _supported(sample.age, sample.age, _NEAR)} | {
        sex: _supported(sample.age[sample.sex == sex], sample.age, _NEAR_OF_SEX) for sex in sexes
    }
    about_icv: tuple[float, ...] = ()
    if icv:
        logs = np.log(sample.icv)
        mean = float(weight @ logs / weight.sum())
        sd = float(np.sqrt(weight @ (logs - mean) ** 2 / weight.sum()))
        about_icv = (mean, sd, float(sample.icv.min()), float(sample.icv.max()))
    names = tuple(sorted(set(sample.site))) if sites else ()
    # Without children the second scale would be the first.
    young = sample.age.min() < _CHILDHOOD and np.ptp(sample.age) >= TOLERANCE
    return Design(
        age=age_basis(sample.age, weight),
        early=age_basis(stretched(sample.age), weight, 0.0 if young else np.inf),
        ages=ages,
        sexes=sexes,
        icv=about_icv,
        sites=names,
        site_columns=names if len(names) > 1 else (),
    )


def _product(one: Array, columns: Array) -> Array:
    """Multiply columns by a single one, which may not exist."""
    return columns * one if one.size else columns[:, :0]


def _supported(age: Array, every: Array, share: float) -> Array:
    """Return the ranges near controls; `share` is of the range of all ages."""
    low, high = every.min() - TOLERANCE, every.max() + TOLERANCE
    ranges = supported_ages(age, max(TOLERANCE, share * float(np.ptp(every))))
    return np.clip(ranges, low, high)


def _within(age: Array, ranges: Array) -> NDArray[np.bool_]:
    inside = (age[:, None] >= ranges[:, 0]) & (age[:, None] <= ranges[:, 1])
    return np.asarray(inside.any(axis=1))
