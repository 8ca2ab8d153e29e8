"""Validate and fit the classifiers of one plan."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from hyps_bids.classification.card import (
    CROSS_VALIDATION,
    FEWEST_PAIRS,
    HELD_OUT,
    LEAVE_ONE_SITE_OUT,
    sizes,
)
from hyps_bids.classification.contrast import Ints, LabeledSubjects
from hyps_bids.classification.cross_validation import (
    SELECTED,
    Predictions,
    Search,
    choose,
    nested_cv,
    predict_subjects,
    search_all,
    site_folds,
    stratified_folds,
)
from hyps_bids.classification.duration import forecast
from hyps_bids.classification.importance import importance
from hyps_bids.classification.intervals import compare, metric_rows
from hyps_bids.classification.metrics import count_pairs, metrics
from hyps_bids.classification.permutation import (
    PermutationTest,
    Shuffling,
    held_out_test,
    permutation_tests,
    sites_with_one_class,
)
from hyps_bids.classification.plan import Plan
from hyps_bids.classification.processes import Computing
from hyps_bids.messages import format_count, join_names
from hyps_bids.resources import available_cpus
from hyps_bids.settings import Settings

_LOG = logging.getLogger("hyps_bids")

#: Sets of features to compare: the first minus the second.
_PAIRS = (
    ("both", "metadata"),
    ("both", "volumes"),
    ("volumes", "metadata"),
    ("both_reduced", "metadata_reduced"),
    ("both_reduced", "volumes"),
    ("both", "both_reduced"),
)

Row = dict[str, float | str]
#: Makes the folds (repeats, subjects) of one validation from the labels.
FoldMaker = Callable[[Ints], Ints]


@dataclass(frozen=True)
class Results:
    """The validated classifiers of a plan, with tables as they are written."""

    #: By validation and set of features, held-out subjects excluded.
    predictions: dict[str, dict[str, Predictions]]
    #: Predictions of the held-out subjects from the full set of features.
    held_out: Predictions | None
    metrics: pd.DataFrame
    comparisons: pd.DataFrame
    #: By validation and set of features.
    permutation_tests: dict[tuple[str, str], PermutationTest]
    #: Cross-validated AUC among pairs of subjects from the same site, by set of features; empty if
    #: there are few pairs.
    auc_within_sites: dict[str, float]
    #: Numbers of these pairs (mean over repeats), of sites that have some, and of all sites.
    pairs_within_sites: dict[str, float]
    importance: pd.DataFrame
    #: The final model, fitted on all subjects with the full set of features.
    final: Search
    #: Validations and tests that could not be done.
    warnings: list[str]


def validate(settings: Settings, plan: Plan) -> Results:
    """Cross-validate all estimators, test the final models, and compare the sets of features."""
    name = plan.contrast.text
    data, full = plan.subjects, plan.full_set
    scans = format_count(len(data.subject), "scan")
    _LOG.info("%s: subjects: %s, %s", name, sizes(data.counts), scans)
    computing = Computing(settings.seed, settings.nprocs or available_cpus(), name)
    makers, warnings = _fold_makers(settings, plan)
    folds = {validation: make(data.label) for validation, make in makers.items()}
    expected = forecast(data, plan.sets, plan.estimators, list(folds.values()), computing)
    shuffles = expected.affordable if settings.permutations is None else settings.permutations
    _LOG.info("%s: %s", name, expected.text(shuffles))
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
    tests, untested = _permutation_tests(plan, shuffles, predictions, makers, computing)
    if shuffles and plan.held_out is not None:
        of_held_out, why = _held_out_tests(plan, held_out, settings.seed)
        tests, untested = tests | of_held_out, [*untested, *why]
    within_sites, pairs_within_sites = _auc_within_sites(plan, predictions[CROSS_VALIDATION])
    return Results(
        predictions=predictions,
        held_out=held_out.get(full),
        metrics=pd.DataFrame([row for one in tested for row in _metric_rows(*one)]),
        comparisons=pd.DataFrame([row for one in tested for row in _comparison_rows(*one)]),
        permutation_tests=tests,
        auc_within_sites=within_sites,
        pairs_within_sites=pairs_within_sites,
        importance=importance(data, plan.sets[full], main, computing),
        final=choose(finals[full].values()),
        warnings=[*warnings, *untested],
    )


def _fold_makers(settings: Settings, plan: Plan) -> tuple[dict[str, FoldMaker], list[str]]:
    """Choose the folds of each validation; the warnings say what cannot be done."""
    sites = plan.sites

    def by_class(label: Ints) -> Ints:
        return stratified_folds(label, settings.folds, settings.repeats, settings.seed, sites)

    makers: dict[str, FoldMaker] = {CROSS_VALIDATION: by_class}
    if sites is None or not settings.leave_one_site_out:
        return makers, []
    if (site_folds(plan.subjects.label, sites) < 0).all():
        return makers, ["leave-one-site-out: no site can be left out"]
    return makers | {LEAVE_ONE_SITE_OUT: partial(site_folds, site=sites)}, []


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
    plan: Plan,
    shuffles: int,
    predictions: Mapping[str, Mapping[str, Predictions]],
    makers: Mapping[str, FoldMaker],
    computing: Computing,
) -> tuple[dict[tuple[str, str], PermutationTest], list[str]]:
    """Test the selected estimators on all sets of features, in the first repeat."""
    if shuffles < 1:
        return {}, []
    label = plan.subjects.label
    warnings: list[str] = []
    if plan.sites is not None:
        alike, all_alike = sites_with_one_class(label, plan.sites)
        if all_alike:
            return {}, [
                "no permutation p-value: every site has one class only, so labels cannot be "
                "shuffled within sites"
            ]
        if alike:
            warnings.append(
                f"the permutation test shuffles labels within sites, to which {join_names(alike)} "
                "cannot contribute, with one class only"
            )
    shuffling = Shuffling(shuffles, plan.sites, plan.control)
    out: dict[tuple[str, str], PermutationTest] = {}
    for validation, sets in predictions.items():
        observed = {name: _first_auc(label, one) for name, one in sets.items()}
        if not np.isfinite(list(observed.values())).all():
            warnings.append(f"no permutation p-value of {validation}: no fold has all classes")
            continue
        tests = permutation_tests(
            plan.subjects,
            plan.sets,
            observed,
            plan.estimators,
            partial(_first_folds, makers[validation]),
            shuffling,
            computing,
        )
        out |= {(validation, name): test for name, test in tests.items()}
    return out, warnings


def _first_folds(make: FoldMaker, label: Ints) -> Ints:
    return make(label)[0]


def _first_auc(label: Ints, predictions: Predictions) -> float:
    """Compute the AUC of the first repeat."""
    probability = predictions.probability[SELECTED][0]
    return float(metrics(label, probability, predictions.folds[0])["auc"][0])


def _held_out_tests(
    plan: Plan, predictions: Mapping[str, Predictions], seed: int
) -> tuple[dict[tuple[str, str], PermutationTest], list[str]]:
    """Test the AUC of the held-out subjects; the warnings say why that cannot be done."""
    assert plan.held_out is not None
    label, sites = plan.held_out.label, plan.held_out_sites
    no_p = "no permutation p-value of the held-out subjects"
    if 0 in plan.held_out.counts.values():
        return {}, [f"{no_p}: they are {sizes(plan.held_out.counts)}, but all classes are needed"]
    if sites is not None and sites_with_one_class(label, sites)[1]:
        why = "each of their sites has one class only, so labels cannot be shuffled within sites"
        return {}, [f"{no_p}: {why}"]
    return {
        (HELD_OUT, name): held_out_test(label, one.probability[SELECTED][0], sites, seed)
        for name, one in predictions.items()
    }, []


def _auc_within_sites(
    plan: Plan, sets: Mapping[str, Predictions]
) -> tuple[dict[str, float], dict[str, float]]:
    """Compute the AUC from pairs of the same fold and site, where the site cannot help."""
    if plan.sites is None:
        return {}, {}
    names, site = np.unique(np.asarray(plan.sites), return_inverse=True)
    label, out = plan.subjects.label, {}
    folds = next(iter(sets.values())).folds
    strata = folds * len(names) + site
    pairs = float(np.mean([count_pairs(label, one)[0] for one in strata]))
    alike = sites_with_one_class(label, plan.sites)[0]
    facts = {"Pairs": pairs, "Sites": len(names) - len(alike), "AllSites": len(names)}
    if pairs < FEWEST_PAIRS:
        return {}, facts
    for name, one in sets.items():
        repeats = zip(one.probability[SELECTED], strata, strict=True)
        values = [metrics(label, each, stratum)["auc"][0] for each, stratum in repeats]
        if np.isfinite(values).all():
            out[name] = float(np.mean(values))
    return out, facts
