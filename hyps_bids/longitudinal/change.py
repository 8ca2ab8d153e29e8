"""Change per year with its error, from the values of one structure at several times.

The scans scatter around a straight line. How much they do is known in advance: the *error model*
states the standard deviation of one scan, as it was measured where nothing had changed. With two
scans this is all that is known. From three scans on, their own residuals inform it: the variance is
the mean of the stated variance and that of the residuals, weighted by their degrees of freedom, as
in the moderated t-statistics of Smyth (2004). Intervals follow Student's t with the sum of both
degrees of freedom.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np

#: Methods of the table of change per year.
VOLUME, BSI = "volume", "bsi"
#: Years; over a shorter span, the error of measurement would be a large change per year.
SHORTEST_SPAN = 0.25
#: Years; over a shorter span, with ages in whole years, the change per year could be several times
#: as large or as small.
SHORTEST_SPAN_OF_WHOLE_AGES = 3.0
#: Remark about such ages.
WHOLE_AGES = "ages in whole years, so that the span may be wrong by one year"
#: Probability that an interval covers the true value.
COVERAGE = 0.95


@dataclass(frozen=True)
class ErrorModel:
    """How much one scan errs.

    Attributes
    ----------
    percent : mapping of str to mapping of str to float
        Method → part → standard deviation of one scan without change, in percent of the volume;
        empty if nothing is stated.
    freedom : float
        Degrees of freedom of these standard deviations.
    problem : str
        Why nothing is stated.
    """

    percent: Mapping[str, Mapping[str, float]]
    freedom: float
    problem: str = ""

    def sd(self, method: str, part: str) -> float:
        """Return a standard deviation in percent of the volume; NaN if it is not stated."""
        return float(self.percent.get(method, {}).get(part, math.nan))


def error_model(adapter: str, voxel_mm: float) -> ErrorModel:
    """Return the error model that is shipped, which holds for what it was measured with.

    Parameters
    ----------
    adapter : str
        SHA-256 of the adapter's weights.
    voxel_mm : float
        Largest side of a voxel in any of the scans.
    """
    stated = _read_model()
    if adapter != stated["adapter"]:
        return ErrorModel({}, 0.0, "no error of a scan is stated for this adapter")
    largest = stated["largest_voxel_mm"]
    if voxel_mm > largest:
        return ErrorModel({}, 0.0, f"no error of a scan is stated for voxels beyond {largest} mm")
    percent = {method: stated[method] for method in (VOLUME, BSI)}
    return ErrorModel(percent, float(stated["degrees_of_freedom"]))


@cache
def _read_model() -> dict[str, Any]:
    text = (files("hyps_bids") / "data" / "longitudinal.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


class Estimate(NamedTuple):
    """A number with its standard error and its 95 % interval; NaN where unknown."""

    value: float
    se: float = math.nan
    low: float = math.nan
    high: float = math.nan


class Line(NamedTuple):
    """A straight line through the values of a structure.

    Attributes
    ----------
    baseline : float
        Value of the line at the first time, in units of the values.
    slope : Estimate
        Change per unit of time, in units of the values.
    percent : Estimate
        The same in percent of the baseline, or of the reference that was given.
    """

    baseline: float
    slope: Estimate
    percent: Estimate


def fit_line(
    times: np.ndarray,
    values: np.ndarray,
    sd: float,
    freedom: float,
    reference: float | None = None,
) -> Line:
    """Fit a line by least squares, whose errors are partly known in advance.

    Parameters
    ----------
    times, values : numpy.ndarray
        Of each scan, finite, shape ``(scans,)``; at least two times differ.
    sd : float
        Stated standard deviation of one value, in their units; NaN if it is unknown.
    freedom : float
        Its degrees of freedom.
    reference : float, optional
        What the slope is a percentage of, instead of the baseline.

    Examples
    --------
    >>> line = fit_line(np.array([0.0, 2.0]), np.array([3000.0, 2940.0]), sd=15.0, freedom=1e9)
    >>> [round(float(x), 3) for x in (line.baseline, *line.slope[:2], line.percent.value)]
    [3000.0, -30.0, 10.607, -1.0]
    """
    since = times - times.min()
    design = np.stack([np.ones_like(since), since], axis=1)
    covariance = np.linalg.inv(design.T @ design)
    baseline, slope = covariance @ design.T @ values
    residuals = values - design @ [baseline, slope]
    scatter, freedom = _variance(residuals, len(values) - 2, sd, freedom)
    covariance = covariance * scatter
    whole = baseline if reference is None else reference
    # The baseline that a change is a percentage of has an error, too (delta method).
    gradient = np.array([-slope / whole if reference is None else 0.0, 1.0]) / whole
    percent_se = 100 * math.sqrt(gradient @ covariance @ gradient)
    return Line(
        float(baseline),
        _estimate(float(slope), math.sqrt(covariance[1, 1]), freedom),
        _estimate(100 * float(slope) / whole, percent_se, freedom),
    )


def difference(first: float, last: float, sd: float, freedom: float) -> Estimate:
    """Subtract the first of two values from the last, with the stated error.

    Parameters
    ----------
    first, last : float
        Values of two scans.
    sd, freedom : float
        As in :func:`fit_line`.
    """
    return _estimate(last - first, math.sqrt(2) * sd, freedom)


def relative_difference(
    first: float, last: float, sd: float, freedom: float, reference: float | None = None
) -> Estimate:
    """Express :func:`difference` in percent of the first value, or of a reference without error.

    Examples
    --------
    >>> relative_difference(3000.0, 2940.0, sd=15.0, freedom=1e9).value
    -2.0
    """
    whole = first if reference is None else reference
    ratio = last / first if reference is None else 1.0
    se = 100 * sd / abs(whole) * math.hypot(1, ratio)
    return _estimate(100 * (last - first) / whole, se, freedom)


def _variance(residuals: np.ndarray, own: int, sd: float, freedom: float) -> tuple[float, float]:
    """Combine the stated variance with that of residuals; return it and its freedom."""
    squares = float(residuals @ residuals)
    if math.isnan(sd):
        return (squares / own, own) if own else (math.nan, 0)
    return (freedom * sd**2 + squares) / (freedom + own), freedom + own


def _estimate(value: float, se: float, freedom: float) -> Estimate:
    # SciPy's statistics take long to import, and few commands need them.
    from scipy.special import stdtrit

    reach = se * float(stdtrit(freedom, (1 + COVERAGE) / 2)) if freedom else math.nan
    return Estimate(value, se, value - reach, value + reach)
