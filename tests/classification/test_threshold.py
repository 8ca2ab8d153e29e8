"""The class that is called, and the cuts that decide it."""

from __future__ import annotations

import numpy as np
import pytest

from hyps_bids.classification.metrics import metrics
from hyps_bids.classification.threshold import call_classes, choose_cuts


def test_cuts_of_every_rule() -> None:
    # Of 2 + 3 subjects, the positive ones have 0.6 and 0.2.
    label = np.array([0, 0, 1, 1, 1])
    positive = np.array([0.6, 0.2, 0.3, 0.1, 0.1])
    probability = np.column_stack([positive, 1 - positive])
    assert choose_cuts("0.5", label, probability, 2).tolist() == [0.5, 0.5]
    assert choose_cuts("prevalence", label, probability, 2).tolist() == [0.4, 0.6]
    # From 0.2 on, both patients and one of three controls are called: 1 + 2/3 is the best sum.
    assert choose_cuts("youden", label, probability, 2) == pytest.approx([0.15, 0.85])
    # Without predictions, and with three classes, youden is prevalence.
    assert choose_cuts("youden", label, None, 2).tolist() == [0.4, 0.6]
    three = choose_cuts("youden", np.array([0, 1, 2, 2]), np.ones((4, 3)) / 3, 3)
    assert three.tolist() == [0.25, 0.25, 0.5]


def test_equal_cuts_call_the_most_probable_class() -> None:
    probability = np.random.default_rng(0).dirichlet(np.ones(3), 100)
    called = call_classes(probability, choose_cuts("0.5", np.array([0]), None, 3))
    assert np.array_equal(called, probability.argmax(axis=1))


def test_who_only_knows_the_shares_calls_the_largest_class() -> None:
    label = np.repeat([0, 1, 2], [2, 5, 3])
    cuts = choose_cuts("prevalence", label, None, 3)
    # The shares are the same but for rounding.
    probability = np.tile(cuts, (10, 1)) * (1 + np.linspace(-1e-14, 1e-14, 30).reshape(10, 3))
    assert call_classes(probability, cuts).tolist() == [1] * 10


def test_the_cut_at_the_prevalence_balances_rare_classes() -> None:
    # With d = 1 and a prevalence of 0.1, the most probable class is nearly always the larger one:
    # normal distributions give a balanced accuracy of 0.52 at 0.5, and of 0.69 at the prevalence.
    rng = np.random.default_rng(1)
    label = np.repeat([0, 1], [2000, 18000])
    score = rng.normal(size=20000) + (label == 0)
    odds = np.exp(score - 0.5) * 0.1 / 0.9
    positive = odds / (1 + odds)
    probability = np.column_stack([positive, 1 - positive])
    fold = np.zeros(20000, dtype=int)
    found = {}
    for rule in ("0.5", "prevalence", "youden"):
        called = call_classes(probability, choose_cuts(rule, label, probability, 2))
        found[rule] = metrics(label, probability, fold, called=called)["balanced_accuracy"][0]
    assert found["0.5"] == pytest.approx(0.5207, abs=0.01)
    assert found["prevalence"] == pytest.approx(0.6915, abs=0.01)
    assert found["youden"] >= found["prevalence"] - 1e-9
