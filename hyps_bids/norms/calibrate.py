"""Add sites to a norm, from controls of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from scipy.optimize import minimize

from hyps_bids.errors import BadData
from hyps_bids.messages import format_count
from hyps_bids.norms.design import SCALE_SITE, SITE, Columns, Design
from hyps_bids.norms.family import derivatives
from hyps_bids.norms.fit import FEW_AT_SITE, weights_of
from hyps_bids.norms.folds import participant_folds
from hyps_bids.norms.norm import Norm, Rows
from hyps_bids.norms.sample import FEWEST_AT_SITE, Array, NormSample, NormScores

#: The prior of the offsets is Student's with these degrees of freedom, so that a scanner that is
#: quite different is believed; its variance is updated this many times.
_TAIL, _UPDATES = 4.0, 8


def calibrate_site(norm: Norm, sample: NormSample, values: Array) -> Norm:
    """Add the sites of new controls; everything else about the norm stays as it is.

    The offsets of location and scale of a new site are shrunk towards the average site: with few
    controls, a site stays nearly average, and the intervals of its scores say how uncertain it is.
    Scans of sites that the norm knows already are not used. Sites with fewer than 10 controls stay
    uncalibrated.

    Raises
    ------
    BadData
        ``norm-site-no-controls``: the norm is valid for none of the scans of a new site.
        ``norm-site-not-fitted``: the offsets cannot be measured.
    """
    for site in sorted(set(sample.site) - set(norm.known_sites)):
        rows = sample.site == site
        norm = _add_site(norm, site, sample.take(rows), np.asarray(values, dtype=float)[rows])
    return norm


def score_held_out(norm: Norm, sample: NormSample, values: Array, folds: int = 10) -> NormScores:
    """Score the controls of new sites, each by offsets that were measured without its participant.

    The arguments are those of :func:`calibrate_site`; `norm` is without the new sites.
    """
    scores = norm.score(sample, values)
    # Whether a site has enough controls is asked of all of them, not of those of a fold.
    facts = calibrate_site(norm, sample, values).facts
    fold = participant_folds(sample, folds)
    for k in range(fold.max() + 1):
        out = fold == k
        rest = calibrate_site(norm, sample.take(~out), values[~out])
        found = replace(rest, facts=facts).score(sample.take(out), values[out])
        for name, part in vars(found).items():
            getattr(scores, name)[out] = part
    return scores


def _add_site(norm: Norm, site: str, sample: NormSample, values: Array) -> Norm:
    valid = norm.reasons(sample, values) == ""
    if not valid.any():
        raise BadData(
            f"{site}: the norm of {norm.settings.measure or 'the measure'} is valid for none of "
            "the controls of this site (see the reasons in the table of scores).",
            code="norm-site-no-controls",
        )
    sample, values = sample.take(valid), norm.standardized(values[valid])
    weights, rows = weights_of(sample.participant), Rows(norm, sample)
    prior = expected = norm.fit.precision[[SITE, SCALE_SITE]]

    def residuals(offsets: Array) -> tuple[Array, Array]:
        log_scale = np.log(rows.scale) + offsets[1]
        return (values - rows.location - offsets[0]) * np.exp(-log_scale), log_scale

    def loss(offsets: Array) -> tuple[float, Array]:
        found = derivatives(*residuals(offsets), norm.shape)
        slope = np.array([weights @ found.first[0], weights @ found.first[1]])
        value = weights @ found.value - prior @ offsets**2 / 2
        return -float(value), -(slope - prior * offsets)

    offsets = np.zeros(2)
    for _ in range(_UPDATES):
        with np.errstate(over="ignore", invalid="ignore"):
            offsets = minimize(loss, offsets, jac=True, method="BFGS").x
        prior = (1 + _TAIL) / (offsets**2 + _TAIL / expected)
    r, log_scale = residuals(offsets)
    second = derivatives(r, log_scale, norm.shape).second
    curvature = {key: -weights * value for key, value in second.items()}
    return _with_site(norm, site, sample, offsets, curvature, rows.columns, prior)


def _with_site(
    norm: Norm,
    site: str,
    sample: NormSample,
    offsets: Array,
    curvature: Mapping[tuple[int, int], Array],
    columns: Columns,
    prior: Array,
) -> Norm:
    """Return the norm with the site, whose offsets depend on the other coefficients."""
    own = np.array(
        [
            [curvature[0, 0].sum() + prior[0], curvature[0, 1].sum()],
            [curvature[0, 1].sum(), curvature[1, 1].sum() + prior[1]],
        ]
    )
    if not (np.isfinite(own).all() and (np.linalg.eigvalsh(own) > 0).all()):
        raise BadData(
            f"{site}: the offset of this site from those of the norm cannot be measured; see "
            "whether the measures of its controls are plausible.",
            code="norm-site-not-fitted",
        )
    cross = np.empty((2, len(norm.fit.coefficients)))
    for k in range(2):
        location = curvature[0, k] @ columns.location
        scale = curvature[k, 1] @ columns.scale
        shape = [curvature[k, j].sum() for j in (2, 3)] if norm.shaped else []
        cross[k] = np.concatenate([location, scale, shape])
    follow = -np.linalg.solve(own, cross)
    old = norm.fit.covariance
    split, end = columns.location.shape[1], len(columns.groups)
    joint = np.block(
        [
            [old, old @ follow.T],
            [follow @ old, np.linalg.inv(own) + follow @ old @ follow.T],
        ]
    )
    count = len(old)
    order = [*range(split), count, *range(split, end), count + 1, *range(end, count)]
    coefficients = np.concatenate([norm.fit.coefficients, offsets])[order]
    fit = replace(norm.fit, coefficients=coefficients, covariance=joint[np.ix_(order, order)])
    people = len(set(sample.participant))
    design: Design = replace(
        norm.design,
        sites=(*(name for name in norm.design.sites if name != site), site),
        # An offset from too few controls that the site has already is not used any more.
        site_columns=(*(n if n != site else None for n in norm.design.site_columns), site),
    )
    remarks = norm.remarks
    if people < FEWEST_AT_SITE:
        remarks += (
            f"The site {site} has only {format_count(people, 'control')} (fewer than "
            f"{FEWEST_AT_SITE}), so it stays uncalibrated.",
        )
    elif people < FEW_AT_SITE:
        remarks += (
            f"The site {site} was added with only {format_count(people, 'control')} (fewer than "
            f"{FEW_AT_SITE}), so its scores are drawn towards those of an average site.",
        )
    facts = {**norm.facts, "Sites": {**norm.facts["Sites"], site: people}}
    return replace(norm, facts=facts, remarks=remarks, design=design, fit=fit)
