"""Small searches, settings and simulated subjects for the classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from hyps_bids.classification import cross_validation, duration, train
from hyps_bids.classification.contrast import Contrast, Ints, LabeledSubjects
from hyps_bids.classification.cross_validation import (
    SELECTED,
    nested_cv,
    stratified_folds,
)
from hyps_bids.classification.estimators import ESTIMATORS
from hyps_bids.classification.features import Schema
from hyps_bids.classification.metrics import metrics
from hyps_bids.classification.permutation import PermutationTest, Shuffling, permutation_tests
from hyps_bids.classification.plan import make_plan
from hyps_bids.classification.processes import ONE_PROCESS, Computing
from hyps_bids.settings import Settings

SETTINGS = Settings(
    bids_dir=Path("bids"),
    output_dir=Path("out"),
    analysis_level="group",
    target="diagnosis",
    contrast=("AD:CN",),
    estimators=("logistic", "dummy"),
    folds=3,
    repeats=1,
    permutations=0,
    nprocs=1,
)


def shrink_search(patch: pytest.MonkeyPatch) -> None:
    """Make the inner search small, where its size does not matter."""
    grid = ({"C": 0.1, "percentile": 50}, {"C": 0.1, "percentile": 100})
    patch.setitem(ESTIMATORS, "logistic", replace(ESTIMATORS["logistic"], grid=grid))
    patch.setattr(cross_validation, "_INNER_FOLDS", 2)
    patch.setattr(duration, "_FAST_S", 0.0)


@pytest.fixture
def small_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Search as :func:`shrink_search` does."""
    shrink_search(monkeypatch)


@pytest.fixture
def no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw nothing, because drawing takes longer than a small classifier."""
    monkeypatch.setattr(train, "draw_charts", lambda *_: None)


@pytest.fixture
def options(tmp_path: Path, small_search: None) -> Settings:
    """Settings of a small run: one estimator, few folds, no permutations."""
    return replace(SETTINGS, output_dir=tmp_path / "out")


def folder(options: Settings, name: str = "AD-vs-CN") -> Path:
    """Folder of a classifier."""
    return options.output_dir / "models" / f"classifier-{name}"


def make_subjects(
    frame: pd.DataFrame, contrast: str = "AD:CN", **options: Any
) -> tuple[LabeledSubjects, Schema]:
    """Make arrays of a simulated table; by default harmonized, with age and sex."""
    defaults = {"covariates": ("age", "sex"), "site": "site", "harmonize": True}
    plan = make_plan(replace(SETTINGS, **defaults | options), frame, Contrast.parse(contrast))
    return plan.subjects, plan.schema


def permuted(
    data: LabeledSubjects,
    sets: dict[str, Schema],
    shuffling: Shuffling,
    folds: int = 3,
    estimators: Sequence[str] = ("logistic",),
    computing: Computing = ONE_PROCESS,
) -> dict[str, PermutationTest]:
    """Cross-validate in one repeat and test the AUC, as a whole run does."""

    def make_folds(label: Ints) -> Ints:
        return stratified_folds(label, folds, 1, computing.seed, shuffling.sites)[0]

    dealt = make_folds(data.label)
    found = nested_cv(data, sets, dealt[None], estimators, computing)
    observed = {
        name: float(metrics(data.label, one.probability[SELECTED][0], dealt)["auc"][0])
        for name, one in found.items()
    }
    return permutation_tests(data, sets, observed, estimators, make_folds, shuffling, computing)
