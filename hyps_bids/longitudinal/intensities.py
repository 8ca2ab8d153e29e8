"""Bring the intensities of all scans of one person to one scale."""

from __future__ import annotations

import numpy as np

#: Voxels darker than this share of the median are left out: their logarithms are mostly noise.
_DARK = 0.25
#: Rounds of matching to the mean, and of weighting within each.
_ROUNDS, _WEIGHTINGS = 3, 4
#: Tukey's constant: residuals beyond this many robust standard deviations count nothing.
_TUKEY = 4.685
#: Every so many voxels are enough for the fit.
_EVERY = 3


def match(images: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """Remove what makes scans of one head differ smoothly: scale, bias field and gamma.

    In the logarithm, a bias field adds a smooth function of place, and gamma multiplies. Both are
    fitted together to the difference of each scan from the mean of all, with weights that leave out
    real changes. A field of second order is enough for a box, and cannot imitate atrophy. Matching
    the means of tissues alone leaves differences of the bias fields, which raise the standard
    deviation of the boundary shift integral without change from 0.2 to 3 %.

    Parameters
    ----------
    images, covered : numpy.ndarray
        Intensities of a box, and masks of where the scans have voxels, shape ``(scans, x, y, z)``.

    Returns
    -------
    numpy.ndarray
        Intensities on the scale of the geometric mean of all scans, float32.
    """
    everywhere = covered.all(axis=0).ravel()
    if np.count_nonzero(everywhere) < 1000:
        return images
    values = images.reshape(len(images), -1).astype(np.float64)
    # Ratio images have negative values.
    lowest = np.minimum(values[:, everywhere].min(axis=1), 0)
    values = values - lowest[:, None]
    usual = np.median(values[:, everywhere], axis=1)[:, None]
    used = np.flatnonzero(everywhere & (values > _DARK * usual).all(axis=0))[::_EVERY]
    if len(used) < 300:
        return images
    logs = np.log(np.maximum(values, 1e-3 * np.maximum(usual, 1e-6)))
    place = _polynomial(images.shape[1:])
    for _ in range(_ROUNDS):
        mean = logs.mean(axis=0)
        design = np.concatenate([place, (mean - mean[used].mean())[:, None]], axis=1)
        logs = np.stack([each - design @ _fit(design[used], (each - mean)[used]) for each in logs])
    matched: np.ndarray = np.exp(logs).astype(np.float32).reshape(images.shape)
    return matched


def _polynomial(shape: tuple[int, ...]) -> np.ndarray:
    """Return the terms of second order of the place in a box, shape ``(voxels, 10)``."""
    lines = [np.linspace(-1, 1, side) for side in shape]
    x, y, z = (axis.ravel() for axis in np.meshgrid(*lines, indexing="ij"))
    return np.stack([np.ones_like(x), x, y, z, x * x, y * y, z * z, x * y, x * z, y * z], axis=1)


def _fit(design: np.ndarray, difference: np.ndarray) -> np.ndarray:
    """Fit a linear model by least squares with Tukey's weights."""
    weights = np.ones(len(difference))
    answer = np.zeros(design.shape[1])
    for _ in range(_WEIGHTINGS):
        weighted = design * weights[:, None]
        answer = np.linalg.lstsq(weighted.T @ design, weighted.T @ difference, rcond=1e-9)[0]
        residual = difference - design @ answer
        scale = max(1.4826 * float(np.median(np.abs(residual))), 1e-9)
        weights = np.maximum(1 - (residual / (_TUKEY * scale)) ** 2, 0) ** 2
    return answer
