"""Scores of the controls themselves, from models that did not see them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hyps_bids.norms.fit import problem_of, usable_controls, weights_of
from hyps_bids.norms.norm import Norm
from hyps_bids.norms.penalized import fit_penalized
from hyps_bids.norms.sample import (
    NOT_FITTED,
    Array,
    NormSample,
    NormScores,
)


def score_out_of_fold(
    norm: Norm, sample: NormSample, values: Array, *, folds: int = 10
) -> NormScores:
    """Score the scans of the controls of a norm, each by a fit without its participant.

    `sample` and `values` are those that the norm was fitted to. The kind of distribution and the
    columns are kept; the coefficients and the variances of sites and curves are fitted anew. Scans
    of a fold whose fit does not converge have no score.
    """
    values = np.asarray(values, dtype=np.float64)
    scores = norm.score(sample, values)
    usable, _, _ = usable_controls(sample, values, norm.settings)
    fold = participant_folds(sample.take(usable), folds)
    inside, weights = sample.take(usable), weights_of(sample.participant[usable])
    standardized = norm.standardized(values[usable])
    places = np.flatnonzero(usable)
    for k in range(fold.max() + 1):
        out = fold == k
        rest = inside.take(~out)
        problem = problem_of(norm.design, rest, standardized[~out], weights[~out], norm.shaped)
        fit = fit_penalized(problem, norm.fit)
        found = replace(norm, fit=fit).score(inside.take(out), values[usable][out])
        if not fit.converged:
            found = found.without(NOT_FITTED)
        for name, part in vars(found).items():
            getattr(scores, name)[places[out]] = part
    return scores


def participant_folds(sample: NormSample, folds: int) -> NDArray[np.intp]:
    """Deal participants out to folds, so that each fold has all sites, sexes and ages.

    Examples
    --------
    >>> texts = np.array(["a", "a", "b", "c"], dtype=object)
    >>> ages = np.array([20.0, 21, 50, 30])
    >>> participant_folds(NormSample(texts, ages, texts, ages, np.full(4, "")), 2).tolist()
    [0, 0, 1, 0]
    """
    _, first, which = np.unique(
        sample.participant.astype(str), return_index=True, return_inverse=True
    )
    one = sample.take(first)
    order = np.lexsort((one.age, one.sex.astype(str), one.site.astype(str)))
    dealt = np.empty(len(first), dtype=np.intp)
    dealt[order] = np.arange(len(first)) % folds
    return np.asarray(dealt[which])
