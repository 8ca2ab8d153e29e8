"""Columns are chosen, refused and warned about."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

from hyps_bids.classification.columns import choose_columns, feature_sets, find_giveaways
from hyps_bids.classification.features import Schema
from hyps_bids.errors import BadData, UsageError
from tests.classification.conftest import SETTINGS
from tests.cohorts import PARTS, simulate
from tests.raising import raises


@pytest.fixture
def frame() -> pd.DataFrame:
    made = simulate({"AD": 20, "CN": 20}, {"AD": -2}, sites=("A", "B"))
    return made.assign(icv_residual_mm3_L_whole=1.0, asymmetry_whole=made["age"] / 1000)


def choose(frame: pd.DataFrame, **options: Any) -> Schema:
    return choose_columns(replace(SETTINGS, **options), frame)


def test_defaults_are_the_parts_of_both_sides(frame: pd.DataFrame) -> None:
    schema = choose(frame, covariates=("age", "sex", "MMSE"), site="site", harmonize=True)
    assert set(schema.volumes) == set(PARTS)
    assert schema.icv == "icv_mm3"
    assert schema.numeric == ("age", "MMSE")
    assert schema.categories == {"sex": ("F", "M")}
    # Harmonization must not keep the effect of a test score.
    assert schema.preserve == ("age", "sex")
    assert schema.sites == ("A", "B")


def test_patterns_and_ratios(frame: pd.DataFrame) -> None:
    schema = choose(frame, features=("volume_mm3_?_whole", "asymmetry_*"))
    assert schema.volumes == ("volume_mm3_L_whole", "volume_mm3_R_whole")
    assert schema.ratios == ("asymmetry_whole",)
    assert "icv_residual_mm3_L_whole" not in choose(frame, features=("*_L_*",)).features


@pytest.mark.parametrize(
    ("options", "code", "facts"),
    [
        ({"features": ["icv_residual_mm3_L_whole"]}, "feature-leaks", ["icv_residual_mm3_L_whole"]),
        ({"features": ["volumes_*"]}, "column-unknown", ["--features", "volumes_*"]),
        ({"covariates": ["diagnosis"]}, "target-as-predictor", []),
        ({"features": ["sex"]}, "feature-not-numeric", ["sex"]),
        ({"features": ["age"], "covariates": ["age"]}, "feature-and-covariate", ["age"]),
        # As a feature, a test would not be reported as circular.
        ({"features": ["volume_mm3_L_*", "MMSE"]}, "feature-circular", ["MMSE"]),
        ({"features": ["volume_mm3_L_*", "icv_mm3"]}, "feature-is-icv", ["icv_mm3"]),
    ],
)
def test_misleading_columns_are_refused(
    frame: pd.DataFrame, options: dict, code: str, facts: list[str]
) -> None:
    with raises(UsageError, code, *facts):
        choose(frame, **options)


def test_empty_and_constant_columns_are_left_out(
    frame: pd.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    frame[PARTS[0]] = float("nan")
    frame["education"] = 12.0
    schema = choose(frame, covariates=["age", "education"])
    assert PARTS[0] not in schema.volumes
    assert schema.covariates == ("age",)
    left_out = [(r.args[1], r.args[2]) for r in caplog.records if isinstance(r.args, tuple)]
    assert left_out == [(PARTS[0], "empty"), ("education", "constant")]
    with raises(BadData, "no-feature-left"):
        choose(frame, features=[PARTS[0]])


def test_volumes_without_icv_are_not_adjusted(
    frame: pd.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    assert choose(frame.drop(columns="icv_mm3")).icv is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_sets_with_and_without_tests(frame: pd.DataFrame) -> None:
    assert list(feature_sets(choose(frame))) == ["volumes"]
    plain = feature_sets(choose(frame, covariates=["age"]))
    assert list(plain) == ["volumes", "metadata", "both"]
    sets = feature_sets(choose(frame, covariates=["age", "MMSE"]))
    assert sets["both_noncircular"].used == (*sets["volumes"].used, "age")
    assert sets["metadata_noncircular"].used == ("age",)
    only_tests = feature_sets(choose(frame, covariates=["MMSE"]))
    assert list(only_tests) == ["volumes", "metadata", "both"]


def test_giveaways_are_found(frame: pd.DataFrame) -> None:
    label = (frame["diagnosis"] == "CN").astype("Int64")
    frame["code"] = frame["diagnosis"].map({"AD": "G30", "CN": "Z00"})
    frame["score"] = frame["age"] + 100 * (frame["diagnosis"] == "AD")
    schema = choose(frame, covariates=["age", "sex", "MMSE", "code", "score"])
    circular, *suspicious = find_giveaways(frame, schema, label)
    assert "MMSE" in circular
    assert [text.split()[1] for text in suspicious] == ["score", "code"]
    schema = choose(frame, features=["score", *PARTS])
    (warning,) = find_giveaways(frame, schema, label)
    assert "score" in warning


def test_an_odd_value_that_turns_numbers_into_levels_is_reported(
    frame: pd.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    frame["age"] = frame["age"].astype(str).where(frame.index > 0, "70y")
    choose(frame, covariates=["age", "sex"])
    assert [record.args for record in caplog.records] == [("age", 1, "70y")]
