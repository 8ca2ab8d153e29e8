"""Columns are chosen, refused and warned about."""

from __future__ import annotations

import pandas as pd
import pytest

from hyps_bids.classification.columns import choose_columns, feature_sets, warn_of_giveaways
from hyps_bids.errors import BadData, UsageError
from tests.cohorts import PARTS, simulate


@pytest.fixture
def frame() -> pd.DataFrame:
    made = simulate({"AD": 20, "CN": 20}, {"AD": -2}, sites=("A", "B"))
    return made.assign(icv_residual_mm3_L_whole=1.0, asymmetry_whole=made["age"] / 1000)


def test_defaults_are_the_parts_of_both_sides(frame: pd.DataFrame) -> None:
    schema = choose_columns(frame, covariates=("age", "sex", "MMSE"), site="site", harmonize=True)
    assert set(schema.volumes) == set(PARTS)
    assert schema.icv == "icv_mm3"
    assert schema.numeric == ("age", "MMSE")
    assert schema.categories == {"sex": ("F", "M")}
    # a test score does not shape the volumes by harmonization either
    assert schema.preserve == ("age", "sex")
    assert schema.sites == ("A", "B")


def test_patterns_and_ratios(frame: pd.DataFrame) -> None:
    schema = choose_columns(frame, features=("volume_mm3_?_whole", "asymmetry_*"))
    assert schema.volumes == ("volume_mm3_L_whole", "volume_mm3_R_whole")
    assert schema.ratios == ("asymmetry_whole",)
    assert "icv_residual_mm3_L_whole" not in choose_columns(frame, features=("*_L_*",)).features


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": ["icv_residual_mm3_L_whole"]}, "test folds included"),
        ({"features": ["volumes_*"]}, "no column volumes_"),
        ({"covariates": ["weight"]}, "--covariates: no column weight.*there are: participant_id"),
        ({"covariates": ["diagnosis"], "target": "diagnosis"}, "cannot predict itself"),
        ({"features": ["sex"]}, "levels go to --covariates"),
        ({"features": ["age"], "covariates": ["age"]}, "name it once"),
        ({"site": "center", "harmonize": True}, "--site: no column center"),
    ],
)
def test_what_cannot_be_is_refused(frame: pd.DataFrame, options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        choose_columns(frame, **options)


def test_empty_and_constant_columns_are_left_out(
    frame: pd.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    frame[PARTS[0]] = None
    frame[PARTS[0]] = frame[PARTS[0]].astype(float)
    frame["education"] = 12.0
    schema = choose_columns(frame, covariates=["age", "education"])
    assert PARTS[0] not in schema.volumes
    assert schema.covariates == ("age",)
    assert f"feature {PARTS[0]} is empty" in caplog.text
    assert "covariate education is constant" in caplog.text
    with pytest.raises(BadData, match="no feature is left"):
        choose_columns(frame, features=[PARTS[0]])


def test_volumes_without_icv_are_said_to_be_unadjusted(
    frame: pd.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    assert choose_columns(frame.drop(columns="icv_mm3")).icv is None
    assert "not adjusted for head size" in caplog.text


def test_sets_with_and_without_tests(frame: pd.DataFrame) -> None:
    assert list(feature_sets(choose_columns(frame))) == ["volumes"]
    plain = feature_sets(choose_columns(frame, covariates=["age"]))
    assert list(plain) == ["volumes", "metadata", "both"]
    sets = feature_sets(choose_columns(frame, covariates=["age", "MMSE"]))
    assert sets["both_noncircular"].used == (*sets["volumes"].used, "age")
    assert sets["metadata_noncircular"].used == ("age",)
    only_tests = feature_sets(choose_columns(frame, covariates=["MMSE"]))
    assert list(only_tests) == ["volumes", "metadata", "both"]


def test_giveaways_are_warned_of(frame: pd.DataFrame) -> None:
    label = (frame["diagnosis"] == "CN").astype("Int64")
    frame["code"] = frame["diagnosis"].map({"AD": "G30", "CN": "Z00"})
    frame["score"] = frame["age"] + 100 * (frame["diagnosis"] == "AD")
    schema = choose_columns(frame, covariates=["age", "sex", "MMSE", "code", "score"])
    circular, *suspicious = warn_of_giveaways(frame, schema, label)
    assert "circular: MMSE" in circular
    assert [text.split()[1] for text in suspicious] == ["score", "code"]


@pytest.mark.parametrize("name", ["MMSE", "icv_mm3"])
def test_what_is_no_feature_is_refused(frame: pd.DataFrame, name: str) -> None:
    # a test by which diagnoses are made would count as a volume, and be warned of nowhere
    with pytest.raises(UsageError, match="--covariates"):
        choose_columns(frame, features=["volume_mm3_L_*", name])


def test_features_that_give_the_diagnosis_away_are_warned_of(frame: pd.DataFrame) -> None:
    label = (frame["diagnosis"] == "CN").astype("Int64")
    frame["score"] = frame["age"] + 100 * (frame["diagnosis"] == "AD")
    schema = choose_columns(frame, features=["score", *PARTS])
    (warning,) = warn_of_giveaways(frame, schema, label)
    assert "suspicious: score" in warning


def test_one_odd_value_that_makes_levels_of_numbers_is_told(
    frame: pd.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    frame["age"] = frame["age"].astype(str).where(frame.index > 0, "70y")
    choose_columns(frame, covariates=["age", "sex"])
    assert "covariate age is taken as levels, not as numbers" in caplog.text
    assert "'70y'" in caplog.text
    assert "covariate sex" not in caplog.text
