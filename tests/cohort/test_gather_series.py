"""Longitudinal results in the group tables: what is used, what is not, and how it is called."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hyps_bids.outputs.names import sidecar_path
from hyps_bids.outputs.reading import CHANGE, SERIES_QC, read_table
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.series import Series
from hyps_bids.outputs.writing import write_table
from tests.cohort.study import MadeStudy

ONE, TWO = "sub-1_ses-1", "sub-1_ses-2"
VOLUME = "volume_longitudinal_mm3_L_whole"


def two_visits(study: MadeStudy, subject: str = "sub-1", **made: float) -> tuple[str, str]:
    stems = (f"{subject}_ses-1", f"{subject}_ses-2")
    for stem, icv in zip(stems, (1.4e6, 1.6e6), strict=True):
        study.scan(stem, 3100.0, 2700.0, icv=icv)
    dates = "session_id acq_time\nses-1 2001-01-01\nses-2 2002-01-01T06:00:00"
    study.table(f"{subject}/{subject}_sessions.tsv", dates)
    return stems


def state(wide: pd.DataFrame, stem: str) -> tuple[str, str]:
    row = wide.set_index("scan").loc[stem]
    return row["longitudinal_status"], row["longitudinal_reason"]


def test_a_series_in_all_tables(study: MadeStudy) -> None:
    study.series(two_visits(study), {"L": -2.0, "R": -1.0}, error=0.3)
    study.scan("sub-2", 3000.0)
    wide = study.write_tables().set_index("scan")
    assert wide.loc[[ONE, TWO, "sub-2"], VOLUME].tolist() == pytest.approx(
        [3000, 2940, np.nan], nan_ok=True
    )
    assert wide.loc[TWO, "volume_longitudinal_mm3_bilateral_whole"] == pytest.approx(5910)
    assert wide.loc[TWO, "volume_mm3_L_whole"] == 3100
    # The head has one size: the mean of its scans.
    assert wide.loc[TWO, "icv_longitudinal_mm3"] == 1.5e6
    assert wide.loc[TWO, "icv_fraction_longitudinal_L_whole"] == pytest.approx(
        2940 / 1.5e6, rel=1e-5
    )
    assert wide.loc[TWO, "asymmetry_longitudinal_whole"] == pytest.approx(-30 / 2955, rel=1e-5)
    assert wide["longitudinal_status"].fillna("").to_dict() == {
        ONE: "used",
        TWO: "used",
        "sub-2": "",
    }
    assert wide["percent_per_year_bsi_R_whole"].dropna().tolist() == [-1, -1]
    assert wide.loc[ONE, "percent_per_year_longitudinal_bilateral_whole"] == pytest.approx(-1.5)
    morph = study.group_table("morph").set_index(["scan", "hemi", "part"])
    assert morph.loc[(TWO, "L", "whole"), "bsi_mm3"] == pytest.approx(-60)
    sidecar = study.group_sidecar("desc-wide_morph")
    assert sidecar[VOLUME]["Units"] == "mm3"
    assert all(sidecar[name]["Description"] for name in wide.columns if "longitudinal" in name)


def test_change_states_its_method(study: MadeStudy) -> None:
    study.series(two_visits(study), {"L": -2.0, "R": -1.0}, error=0.3)
    two_visits(study, "sub-2")
    study.write_tables()
    change = study.group_table(CHANGE)
    methods = change.groupby("participant_id")["method"].unique().map(sorted)
    assert methods.to_dict() == {
        "sub-1": ["bsi", "cross-sectional", "volume"],
        "sub-2": ["cross-sectional"],
    }
    # No measure has two methods, so that a comparison of one measure cannot mix them.
    assert (change.groupby("measure")["method"].nunique() == 1).all()
    rows = change.set_index(["participant_id", "measure"])
    both = rows.loc[("sub-1", "bsi_mm3_bilateral_whole")]
    assert both["percent_per_year"] == pytest.approx(-1.5)
    assert both["mm3_per_year_se"] == pytest.approx(9 * 2**0.5, rel=1e-5)
    assert both["percent_per_year_se"] == pytest.approx(0.3 / 2**0.5, rel=1e-5)
    assert both["percent_per_year_high"] == pytest.approx(-1.5 + 1.96 * 0.3 / 2**0.5, rel=1e-5)
    assert (both["n_scans"], both["n_sessions"], both["time_source"]) == (2, 2, "acq_time")
    assert rows.loc[("sub-2", "volume_mm3_L_whole"), "mm3_per_year"] == 0


def test_both_sides_together_are_as_uncertain_as_the_less_certain_one(study: MadeStudy) -> None:
    study.series(two_visits(study), {"L": -2.0, "R": -1.0}, error=0.3)
    path = Series("1", "T1w").paths(study.output)["annual"]
    annual = read_table(path).astype({"remarks": object})
    left = (annual["hemi"] == "L") & (annual["method"] == "volume")
    annual.loc[left, ["n_scans", "remarks"]] = [3, "ages in whole years"]
    right = (annual["hemi"] == "R") & (annual["method"] == "volume")
    annual.loc[right, "percent_per_year_low"] = -1 - 3 * 0.3
    annual.loc[right, "percent_per_year_high"] = -1 + 3 * 0.3
    annual.loc[right, "remarks"] = "an adapter without a stated error; ages in whole years"
    write_table(path, annual)
    study.write_tables()
    rows = study.group_table(CHANGE).set_index("measure")
    both = rows.loc["volume_longitudinal_mm3_bilateral_whole"]
    half = (both["percent_per_year_high"] - both["percent_per_year_low"]) / 2
    assert half == pytest.approx(3 * 0.3 / 2**0.5, rel=1e-5)
    assert both["n_scans"] == 2
    assert both["remarks"].split("; ") == [
        "ages in whole years",
        "an adapter without a stated error",
        "the sides were found at different scans",
    ]


def _table_of(study: MadeStudy, subject: str, kind: str) -> Path:
    return Series(subject.removeprefix("sub-"), "T1w").paths(study.output)[kind]


def _scan_again(study: MadeStudy, subject: str) -> None:
    study.scan(f"{subject}_ses-2", 2900.0, 2700.0)


def _another_adapter(study: MadeStudy, subject: str) -> None:
    study.scan(f"{subject}_ses-2", 3100.0, 2700.0, adapter="other")


def _scan_added(study: MadeStudy, subject: str) -> None:
    study.scan(f"{subject}_ses-3", 2900.0, 2700.0)


def _scan_withdrawn(study: MadeStudy, subject: str) -> None:
    scan = Scan.from_stem(f"{subject}_ses-2")
    (study.raw / scan.folder / scan.path).unlink()


def _interrupted(study: MadeStudy, subject: str) -> None:
    sidecar_path(_table_of(study, subject, "qc")).unlink()


def _no_volumes(study: MadeStudy, subject: str) -> None:
    _table_of(study, subject, "morph").unlink()


def _half_a_table(study: MadeStudy, subject: str) -> None:
    path = _table_of(study, subject, "annual")
    path.write_text(path.read_text()[:-30])


def _not_a_number(study: MadeStudy, subject: str) -> None:
    path = _table_of(study, subject, "morph")
    path.write_text(path.read_text().replace("2940", "many"))


def _damaged(study: MadeStudy, subject: str) -> None:
    sidecar_path(_table_of(study, subject, "qc")).write_text("{")


def _failed(study: MadeStudy, subject: str) -> None:
    path = _table_of(study, subject, "qc")
    path.write_text(f"scan\tstatus\treason\n{subject}_ses-1\tfailed\ttoo little memory\n")
    sidecar_path(path).unlink()


#: What happens to the results of a participant → what the reason says
_SPOILS = {
    _scan_again: "earlier results of these scans: {}_ses-2",
    _another_adapter: "other weights than these scans: {}_ses-2",
    _scan_added: "{}_ses-3",
    _scan_withdrawn: "gone: {}_ses-2",
    _interrupted: "interrupted",
    _no_volumes: "cannot be read",
    _half_a_table: "rows of different lengths",
    _not_a_number: "not a number",
    _damaged: "damaged",
    _failed: "too little memory",
}


def test_results_that_are_not_those_of_the_scans(
    study: MadeStudy, caplog: pytest.LogCaptureFixture
) -> None:
    for subject in ("sub-sound", *(f"sub-{k}" for k in range(len(_SPOILS)))):
        study.series(two_visits(study, subject), {"L": -2.0, "R": -1.0})
    for k, spoil in enumerate(_SPOILS):
        spoil(study, f"sub-{k}")
    wide = study.write_tables()
    (warning,) = [r for r in caplog.records if "longitudinal results of" in r.getMessage()]
    assert warning.levelno == logging.WARNING
    for k, fact in enumerate(_SPOILS.values()):
        subject = f"sub-{k}"
        status, reason = state(wide, f"{subject}_ses-1")
        assert status == "stale"
        assert fact.format(subject) in reason
        assert f"{subject} ({reason})" in warning.getMessage()
    sound = wide["participant_id"] == "sub-sound"
    assert wide.loc[sound, VOLUME].notna().all()
    assert wide.loc[~sound, VOLUME].isna().all()
    change = study.group_table(CHANGE).query("method != 'cross-sectional'")
    assert set(change["participant_id"]) == {"sub-sound"}


def test_a_refused_scan_and_a_missing_side(
    study: MadeStudy, caplog: pytest.LogCaptureFixture
) -> None:
    stems = two_visits(study)
    study.scan("sub-1_ses-3", 3000.0, None)
    study.table("sub-1/sub-1_sessions.tsv", "session_id age\nses-1 70\nses-2 70.5\nses-3 71")
    why = "This does not look like the same head."
    study.series([*stems, "sub-1_ses-3"], {"L": -2.0}, refused={TWO: why})
    wide = study.write_tables()
    assert state(wide, TWO) == ("refused", why)
    by_scan = wide.set_index("scan")
    assert np.isnan(by_scan.loc[TWO, VOLUME])
    assert by_scan.loc["sub-1_ses-3", VOLUME] == pytest.approx(2940)
    assert wide["volume_longitudinal_mm3_bilateral_whole"].isna().all()
    measures = set(study.group_table(CHANGE)["measure"])
    assert "bsi_mm3_L_whole" in measures
    assert not any("longitudinal_mm3_R" in m or "bsi_mm3_bilateral" in m for m in measures)
    assert study.group_table(SERIES_QC)["status"].tolist() == ["used", "refused", "used"]
    assert any(TWO in r.getMessage() and "do not fit" in r.getMessage() for r in caplog.records)


def test_no_line_through_scans_of_different_heads(study: MadeStudy) -> None:
    stems = two_visits(study)
    study.series(stems, {}, refused=dict.fromkeys(stems, "Another head."))
    study.series(two_visits(study, "sub-2"), {"L": -2.0, "R": -1.0})
    study.write_tables()
    change = study.group_table(CHANGE).query("method == 'cross-sectional'")
    slopes = change.groupby("participant_id")["mm3_per_year"].count()
    assert slopes["sub-1"] == 0
    assert slopes["sub-2"] > 0
    (remark,) = change.loc[change["participant_id"] == "sub-1", "remarks"].unique()
    assert "different heads" in remark


def test_a_choice_of_sessions_has_volumes_but_no_change(study: MadeStudy) -> None:
    study.series(two_visits(study), {"L": -2.0, "R": -1.0})
    wide = study.write_tables(session_label=("1",))
    assert wide[VOLUME].tolist() == [3000]
    assert wide["percent_per_year_bsi_L_whole"].isna().all()
    (remark,) = study.group_table(CHANGE)["remarks"].unique()
    assert "not all scans" in remark


def test_dates_that_were_corrected_since(
    study: MadeStudy, caplog: pytest.LogCaptureFixture
) -> None:
    study.series(two_visits(study), {"L": -2.0, "R": -1.0})
    dates = "session_id acq_time\nses-1 2001-01-01\nses-2 2003-01-01"
    study.table("sub-1/sub-1_sessions.tsv", dates)
    wide = study.write_tables()
    assert wide[VOLUME].notna().all()
    assert wide["percent_per_year_bsi_L_whole"].isna().all()
    (remark,) = study.group_table(CHANGE).query("method == 'bsi'")["remarks"].unique()
    assert "dates" in remark
    assert any("sub-1" in r.getMessage() and "dates" in r.getMessage() for r in caplog.records)


def test_all_scans_refused(study: MadeStudy) -> None:
    stems = two_visits(study)
    study.series(stems, {}, refused=dict.fromkeys(stems, "Another head."))
    for kind in ("morph", "annual"):
        Series("1", "T1w").paths(study.output)[kind].unlink()
    wide = study.write_tables()
    assert wide["longitudinal_status"].tolist() == ["refused", "refused"]
    assert VOLUME not in wide or wide[VOLUME].isna().all()


def test_contrasts_are_series_of_their_own(study: MadeStudy) -> None:
    study.series(two_visits(study), {"L": -2.0, "R": -1.0})
    agents = [f"{stem}_ce-gd" for stem in (ONE, TWO)]
    for stem in agents:
        study.scan(stem, 3100.0)
    study.series(agents, {"L": -4.0, "R": -3.0})
    wide = study.write_tables()
    by = wide.groupby("image_contrast")["percent_per_year_bsi_L_whole"].unique()
    assert {name: list(values) for name, values in by.items()} == {"T1w": [-2], "ce-gd_T1w": [-4]}
    change = study.group_table(CHANGE).query("measure == 'bsi_mm3_L_whole'")
    assert change["image_contrast"].tolist() == ["T1w", "ce-gd_T1w"]


def test_no_series_no_columns(study: MadeStudy) -> None:
    study.series(two_visits(study), {"L": -2.0, "R": -1.0})
    study.write_tables()
    for path in Series("1", "T1w").paths(study.output).values():
        path.unlink()
        sidecar_path(path).unlink(missing_ok=True)
    wide = study.write_tables()
    assert not [name for name in wide if "longitudinal" in name or "percent" in name]
    assert "bsi_mm3" not in study.group_table("morph")
    assert not (study.output / "group_seg-hippocampus_desc-longitudinal_qc.tsv").exists()
    assert json.loads(study.sidecar(ONE).read_text())["Fingerprint"]
