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


SEPARATE = np.repeat([0.9, 0.1], 8)


@pytest.mark.parametrize(
    ("repeats", "words"),
    [
        ([SEPARATE], "because the probabilities separate the classes perfectly;"),
        ([1 - SEPARATE], "wrong way round"),
        ([np.full(16, 0.5)], "all alike"),
        ([SEPARATE, np.tile([0.8, 0.2], 8)], "in 1 of 2 repeats the probabilities separate"),
    ],
)
def test_no_slope_has_a_reason_and_the_intercept_is_told(repeats: list, words: str) -> None:
    label = np.repeat([0, 1], 8)
    probability = two_columns(np.array(repeats))
    (row,) = recalibration_rows(label, probability, ("AD", "CN"))
    assert np.isnan(float(row["slope"]))
    # Half of the subjects are of each class, as the mean of the probabilities says.
    assert row["intercept"] == pytest.approx(0, abs=1e-6)
    text = calibration_sentence(row)
    assert words in text
    assert f"(intercept {row['intercept']:.2f} [" in text


def test_one_class_has_neither_slope_nor_intercept() -> None:
    probability = two_columns(SEPARATE[None])
    (row,) = recalibration_rows(np.zeros(16, dtype=int), probability, ("AD", "CN"))
    assert np.isnan(float(row["intercept"]))
    assert "all AD, or none of them is" in calibration_sentence(row)


@pytest.mark.parametrize(
    ("slope", "low", "high", "words"),
    [
        (-0.8, -1.4, -0.2, "do not go with the class AD (slope"),
        (-0.3, -1.4, 0.8, "do not go with the class AD, as far as can be told"),
        (0.4, -0.1, 0.9, "too extreme, if they go with the class at all"),
        (3.0, -2.0, 8.0, "cannot be told"),
        (1.0, 0.7, 1.3, "neither clearly"),
    ],
)
def test_slopes_have_words(slope: float, low: float, high: float, words: str) -> None:
    row = {"class": "AD", "slope": slope, "slope_low": low, "slope_high": high}
    row |= {"intercept": 0.1, "intercept_low": -0.3, "intercept_high": 0.5}
    assert words in calibration_sentence(row)


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
