"""Proof on simulated cohorts that the figures are right and that the pipeline cannot be fooled."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import kstest
from sklearn.feature_selection import SelectKBest, f_classif

from hyps_bids.classification import cross_validation as evaluate
from hyps_bids.classification import estimators
from hyps_bids.classification.charts import (
    bootstrap_weights,
    figures,
    interval,
    score_interval,
)
from hyps_bids.classification.contrast import Cohort
from hyps_bids.classification.cross_validation import (
    SELECTED,
    make_folds,
    nested_cv,
    permutation_test,
)
from hyps_bids.classification.features import Schema
from tests.classification.conftest import make_cohort
from tests.cohorts import simulate, theoretical_auc


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the inner search small: what is proven does not depend on its size."""
    logistic = estimators.ESTIMATORS["logistic"]
    small = replace(logistic, grid=({"C": 0.1, "percentile": 50}, {"C": 0.1, "percentile": 100}))
    monkeypatch.setitem(estimators.ESTIMATORS, "logistic", small)
    monkeypatch.setattr(evaluate, "_INNER_FOLDS", 2)


def cross_validated(
    cohort: Cohort, schema: Schema, repeats: int = 1, folds: int = 5
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and folds of the logistic regression."""
    dealt = make_folds(cohort.label, folds, repeats, 0)
    found = nested_cv(cohort, {"all": schema}, dealt, estimators=["logistic"])["all"]
    return found.probability[SELECTED], dealt


def auc_with_interval(
    cohort: Cohort, schema: Schema, repeats: int = 1
) -> tuple[float, tuple[float, float], tuple[float, float]]:
    """AUC, its bootstrap interval and its score interval."""
    probability, folds = cross_validated(cohort, schema, repeats)
    weights = bootstrap_weights(cohort.label, 400, np.random.default_rng(0))
    pairs = list(zip(probability, folds, strict=True))
    value = np.mean([figures(cohort.label, p, f)["auc"] for p, f in pairs])
    drawn = np.mean([figures(cohort.label, p, f, weights)["auc"] for p, f in pairs], axis=0)
    low_high = score_interval("auc", float(value), cohort.counts)
    return float(value), interval(drawn), low_high


@pytest.mark.parametrize("effect", [-2.0, -1.0])
def test_auc_is_the_theoretical_one(effect: float) -> None:
    frame = simulate({"AD": 250, "CN": 250}, {"AD": effect}, seed=1)
    cohort, schema = make_cohort(frame, site=None, harmonize=False)
    value, (low, high), _ = auc_with_interval(cohort, schema)
    assert low < theoretical_auc(effect) < high
    assert value == pytest.approx(theoretical_auc(effect), abs=0.05)


@pytest.mark.usefixtures("light")
def test_leaks_outside_folds_gain_nothing() -> None:
    # the classic mistake: pick the best of many columns of noise on all subjects
    frame = simulate({"AD": 40, "CN": 40}, seed=5, noise_features=400)
    noise = [c for c in frame if c.startswith("noise_")]
    best = SelectKBest(f_classif, k=10).fit(frame[noise], frame["diagnosis"])
    picked = [name for name, kept in zip(noise, best.get_support(), strict=True) if kept]
    options = {"covariates": (), "site": None, "harmonize": False}
    for features, low, high in ((picked, 0.8, 1.0), (noise, 0.3, 0.7)):
        cohort, schema = make_cohort(frame, features=features, **options)
        probability, folds = cross_validated(cohort, schema)
        value = figures(cohort.label, probability[0], folds[0])["auc"][0]
        assert low < value < high


def test_a_site_that_differs_is_no_diagnosis_after_harmonization() -> None:
    # AD is more frequent at the site whose scanner measures less: without harmonization the
    # classifier reads the scanner
    frame = simulate({"AD": 100, "CN": 100}, seed=3)
    rng = np.random.default_rng(0)
    frame["site"] = np.where(
        rng.random(200) < np.where(frame["diagnosis"] == "AD", 0.7, 0.3), "B", "A"
    )
    volumes = [c for c in frame if c.startswith("volume_mm3_") and "whole" not in c]
    frame.loc[frame["site"] == "B", volumes] -= 400
    aucs = []
    for harmonize in (False, True):
        cohort, schema = make_cohort(frame, covariates=("age",), harmonize=harmonize)
        volumes_only = schema.only(schema.features)
        probability, folds = cross_validated(cohort, volumes_only)
        aucs.append(figures(cohort.label, probability[0], folds[0])["auc"][0])
    assert aucs[0] > 0.62
    assert aucs[1] < 0.58


@pytest.mark.slow
@pytest.mark.usefixtures("light")
def test_intervals_cover_the_truth() -> None:
    # measured once: 150 cohorts of 60 + 60: bootstrap 0.93, score 0.91, the wider 0.94; 120 of
    # 12 + 9: 0.91, 0.83, 0.97. Here fewer cohorts, and a bound that chance rarely breaks
    covered = np.zeros((30, 2), dtype=bool)
    truth = theoretical_auc(1.5)
    for seed, row in enumerate(covered):
        frame = simulate({"AD": 60, "CN": 60}, {"AD": -1.5}, seed=seed)
        cohort, schema = make_cohort(frame, site=None, harmonize=False)
        _, *intervals = auc_with_interval(cohort, schema)
        row[:] = [low <= truth <= high for low, high in intervals]
    assert (covered.mean(axis=0) >= 0.8).all()


@pytest.mark.slow
@pytest.mark.usefixtures("light")
def test_permuted_labels_are_chance_through_the_whole_pipeline() -> None:
    values = []
    for seed in range(25):
        frame = simulate(
            {"AD": 20, "CN": 20},
            {"AD": -2},
            seed=seed,
            scans=2,
            sites=("A", "B", "C"),
            site_shift=200,
            missing=0.05,
        )
        cohort, schema = make_cohort(frame, covariates=("age", "sex", "education"))
        label = np.random.default_rng(seed).permutation(cohort.label)
        cohort = replace(cohort, label=label)
        probability, folds = cross_validated(cohort, schema)
        values.append(figures(label, probability[0], folds[0])["auc"][0])
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    assert abs(np.mean(values) - 0.5) < 3 * error
    assert error < 0.04


@pytest.mark.slow
@pytest.mark.usefixtures("light")
def test_p_values_without_effect_are_uniform() -> None:
    values = []
    rng = np.random.default_rng(0)
    for seed in range(30):
        frame = simulate({"AD": 12, "CN": 9}, seed=seed, sites=("A", "B"), site_shift=200)
        cohort, schema = make_cohort(frame, covariates=("age",))
        p, _, _ = permutation_test(
            cohort, schema, estimator="logistic", permutations=9, folds=3, seed=seed
        )
        # spread over the steps of 1/10, so that uniform means uniform
        values.append(p - rng.random() / 10)
    assert kstest(values, "uniform").pvalue > 0.01
    assert np.mean(np.array(values) < 0.2) < 0.45
