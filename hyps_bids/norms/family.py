"""The normal and the sinh-arcsinh distribution: scores, quantiles and derivatives.

A residual ``r = (value - location) / scale`` has the normal score ``z = r`` or, after Jones and
Pewsey (2009), ``z = sinh(tail · asinh(r) - skew)``. The second is skewed if ``skew`` is not 0, has
heavy tails if ``tail`` is below 1, and is the normal distribution at 0 and 1.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hyps_bids.norms.sample import Array

#: ``sinh`` of more would overflow; no value of a measure is so far away.
_MOST = 300.0


class Shape(NamedTuple):
    """Shape of the distribution; the normal one is ``Shape(0, 0)``."""

    skew: float
    log_tail: float


class Derivatives(NamedTuple):
    """Log-likelihood of each row, and its derivatives by location, log scale, skew and log tail."""

    value: Array
    first: list[Array]
    second: dict[tuple[int, int], Array]


def normal_score(r: Array, shape: Shape | None) -> Array:
    """Return the normal scores of residuals; no shape stands for the normal distribution."""
    if shape is None:
        return r
    tail = np.exp(shape.log_tail)
    return np.asarray(np.sinh(np.clip(tail * np.arcsinh(r) - shape.skew, -_MOST, _MOST)))


def residual(z: Array, shape: Shape | None) -> Array:
    """Return the residuals of normal scores, the inverse of :func:`normal_score`."""
    if shape is None:
        return z
    return np.asarray(np.sinh((np.arcsinh(z) + shape.skew) / np.exp(shape.log_tail)))


def score_slopes(r: Array, scale: Array, shape: Shape | None) -> list[Array]:
    """Differentiate normal scores by location, log scale and, with a shape, skew and log tail."""
    if shape is None:
        return [-1 / scale, -r]
    tail, arc = np.exp(shape.log_tail), np.arcsinh(r)
    cosh = np.cosh(np.clip(tail * arc - shape.skew, -_MOST, _MOST))
    slope = cosh * tail / np.sqrt(1 + r**2)
    return [-slope / scale, -r * slope, -cosh, cosh * tail * arc]


def derivatives(r: Array, log_scale: Array, shape: Shape | None) -> Derivatives:
    """Return the log-likelihood of residuals, without its constant, and its derivatives."""
    scale = np.exp(log_scale)
    if shape is None:
        value, by_r, by_rr = -(r**2) / 2 - log_scale, -r, -np.ones_like(r)
    else:
        tail, arc, root = np.exp(shape.log_tail), np.arcsinh(r), 1 / np.sqrt(1 + r**2)
        inner = np.clip(tail * arc - shape.skew, -_MOST, _MOST)
        sinh, cosh, tanh = np.sinh(inner), np.cosh(inner), np.tanh(inner)
        value = -(sinh**2) / 2 + np.log(cosh) + shape.log_tail + np.log(root) - log_scale
        h1, h2 = tanh - sinh * cosh, 1 - tanh**2 - cosh**2 - sinh**2
        by_r = h1 * tail * root - r * root**2
        by_rr = h2 * (tail * root) ** 2 - h1 * tail * r * root**3 - (1 - r**2) * root**4
    first = [-by_r / scale, -r * by_r - 1]
    second = {
        (0, 0): by_rr / scale**2,
        (0, 1): (by_rr * r + by_r) / scale,
        (1, 1): r**2 * by_rr + r * by_r,
    }
    if shape is not None:
        by_rs, by_rt = -h2 * tail * root, h2 * tail**2 * arc * root + h1 * tail * root
        first += [-h1, h1 * tail * arc + 1]
        second |= {
            (0, 2): -by_rs / scale,
            (1, 2): -r * by_rs,
            (0, 3): -by_rt / scale,
            (1, 3): -r * by_rt,
            (2, 2): h2,
            (2, 3): -h2 * tail * arc,
            (3, 3): h2 * (tail * arc) ** 2 + h1 * tail * arc,
        }
    return Derivatives(value, first, second)
