"""The group level on tables like those of OASIS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from hyps_bids.classification.columns import choose_columns
from hyps_bids.classification.contrast import Contrast, label_scans
from hyps_bids.cohort.formulas import find_measures
from hyps_bids.cohort.visits import first_scans
from hyps_bids.errors import UsageError
from tests.cohort.study import MadeStudy
from tests.cohorts import oasis_cross_sectional, oasis_longitudinal
from tests.raising import raises


def test_cross_sectional(oasis: Any) -> None:
    wide = oasis.write_tables(
        controls="CDR=0", model=("volume_mm3_L_whole ~ Age + C(CDR) + `M/F`",)
    )
    assert {"Age", "MMSE", "CDR", "eTIV", "Educ"} <= {*wide.select_dtypes("number")}
    assert wide["CDR"].isna().sum() == 10
    models = oasis.group_table("desc-models_morph").set_index("coefficient")
    assert models.loc["Age", "ci_low"] < -15 < models.loc["Age", "ci_high"]


def test_converters_with_names_that_are_not_in_order(study: Any) -> None:
    study.cohort(*oasis_longitudinal(15, names=("M3", "M2", "M1")))
    wide = study.write_tables()
    assert set(wide["order_source"]) == {"acq_time"}
    assert (wide["scan_number"] == wide["Visit"]).all()
    assert (wide["years_since_first_scan"] - wide["MR_Delay"] / 365.25).abs().max() < 1e-3
    assert set(first_scans(wide)["session_id"]) == {"ses-M3"}
    label = label_scans(wide, "CDR", Contrast.parse("0.5:0"))
    converters = wide["Group"] == "Converted"
    assert wide.loc[converters & label.notna(), "CDR"].unique().tolist() == [0]
    assert wide.loc[label.notna(), "participant_id"].nunique() == 15


FORMULA = "volume_mm3_L_whole ~ Age + nWBV + CDR"


def estimates(study: Any, participants: pd.DataFrame) -> list[float]:
    study.cohort(participants)
    study.write_tables(model=(FORMULA,))
    return study.group_table("desc-models_morph")["estimate"].tolist()


def test_numbers_as_people_write_them_give_the_same_models(tmp_path: Path) -> None:
    plain = estimates(MadeStudy.create(tmp_path / "plain"), oasis_cross_sectional(16))
    written = oasis_cross_sectional(16, decimal=",")
    written["Age"] = "0" + written["Age"] + "Y"
    written["MMSE"] = written["MMSE"].fillna("-4")
    written["CDR"] = written["CDR"].fillna("#N/A")
    odd = estimates(MadeStudy.create(tmp_path / "odd"), written)
    assert odd == pytest.approx(plain, rel=1e-9)


def test_columns_that_are_no_numbers_are_refused_by_name(study: Any) -> None:
    participants = oasis_cross_sectional(16)
    participants["nWBV"] = participants["nWBV"] + " of TIV"
    study.cohort(participants)
    wide = study.write_tables()
    with raises(UsageError, "formula-levels-too-many", "nWBV", "levels among 16 participants"):
        find_measures(FORMULA, wide)
    settings = study.settings(target="CDR", covariates=("nWBV",))
    with raises(UsageError, "covariate-levels-too-many", "nWBV", "16 participants"):
        choose_columns(settings, wide)
