"""Slope and intercept of calibration have the values of R's glm."""

from __future__ import annotations

import numpy as np
import pytest

from hyps_bids.classification.recalibration import calibration_sentence, recalibration_rows
from tests.classification.test_intervals import LABEL, A, two_columns


def test_slope_and_intercept_are_those_of_r() -> None:
    # summary(glm(y ~ qlogis(a), family = binomial)) and
    # summary(glm(y ~ offset(qlogis(a)), family = binomial)), y and a as in test_intervals.py
    (row,) = recalibration_rows(LABEL, two_columns(A[None]), ("AD", "CN"), trained_on=False)
    assert row["slope"] == pytest.approx(1.23642537961, rel=1e-6)
    assert row["slope_high"] == pytest.approx(1.23642537961 + 1.959964 * 0.7123641139, rel=1e-5)
    assert row["intercept"] == pytest.approx(-0.08211006183, rel=1e-6)
    assert row["intercept_low"] == pytest.approx(-0.08211006183 - 1.959964 * 0.6413813673, rel=1e-5)
    (trained,) = recalibration_rows(LABEL, two_columns(A[None]), ("AD", "CN"))
    half = 1.959964 * 0.7123641139 * 2.5**0.5
    assert trained["slope_high"] == pytest.approx(1.23642537961 + half, rel=1e-5)


def test_probabilities_that_separate_or_are_alike_have_no_slope() -> None:
    label = np.repeat([0, 1], 8)
    separate = np.where(label == 0, 1.0, 0.0)
    for first in (separate, 1 - separate, np.full(16, 0.5), np.where(label == 0, 0.5, 0.2)):
        (row,) = recalibration_rows(label, two_columns(first[None]), ("AD", "CN"))
        assert np.isnan(float(row["slope"]))
        assert np.isfinite(float(row["intercept"]))
        assert "not defined" in calibration_sentence(row)
    (row,) = recalibration_rows(label * 0, two_columns(separate[None]), ("AD", "CN"))
    assert np.isnan(float(row["intercept"]))


@pytest.mark.parametrize(("factor", "words"), [(3.0, "too extreme"), (0.3, "too cautious")])
def test_each_class_of_three_is_judged_by_its_probabilities(factor: float, words: str) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(1500, 3))
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    label = np.array([rng.choice(3, p=one) for one in true])
    wrong = np.exp(factor * logits)
    probability = wrong / wrong.sum(axis=1, keepdims=True)
    rows = recalibration_rows(label, probability[None], ("AD", "CN", "MCI"))
    assert [row["class"] for row in rows] == ["AD", "CN", "MCI"]
    for row in rows:
        assert words in calibration_sentence(row)
    for row in recalibration_rows(label, true[None], ("AD", "CN", "MCI")):
        assert row["slope"] == pytest.approx(1, abs=0.15)
        assert row["intercept"] == pytest.approx(0, abs=0.15)
