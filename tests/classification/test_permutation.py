"""Shuffled labels: exact p-values, early ends, and shuffles within sites."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice, permutations

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from hyps_bids.classification import permutation
from hyps_bids.classification.card import test_lines as lines_of_tests
from hyps_bids.classification.contrast import mean_by_subject
from hyps_bids.classification.permutation import (
    PermutationTest,
    Shuffling,
    _shuffled,
    held_out_test,
    sequential_p,
    shuffle_orders,
    sites_with_one_class,
)
from tests.classification.conftest import make_subjects, permuted
from tests.cohorts import simulate

PLAIN = {"covariates": (), "site": None, "harmonize": False}


def test_p_is_that_of_all_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    data, schema = make_subjects(simulate({"AD": 2, "CN": 2}, seed=8), **PLAIN)
    orders = [np.array(order) for order in permutations(range(4))]
    monkeypatch.setattr(permutation, "shuffle_orders", lambda *_: iter(orders[1:]))
    test = permuted(data, {"all": schema}, Shuffling(23, enough=100), folds=2)["all"]
    # Each order once more as if it were the truth: the p-values are the ranks among all 24.
    values = np.array([test.auc, *test.null])
    every = [replace(data, label=data.label[order]) for order in orders]
    truths = [permuted(one, {"all": schema}, Shuffling(0), folds=2)["all"].auc for one in every]
    assert np.allclose(values, truths)
    assert len(np.unique(values)) > 1
    assert test.p == pytest.approx(np.mean(values >= test.auc))


@pytest.mark.usefixtures("small_search")
def test_the_reported_auc_is_tested() -> None:
    # The same labels again give the same AUC, with the estimator chosen in each fold.
    data, schema = make_subjects(simulate({"AD": 7, "CN": 6}, {"AD": -1}), **PLAIN)
    estimators = ("logistic", "linear_svm", "dummy")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(permutation, "shuffle_orders", lambda *_: iter([data.everybody]))
        test = permuted(data, {"a": schema}, Shuffling(1), folds=2, estimators=estimators)["a"]
    assert test.null.tolist() == [test.auc]
    assert test.p == 1


def test_early_end_follows_besag_and_clifford() -> None:
    # Three of the first five are as good: p = 3 / 5, and later values do not matter.
    assert sequential_p(0.5, np.array([0.6, 0.4, 0.5, 0.3, 0.9]), 99, enough=3) == 0.6
    # Two of nine are as good when the shuffles end: p = (1 + 2) / (1 + 9).
    null = np.array([0.6, 0.7, *[0.1] * 7])
    assert sequential_p(0.5, null, 9, enough=3) == 0.3
    # An undefined AUC counts as good.
    assert sequential_p(0.5, np.array([np.nan]), 1) == 1


def test_early_ends_keep_the_level() -> None:
    # Without effect all values are exchangeable, so P(p <= a) <= a, with equality on the steps.
    rng, planned, enough = np.random.default_rng(0), 19, 3
    found = []
    for _ in range(20_000):
        observed, *null = rng.random(planned + 1)
        as_good = np.cumsum(np.array(null) >= observed)
        end = int(np.searchsorted(as_good, enough)) + 1
        found.append(sequential_p(observed, np.array(null[:end]), planned, enough))
    for level in (0.05, 0.1, 3 / 19, 0.2, 3 / 7, 0.6):
        assert np.mean(np.array(found) <= level + 1e-9) <= level + 3 * np.sqrt(level / 20_000)
    assert np.mean(np.array(found) <= 0.05 + 1e-9) == pytest.approx(0.05, abs=0.005)


@pytest.mark.slow
@pytest.mark.usefixtures("small_search")
def test_hopeless_sets_end_early_and_the_others_go_on() -> None:
    frame = simulate({"AD": 20, "CN": 20}, seed=2, noise_features=1)
    frame = frame.rename(columns={"noise_0": "asymmetry_0"})
    frame["asymmetry_0"] += 6.0 * (frame["diagnosis"] == "AD")
    data, schema = make_subjects(
        frame, **PLAIN | {"features": ("asymmetry_0",), "covariates": ("age",)}
    )
    sets = {"good": schema.only(("asymmetry_0",)), "hopeless": schema.only(("age",))}
    found = permuted(data, sets, Shuffling(9, enough=2), folds=2)
    assert found["good"].auc == 1
    assert found["good"].p == 1 / 10
    assert not found["good"].stopped_early
    hopeless = found["hopeless"]
    assert hopeless.stopped_early
    assert hopeless.null[-1] >= hopeless.auc
    assert np.sum(hopeless.null >= hopeless.auc) == 2
    assert hopeless.p == 2 / len(hopeless.null)


def test_shuffles_within_sites_keep_the_classes_of_each_site() -> None:
    label = np.array([0, 0, 1, 1, 0, 1, 1, 1, 0])
    sites = np.array(list("aaaabbbcc"))
    seen = set()
    for order in islice(shuffle_orders(9, tuple(sites), np.random.default_rng(0)), 200):
        assert sorted(order) == list(range(9))
        shuffled = label[order]
        for site in "abc":
            assert sorted(shuffled[sites == site]) == sorted(label[sites == site])
        seen.add(tuple(shuffled))
    # All 6 · 3 · 2 arrangements occur.
    assert len(seen) == 36


def test_sites_with_one_class_cannot_contribute() -> None:
    label = np.array([0, 0, 1, 0, 1])
    assert sites_with_one_class(label, ["a", "a", "b", "c", "c"]) == (["a", "b"], False)
    assert sites_with_one_class(label, ["a", "a", "b", "a", "b"]) == (["a", "b"], True)


def test_shuffled_controls_move_with_the_labels() -> None:
    data, schema = make_subjects(simulate({"AD": 8, "CN": 8}, scans=2), covariates=())
    control = (data.label == 1) & (np.arange(16) % 2 == 1)
    moved = False
    for order in islice(shuffle_orders(16, None, np.random.default_rng(0)), 3):
        one = _shuffled(data, schema.columns, order, control)
        flags = mean_by_subject(
            one.matrix[:, schema.columns.index("(control)")], one.subject, len(one.ids)
        )
        assert flags.sum() == control.sum()
        assert (one.label[flags == 1] == 1).all()
        moved |= not np.array_equal(one.label, data.label)
    assert moved


def test_held_out_labels_are_shuffled_against_fixed_predictions() -> None:
    rng = np.random.default_rng(4)
    label = np.repeat([0, 1], [12, 15])
    score = 1 / (1 + np.exp(-rng.normal(0.7 * (label == 0), 1)))
    test = held_out_test(label, np.column_stack([score, 1 - score]), None, 0)
    exact = mannwhitneyu(score[label == 0], score[label == 1], alternative="greater")
    assert test.auc == pytest.approx(exact.statistic / (12 * 15))
    # 1999 shuffles know a p-value of 0.06 to 0.005.
    assert test.p == pytest.approx(exact.pvalue, abs=0.016)
    assert len(test.null) == test.planned
    assert not test.stopped_early


def test_held_out_sites_explain_nothing_within_sites() -> None:
    # The prediction is the site itself, which goes with the class.
    label = np.repeat([0, 1, 0, 1], [8, 2, 2, 8])
    score = np.repeat([0.9, 0.1], 10)
    probability = np.column_stack([score, 1 - score])
    assert held_out_test(label, probability, None, 0).p < 0.05
    assert held_out_test(label, probability, ["a"] * 10 + ["b"] * 10, 0).p == 1


def test_p_of_a_test_that_went_to_the_end() -> None:
    null = np.linspace(0.4, 0.6, 19)
    assert PermutationTest(0.595, null, 19).p == pytest.approx(2 / 20)


def test_p_of_each_case_is_explained() -> None:
    worse, better = [0.4] * 5, [0.9] * 10
    cases = {
        "no shuffle": ([0.4] * 9, 9, "p = 0.1 (the smallest possible) from 9 shuffles, of which 0"),
        "early": (worse + better, 99, "p = 0.667 = 10 / 15: the test ended after 15 of 99"),
        "the last": (worse + better, 15, "p = 0.667 = 10 / 15: the test ended after 15 of 15"),
        "one": ([0.9], 1, "p = 1 from 1 shuffle, of which 1 was as good; its AUC is 0.90"),
    }
    for name, (null, planned, words) in cases.items():
        test = PermutationTest(0.8, np.array(null), planned)
        facts = {"AUC": test.auc, "P": test.p, "Permutations": len(null), "Planned": planned}
        facts |= {"AsGood": test.as_good, "EndsAt": test.enough, "NullMean": np.mean(null)}
        (line,) = lines_of_tests({name: facts})
        assert words in line
