"""Subjects as the classifiers take them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hyps_bids.classification import cross_validation, train
from hyps_bids.classification.columns import choose_columns
from hyps_bids.classification.contrast import Contrast, LabeledSubjects, label_scans
from hyps_bids.classification.estimators import ESTIMATORS
from hyps_bids.classification.features import Schema
from hyps_bids.settings import Settings


@pytest.fixture
def small_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the inner search small, where its size does not matter."""
    grid = ({"C": 0.1, "percentile": 50}, {"C": 0.1, "percentile": 100})
    monkeypatch.setitem(ESTIMATORS, "logistic", replace(ESTIMATORS["logistic"], grid=grid))
    monkeypatch.setattr(cross_validation, "_INNER_FOLDS", 2)


@pytest.fixture
def no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw nothing, because drawing takes longer than a small classifier."""
    monkeypatch.setattr(train, "draw_charts", lambda *_: None)


@pytest.fixture
def options(tmp_path: Path, small_search: None) -> Settings:
    """Settings of a small run: one estimator, few folds, no permutations."""
    return Settings(
        bids_dir=tmp_path / "bids",
        output_dir=tmp_path / "out",
        analysis_level="group",
        target="diagnosis",
        contrast=("AD:CN",),
        estimators=("logistic", "dummy"),
        folds=3,
        repeats=1,
        permutations=0,
        nprocs=1,
    )


def folder(options: Settings, name: str = "AD-vs-CN") -> Path:
    """Folder of a classifier."""
    return options.output_dir / "models" / f"classifier-{name}"


def make_subjects(
    frame: pd.DataFrame, contrast: str = "AD:CN", **options: object
) -> tuple[LabeledSubjects, Schema]:
    """Make arrays of a simulated table; by default harmonized, with age and sex."""
    defaults = {"covariates": ("age", "sex"), "site": "site", "harmonize": True}
    schema = choose_columns(frame, **{**defaults, **options})  # type: ignore[arg-type]
    classes = Contrast.parse(contrast)
    label = label_scans(frame, "diagnosis", classes)
    rows = frame[label.notna()]
    ids, subject = np.unique(rows["participant_id"], return_inverse=True)
    of_subject = np.zeros(len(ids), dtype=np.int64)
    of_subject[subject] = label.dropna().astype(int)
    return LabeledSubjects(
        schema.matrix(rows), subject, of_subject, tuple(ids), tuple(classes.classes)
    ), schema
