"""Contrasts and their subjects; columns are chosen, refused and warned about."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import chi2

from hyps_bids.classification.columns import choose_columns, feature_sets
from hyps_bids.classification.contrast import (
    Contrast,
    LabeledSubjects,
    label_scans,
    site_association,
)
from hyps_bids.classification.features import Schema
from hyps_bids.classification.plan import make_plan
from hyps_bids.errors import BadData, UsageError
from tests.classification.conftest import SETTINGS
from tests.cohorts import PARTS, simulate
from tests.raising import raises


def test_contrasts_of_groups_and_many_classes() -> None:
    contrast = Contrast.parse("AD+LMCI:CN:EMCI")
    assert (contrast.name, contrast.text) == ("AD+LMCI-vs-CN-vs-EMCI", "AD+LMCI:CN:EMCI")
    # The name becomes the name of a folder.
    assert Contrast.parse("a/b:../c").name == "a_b-vs-.._c"


@pytest.mark.parametrize("text", ["AD", "AD:", ":CN", "AD++CN:X", "", "AD:AD+CN"])
def test_contrasts_that_are_none_are_refused(text: str) -> None:
    code = "contrast-level-repeated" if "AD+CN" in text else "contrast-syntax"
    with raises(UsageError, code, text):
        Contrast.parse(text)


@pytest.mark.parametrize(
    ("contrast", "code", "facts"),
    [
        ("EMCI:CN", "contrast-level-absent", ("EMCI", "AD, CN")),
        # One subject is too few, however often scanned.
        ("AD:CN", "class-too-small", ("class AD", "1 subject")),
    ],
)
def test_contrasts_without_subjects(contrast: str, code: str, facts: tuple[str, ...]) -> None:
    frame = simulate({"AD": 1, "CN": 5}, scans=4)
    with raises(BadData, code, *facts):
        label_scans(frame, "diagnosis", Contrast.parse(contrast))


def test_the_class_of_the_first_scan_is_kept() -> None:
    frame = simulate({"MCI": 4, "CN": 4}, scans=2)
    # The diagnosis of the first subject changes at the second visit.
    frame.loc[1, "diagnosis"] = "CN"
    # The fifth subject has no diagnosis at the first visit.
    frame.loc[8, "diagnosis"] = None
    label = label_scans(frame, "diagnosis", Contrast.parse("MCI:CN"))
    assert label.fillna(-1).tolist() == [0, -1, *[0] * 6, -1, *[1] * 7]


def test_numbers_are_levels_too() -> None:
    frame = simulate({"AD": 3, "CN": 3}).assign(group=[1.0, 1.0, 1.0, 0.0, 0.0, np.nan])
    label = label_scans(frame, "group", Contrast.parse("1:0"))
    assert label.tolist()[:5] == [0, 0, 0, 1, 1]


def test_every_subject_needs_a_scan() -> None:
    with pytest.raises(ValueError, match="scan"):
        LabeledSubjects(np.zeros((1, 1)), np.array([0]), np.array([0, 1]), ("a", "b"), ("x", "y"))


@pytest.mark.parametrize(("given", "advice"), [(None, "--site scanner"), ("scanner", "AUC within")])
def test_a_scanner_that_goes_with_the_diagnosis_is_warned_of(
    given: str | None, advice: str
) -> None:
    # 15 of 20 patients but 6 of 20 controls were scanned with B: V = 0.45, p = 0.004.
    frame = simulate({"AD": 20, "CN": 20}).assign(
        scanner=["B"] * 15 + ["A"] * 5 + ["B"] * 6 + ["A"] * 14
    )
    plan = make_plan(replace(SETTINGS, site=given), frame, Contrast.parse("AD:CN"))
    (text,) = [text for text in plan.warnings if "scanner" in text]
    assert "V 0.45, p = 0.0044" in text
    assert advice in text


def test_confounding_is_measured() -> None:
    label = np.array([0] * 10 + [1] * 10)
    value, _, full = site_association(label, ["a"] * 10 + ["b"] * 5 + ["c"] * 5)
    assert full
    assert value == pytest.approx(1)
    # In this table of 9, 1, 1 and 9 people chi-squared is 4 · 4² / 5 = 12.8.
    value, p, full = site_association(label, ["a"] * 9 + ["b"] + ["b"] * 9 + ["a"])
    assert value == pytest.approx(0.8)
    assert p == pytest.approx(chi2.sf(12.8, 1))
    assert not full
    assert site_association(label, ["a"] * 20) == (0, 1, False)


def test_the_second_session_comes_before_the_tenth() -> None:
    frame = pd.DataFrame(
        {
            "participant_id": ["sub-1", "sub-1", "sub-2", "sub-3", "sub-4"],
            "session_id": ["ses-10", "ses-2", "ses-1", "ses-1", "ses-1"],
            "dx": ["AD", "CN", "AD", "AD", "CN"],
        }
    )
    assert label_scans(frame, "dx", Contrast.parse("AD:CN")).isna().tolist()[:2] == [True, False]


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
    # A pattern takes our measures only, and a column that is named like them has a prefix.
    frame["participants_volume_mm3_L_whole"] = frame["age"]
    assert "participants_volume_mm3_L_whole" not in choose(frame, features=("*_L_*",)).features
    assert "age" not in choose(frame, features=("*a*",)).features


@pytest.mark.parametrize(
    ("options", "code", "facts"),
    [
        ({"features": ["icv_residual_mm3_L_whole"]}, "feature-leaks", ["icv_residual_mm3_L_whole"]),
        ({"features": ["volumes_*"]}, "column-unknown", ["--features", "volumes_*"]),
        ({"covariates": ["diagnosis"]}, "target-as-predictor", []),
        ({"features": ["sex"]}, "feature-is-metadata", ["sex", "--covariates"]),
        ({"features": ["education"]}, "feature-is-metadata", ["education"]),
        ({"features": ["educ*"]}, "feature-is-metadata", ["education"]),
        ({"features": ["participants_volume_mm3_L_whole"]}, "column-unknown", ["participants_"]),
        ({"features": ["age"], "covariates": ["age"]}, "feature-and-covariate", ["age"]),
        # As a feature, a test would not be reported as circular.
        ({"features": ["volume_mm3_L_*", "MMSE"]}, "feature-is-metadata", ["MMSE"]),
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


def test_sets_with_and_without_doubtful_covariates(frame: pd.DataFrame) -> None:
    assert list(feature_sets(choose(frame))) == ["volumes"]
    assert list(feature_sets(choose(frame, covariates=["age"]))) == ["volumes", "metadata", "both"]
    schema = choose(frame, covariates=["age", "MMSE"])
    sets = feature_sets(schema, ("MMSE",))
    assert sets["both_reduced"].used == (*sets["volumes"].used, "age")
    assert sets["metadata_reduced"].used == ("age",)
    assert list(feature_sets(schema, ("age", "MMSE"))) == ["volumes", "metadata", "both"]


def test_an_odd_value_that_turns_numbers_into_levels_is_reported(
    frame: pd.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    frame["age"] = frame["age"].round(-1).astype(str).where(frame.index > 0, "70y")
    choose(frame, covariates=["age", "sex"])
    assert [record.args for record in caplog.records] == [("age", 1, "70y")]


def test_scans_that_are_left_out_have_a_reason_each() -> None:
    frame = simulate({"MCI": 4, "CN": 4, "X": 3}, scans=3, sites=("A", "B"))
    # Two subjects change at the second or third visit, and two scans have no site.
    frame.loc[[1, 2, 14], "diagnosis"] = ["CN", "CN", "MCI"]
    frame.loc[[5, 26], "site"] = None
    chosen = replace(SETTINGS, site="site", leave_one_site_out=True)
    plan = make_plan(chosen, frame, Contrast.parse("MCI:CN"))
    site, changed, *_ = plan.warnings
    # The other scan is of no class.
    assert "1 scan without site" in site
    assert changed.startswith("3 scans of 2 subjects left out")
    assert changed.endswith("(the order is known by name of 2 subjects)")
    assert plan.converters == {"sub-0001", "sub-0005"}
    assert len(plan.rows) == 24 - 1 - 3


def test_sites_that_cannot_be_harmonized_are_named() -> None:
    frame = simulate({"AD": 8, "CN": 8})
    frame["site"] = [*"AAABBBCH", *"AAABBBAI"]
    last = replace(SETTINGS, site="site", harmonize=True, held_out="site=H")
    texts = make_plan(last, frame, Contrast.parse("AD:CN")).warnings
    assert any("fewer than 3 training subjects: sites C, I" in text for text in texts)
    assert any("1 held-out subject not harmonized" in text and text[-1] == "H" for text in texts)
    frame["site"] = [*"AAAAAAAB"] * 2
    texts = make_plan(replace(last, held_out=None), frame, Contrast.parse("AD:CN")).warnings
    assert any("nothing is harmonized" in text for text in texts)
