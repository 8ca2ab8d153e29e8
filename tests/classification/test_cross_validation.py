"""Folds, nested search and predictions; shuffled labels and shuffled columns."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joblib import delayed
from scipy.stats import spearmanr
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import Pipeline

from hyps_bids import progress
from hyps_bids.classification.contrast import LabeledSubjects, mean_by_subject
from hyps_bids.classification.cross_validation import (
    SELECTED,
    Search,
    _inner_splits,
    choose,
    nested_cv,
    predict_subjects,
    search,
    site_folds,
    stratified_folds,
)
from hyps_bids.classification.estimators import ESTIMATORS, anova
from hyps_bids.classification.importance import importance
from hyps_bids.classification.processes import Computing, run_tasks
from tests.classification.conftest import make_subjects
from tests.cohorts import simulate


@given(
    sizes=st.lists(st.integers(2, 12), min_size=2, max_size=3),
    scans=st.lists(st.integers(1, 4), min_size=36, max_size=36),
    count=st.integers(2, 6),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_scans_of_a_subject_never_straddle_folds(
    sizes: list[int], scans: list[int], count: int, seed: int
) -> None:
    label = np.repeat(np.arange(len(sizes)), sizes)
    # Each subject has the drawn number of scans, in any order.
    subject = np.repeat(np.arange(len(label)), scans[: len(label)])
    subject = np.random.default_rng(seed).permutation(subject)
    ids, classes = tuple(map(str, range(len(label)))), tuple("abc"[: len(sizes)])
    data = LabeledSubjects(np.zeros((len(subject), 1)), subject, label, ids, classes)
    for fold in stratified_folds(label, count, 2, seed):
        assert fold.max() + 1 == min(count, *sizes)
        for k in np.unique(fold):
            train, test = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
            rows = data.scans_of(train)
            assert not set(subject[rows]) & set(subject[data.scans_of(test)])
            # Every class is on both sides.
            assert set(label[train]) == set(label[test]) == set(range(len(sizes)))
            for inner_train, inner_test in _inner_splits(data, train, seed):
                known, new = subject[rows[inner_train]], subject[rows[inner_test]]
                assert not set(known) & set(new)
                assert set(known) | set(new) == set(train)
                assert set(label[known]) == set(range(len(sizes)))


def test_sites_without_which_a_class_is_gone_are_not_left_out() -> None:
    label = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    folds = site_folds(label, ["a", "a", "b", "b", "b", "b", "c", "c"])
    assert folds[0].tolist()[:6] == [0, 0, 1, 1, 1, 1]
    alone = site_folds(label, list("aaaabbbb"))
    assert alone[0].tolist() == [-1] * 8


@pytest.mark.slow
def test_predictions_do_not_depend_on_processes_or_other_sets() -> None:
    data, schema = make_subjects(simulate({"AD": 12, "CN": 9}, {"AD": -2}, sites=("A", "B")))
    folds = stratified_folds(data.label, 3, 1, 0)
    one = nested_cv(data, {"both": schema}, folds, ["logistic", "dummy"])
    sets = {"volumes": schema.only(schema.features), "both": schema}
    two = nested_cv(data, sets, folds, ["logistic", "dummy"], Computing(nprocs=2))
    for name, probability in one["both"].probability.items():
        assert np.array_equal(probability, two["both"].probability[name])
    # The dummy is never selected.
    assert np.array_equal(one["both"].probability[SELECTED], one["both"].probability["logistic"])
    assert {c.estimator for c in one["both"].selections.values()} == {"logistic"}


def test_predictions_of_a_fold_do_not_see_its_labels_or_values() -> None:
    data, schema = make_subjects(simulate({"AD": 15, "CN": 15}, {"AD": -1}, scans=2, missing=0.1))
    folds = stratified_folds(data.label, 3, 1, 0)
    before = nested_cv(data, {"both": schema}, folds, ["logistic"])["both"]
    test = np.flatnonzero(folds[0] == 0)
    other = test[1:]
    matrix, label = data.matrix.copy(), data.label.copy()
    # The scans, covariates and diagnoses of the other subjects of the fold change.
    matrix[data.scans_of(other), : len(schema.features)] *= 3
    label[other] = 1 - label[other]
    changed = replace(data, matrix=matrix, label=label)
    after = nested_cv(changed, {"both": schema}, folds, ["logistic"])["both"]
    for name in before.probability:
        first, second = before.probability[name][0], after.probability[name][0]
        assert np.allclose(first[test[0]], second[test[0]], rtol=0, atol=1e-12)
        assert not np.allclose(first[other], second[other])


def test_subjects_are_the_mean_of_their_scans() -> None:
    data, schema = make_subjects(simulate({"AD": 10, "CN": 10}, {"AD": -2}, scans=3))
    found = search(data, schema.preprocessing(), ESTIMATORS["logistic"], np.arange(20), 0)
    probability = predict_subjects(data, found.model, np.array([4]))
    rows = data.scans_of(np.array([4]))
    assert len(rows) == 3
    expected = found.model.predict_proba(data.matrix[rows]).mean(axis=0)
    assert np.allclose(probability, expected)


def test_the_best_inner_score_wins_and_the_first_of_equals() -> None:
    def best(**scores: float) -> str:
        return choose(Search(name, {}, score, None) for name, score in scores.items()).estimator

    assert best(dummy=1.0, logistic=0.7, rbf_svm=0.8, random_forest=0.8) == "rbf_svm"
    assert best(logistic=np.nan, random_forest=np.nan) == "logistic"


def test_selection_survives_constant_columns() -> None:
    # The last column differs by rounding errors only.
    rounded = 1e-200 * np.array([1.0, -1.0] * 5)
    X = np.column_stack([np.ones(10), np.arange(10.0), np.zeros(10), rounded])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = anova(X, np.repeat([0, 1], 5))
    assert scores[0] == scores[2] == scores[3] == 0 < scores[1]


def test_a_calibration_never_turns_a_classifier_around() -> None:
    # Without an effect, pooled out-of-fold scores are often higher in the wrong class.
    turned = 0
    for seed in range(3):
        data, schema = make_subjects(simulate({"AD": 8, "CN": 12}, seed=seed), covariates=())
        found = search(data, schema.preprocessing(), ESTIMATORS["linear_svm"], np.arange(20), 0)
        X = found.model["prepare"].transform(data.matrix)
        fitted = found.model["classify"].calibrated_classifiers_[0]
        probability = found.model.predict_proba(data.matrix)[:, 1]
        score = fitted.estimator.decision_function(X)
        assert spearmanr(probability, score).statistic == pytest.approx(1)
        if fitted.calibrators[0].a_ == -1e-3:
            turned += 1
            assert probability == pytest.approx(np.full(20, 12 / 20), abs=0.01)
    assert turned


def test_progress_names_the_contrast(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "EVERY_S", 0)
    caplog.set_level("INFO")
    tasks = [delayed(abs)(-i) for i in range(4)]
    assert run_tasks(tasks, "fits", Computing()) == [0, 1, 2, 3]
    assert not caplog.messages
    run_tasks(tasks, "fits", Computing(title="AD:CN"))
    assert caplog.messages[0].startswith("AD:CN: 1 of 4 fits done")


def test_importance_finds_the_column_that_matters() -> None:
    frame = simulate({"AD": 30, "CN": 30}, seed=2, noise_features=2)
    rng = np.random.default_rng(0)
    frame["noise_1"] += 2.5 * (frame["diagnosis"] == "AD") + rng.normal(0, 0.1, 60)
    names = {"noise_0": "asymmetry_0", "noise_1": "asymmetry_1"}
    frame = frame.rename(columns=names)
    data, schema = make_subjects(frame, features=("asymmetry_*",), covariates=("age",))
    folds = stratified_folds(data.label, 3, 1, 0)
    found = nested_cv(data, {"both": schema}, folds, ["logistic"])["both"]
    falls = importance(data, schema, found).set_index("column")["auc_fall"]
    assert list(falls.index) == ["asymmetry_0", "asymmetry_1", "age"]
    assert falls["asymmetry_1"] > 0.2
    assert abs(falls["asymmetry_0"]) < 0.1


@pytest.mark.parametrize("name", ["logistic", "linear_svm"])
def test_the_cut_of_youden_is_chosen_on_the_probabilities_of_subjects_left_out(name: str) -> None:
    frame = simulate({"AD": 12, "CN": 36}, {"AD": -1.5}, scans=2)
    data, schema = make_subjects(frame, covariates=(), site=None, harmonize=False)
    estimator = replace(ESTIMATORS[name], grid=ESTIMATORS[name].grid[:1])
    train = np.arange(48)
    found = search(data, schema.preprocessing(), estimator, train, 0, "youden")
    assert found.cuts is not None
    # scikit-learn predicts the same subjects by models that did not see them.
    steps = [("p", schema.preprocessing()), ("m", estimator.scorer(found.params, 0))]
    first = -cross_val_predict(
        Pipeline(steps),
        *(data.matrix, data.label[data.subject]),
        cv=_inner_splits(data, train, 0),
        method="decision_function",
        params={"m__sample_weight": np.full(96, 0.5)},
    )
    if estimator.calibrated:
        curve = found.model["classify"].calibrated_classifiers_[0].calibrators[0]
        first = 1 - curve.predict(-first)
    else:
        first = 1 / (1 + np.exp(-first))
    mean = mean_by_subject(first, data.subject, 48)
    gain = [
        (mean[data.label == 0] > cut).mean() - (mean[data.label == 1] > cut).mean()
        for cut in (*np.unique(mean) - 1e-9, found.cuts[0])
    ]
    assert gain[-1] == pytest.approx(max(gain))
    assert found.cuts[0] < 0.5
