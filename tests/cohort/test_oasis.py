"""The group level on tables like those of OASIS."""

from __future__ import annotations

from typing import Any

from hyps_bids.classification.contrast import Contrast, label_scans
from hyps_bids.cohort.visits import first_scans
from tests.cohorts import oasis_longitudinal


def test_cross_sectional(oasis: Any) -> None:
    wide = oasis.write_tables(
        controls="CDR=0", model=("volume_mm3_L_whole ~ Age + C(CDR) + `M/F`",)
    )
    assert {"Age", "MMSE", "CDR", "eTIV", "Educ"} <= {*wide.select_dtypes("number")}
    assert wide["CDR"].isna().sum() == 10
    models = oasis.group_table("desc-models_morph").set_index("coefficient")
    assert models.loc["Age", "ci_low"] < -15 < models.loc["Age", "ci_high"]


def test_converters_with_names_that_are_not_in_order(study: Any) -> None:
    study.cohort(*oasis_longitudinal(names=("M3", "M2", "M1")))
    wide = study.write_tables()
    assert set(wide["order_source"]) == {"acq_time"}
    assert (wide["scan_number"] == wide["Visit"]).all()
    assert (wide["years_since_first_scan"] - wide["MR_Delay"] / 365.25).abs().max() < 1e-3
    assert set(first_scans(wide)["session_id"]) == {"ses-M3"}
    label = label_scans(wide, "CDR", Contrast.parse("0.5:0"))
    converters = wide["Group"] == "Converted"
    assert wide.loc[converters & label.notna(), "CDR"].unique().tolist() == [0]
    assert wide.loc[label.notna(), "participant_id"].nunique() == 30
