"""Standard errors that hold when the covariance within subjects is not the one of the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

#: Eigenvalues of 1 - leverage below which a subject alone determines a coefficient.
_DETERMINED = 1e-10


@dataclass(frozen=True)
class ClusterRobust:
    """The CR2 covariance of coefficients, and the degrees of freedom of its contrasts.

    The source of both is Pustejovsky & Tipton (2018), J. Bus. Econ. Stat. 36(4), 672-683, who
    extend Bell & McCaffrey (2002); ``clubSandwich::vcovCR(type = "CR2")`` and ``coef_test(test =
    "Satterthwaite")`` are the same in R.

    Attributes
    ----------
    covariance : numpy.ndarray
        (coefficients, coefficients); NaN for those that one subject alone determines, as the only
        one of its group.
    inverse : numpy.ndarray
        From coefficients of the orthonormal columns to those of the design (both: coefficients).
    matrix : numpy.ndarray
        The whitened design with orthonormal columns (scans, coefficients).
    weights : numpy.ndarray
        (scans, coefficients): each subject's rows of `matrix` times its adjustment matrix.
    starts : numpy.ndarray
        First scan of each subject.
    """

    covariance: np.ndarray
    inverse: np.ndarray
    matrix: np.ndarray
    weights: np.ndarray
    starts: np.ndarray

    def degrees_of_freedom(self, contrasts: np.ndarray) -> np.ndarray:
        """Return Satterthwaite's degrees of freedom of contrasts (contrasts, coefficients)."""
        return np.array([self.hotelling(contrast[None]) for contrast in contrasts])

    def hotelling(self, contrasts: np.ndarray) -> float:
        """Return the degrees of freedom of Hotelling's T squared of several contrasts together.

        This is the test HTZ of Pustejovsky & Tipton, for which the covariance of the contrasts is a
        Wishart matrix with the same sum of variances. The products of the subjects' vectors,
        p_ij = d_ij u_i'u_i - v_i'v_j with v_i = Q_i'u_i, are summed without the matrix of all pairs
        of subjects.
        """
        basis = self.inverse.T @ contrasts.T
        # Contrasts that are independent, with variances of one, if the working model is right.
        u = self.weights @ np.linalg.qr(basis)[0]
        count = u.shape[1]
        own = np.add.reduceat(u[:, :, None] * u[:, None, :], self.starts)
        v = np.add.reduceat(u[:, :, None] * self.matrix[:, None, :], self.starts)
        shared = v @ v.transpose(0, 2, 1)
        crossed = np.einsum("isa,itb->stab", v, v, optimize=True)

        def total(s: int, t: int, k: int, m: int) -> float:
            alone = own[:, s, t] * own[:, k, m]
            mixed = own[:, s, t] * shared[:, k, m] + own[:, k, m] * shared[:, s, t]
            return float((alone - mixed).sum() + (crossed[s, k] * crossed[t, m]).sum())

        pairs = product(range(count), repeat=2)
        variance = sum(total(s, s, t, t) + total(s, t, t, s) for s, t in pairs)
        return count * (count + 1) / variance


def cluster_robust(
    residuals: np.ndarray,
    matrix: np.ndarray,
    random: np.ndarray,
    subjects: np.ndarray,
) -> ClusterRobust:
    """Estimate the covariance of generalized least squares from the residuals of each subject.

    Parameters
    ----------
    residuals : numpy.ndarray
        (scans,)
    matrix : numpy.ndarray
        (scans, coefficients) of full rank.
    random : numpy.ndarray
        (scans, effects): random effects of variance one, relative to that of the residual; they
        are the working model, which needs not be right.
    subjects : numpy.ndarray
        (scans,)
    """
    order = np.argsort(subjects, kind="stable")
    e, x, z = residuals[order].copy(), matrix[order].copy(), random[order]
    _, starts, sizes = np.unique(subjects[order], return_index=True, return_counts=True)
    for at in _same_size(starts, sizes):
        identity = np.eye(at.shape[1])
        root = np.linalg.cholesky(identity + z[at] @ z[at].transpose(0, 2, 1))
        e[at] = np.linalg.solve(root, e[at][..., None])[..., 0]
        x[at] = np.linalg.solve(root, x[at])
    q, triangle = np.linalg.qr(x)
    inverse = np.linalg.inv(triangle)
    weights, alone = np.empty_like(q), np.zeros(q.shape[1], dtype=bool)
    for at in _same_size(starts, sizes):
        left = np.eye(at.shape[1]) - q[at] @ q[at].transpose(0, 2, 1)
        values, vectors = np.linalg.eigh(left)
        powers = np.where(values > _DETERMINED, np.maximum(values, _DETERMINED) ** -0.5, 0.0)
        weights[at] = (vectors * powers[:, None, :]) @ vectors.transpose(0, 2, 1) @ q[at]
        determined = (vectors * (values <= _DETERMINED)[:, None, :]).transpose(0, 2, 1) @ q[at]
        alone |= _touched(inverse, determined.reshape(-1, q.shape[1]))
    scores = np.add.reduceat(weights * e[:, None], starts) @ inverse.T
    return ClusterRobust(_without(scores.T @ scores, alone), inverse, q, weights, starts)


def heteroscedasticity_consistent(residuals: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return the HC3 covariance of the coefficients of least squares (coefficients, coefficients).

    It is that of Long & Ervin (2000), Am. Stat. 54(3), and of statsmodels, which however has no
    errors at all if one scan alone determines a coefficient. Here only that one has none.

    Parameters
    ----------
    residuals : numpy.ndarray
        (scans,)
    matrix : numpy.ndarray
        (scans, coefficients) of full rank.
    """
    q, triangle = np.linalg.qr(matrix)
    inverse = np.linalg.inv(triangle)
    left = 1 - (q**2).sum(axis=1)
    alone = left <= _DETERMINED
    scores = q * np.where(alone, 0.0, residuals / np.where(alone, 1.0, left))[:, None] @ inverse.T
    return _without(scores.T @ scores, _touched(inverse, q[alone]))


def _touched(inverse: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Tell which coefficients depend on rows that are fitted perfectly."""
    shares = np.abs(rows @ inverse.T) / np.sqrt((inverse**2).sum(axis=1))
    return np.asarray((shares > 1e-6).any(axis=0))


def _without(covariance: np.ndarray, unknown: np.ndarray) -> np.ndarray:
    return np.where(unknown[:, None] | unknown[None, :], np.nan, covariance)


def _same_size(starts: np.ndarray, sizes: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the positions of the scans of all subjects with one number of scans, row by row."""
    for size in np.unique(sizes):
        yield starts[sizes == size][:, None] + np.arange(size)
