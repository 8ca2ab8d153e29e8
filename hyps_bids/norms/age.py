"""Smooth curves of age, and the ages that controls support."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import BSpline
from scipy.linalg import eigh

from hyps_bids.norms.sample import Array

#: Years by which a score may lie outside the controls' ages: ages are often whole years.
TOLERANCE = 0.5
#: Most columns of curvature, and inner knots of the splines that they are made of.
_COLUMNS, _INNER_KNOTS = 8, 10
_DEGREE = 3


@dataclass(frozen=True)
class AgeBasis:
    """Straight and curved functions of age.

    Attributes
    ----------
    low, high : float
        Ages of the youngest and the oldest control; other ages are moved into this range.
    center, unit : float
        Mean and SD of the controls' ages; the unit is 0 if there is no slope.
    knots : ndarray
        Knots of the cubic B-splines; empty without curvature.
    transform : ndarray of shape (splines, columns)
        Makes columns of curvature of the splines. Independent coefficients with one variance make
        a smoothing spline of them; the smoothest column is the first.
    """

    low: float
    high: float
    center: float
    unit: float
    knots: Array
    transform: Array

    def line(self, age: Array) -> Array:
        """Return the column of the straight line, of shape (ages, 1 or 0)."""
        if not self.unit:
            return np.empty((len(age), 0))
        return ((np.clip(age, self.low, self.high) - self.center) / self.unit)[:, None]

    def curvature(self, age: Array) -> Array:
        """Return the columns of curvature."""
        if not self.transform.size:
            return np.empty((len(age), 0))
        inside = np.clip(age, self.low, self.high)
        splines = BSpline.design_matrix(inside, self.knots, _DEGREE).toarray()
        return np.asarray(splines @ self.transform)


def age_basis(age: Array, weight: Array, fewest_years: float = TOLERANCE) -> AgeBasis:
    """Place the knots at quantiles of the controls' ages, and make the columns.

    The columns are those of Demmler and Reinsch (1975): orthogonal over the controls to each other
    and to the straight line, and scaled by their roughness. There are none, and no line, if the
    ages differ by less than `fewest_years`.
    """
    low, high, total = float(age.min()), float(age.max()), weight.sum()
    center = float(weight @ age / total)
    unit = float(np.sqrt(weight @ (age - center) ** 2 / total))
    none = np.empty(0), np.empty((0, 0))
    if high - low < fewest_years:
        return AgeBasis(low, high, center, 0.0, *none)
    distinct = np.unique(age)
    inner = min(_INNER_KNOTS, len(distinct) - 2)
    if inner < 1:
        return AgeBasis(low, high, center, unit, *none)
    places = np.quantile(distinct, np.linspace(0, 1, inner + 2))[1:-1]
    knots = np.concatenate([[low] * (_DEGREE + 1), places, [high] * (_DEGREE + 1)])
    splines = BSpline.design_matrix(age, knots, _DEGREE).toarray()
    gram = splines.T @ (weight[:, None] * splines) / total
    gram += 1e-8 * np.trace(gram) / len(gram) * np.eye(len(gram))
    roughness, vectors = eigh(_roughness(knots), gram)
    # The first two functions are a constant and the line, which have no roughness.
    kept = slice(2, min(2 + _COLUMNS, len(distinct)))
    columns = vectors[:, kept] / np.sqrt(roughness[kept])
    # Signs of eigenvectors differ between machines.
    columns *= np.where(columns[np.abs(columns).argmax(axis=0), range(columns.shape[1])] < 0, -1, 1)
    return AgeBasis(low, high, center, unit, knots, columns / np.sqrt((1 / roughness[kept]).sum()))


def _roughness(knots: Array) -> Array:
    """Integrate products of second derivatives of the splines, exactly."""
    count = len(knots) - _DEGREE - 1
    second = BSpline(knots, np.eye(count), _DEGREE).derivative(2)
    ends = np.unique(knots)
    # Two points of Gauss integrate the square of a straight line.
    middle, half = (ends[1:] + ends[:-1]) / 2, np.diff(ends) / 2
    points = np.concatenate([middle - half / np.sqrt(3), middle + half / np.sqrt(3)])
    values = second(points)
    return np.asarray(values.T @ (np.tile(half, 2)[:, None] * values))


def stretched(age: Array) -> Array:
    """Return a scale of age on which childhood is long, because brains change fast in it.

    Examples
    --------
    >>> stretched(np.array([0.0, 6, 30])).round(1).tolist()
    [0.7, 2.1, 3.5]
    """
    return np.asarray(np.log(np.maximum(age, 0) + 2))


def supported_ages(age: Array, reach: float) -> Array:
    """Return the ranges of age, of shape (ranges, 2), that lie within `reach` of a control.

    Examples
    --------
    >>> supported_ages(np.array([20.0, 21, 60, 61]), 4).tolist()
    [[16.0, 25.0], [56.0, 65.0]]
    """
    ages = np.unique(age)
    gaps = np.flatnonzero(np.diff(ages) > 2 * reach)
    starts = ages[np.concatenate([[0], gaps + 1])]
    ends = ages[np.concatenate([gaps, [len(ages) - 1]])]
    return np.column_stack([starts - reach, ends + reach])
