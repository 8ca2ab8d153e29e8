"""Proof on simulated cohorts that the metrics are right and that the pipeline cannot be fooled."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kstest
from sklearn.feature_selection import SelectKBest, f_classif

from hyps_bids.classification.contrast import LabeledSubjects
from hyps_bids.classification.cross_validation import (
    SELECTED,
    nested_cv,
    stratified_folds,
)
from hyps_bids.classification.features import Schema
from hyps_bids.classification.intervals import metric_rows
from hyps_bids.classification.metrics import metrics
from hyps_bids.classification.permutation import Shuffling
from hyps_bids.classification.processes import Computing
from tests.classification.conftest import make_subjects, permuted
from tests.cohorts import simulate, theoretical_auc


def cross_validated(
    data: LabeledSubjects, schema: Schema, folds: int = 5
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and folds of the logistic regression, in one repeat."""
    dealt = stratified_folds(data.label, folds, 1, 0)
    found = nested_cv(data, {"all": schema}, dealt, ["logistic"])["all"]
    return found.probability[SELECTED], dealt


def auc(data: LabeledSubjects, schema: Schema, folds: int = 5) -> float:
    """Cross-validated AUC."""
    probability, dealt = cross_validated(data, schema, folds)
    return float(metrics(data.label, probability[0], dealt[0])["auc"][0])


def auc_with_intervals(data: LabeledSubjects, schema: Schema, folds: int = 5) -> pd.Series:
    """AUC and its interval."""
    rows = metric_rows(data.label, *cross_validated(data, schema, folds))
    return pd.DataFrame(rows).set_index("figure").loc["auc"]


@pytest.mark.parametrize("effect", [pytest.param(-2.0, marks=pytest.mark.slow), -1.0])
def test_auc_is_the_theoretical_one(effect: float) -> None:
    frame = simulate({"AD": 250, "CN": 250}, {"AD": effect}, seed=1)
    data, schema = make_subjects(frame, site=None, harmonize=False)
    found = auc_with_intervals(data, schema)
    assert found["low"] < theoretical_auc(effect) < found["high"]
    assert found["value"] == pytest.approx(theoretical_auc(effect), abs=0.05)


@pytest.mark.usefixtures("small_search")
def test_leaks_outside_folds_gain_nothing() -> None:
    # A common mistake is to pick the best of many columns of noise on all subjects.
    frame = simulate({"AD": 40, "CN": 40}, seed=5, noise_features=200)
    frame.columns = [name.replace("noise", "asymmetry") for name in frame]
    noise = [c for c in frame if c.startswith("asymmetry_")]
    best = SelectKBest(f_classif, k=10).fit(frame[noise], frame["diagnosis"])
    picked = [name for name, kept in zip(noise, best.get_support(), strict=True) if kept]
    options = {"covariates": (), "site": None, "harmonize": False}
    for features, low, high in ((picked, 0.8, 1.0), (noise, 0.3, 0.7)):
        data, schema = make_subjects(frame, features=features, **options)
        assert low < auc(data, schema) < high


@pytest.mark.slow
def test_a_site_that_differs_is_no_diagnosis_after_harmonization() -> None:
    # AD is more frequent at the site whose scanner measures less, so that without harmonization
    # the classifier recognizes the scanner.
    frame = simulate({"AD": 100, "CN": 100}, seed=3)
    rng = np.random.default_rng(0)
    share = np.where(frame["diagnosis"] == "AD", 0.7, 0.3)
    frame["site"] = np.where(rng.random(200) < share, "B", "A")
    volumes = [c for c in frame if c.startswith("volume_mm3_") and "whole" not in c]
    frame.loc[frame["site"] == "B", volumes] -= 400
    aucs = []
    for harmonize in (False, True):
        data, schema = make_subjects(frame, covariates=("age",), harmonize=harmonize)
        aucs.append(auc(data, schema.only(schema.features)))
    assert aucs[0] > 0.62
    assert aucs[1] < 0.58


@pytest.mark.slow
@pytest.mark.usefixtures("small_search")
def test_intervals_cover_the_truth() -> None:
    # `benchmarks/statistics/coverage.py` shows the coverage in more cohorts. This test has fewer,
    # and a bound that chance rarely breaks.
    covered = []
    truth = theoretical_auc(1.5)
    for seed in range(20):
        frame = simulate({"AD": 60, "CN": 60}, {"AD": -1.5}, seed=seed)
        data, schema = make_subjects(frame, site=None, harmonize=False)
        found = auc_with_intervals(data, schema, folds=4)
        covered.append(found["low"] <= truth <= found["high"])
    assert np.mean(covered) >= 0.8


@pytest.mark.slow
@pytest.mark.usefixtures("small_search")
def test_permuted_labels_are_chance_through_the_whole_pipeline() -> None:
    values = []
    for seed in range(20):
        sites = {"sites": ("A", "B", "C"), "site_shift": 200, "missing": 0.05}
        frame = simulate({"AD": 20, "CN": 20}, {"AD": -2}, seed=seed, scans=2, **sites)
        data, schema = make_subjects(frame, covariates=("age", "sex", "education"))
        label = np.random.default_rng(seed).permutation(data.label)
        values.append(auc(replace(data, label=label), schema, folds=3))
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    assert abs(np.mean(values) - 0.5) < 3 * error
    assert error < 0.04


@pytest.mark.slow
@pytest.mark.usefixtures("small_search")
def test_p_values_without_effect_are_uniform() -> None:
    values = []
    rng = np.random.default_rng(0)
    for seed in range(30):
        frame = simulate({"AD": 12, "CN": 9}, seed=seed, sites=("A", "B"), site_shift=200)
        data, schema = make_subjects(frame, covariates=("age",))
        found = permuted(data, {"all": schema}, Shuffling(4), folds=2, computing=Computing(seed))
        test = found["all"]
        # Spread over the steps of 1/5, so that the values of an exact test are uniform.
        values.append(test.p - rng.random() / 5)
    assert kstest(values, "uniform").pvalue > 0.01
    assert np.mean(np.array(values) < 0.2) < 0.45
