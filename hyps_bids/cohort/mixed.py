"""Linear mixed models with random effects of subjects, by restricted maximum likelihood (REML).

The likelihood is profiled over the fixed effects and the residual variance, as lme4 does (Bates et
al. 2015, J. Stat. Softw. 67(1), section 3), and its only parameters are the entries of
the Cholesky factor of the relative covariance of the random effects. Fits at the boundary
(a variance of zero, a correlation of one) are therefore ordinary points of a smooth function.
MixedLM of statsmodels often ends without convergence, and takes half a minute for 5,000
subjects instead of about a second; it remains the reference of the tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

#: Newton decrement, in units of the deviance, above which a fit has not converged.
_CONVERGED = 1e-3
#: A standard deviation relative to the residual's, or 1 - |correlation|, that counts as zero.
_SINGULAR = 1e-4
#: Eigenvalues of the Hessian below this one belong to parameters at the boundary.
_FLAT = 1e-8
#: Eigenvalues below this one show a saddle. A variance of zero is one if a larger one fits better,
#: because the deviance does not depend on the sign of its root.
_SADDLE = -0.1


class MixedModel:
    """The REML deviance of one outcome.

    Parameters
    ----------
    outcome : numpy.ndarray
        (scans,), of a magnitude near one.
    matrix : numpy.ndarray
        (scans, coefficients) of full rank.
    random : numpy.ndarray
        (scans, effects): the columns that have random effects, of a magnitude near one.
    blocks : tuple of int
        Numbers of random effects, in the order of the columns, that covary freely with each other.
    subjects : numpy.ndarray
        (scans,)
    """

    def __init__(
        self,
        outcome: np.ndarray,
        matrix: np.ndarray,
        random: np.ndarray,
        blocks: tuple[int, ...],
        subjects: np.ndarray,
    ) -> None:
        # With orthonormal columns, ages of 70 and their products do no harm.
        orthonormal, self._triangle = np.linalg.qr(matrix)
        both = np.column_stack([orthonormal, outcome])
        order = np.argsort(subjects, kind="stable")
        starts = np.unique(subjects[order], return_index=True)[1]
        z, w = random[order], both[order]
        self._zz = np.add.reduceat(z[:, :, None] * z[:, None, :], starts)
        self._zw = np.add.reduceat(z[:, :, None] * w[:, None, :], starts)
        self._ww = both.T @ both
        self.freedom = len(outcome) - matrix.shape[1]
        corners = np.cumsum((0, *blocks[:-1]))
        triangles = [
            np.array(np.tril_indices(n)) + at for n, at in zip(blocks, corners, strict=True)
        ]
        self._rows, self._columns = np.concatenate(triangles, axis=1)

    @property
    def start(self) -> np.ndarray:
        """The parameters of independent random effects as large as the residual."""
        return (self._rows == self._columns).astype(np.float64)

    def factor(self, parameters: np.ndarray) -> np.ndarray:
        """Return the Cholesky factor of the covariance relative to the residual variance."""
        size = self._zz.shape[1]
        factor = np.zeros((size, size))
        factor[self._rows, self._columns] = parameters
        return factor

    def solve(self, parameters: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, float]:
        """Solve for the fixed effects.

        Returns the log determinants, the coefficients of the orthonormal columns, their precision
        times the residual variance, and the residual sum of squares.
        """
        factor = self.factor(parameters)
        inner = factor.T @ self._zz @ factor + np.eye(len(factor))
        root = np.linalg.cholesky(inner)
        half = np.linalg.solve(root, factor.T @ self._zw).reshape(-1, self._ww.shape[1])
        products = self._ww - half.T @ half
        precision, xy = products[:-1, :-1], products[:-1, -1]
        estimate = np.linalg.solve(precision, xy)
        logs = 2 * np.log(np.diagonal(root, axis1=1, axis2=2)).sum()
        logs += np.linalg.slogdet(precision)[1]
        # The smallest positive number keeps the logarithm finite if the fit is perfect.
        squares = max(float(products[-1, -1] - xy @ estimate), np.finfo(float).tiny)
        return float(logs), estimate, precision, squares

    def profiled(self, parameters: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the REML deviance, at the best residual variance, and its slope."""
        logs, _, _, squares = self.solve(parameters)
        deviance = logs + self.freedom * float(np.log(squares))
        return deviance, self._slope(parameters, self.freedom / squares)

    def gradient(self, parameters: np.ndarray) -> np.ndarray:
        """Return the slope of the REML deviance; the last parameter is the residual SD."""
        sd, squares = parameters[-1], self.solve(parameters[:-1])[3]
        along_sd = 2 * (self.freedom - squares / sd**2) / sd
        return np.append(self._slope(parameters[:-1], 1 / sd**2), along_sd)

    def _slope(self, parameters: np.ndarray, weight: float) -> np.ndarray:
        """Differentiate log|V| + log|X'V^-1 X| + weight * squares.

        The derivative along the covariance follows from each subject's Z'V^-1 W, where W = [X, y].
        """
        _, estimate, precision, _ = self.solve(parameters)
        factor = self.factor(parameters)
        inner = factor.T @ self._zz @ factor + np.eye(len(factor))
        left = np.eye(len(factor)) - self._zz @ factor @ np.linalg.solve(inner, factor.T[None])
        weighted = left @ self._zw
        x, e = weighted[..., :-1], weighted[..., -1] - weighted[..., :-1] @ estimate
        slope = (left @ self._zz).sum(axis=0) - weight * e.T @ e
        slope -= np.einsum("sip,pq,sjq->ij", x, np.linalg.inv(precision), x, optimize=True)
        return np.asarray(2 * (slope @ factor)[self._rows, self._columns])

    def covariance(self, parameters: np.ndarray) -> np.ndarray:
        """Return the covariance of the coefficients; the last parameter is the residual SD."""
        inverse = np.linalg.inv(self._triangle)
        precision = self.solve(parameters[:-1])[2]
        return np.asarray(parameters[-1] ** 2 * inverse @ np.linalg.solve(precision, inverse.T))

    def coefficients(self, parameters: np.ndarray) -> np.ndarray:
        """Return the coefficients of the columns of the design matrix."""
        return np.linalg.solve(self._triangle, self.solve(parameters)[1])


@dataclass(frozen=True)
class MixedFit:
    """A fitted :class:`MixedModel`.

    Attributes
    ----------
    model : MixedModel
        What was fitted.
    parameters : numpy.ndarray
        Entries of the Cholesky factor, followed by the residual standard deviation.
    """

    model: MixedModel
    parameters: np.ndarray

    @property
    def sd(self) -> float:
        """The residual standard deviation."""
        return float(self.parameters[-1])

    @property
    def factor(self) -> np.ndarray:
        """The Cholesky factor of the relative covariance of the random effects."""
        return self.model.factor(self.parameters[:-1])

    @property
    def singular(self) -> np.ndarray:
        """Whether each random effect has no variance of its own (effects,)."""
        return np.abs(np.diag(self.factor)) < _SINGULAR

    @cached_property
    def covariance(self) -> np.ndarray:
        """The covariance of the coefficients (coefficients, coefficients)."""
        return self.model.covariance(self.parameters)

    @cached_property
    def estimate(self) -> np.ndarray:
        """The coefficients (coefficients,)."""
        return self.model.coefficients(self.parameters[:-1])

    @cached_property
    def _hessian(self) -> tuple[np.ndarray, np.ndarray]:
        from statsmodels.tools.numdiff import approx_fprime

        hessian = approx_fprime(self.parameters, self.model.gradient, centered=True)
        values, vectors = np.linalg.eigh((hessian + hessian.T) / 2)
        return values, vectors

    @cached_property
    def converged(self) -> bool:
        """Whether a further step of Newton's method would not change the deviance."""
        values, vectors = self._hessian
        gradient = self.model.gradient(self.parameters) @ vectors
        curved = values > _FLAT
        decrement = float((gradient[curved] ** 2 / values[curved]).sum())
        is_minimum = values.min() > _SADDLE and decrement < _CONVERGED
        return bool(is_minimum and np.isfinite(self.covariance).all())

    @cached_property
    def _gradients(self) -> np.ndarray:
        """Derivatives of the covariance along the Hessian's eigenvectors, as standard errors."""
        values, vectors = self._hessian
        curved = values > _FLAT
        steps = vectors[:, curved] * np.sqrt(2 / values[curved])
        size = 1e-4 / max(1.0, float(np.abs(steps).max()))
        return np.array(
            [
                self.model.covariance(self.parameters + size * step)
                - self.model.covariance(self.parameters - size * step)
                for step in steps.T
            ]
        ) / (2 * size)

    def degrees_of_freedom(self, contrasts: np.ndarray) -> np.ndarray:
        """Return Satterthwaite's degrees of freedom of contrasts (contrasts, coefficients).

        As in lmerTest (Kuznetsova et al. 2017, J. Stat. Softw. 82(13)), with the observed
        information of the variance parameters; those at the boundary are left out.
        """
        variance = np.einsum("ci,ij,cj->c", contrasts, self.covariance, contrasts)
        changes = np.einsum("ci,kij,cj->kc", contrasts, self._gradients, contrasts)
        return np.asarray(2 * variance**2 / (changes**2).sum(axis=0))


def fit_mixed(model: MixedModel) -> MixedFit:
    """Minimize the REML deviance; see :attr:`MixedFit.converged`."""
    from scipy.optimize import minimize

    options = {"ftol": 1e-14, "gtol": 1e-6, "maxiter": 500}
    for scale in (1.0, 0.1, 10.0):
        start = scale * model.start
        found = minimize(model.profiled, start, jac=True, method="L-BFGS-B", options=options).x
        fit = MixedFit(model, np.append(found, np.sqrt(model.solve(found)[3] / model.freedom)))
        if fit.converged:
            break
    return fit
