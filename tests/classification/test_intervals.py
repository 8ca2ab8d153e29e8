"""Intervals and comparisons have the values of R's pROC and of statsmodels."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t
from statsmodels.stats.proportion import proportion_confint

from hyps_bids.classification.intervals import compare, metric_rows, newcombe, t_interval
from hyps_bids.classification.metrics import METRICS

#: Labels and two predictors, also given to pROC:
#: y <- c(1,1,1,1,1,1,0,0,0,0,0,0,0); a <- c(.9,.8,.7,.6,.4,.35,.75,.5,.45,.3,.2,.15,.1)
#: b <- c(.6,.9,.55,.8,.2,.45,.7,.5,.65,.3,.35,.1,.25)
LABEL = np.repeat([0, 1], [6, 7])
A = np.array([0.9, 0.8, 0.7, 0.6, 0.4, 0.35, 0.75, 0.5, 0.45, 0.3, 0.2, 0.15, 0.1])
B = np.array([0.6, 0.9, 0.55, 0.8, 0.2, 0.45, 0.7, 0.5, 0.65, 0.3, 0.35, 0.1, 0.25])
ONE_FOLD = np.zeros((1, 13), dtype=int)


def two_columns(first: np.ndarray) -> np.ndarray:
    """Probabilities (repeats, subjects, 2) from those of the first class."""
    return np.stack([first, 1 - first], axis=-1)


def by_name(rows: list[dict]) -> dict[str, dict]:
    """Rows by the name of their metric."""
    return {row["figure"]: row for row in rows}


def sure(label: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that are right and nearly certain, and one fold for all."""
    probability = np.where(np.eye(classes)[label] == 1, 0.999, 0.001 / (classes - 1))
    return probability[None], np.zeros((1, len(label)), dtype=int)


def test_interval_of_new_subjects_has_delongs_variance() -> None:
    area = by_name(metric_rows(LABEL, two_columns(A[None]), ONE_FOLD, trained_on=False))["auc"]
    # auc(roc(y, a)) and var(roc(y, a)) of pROC 1.18
    assert area["value"] == pytest.approx(0.8095238095)
    narrow, wide = (t_interval(0.8095238095, f * 0.01617535903, 11) for f in (1, 2.5))
    score = newcombe(0.8095238095, (6, 7))
    assert area["low"] == pytest.approx(min(narrow[0], score[0]), abs=1e-9)
    assert area["high"] == pytest.approx(max(narrow[1], score[1]), abs=1e-9)
    # The variance is 2.5 times as large where the tested subjects also train.
    trained = by_name(metric_rows(LABEL, two_columns(A[None]), ONE_FOLD))["auc"]
    assert (trained["low"], trained["high"]) == pytest.approx(wide, abs=1e-9)


def test_comparison_of_new_subjects_is_delongs_test() -> None:
    first, second = two_columns(A[None]), two_columns(B[None])
    area = compare(LABEL, first, second, ONE_FOLD, trained_on=False)[0]
    # roc.test(roc(y, a), roc(y, b), paired = TRUE, method = "delong") has Z = 1.212678125
    assert area["difference"] == pytest.approx(0.1190476190)
    assert area["p"] == pytest.approx(2 * t.sf(1.212678125, 11))
    half = t.ppf(0.975, 11) * 0.1190476190 / 1.212678125
    assert area["high"] == pytest.approx(0.1190476190 + half)


def test_interval_excludes_zero_exactly_if_p_is_small() -> None:
    rng = np.random.default_rng(0)
    label = np.arange(60) % 2
    folds = np.tile(np.arange(60) // 2 % 5, (2, 1))
    decided = set()
    for seed in range(60):
        noise = (
            rng.normal(size=(2, 2, 60)) + (label == 0) * np.array([seed / 20, 0.3])[:, None, None]
        )
        first, second = (two_columns(1 / (1 + np.exp(-one))) for one in noise)
        for row in compare(label, first, second, folds, trained_on=seed % 2 == 0):
            sure_of = float(row["low"]) > 0 or float(row["high"]) < 0
            assert sure_of == (float(row["p"]) < 0.05)
            decided.add(sure_of)
    assert decided == {True, False}
    for row in compare(label, first, first, folds):
        assert (row["difference"], row["p"]) == (0, 1)
        assert float(row["low"]) < 0 < float(row["high"])


@pytest.mark.parametrize("counts", [(2, 2), (8, 8), (3, 30), (8, 8, 8), (2, 5, 9, 4)])
@pytest.mark.parametrize("trained_on", [True, False])
def test_no_interval_of_a_perfect_sample_is_without_width(counts: tuple, trained_on: bool) -> None:
    label = np.repeat(np.arange(len(counts)), counts)
    rows = by_name(metric_rows(label, *sure(label, len(counts)), trained_on=trained_on))
    assert tuple(rows) == METRICS
    for name, row in rows.items():
        right = name != "brier"
        assert row["value"] == pytest.approx(1.0 if right else 0.0, abs=1e-5)
        assert float(row["high"]) - float(row["low"]) > 0.5 / sum(counts), name
        assert 0 <= float(row["low"]) <= float(row["value"]) <= float(row["high"]) <= 1


def test_no_interval_of_a_wholly_wrong_sample_is_without_width() -> None:
    label = np.repeat([0, 1, 2], 8)
    rows = metric_rows(label, *sure((label + 1) % 3, 3))
    assert all(float(row["high"]) - float(row["low"]) > 0.05 for row in rows)


def test_score_intervals_of_a_perfect_sample() -> None:
    label = np.repeat([0, 1, 2], 8)
    rows = by_name(metric_rows(label, *sure(label, 3)))
    all_right = proportion_confint(24, 24, method="wilson")[0]
    class_right = proportion_confint(8, 8, method="wilson")[0]
    assert rows["accuracy"]["low"] == pytest.approx(all_right)
    # Three independent recalls: the distance of each from 1 is the same, so that of the mean is
    # smaller by the root of 3 (Zou and Donner 2008).
    assert rows["balanced_accuracy"]["low"] == pytest.approx(1 - (1 - class_right) / 3**0.5)
    assert rows["specificity"]["low"] == pytest.approx(
        proportion_confint(16, 16, method="wilson")[0]
    )
    # TP / (TP + FP + FN) = 8 / 8 and F1 = 2 J / (1 + J)
    assert rows["f1"]["low"] == pytest.approx(2 * class_right / (1 + class_right))
    assert rows["auc"]["low"] == pytest.approx(newcombe(1.0, (8, 16))[0])
    # The share of wrong subjects may be as high as that, and each could cost 1 more.
    assert rows["brier"]["high"] == pytest.approx(1 - all_right, abs=0.001)


def test_newcombes_interval_is_symmetric_and_needs_subjects() -> None:
    few, many = newcombe(0.5, (12, 12)), newcombe(0.5, (200, 200))
    assert few[0] == pytest.approx(1 - few[1])
    assert few[1] - few[0] > 3 * (many[1] - many[0])
    assert np.isnan(newcombe(float("nan"), (3, 0))).all()


def test_groups_of_large_samples_give_nearly_the_same_interval() -> None:
    # 450 subjects are left out in 200 groups. The variance of an accuracy p is p (1 - p) / n.
    rng = np.random.default_rng(1)
    label = np.arange(450) % 2
    first = np.where(rng.random(450) < 0.7, label == 0, label == 1) * 0.6 + 0.2
    fold = np.zeros((1, 450), dtype=int)
    row = by_name(metric_rows(label, two_columns(first[None]), fold, trained_on=False))["accuracy"]
    value = float(row["value"])
    low, high = t_interval(value, value * (1 - value) / 450, 448)
    assert float(row["low"]) == pytest.approx(low, abs=0.006)
    assert float(row["high"]) == pytest.approx(high, abs=0.006)


def test_held_out_class_with_one_or_no_subject() -> None:
    for counts in ((1, 3), (0, 4)):
        label = np.repeat([0, 1], counts)
        rows = by_name(metric_rows(label, *sure(label, 2), trained_on=False))
        assert rows["accuracy"]["low"] == pytest.approx(
            proportion_confint(4, 4, method="wilson")[0]
        )
        assert np.isnan(float(rows["auc"]["low"])) == (counts[0] == 0)
    assert np.isnan(float(compare(label, *[sure(label, 2)[0]] * 2, sure(label, 2)[1])[0]["p"]))


def test_accuracy_stands_beside_that_of_the_largest_class() -> None:
    label = np.repeat([0, 1, 2], [20, 70, 10])
    rows = by_name(metric_rows(label, *sure(label, 3)))
    assert rows["accuracy"]["baseline"] == 0.7
    assert rows["balanced_accuracy"]["baseline"] == pytest.approx(1 / 3)
    assert np.isnan(float(rows["sensitivity"]["baseline"]))
    # The prevalences as probabilities cost (1 - 0.04 - 0.49 - 0.01) / 2.
    assert rows["brier"]["baseline"] == pytest.approx(0.23)
