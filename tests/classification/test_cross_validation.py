"""Folds, nested search, permutations and importance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyps_bids.classification import cross_validation as evaluate
from hyps_bids.classification.charts import figures
from hyps_bids.classification.contrast import Cohort
from hyps_bids.classification.cross_validation import (
    SELECTED,
    Search,
    _inner_splits,
    choose,
    group_folds,
    importance,
    make_folds,
    nested_cv,
    permutation_test,
    predict_subjects,
    run_tasks,
    search,
    search_all,
)
from hyps_bids.classification.estimators import ESTIMATORS, anova
from tests.classification.conftest import make_cohort
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
    # scans in any order, as many per subject as drawn
    subject = np.repeat(np.arange(len(label)), scans[: len(label)])
    subject = np.random.default_rng(seed).permutation(subject)
    ids = tuple(map(str, range(len(label))))
    cohort = Cohort(np.zeros((len(subject), 1)), subject, label, ids, tuple("abc"[: len(sizes)]))
    for fold in make_folds(label, count, 2, seed):
        assert fold.max() + 1 == min(count, *sizes)
        for k in np.unique(fold):
            train, test = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
            rows = cohort.scans_of(train)
            assert not set(subject[rows]) & set(subject[cohort.scans_of(test)])
            # every class is on both sides
            assert set(label[train]) == set(label[test]) == set(range(len(sizes)))
            for inner_train, inner_test in _inner_splits(cohort, train, seed):
                known, new = subject[rows[inner_train]], subject[rows[inner_test]]
                assert not set(known) & set(new)
                assert set(known) | set(new) == set(train)
                assert set(label[known]) == set(range(len(sizes)))


def test_sites_without_which_a_class_is_gone_are_not_left_out() -> None:
    label = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    folds = group_folds(label, ["a", "a", "b", "b", "b", "b", "c", "c"])
    assert folds[0].tolist()[:6] == [0, 0, 1, 1, 1, 1]
    alone = group_folds(label, list("aaaabbbb"))
    assert alone[0].tolist() == [-1] * 8


@pytest.mark.slow
def test_figures_do_not_depend_on_processes_or_other_sets() -> None:
    cohort, schema = make_cohort(simulate({"AD": 12, "CN": 9}, {"AD": -2}, sites=("A", "B")))
    folds = make_folds(cohort.label, 3, 1, 0)
    one = nested_cv(cohort, {"both": schema}, folds, estimators=["logistic", "dummy"])
    sets = {"volumes": schema.only(schema.features), "both": schema}
    two = nested_cv(cohort, sets, folds, estimators=["logistic", "dummy"], nprocs=2)
    for name, probability in one["both"].probability.items():
        assert np.array_equal(probability, two["both"].probability[name])
    # the dummy is never selected
    assert np.array_equal(one["both"].probability[SELECTED], one["both"].probability["logistic"])
    assert {c["estimator"] for c in one["both"].chosen} == {"logistic"}


def test_predictions_of_a_fold_do_not_see_its_labels_or_values() -> None:
    cohort, schema = make_cohort(simulate({"AD": 15, "CN": 15}, {"AD": -1}, scans=2, missing=0.1))
    folds = make_folds(cohort.label, 3, 1, 0)
    before = nested_cv(cohort, {"both": schema}, folds, estimators=["logistic"])["both"]
    test = np.flatnonzero(folds[0] == 0)
    other = test[1:]
    matrix, label = cohort.matrix.copy(), cohort.label.copy()
    # everything about the other subjects of the fold changes: scans, covariates, diagnosis
    matrix[cohort.scans_of(other), : len(schema.features)] *= 3
    label[other] = 1 - label[other]
    changed = replace(cohort, matrix=matrix, label=label)
    after = nested_cv(changed, {"both": schema}, folds, estimators=["logistic"])["both"]
    for name in before.probability:
        first, second = before.probability[name][0], after.probability[name][0]
        assert np.allclose(first[test[0]], second[test[0]], rtol=0, atol=1e-12)
        assert not np.allclose(first[other], second[other])


def test_subjects_are_the_mean_of_their_scans() -> None:
    cohort, schema = make_cohort(simulate({"AD": 10, "CN": 10}, {"AD": -2}, scans=3))
    found = search(cohort, schema.preprocessing(), ESTIMATORS["logistic"], np.arange(20), 0)
    probability = predict_subjects(cohort, found.model, np.array([4]))
    rows = cohort.scans_of(np.array([4]))
    assert len(rows) == 3
    expected = found.model.predict_proba(cohort.matrix[rows]).mean(axis=0)
    assert np.allclose(probability, expected)


@pytest.mark.slow
def test_three_classes_with_every_estimator() -> None:
    frame = simulate({"AD": 14, "MCI": 14, "CN": 14}, {"AD": -4, "MCI": -2})
    cohort, schema = make_cohort(frame, "AD:MCI:CN")
    found = search_all(cohort, {"both": schema})["both"]
    for name, one in found.items():
        probability = predict_subjects(cohort, one.model, np.arange(42))
        assert np.allclose(probability.sum(axis=1), 1), name
        auc = figures(cohort.label, probability, np.zeros(42, dtype=int))["auc"][0]
        assert auc == 0.5 if name == "dummy" else auc > 0.85, name
    assert choose(found.values()).estimator != "dummy"


def test_the_best_inner_score_wins_and_the_first_of_equals() -> None:
    made = [
        Search(name, {}, score, None)
        for name, score in [
            ("dummy", 1.0),
            ("logistic", 0.7),
            ("rbf_svm", 0.8),
            ("random_forest", 0.8),
        ]
    ]
    assert choose(made).estimator == "rbf_svm"
    unknown = [Search(name, {}, float("nan"), None) for name in ("logistic", "random_forest")]
    assert choose(unknown).estimator == "logistic"


def test_two_subjects_a_class_train_without_a_search() -> None:
    cohort, schema = make_cohort(simulate({"AD": 2, "CN": 6}, {"AD": -3}))
    folds = make_folds(cohort.label, 5, 1, 0)
    assert folds.max() == 1
    found = nested_cv(cohort, {"both": schema}, folds, estimators=["logistic"])["both"]
    assert np.isfinite(found.probability[SELECTED]).all()
    assert np.isnan(found.chosen[0]["inner_auc"])


@pytest.mark.slow
def test_permutations_tell_an_effect_from_none() -> None:
    for effect, low, high in ((-3.0, 0.0, 0.1), (0.0, 0.1, 1.0)):
        frame = simulate({"AD": 20, "CN": 20}, {"AD": effect}, seed=4)
        cohort, schema = make_cohort(frame, covariates=(), site=None, harmonize=False)
        p, observed, null = permutation_test(
            cohort, schema, estimator="logistic", permutations=9, folds=3
        )
        assert low < p <= high
        assert p == pytest.approx((1 + (null >= observed).sum()) / 10)


def test_shuffled_controls_move_with_the_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = simulate({"AD": 8, "CN": 8}, scans=2)
    cohort, schema = make_cohort(frame, covariates=())
    # half of the class CN: which half is no matter of the volumes
    control = (cohort.label == 1) & (np.arange(16) % 2 == 1)
    seen = []

    def remember(one: Cohort, *_: object) -> float:
        flags = one.matrix[:, schema.columns.index("(control)")]
        seen.append((one.label, one.mean_by_subject(flags, np.arange(len(flags)))))
        return 0.5

    monkeypatch.setattr(evaluate, "_cv_auc", remember)
    permutation_test(cohort, schema, estimator="dummy", permutations=3, folds=2, control=control)
    assert len(seen) == 4
    assert np.array_equal(seen[0][1], control)
    for label, flags in seen:
        assert flags.sum() == control.sum()
        assert (label[flags == 1] == 1).all()
    assert any(not np.array_equal(label, cohort.label) for label, _ in seen)


def test_importance_finds_the_column_that_matters() -> None:
    frame = simulate({"AD": 30, "CN": 30}, seed=2, noise_features=2)
    rng = np.random.default_rng(0)
    frame["noise_1"] += 2.5 * (frame["diagnosis"] == "AD") + rng.normal(0, 0.1, 60)
    cohort, schema = make_cohort(frame, features=("noise_0", "noise_1"), covariates=("age",))
    folds = make_folds(cohort.label, 3, 1, 0)
    found = nested_cv(cohort, {"both": schema}, folds, estimators=["logistic"])["both"]
    falls = importance(cohort, schema, folds[0], found.chosen)
    assert list(falls) == ["noise_0", "noise_1", "age"]
    assert falls["noise_1"][0] > 0.2
    assert abs(falls["noise_0"][0]) < 0.1


def test_selection_survives_constant_columns() -> None:
    X = np.column_stack([np.ones(10), np.arange(10.0), np.zeros(10)])
    scores = anova(X, np.repeat([0, 1], 5))
    assert scores[0] == scores[2] == 0 < scores[1]


def test_progress_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from joblib import delayed

    from hyps_bids.classification import cross_validation as evaluate

    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(evaluate.time, "monotonic", lambda: next(clock))
    told: list[str] = []
    assert run_tasks([delayed(abs)(-i) for i in range(4)], 1, "fits", told.append) == [0, 1, 2, 3]
    assert told[0] == "2 of 4 fits, about 20 s left"
