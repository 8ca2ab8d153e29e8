"""Scores of the controls themselves, from models that did not see them."""

from __future__ import annotations

from hyps_bids.norms.norm import Norm
from hyps_bids.norms.sample import Array, NormSample, NormScores


def score_out_of_fold(
    norm: Norm, sample: NormSample, values: Array, *, folds: int = 10
) -> NormScores:
    """Score the scans of the controls of a norm, each by a fit without its participant.

    `sample` and `values` are those that the norm was fitted to; its family of distributions and
    the place of its knots are kept.
    """
    raise NotImplementedError
