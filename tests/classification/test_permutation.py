"""Shuffled labels and shuffled columns."""

from __future__ import annotations

import numpy as np
import pytest

from hyps_bids.classification import permutation
from hyps_bids.classification.contrast import LabeledSubjects, mean_by_subject
from hyps_bids.classification.cross_validation import nested_cv, stratified_folds
from hyps_bids.classification.permutation import importance, permutation_test
from tests.classification.conftest import make_subjects
from tests.cohorts import simulate


def test_shuffled_controls_move_with_the_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    data, schema = make_subjects(simulate({"AD": 8, "CN": 8}, scans=2), covariates=())
    control = (data.label == 1) & (np.arange(16) % 2 == 1)
    seen = []

    def remember(one: LabeledSubjects, *_: object) -> float:
        flags = one.matrix[:, schema.columns.index("(control)")]
        seen.append((one.label, mean_by_subject(flags, one.subject, 16)))
        return 0.5

    monkeypatch.setattr(permutation, "_cv_auc", remember)
    permutation_test(data, schema, "dummy", permutations=3, folds=2, control=control)
    assert len(seen) == 4
    assert np.array_equal(seen[0][1], control)
    for label, flags in seen:
        assert flags.sum() == control.sum()
        assert (label[flags == 1] == 1).all()
    assert any(not np.array_equal(label, data.label) for label, _ in seen)


def test_importance_finds_the_column_that_matters() -> None:
    frame = simulate({"AD": 30, "CN": 30}, seed=2, noise_features=2)
    rng = np.random.default_rng(0)
    frame["noise_1"] += 2.5 * (frame["diagnosis"] == "AD") + rng.normal(0, 0.1, 60)
    data, schema = make_subjects(frame, features=("noise_0", "noise_1"), covariates=("age",))
    folds = stratified_folds(data.label, 3, 1, 0)
    found = nested_cv(data, {"both": schema}, folds, ["logistic"])["both"]
    falls = importance(data, schema, found).set_index("column")["auc_fall"]
    assert list(falls.index) == ["noise_0", "noise_1", "age"]
    assert falls["noise_1"] > 0.2
    assert abs(falls["noise_0"]) < 0.1
