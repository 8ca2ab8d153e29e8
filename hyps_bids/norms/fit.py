"""Fit the normative model of one measure to controls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyps_bids.errors import BadData
from hyps_bids.messages import format_count, join_names
from hyps_bids.norms.design import EXPECTED_SD, PRIOR_COUNT, SEXES, Design, make_design
from hyps_bids.norms.norm import MOST_Z, Norm
from hyps_bids.norms.penalized import Fit, Problem, fit_penalized
from hyps_bids.norms.sample import (
    FEW,
    FEWEST,
    FEWEST_AT_SITE,
    Array,
    NormSample,
    NormSettings,
    Texts,
)

#: Share of the controls whose intracranial volume must be known for a model with it.
_ENOUGH_ICV = 0.5
#: Log Bayes factor that a less simple distribution must gain.
_GAIN = 1.0
#: A site with fewer participants has an uncertain offset of its own (measured, see docs/norms.md).
FEW_AT_SITE = 25


class _Family(NamedTuple):
    """A distribution that was fitted."""

    log: bool
    center: float
    unit: float
    shaped: bool
    fit: Fit


def fit_norm(sample: NormSample, values: Array, settings: NormSettings) -> Norm:
    """Fit the model of one measure to the scans of controls.

    Each participant weighs the same, whatever the number of scans. The distribution is normal or
    sinh-arcsinh, of the values or of their logarithms, whichever has the best marginal likelihood.

    Raises
    ------
    BadData
        ``norm-too-few``: fewer than 20 participants have all that the model needs.
        ``norm-constant``: the measure has the same value everywhere.
        ``norm-not-converged``: no distribution could be fitted.
    """
    values = np.asarray(values, dtype=np.float64)
    rows, icv, remarks = usable_controls(sample, values, settings)
    name = settings.measure or "the measure"
    people = len(set(sample.participant[rows]))
    if people < FEWEST:
        needed = ", ".join(["value", "age", "sex", *["intracranial volume"] * icv])
        raise BadData(
            f"{name}: only {format_count(people, 'control')} have all that a norm needs ({needed}),"
            f" and it needs at least {FEWEST}. Give more controls, or use a norm of others.",
            code="norm-too-few",
        )
    sample, values = sample.take(rows), values[rows]
    if not np.ptp(values) > 1e-9 * np.abs(values).max():
        raise BadData(
            f"{name}: all controls have the same value, so there is no norm.", code="norm-constant"
        )
    weights = weights_of(sample.participant)
    design = make_design(sample, weights, icv=icv, sites=settings.sites)
    family = _best_family(_families(design, sample, values, weights, settings.positive))
    if family is None:
        raise BadData(
            f"{name}: no distribution could be fitted to the controls, so there is no norm. See "
            "whether most of them have the same value, or some are far from the others.",
            code="norm-not-converged",
        )
    facts = _facts(sample, values, design, family)
    remarks += _remarks(facts, design)
    norm = Norm(settings, facts, tuple(remarks), design, *family)
    far = int((np.abs(norm.score(sample, values).z) >= MOST_Z).sum())
    if far:
        norm = replace(norm, remarks=(*norm.remarks, _about_outliers(far)))
    return norm


def usable_controls(
    sample: NormSample, values: Array, settings: NormSettings
) -> tuple[NDArray[np.bool_], bool, list[str]]:
    """Select the scans that have all that the model needs, and decide whether it has an ICV.

    Returns
    -------
    rows : ndarray of bool
        The scans.
    icv : bool
        Whether the model has the intracranial volume: it is left out if it is unknown for most.
    remarks : list of str
        What the user should know about this.
    """
    remarks = []
    rows = np.isfinite(values) & np.isfinite(sample.age)
    sexed = np.isin(sample.sex, SEXES)
    if (rows & sexed).any():
        rows &= sexed
    else:
        remarks.append("The sex of no control is known, so the model has no effect of sex.")
    known = np.isfinite(sample.icv) & (sample.icv > 0)
    icv = settings.icv and bool((rows & known).sum() >= _ENOUGH_ICV * max(rows.sum(), 1))
    if settings.icv and not icv:
        remarks.append(
            "The intracranial volume of most controls is not known, so the model is without it: "
            "scores of people with large and small heads are not comparable."
        )
    if icv:
        rows &= known
    if lost := int((~rows).sum()):
        remarks.append(
            f"{format_count(lost, 'scan')} of controls left out, because the value, age, sex or "
            "intracranial volume is missing."
        )
    return rows, icv, remarks


def weights_of(participant: Texts) -> Array:
    """Return 1 / number of scans of the participant for each scan.

    Examples
    --------
    >>> weights_of(np.array(["a", "b", "b"], dtype=object)).tolist()
    [1.0, 0.5, 0.5]
    """
    _, which, counts = np.unique(participant.astype(str), return_inverse=True, return_counts=True)
    return np.asarray(1 / counts[which])


def problem_of(
    design: Design, sample: NormSample, values: Array, weights: Array, shaped: bool
) -> Problem:
    """Put together what is fitted; `values` are in the units of the model."""
    columns = design.columns(sample)
    expected = EXPECTED_SD**-2.0, PRIOR_COUNT
    return Problem(values, weights, *columns, *expected, shaped=shaped)


def _best_family(families: Iterable[tuple[float, _Family]]) -> _Family | None:
    """Return the best distribution; a simpler one is preferred to an equal one."""
    best, most = None, -np.inf
    for evidence, family in families:
        if best is None or evidence > most + _GAIN:
            best, most = family, evidence
    return best


def _families(
    design: Design, sample: NormSample, values: Array, weights: Array, positive: bool
) -> Iterator[tuple[float, _Family]]:
    for log in (False, True) if positive and (values > 0).all() else (False,):
        raw = np.log(values) if log else values
        center = float(weights @ raw / weights.sum())
        unit = float(np.sqrt(weights @ (raw - center) ** 2 / weights.sum()))
        jacobian = -weights.sum() * np.log(unit) - (weights @ raw if log else 0.0)
        for shaped in (False, True):
            problem = problem_of(design, sample, (raw - center) / unit, weights, shaped)
            fit = fit_penalized(problem)
            if not fit.converged:
                continue
            yield fit.evidence + float(jacobian), _Family(log, center, unit, shaped, fit)


def _facts(sample: NormSample, values: Array, design: Design, family: _Family) -> dict[str, Any]:
    def people(rows: NDArray[np.bool_]) -> int:
        return len(set(sample.participant[rows]))

    every = np.ones(len(sample), dtype=bool)
    return {
        "Participants": people(every),
        "Scans": len(sample),
        "Ages": [float(sample.age.min()), float(sample.age.max())],
        "Sexes": {sex: people(sample.sex == sex) for sex in design.sexes},
        "Sites": {site: people(sample.site == site) for site in design.sites},
        "ICV": list(design.icv[2:]) or None,
        "Values": [float(values.min()), float(values.max())],
        "Distribution": ("sinh-arcsinh" if family.shaped else "normal")
        + " of logarithms" * family.log,
        "DegreesOfFreedom": round(family.fit.freedom, 2),
    }


def _about_outliers(count: int) -> str:
    return (
        f"{format_count(count, 'scan')} of controls with a z-score beyond ±{MOST_Z:g}: look at the "
        "images. Errors among controls make other people look too normal."
    )


def _remarks(facts: dict[str, Any], design: Design) -> list[str]:
    remarks = []
    if (people := facts["Participants"]) < FEW:
        remarks.append(
            f"The norm rests on only {format_count(people, 'control')} (fewer than {FEW}), so "
            "centiles are very uncertain; see their intervals."
        )
    if not design.age.unit:
        remarks.append(
            "All controls are of about the same age, so the norm is valid for that age only."
        )
    if len(design.sexes) == 1:
        remarks.append(f"All controls have the sex {design.sexes[0]}, so others have no score.")
    sites = facts["Sites"].items()
    if lone := [f"{site} ({n})" for site, n in sites if n < FEWEST_AT_SITE]:
        remarks.append(
            f"Sites with fewer than {FEWEST_AT_SITE} controls count as uncalibrated: "
            f"{join_names(lone)}."
        )
    few = [f"{site} ({n})" for site, n in sites if FEWEST_AT_SITE <= n < FEW_AT_SITE]
    if few and len(sites) > 1:
        remarks.append(
            f"Sites with fewer than {FEW_AT_SITE} controls are drawn towards an average site: "
            f"{join_names(few)}."
        )
    return remarks
