"""Each subject weighs the same, whatever the number of scans."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_selection import f_classif

from hyps_bids.classification.contrast import LabeledSubjects
from hyps_bids.classification.cross_validation import _prepare, predict_subjects, search
from hyps_bids.classification.estimators import ESTIMATORS, anova
from hyps_bids.classification.features import Schema
from hyps_bids.classification.weights import equal_rows, one_scan_each, scan_weights
from tests.classification.conftest import make_subjects
from tests.cohorts import simulate

SITES = {"sites": ("A", "B"), "site_shift": 150.0}


@given(st.lists(st.integers(1, 20), min_size=1, max_size=8), st.randoms())
def test_every_subject_has_the_same_weight_and_as_many_rows(
    scans: list[int], random: object
) -> None:
    subject = np.repeat(np.arange(len(scans)) * 3, scans)
    random.shuffle(subject)
    weights = scan_weights(subject)
    if weights is not None:
        assert np.allclose(np.bincount(subject, weights)[::3], 1)
    rows, each = equal_rows(subject)
    assert each == min(12, max(scans))
    assert (np.bincount(subject[rows])[::3] == each).all()
    # The scans of a subject are repeated evenly, and each is there if there are not too many.
    times = np.bincount(rows, minlength=len(subject))
    for one in np.unique(subject):
        assert np.ptp(times[subject == one]) <= 1


def test_with_one_scan_each_nothing_changes() -> None:
    subject = np.array([4, 2, 9, 0])
    assert scan_weights(subject) is None
    assert equal_rows(subject)[0].tolist() == [0, 1, 2, 3]


def repeated(data: LabeledSubjects, times: np.ndarray) -> LabeledSubjects:
    """Repeat the scan of each subject."""
    matrix, subject = data.matrix.repeat(times, axis=0), data.subject.repeat(times)
    return replace(data, matrix=matrix, subject=subject)


def cohort(seed: int = 0) -> tuple[LabeledSubjects, Schema]:
    frame = simulate({"AD": 20, "CN": 20}, {"AD": -1}, seed=seed, missing=0.1, **SITES)
    return make_subjects(frame)


def test_preprocessing_is_the_same_with_repeated_scans() -> None:
    data, schema = cohort()
    # Multiples of each other, so that rows can be repeated evenly.
    many = repeated(data, np.where(data.label == 0, 6, 1))
    one, other = (_prepare(schema.preprocessing(), d.matrix, d.subject) for d in (data, many))
    assert np.allclose(one.transform(data.matrix), other.transform(data.matrix), atol=1e-9)


@pytest.mark.parametrize(
    # Both estimators of trees are fitted on one scan of each subject.
    "name",
    [n if n != "random_forest" else pytest.param(n, marks=pytest.mark.slow) for n in ESTIMATORS],
)
def test_estimators_are_the_same_with_repeated_scans(name: str) -> None:
    # Six scans that are the same tell no more than one.
    data, schema = cohort()
    many = repeated(data, np.where(data.label == 0, 6, 1))
    train, new = np.arange(0, 40, 2), np.arange(1, 40, 2)
    estimator = replace(ESTIMATORS[name], grid=ESTIMATORS[name].grid[-1:])
    models = [search(d, schema.preprocessing(), estimator, train, 0).model for d in (data, many)]
    first, second = (predict_subjects(data, model, new) for model in models)
    assert np.allclose(first, second, atol=2e-3)


def test_weighted_scores_of_features_are_those_of_subjects() -> None:
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(30, 4)), np.arange(30) % 3
    X[:, 3] = 1
    times = rng.integers(1, 5, 30)
    found = anova(X.repeat(times, axis=0), y.repeat(times), 1 / times.repeat(times))
    assert np.allclose(found, [*f_classif(X[:, :3], y)[0], 0])


def test_one_scan_of_each_subject_is_drawn() -> None:
    subject = np.repeat([4, 2, 9], [3, 1, 2])
    rows = one_scan_each(subject)
    assert subject[rows].tolist() == [2, 4, 9]
    # Each scan may be the one.
    many = np.repeat(np.arange(300), 3)
    shares = np.bincount(one_scan_each(many) % 3) / 300
    assert shares == pytest.approx([1 / 3] * 3, abs=0.1)


def test_a_prior_counts_subjects() -> None:
    data, schema = cohort()
    many = repeated(data, np.where(data.label == 0, 6, 1))
    model = search(many, schema.preprocessing(), ESTIMATORS["dummy"], np.arange(40), 0).model
    assert predict_subjects(many, model, np.array([0]))[0] == pytest.approx([0.5, 0.5])


def test_six_visits_of_patients_do_not_make_everybody_a_patient() -> None:
    # Scans of 40 + 40 people with d = 1. With one weight per scan, logistic regression recognizes
    # 0.3 of the controls at 0.5, and 0.7 with one weight per subject.
    frame = simulate({"AD": 60, "CN": 60}, {"AD": -1}, scans=6, seed=5)
    first = (frame["diagnosis"] == "AD") | (frame["session_id"] == "ses-1")
    data, schema = make_subjects(frame[first], covariates=("age",), site=None, harmonize=False)
    logistic = replace(ESTIMATORS["logistic"], grid=({"C": 1.0},))
    model = search(data, schema.preprocessing(), logistic, np.arange(120), 0).model
    called = predict_subjects(data, model, np.arange(120)).argmax(axis=1)
    sensitivity, specificity = ((called == k)[data.label == k].mean() for k in (0, 1))
    assert abs(sensitivity - specificity) < 0.15
    assert specificity > 0.6
