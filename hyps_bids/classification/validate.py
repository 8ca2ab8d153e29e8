"""Validate and fit the classifiers of one plan."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from hyps_bids.classification.card import sizes
from hyps_bids.classification.contrast import Ints, LabeledSubjects
from hyps_bids.classification.cross_validation import (
    SELECTED,
    Computing,
    Predictions,
    Search,
    choose,
    nested_cv,
    predict_subjects,
    search_all,
    site_folds,
    stratified_folds,
)
from hyps_bids.classification.intervals import compare, metric_rows
from hyps_bids.classification.permutation import PermutationTest, importance, permutation_test
from hyps_bids.classification.plan import Plan
from hyps_bids.messages import format_count
from hyps_bids.resources import available_cpus
from hyps_bids.settings import Settings

_LOG = logging.getLogger("hyps_bids")

CROSS_VALIDATION, LEAVE_ONE_SITE_OUT = "cross-validation", "leave-one-site-out"
HELD_OUT = "held-out"
#: Sets of features to compare: the first minus the second.
_PAIRS = (
    ("both", "metadata"),
    ("both", "volumes"),
    ("volumes", "metadata"),
    ("both_noncircular", "metadata_noncircular"),
    ("both", "both_noncircular"),
)

Row = dict[str, float | str]


@dataclass(frozen=True)
class Results:
    """The validated classifiers of a plan, with tables as they are written."""

    #: By validation and set of features, held-out subjects excluded.
    predictions: dict[str, dict[str, Predictions]]
    #: Predictions of the held-out subjects from the full set of features.
    held_out: Predictions | None
    metrics: pd.DataFrame
    comparisons: pd.DataFrame
    permutation_tests: dict[str, PermutationTest]
    importance: pd.DataFrame
    #: The final model, fitted on all subjects with the full set of features.
    final: Search
    #: Validations that could not be done.
    warnings: list[str]


def validate(settings: Settings, plan: Plan) -> Results:
    """Cross-validate all estimators, test the final models, and compare the sets of features."""

    def progress(text: str) -> None:
        _LOG.info("%s: %s", plan.contrast.text, text)

    data, full = plan.subjects, plan.full_set
    progress(f"subjects: {sizes(data.counts)}, {format_count(len(data.subject), 'scan')}")
    computing = Computing(settings.seed, settings.nprocs or available_cpus(), progress)
    folds, warnings = _folds(settings, plan)
    predictions = {
        validation: nested_cv(data, plan.sets, one, plan.estimators, computing, settings.threshold)
        for validation, one in folds.items()
    }
    finals = search_all(data, plan.sets, plan.estimators, computing, settings.threshold)
    held_out = _predict_held_out(plan, finals)
    tested = [(validation, data, sets) for validation, sets in predictions.items()]
    if plan.held_out is not None:
        tested.append((HELD_OUT, plan.held_out, held_out))
    main = predictions[CROSS_VALIDATION][full]
    return Results(
        predictions=predictions,
        held_out=held_out.get(full),
        metrics=pd.DataFrame([row for one in tested for row in _metric_rows(*one)]),
        comparisons=pd.DataFrame([row for one in tested for row in _comparison_rows(*one)]),
        permutation_tests=_permutation_tests(settings, plan, computing),
        importance=importance(data, plan.sets[full], main, computing),
        final=choose(finals[full].values()),
        warnings=warnings,
    )


def _folds(settings: Settings, plan: Plan) -> tuple[dict[str, Ints], list[str]]:
    """Assign subjects to the folds of each validation; the warnings say what cannot be done."""
    label = plan.subjects.label
    folds = {
        CROSS_VALIDATION: stratified_folds(label, settings.folds, settings.repeats, settings.seed)
    }
    if plan.sites is not None and settings.leave_one_site_out:
        by_site = site_folds(label, plan.sites)
        if (by_site < 0).all():
            return folds, ["leave-one-site-out: no site can be left out"]
        folds[LEAVE_ONE_SITE_OUT] = by_site
    return folds, []


def _predict_held_out(
    plan: Plan, finals: Mapping[str, Mapping[str, Search]]
) -> dict[str, Predictions]:
    """Predict the held-out subjects, for whom nothing was chosen or fitted."""
    data, out = plan.held_out, {}
    if data is None:
        return {}
    for features, searches in finals.items():
        probability = {
            name: predict_subjects(data, one.model, data.everybody)[None]
            for name, one in searches.items()
        }
        called = {name: one.call(probability[name]) for name, one in searches.items()}
        best = choose(searches.values()).estimator
        probability = {SELECTED: probability[best], **probability}
        called[SELECTED] = called[best]
        folds = np.zeros((1, len(data.ids)), dtype=np.int64)
        out[features] = Predictions(probability, called, folds, {})
    return out


def _metric_rows(
    validation: str, data: LabeledSubjects, sets: Mapping[str, Predictions]
) -> list[Row]:
    return [
        {"validation": validation, "features": features, "estimator": estimator, **row}
        for features, one in sets.items()
        for estimator, probability in one.probability.items()
        for row in metric_rows(
            data.label,
            probability,
            one.folds,
            one.called[estimator],
            trained_on=validation != HELD_OUT,
        )
    ]


def _comparison_rows(
    validation: str, data: LabeledSubjects, sets: Mapping[str, Predictions]
) -> list[Row]:
    return [
        {"validation": validation, "first": first, "second": second, **row}
        for first, second in _PAIRS
        if first in sets and second in sets
        for row in compare(
            data.label,
            sets[first].probability[SELECTED],
            sets[second].probability[SELECTED],
            sets[first].folds,
            (sets[first].called[SELECTED], sets[second].called[SELECTED]),
            trained_on=validation != HELD_OUT,
        )
    ]


def _permutation_tests(
    settings: Settings, plan: Plan, computing: Computing
) -> dict[str, PermutationTest]:
    """Test the full set of features and the volumes alone, with the first estimator."""
    if settings.permutations < 1:
        return {}
    estimator = next(name for name in plan.estimators if name != "dummy")
    return {
        features: permutation_test(
            plan.subjects,
            plan.sets[features],
            estimator,
            permutations=settings.permutations,
            folds=settings.folds,
            control=plan.control,
            computing=computing,
        )
        for features in dict.fromkeys((plan.full_set, "volumes"))
    }
