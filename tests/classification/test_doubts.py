"""Columns that may tell the diagnosis: by name, by value, or by where they are missing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hyps_bids.classification.contrast import Contrast
from hyps_bids.classification.doubts import MissingValues, _family_p
from hyps_bids.classification.plan import Plan, make_plan
from tests.classification.conftest import SETTINGS
from tests.cohorts import PARTS, simulate


def plan(frame: pd.DataFrame, contrast: str = "AD:CN", **options: Any) -> Plan:
    chosen = replace(SETTINGS, **{"covariates": ("age", "education"), **options})
    return make_plan(chosen, frame, Contrast.parse(contrast))


@pytest.fixture
def frame() -> pd.DataFrame:
    return simulate({"AD": 30, "CN": 30}, seed=1, noise_features=4)


def test_tests_and_columns_that_tell_apart_are_doubtful(frame: pd.DataFrame) -> None:
    frame["code"] = frame["diagnosis"].map({"AD": "G30", "CN": "Z00"})
    frame["score"] = frame["age"] + 100 * (frame["diagnosis"] == "AD")
    found = plan(frame, covariates=("age", "sex", "MMSE", "code", "score"))
    assert found.doubtful == ("MMSE", "score", "code")
    assert found.sets["metadata_reduced"].used == ("age", "sex")
    tests, *alone, advice = found.warnings
    assert "MMSE" in tests
    assert [text.split()[1] for text in alone] == ["score", "code"]
    assert "MMSE, score, code" in advice
    # Harmonization does not keep the effect of what tells the diagnosis.
    assert found.schema.preserve == ("age", "sex")


def test_a_covariate_that_no_control_has_is_doubtful(frame: pd.DataFrame) -> None:
    frame.loc[frame["diagnosis"] == "CN", "education"] = np.nan
    found = plan(frame)
    assert found.doubtful == ("education",)
    assert found.sets["both_reduced"].used == (*PARTS, "age")
    missing, advice = found.warnings
    assert "education (0 % of AD, 100 % of CN)" in missing
    assert "metadata_reduced" in advice
    # Then there is nothing but the volumes to compare with.
    found = plan(frame, covariates=("education",))
    assert list(found.sets) == ["volumes", "metadata", "both"]
    assert "the volumes alone" in found.warnings[-1]


def test_levels_and_three_classes_may_be_missing(frame: pd.DataFrame) -> None:
    frame = simulate({"AD": 20, "MCI": 20, "CN": 20}, seed=2)
    frame.loc[frame["diagnosis"] == "MCI", "sex"] = None
    found = plan(frame, "AD:MCI:CN", covariates=("age", "sex"))
    assert found.doubtful == ("sex",)
    assert "100 % of MCI" in found.warnings[0]


@pytest.mark.parametrize("column", ["icv_mm3", PARTS[0]])
def test_measures_that_one_class_lacks_are_warned_of(frame: pd.DataFrame, column: str) -> None:
    rng = np.random.default_rng(0)
    lost = (frame["diagnosis"] == "AD") & (rng.random(60) < 0.6)
    frame.loc[lost, column] = np.nan
    found = plan(frame)
    assert found.doubtful == ()
    (warning,) = found.warnings
    assert column in warning


def test_two_columns_tell_together_what_none_tells_alone(frame: pd.DataFrame) -> None:
    # Patients lack both values or none, controls one of them.
    first = np.arange(60) % 2 == 0
    second = np.where(frame["diagnosis"] == "AD", first, ~first)
    frame["age"] = frame["age"].mask(first)
    frame["education"] = frame["education"].mask(second)
    found = plan(frame, covariates=("sex", "age", "education"))
    assert found.doubtful == ("age", "education")
    pattern, _ = found.warnings
    assert "age, education" in pattern


@pytest.mark.slow
def test_values_that_are_missing_by_chance_are_no_doubt(frame: pd.DataFrame) -> None:
    # Of 150 cohorts, 0.03 had a false alarm (benchmarks/statistics/missingness.py).
    alarms = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        made = frame.mask(rng.random(frame.shape) < 0.2).fillna(
            frame[["participant_id", "scan", "status", "diagnosis", "models", "software_version"]]
        )
        alarms.append(bool(plan(made).doubtful))
    assert sum(alarms) <= 2


def test_visits_that_lack_a_value_do_not_count_more_often() -> None:
    # Patients come six times, and one scan in ten has no value in both groups.
    frame = simulate({"AD": 40, "CN": 40}, scans=6, seed=3)
    frame = frame[(frame["diagnosis"] == "AD") | (frame["session_id"] == "ses-1")]
    frame["education"] = frame["education"].mask(np.random.default_rng(0).random(280) < 0.1)
    found = plan(frame.reset_index(drop=True))
    assert found.doubtful == ()
    (visits,) = found.warnings
    assert "AD 6.0, CN 1.0" in visits
    # The follow-up visits of patients, which controls do not have, lack it.
    frame["education"] = frame["education"].mask(frame["session_id"] != "ses-1")
    assert plan(frame.reset_index(drop=True)).doubtful == ("education",)


def test_p_values_are_those_of_fisher() -> None:
    # Of 5 + 5 subjects, all of one class lack the value: 2 of 252 divisions are as extreme.
    label = np.repeat([0, 1], 5)
    p = _family_p((label == 0).astype(float)[:, None], label)[0]
    assert p == pytest.approx(2 / 252, abs=0.005)
    assert _family_p(np.zeros((10, 2)), label).tolist() == [1, 1]


def test_columns_without_missing_values_are_not_tested(frame: pd.DataFrame) -> None:
    found = plan(frame)
    missing = MissingValues.of(found.subjects, found.schema)
    assert missing.names == ()
    assert missing.single_columns() == missing.joint_columns([]) == []
