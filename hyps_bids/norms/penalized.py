"""Penalized maximum likelihood of location, scale and shape, with variances from the data.

The model is that of GAMLSS (Rigby and Stasinopoulos 2005): location and log scale are each a sum
of columns times coefficients. Coefficients of a group are independent and normal around 0; the
variance of each group is estimated with them by the update of Fellner and Schall, as generalized
by Wood and Fasiolo (2017). That smooths curves, shrinks sites, and leaves out what the data do not
ask for, all in one way. As in restricted maximum likelihood, the degrees of freedom that the
location costs are given back to the scale (Smyth and Verbyla 1999).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from hyps_bids.norms.family import Derivatives, Shape, derivatives
from hyps_bids.norms.sample import Array

#: Most iterations, and the step in standard errors below which the fit has converged.
_ITERATIONS, _SMALL_STEP = 200, 3e-3
#: Bounds of the precision of a group; the values are in units of their SD.
_LEAST, _MOST = 1e-4, 1e7
#: Precision of the priors of skew and log tail.
_SHAPE_PRIOR = np.array([20.0, 50.0])


@dataclass(frozen=True)
class Problem:
    """What is fitted.

    Attributes
    ----------
    values : ndarray of shape (rows,)
        Values in units of about their SD.
    weights : ndarray of shape (rows,)
        Weight of each row.
    location, scale : ndarray of shape (rows, columns)
        Columns of the location and of the log scale; a constant is the first of each.
    groups : ndarray of int, of the number of all columns
        Group of each column, those of the location first; 0 is for columns without penalty.
    precision : ndarray of the number of groups
        Expected precision of each group, 0 for the first; it stays for groups without columns.
    prior_count : ndarray of the number of groups
        How many coefficients the expectation is worth. Without it, a variance that is estimated as
        0 would mean that there is certainly no effect.
    shaped : bool
        Whether the distribution is sinh-arcsinh or normal.
    """

    values: Array
    weights: Array
    location: Array
    scale: Array
    groups: np.ndarray
    precision: Array
    prior_count: Array
    shaped: bool


@dataclass(frozen=True)
class Fit:
    """Coefficients of location, log scale and, if it is not normal, the shape.

    Attributes
    ----------
    coefficients : ndarray
        In this order.
    covariance : ndarray
        Posterior covariance of the coefficients.
    precision : ndarray
        Precision of each group; the first is 0 and stands for no group.
    evidence : float
        Logarithm of the marginal likelihood (Laplace's approximation).
    freedom : float
        Degrees of freedom that the coefficients use.
    converged : bool
        Whether the last step was small enough.
    iterations : int
        Number of steps.
    """

    coefficients: Array
    covariance: Array
    precision: Array
    evidence: float
    freedom: float
    converged: bool
    iterations: int


def fit_penalized(problem: Problem, start: Fit | None = None) -> Fit:
    """Maximize the penalized likelihood by Newton's method, from a given start if there is one.

    Where there is no maximum, or it cannot be found, the fit has not converged.
    """
    iterations, size = 0, np.inf
    try:
        state = _State(problem, start)
        while size >= _SMALL_STEP and iterations < _ITERATIONS:
            size = state.step()
            iterations += 1
        return state.result(bool(size < _SMALL_STEP), iterations)
    except (LinAlgError, ValueError):
        # SciPy raises these for matrices that are singular or not finite.
        count = len(problem.groups) + (len(_SHAPE_PRIOR) if problem.shaped else 0)
        nothing = np.full(count, np.nan), np.full((count, count), np.nan)
        return Fit(*nothing, problem.precision, -np.inf, np.nan, False, iterations)


class _State:
    """The state of the iteration."""

    def __init__(self, problem: Problem, start: Fit | None) -> None:
        self.problem = problem
        self.split = problem.location.shape[1]
        self.columns = len(problem.groups)
        shape = _SHAPE_PRIOR if problem.shaped else np.empty(0)
        self.groups = np.concatenate([problem.groups, np.zeros(len(shape), dtype=np.intp)])
        self.prior = np.concatenate([np.zeros(self.columns), shape])
        if start is None:
            self.precision = problem.precision.copy()
            self.at = np.zeros(len(self.groups))
            self._start()
        else:
            self.precision, self.at = start.precision.copy(), start.coefficients.copy()
        self.given_back = np.zeros(len(problem.values))
        self._evaluate()
        self._give_back()
        self._evaluate()

    def _start(self) -> None:
        """Start at least squares with penalties."""
        p = self.problem
        weighted = p.weights[:, None] * p.location
        penalty = self.precision[p.groups[: self.split]] + 1e-9
        normal = p.location.T @ weighted + np.diag(penalty)
        self.at[: self.split] = np.linalg.solve(normal, weighted.T @ p.values)
        rest = p.values - p.location @ self.at[: self.split]
        variance = p.weights @ rest**2 / p.weights.sum()
        self.at[self.split] = np.log(max(variance, 1e-12)) / 2

    def _penalty(self) -> Array:
        return self.precision[self.groups] + self.prior

    def _rows(self, at: Array) -> tuple[Array, Array, Shape | None]:
        p = self.problem
        log_scale = p.scale @ at[self.split : self.columns]
        r = (p.values - p.location @ at[: self.split]) * np.exp(-log_scale)
        return r, log_scale, Shape(*at[self.columns :]) if p.shaped else None

    def _objective(self, at: Array) -> tuple[float, Derivatives]:
        r, log_scale, shape = self._rows(at)
        found = derivatives(r, log_scale, shape)
        likelihood = self.problem.weights @ (found.value + self.given_back * log_scale)
        return float(likelihood - self._penalty() @ at**2 / 2), found

    def _evaluate(self) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            self.objective, self.found = self._objective(self.at)
        self.hessian = self._hessian(self.found)

    def _hessian(self, found: Derivatives) -> Array:
        """Return the negative second derivatives without the penalty."""
        p, a, b = self.problem, self.split, self.columns
        w = {key: -p.weights * second for key, second in found.second.items()}
        total = np.empty((len(self.at), len(self.at)))
        total[:a, :a] = p.location.T @ (w[0, 0][:, None] * p.location)
        total[:a, a:b] = p.location.T @ (w[0, 1][:, None] * p.scale)
        total[a:b, a:b] = p.scale.T @ (w[1, 1][:, None] * p.scale)
        for k in range(2, 2 + len(self.at) - b):
            total[:a, b + k - 2] = p.location.T @ w[0, k]
            total[a:b, b + k - 2] = p.scale.T @ w[1, k]
            for j in range(2, k + 1):
                total[b + j - 2, b + k - 2] = w[j, k].sum()
        return np.triu(total) + np.triu(total, 1).T

    def _gradient(self) -> Array:
        p, first = self.problem, self.found.first
        parts = [
            p.location.T @ (p.weights * first[0]),
            p.scale.T @ (p.weights * (first[1] + self.given_back)),
            np.array([p.weights @ one for one in first[2:]]),
        ]
        return np.concatenate(parts) - self._penalty() * self.at

    def _factor(self) -> tuple:
        """Factorize the Hessian, made positive definite where it is not."""
        whole = self.hessian + np.diag(self._penalty())
        diagonal = np.maximum(np.abs(np.diag(whole)), 1e-8)
        for ridge in [0.0, *10.0 ** np.arange(-6, 6)]:
            try:
                return cho_factor(whole + np.diag(ridge * diagonal), lower=True), ridge
            except LinAlgError:
                continue
        raise LinAlgError("the model cannot be solved")

    def step(self) -> float:
        """Take one step of all coefficients, then of all variances; return its size."""
        factor, ridge = self._factor()
        step = cho_solve(factor, self._gradient())
        size = float(np.sqrt(max(step @ (self.hessian + np.diag(self._penalty())) @ step, 0)))
        # A leap of scale or shape may end where the likelihood is flat.
        reach = np.abs(self.problem.scale @ step[self.split : self.columns]).max()
        length = 1 / max(reach, *np.abs(step[self.columns :]), 1.0)
        while length > 1e-4:
            with np.errstate(over="ignore", invalid="ignore"):
                objective, _ = self._objective(self.at + length * step)
            if objective >= self.objective - 1e-9 * (1 + abs(self.objective)):
                break
            length /= 2
        else:
            length = 0.0
        self.at = self.at + length * step
        self._evaluate()
        if size < 3:
            self._update_precision()
        self._give_back()
        self.objective = self._objective(self.at)[0]
        return size if not ridge else max(size, 2 * _SMALL_STEP)

    def _update_precision(self) -> None:
        factor, _ = self._factor()
        variances = np.diag(cho_solve(factor, np.eye(len(self.at))))
        p = self.problem
        for group in range(1, len(self.precision)):
            of = self.groups == group
            if not of.any():
                continue
            now = self.precision[group]
            free = max(of.sum() - now * variances[of].sum(), 0.0) + p.prior_count[group]
            squares = float(self.at[of] @ self.at[of]) + p.prior_count[group] / p.precision[group]
            self.precision[group] = np.clip(free / squares, _LEAST, _MOST)

    def _give_back(self) -> None:
        """Find how much of a degree of freedom the location costs at each row."""
        p, a = self.problem, self.split
        _, log_scale, _ = self._rows(self.at)
        inner = self.hessian[:a, :a] + np.diag(self._penalty()[:a] + 1e-9)
        try:
            covariance = cho_solve(cho_factor(inner, lower=True), np.eye(a))
        except LinAlgError:
            # Far from the maximum the location may not be determined; the next step tries again.
            return
        information = np.maximum(
            -(p.weights @ (self.found.second[0, 0] * np.exp(2 * log_scale))), 0
        )
        leverage = ((p.location @ covariance) * p.location).sum(axis=1)
        each = information / p.weights.sum() * np.exp(-2 * log_scale)
        self.given_back = np.minimum(leverage * each, 1.0)

    def result(self, converged: bool, iterations: int) -> Fit:
        factor, _ = self._factor()
        covariance = cho_solve(factor, np.eye(len(self.at)))
        penalty = self._penalty()
        free = self.problem.weights @ self.found.value - penalty @ self.at**2 / 2
        evidence = free + np.log(penalty[penalty > 0]).sum() / 2 - np.log(np.diag(factor[0])).sum()
        freedom = float((1 - penalty * np.diag(covariance)).sum())
        facts = float(evidence), freedom, converged, iterations
        return Fit(self.at, covariance, self.precision, *facts)
