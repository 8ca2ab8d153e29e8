"""Tables of a series, from volumes that are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hyps_bids.longitudinal.change import ErrorModel, fit_line
from hyps_bids.longitudinal.pipeline import REFUSALS, Followed, FollowedSide
from hyps_bids.longitudinal.quality import ScanState, quality_table
from hyps_bids.longitudinal.tables import Course, change_table, volume_table
from hyps_bids.outputs.columns import (
    ANNUAL_CHANGE_COLUMNS,
    LONGITUDINAL_COLUMNS,
    SERIES_QC_COLUMNS,
)
from hyps_bids.outputs.flags import describe_series_flag
from hyps_bids.outputs.scan import Scan

MODEL = ErrorModel(
    {"volume": {"whole": 0.5, "anterior": 1.0}, "bsi": {"whole": 0.4, "anterior": 0.8}}, 20
)
SHAPE = (3, 2, 2, 2)


def side(
    wholes: Sequence[float],
    shifts: Sequence[float],
    refusal: str | None = None,
    unlike: Sequence[int] = (),
) -> FollowedSide:
    """A hippocampus of two equal parts."""
    volumes, gained = (np.array(each, float) for each in (wholes, shifts))
    found = np.isfinite(volumes)
    images = tuple(np.zeros(SHAPE[1:], np.float32) if there else None for there in found)
    return FollowedSide(
        affine=np.eye(4),
        probabilities=tuple(np.zeros(SHAPE, np.float32) if there else None for there in found),
        volumes=np.stack([volumes / 2, volumes / 2, volumes], axis=1),
        boundary_shift=np.stack([gained / 2, gained / 2, gained], axis=1),
        images=images,
        agreement=tuple(0.7 if i in unlike else 0.95 for i in range(len(found))),
        unlike=tuple(i in unlike for i in range(len(found))),
        boundary_refusal=refusal,
    )


def followed(
    left: FollowedSide, right: FollowedSide | None = None, refused: int | None = None
) -> Followed:
    count = len(left.volumes)
    sides = {"L": left} if right is None else {"L": left, "R": right}
    moves = [None if i == refused else np.eye(4) for i in range(count)]
    refusals = ["different-head" if i == refused else None for i in range(count)]
    figures = tuple({"voxel_mm": 1.0, "similarity": 0.97} for _ in range(count))
    missing: dict[str, tuple[str | None, ...]] = {
        hemi: tuple(None if there else "not-found" for there in np.isfinite(each.volumes[:, 0]))
        for hemi, each in sides.items()
    }
    parts = ("anterior", "posterior")
    return Followed(tuple(moves), tuple(refusals), figures, sides, parts, missing)


def course(years: Sequence[float], source: str = "acq_time", *, whole_ages: bool = False) -> Course:
    scans = [Scan.from_path(Path(f"sub-1_ses-{i + 1}_T1w.nii.gz")) for i in range(len(years))]
    return Course(scans, np.array(years), source, whole_ages)


def row_of(table: pd.DataFrame, hemi: str, part: str, method: str) -> pd.Series:
    chosen = (table["hemi"] == hemi) & (table["part"] == part) & (table["method"] == method)
    (row,) = (row for _, row in table[chosen].iterrows())
    return row


def test_volumes_and_changes_since_the_first_scan() -> None:
    found = followed(
        side([3000, 2940, 2880], [0, -50, -110]), side([math.nan, 3100, 3069], [math.nan, 0, -30])
    )
    table = volume_table(course([0, 1, 2]), found, MODEL)
    assert list(table) == list(LONGITUDINAL_COLUMNS)
    assert table["scan"].tolist() == [f"sub-1_ses-{i}" for i in (1, 2, 3) for _ in range(6)]
    wholes = table[table["part"] == "whole"].set_index(["visit", "hemi"])
    assert wholes["name"].unique().tolist() == ["Left hippocampus", "Right hippocampus"]
    last = wholes.loc[(3, "L")]
    assert (last["years"], last["volume_mm3"], last["change_mm3"], last["bsi_mm3"]) == (
        2,
        2880,
        -120,
        -110,
    )
    assert (last["change_percent"], last["bsi_percent"]) == pytest.approx((-4, -110 / 30))
    assert last["volume_mm3_se"] == pytest.approx(0.005 * 2940)
    # The first scan with the right side is the second.
    assert wholes.loc[(1, "R"), ["volume_mm3", "volume_mm3_se", "change_mm3"]].isna().all()
    assert wholes.loc[(3, "R"), "change_percent"] == pytest.approx(-1)
    assert table["index"].dropna().unique().tolist() == [1, 2, 3, 4]


def test_change_per_year_of_two_and_three_scans() -> None:
    found = followed(
        side([3000, 2940, 2880], [0, -50, -110]), side([math.nan, 3100, 3069], [math.nan, 0, -30])
    )
    table = change_table(course([0, 1, 2]), found, MODEL)
    assert list(table) == list(ANNUAL_CHANGE_COLUMNS)
    assert len(table) == 2 * 3 * 2
    left = row_of(table, "L", "whole", "volume")
    assert (left["n_scans"], left["span_years"], left["time_source"]) == (3, 2, "acq_time")
    assert (left["mm3_per_year"], left["percent_per_year"]) == pytest.approx((-60, -2))
    expected = fit_line(np.array([0.0, 1, 2]), np.array([3000.0, 2940, 2880]), 14.7, 20)
    assert left["percent_per_year_se"] == pytest.approx(expected.percent.se)
    assert left["percent_per_year_high"] == pytest.approx(expected.percent.high)
    assert pd.isna(left["remarks"])
    right = row_of(table, "R", "whole", "volume")
    assert (right["n_scans"], right["span_years"], right["baseline_mm3"]) == (2, 1, 3100)
    assert right["mm3_per_year_se"] == pytest.approx(math.sqrt(2) * 0.005 * 3084.5)
    shift = row_of(table, "L", "whole", "bsi")
    assert (shift["mm3_per_year"], shift["baseline_mm3"]) == pytest.approx((-55, 3000))
    assert shift["percent_per_year"] == pytest.approx(-55 / 30)
    assert shift["change_percent"] == pytest.approx(-110 / 30)
    # The model states nothing about the posterior part, so its own scatter is all there is.
    posterior = row_of(table, "L", "posterior", "volume")
    assert posterior["mm3_per_year_se"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("years", "source", "remark"),
    [
        ([math.nan] * 2, "name", "the date or age of a scan"),
        ([0, 0.2], "acq_time", "three months"),
        ([0, 0], "age", "one time"),
        ([0, 2], "whole age", "whole years"),
    ],
)
def test_without_a_span_there_is_a_change_but_none_per_year(
    years: list[float], source: str, remark: str
) -> None:
    times = course(years, source.split()[-1], whole_ages="whole" in source)
    table = change_table(times, followed(side([3000, 2940], [0, -50])), MODEL)
    row = row_of(table, "L", "whole", "volume")
    assert remark in row["remarks"]
    assert row.filter(like="per_year").isna().all()
    assert (row["change_mm3"], row["change_percent"]) == pytest.approx((-60, -2))
    assert row["change_percent_low"] < -2 < row["change_percent_high"] < 0
    assert "fewer than two" in row_of(table, "R", "whole", "bsi")["remarks"]


def test_remarks_tell_what_makes_a_change_doubtful() -> None:
    found = followed(side([3000, 2940], [math.nan] * 2, "contrast"))
    table = change_table(
        course([0, 3], "age", whole_ages=True), found, ErrorModel({}, 0, "no error")
    )
    row = row_of(table, "L", "whole", "volume")
    assert "whole years" in row["remarks"]
    assert "no error" in row["remarks"]
    assert row["mm3_per_year"] == pytest.approx(-20)
    assert row[["mm3_per_year_se", "percent_per_year_low", "change_percent_high"]].isna().all()
    assert "refused" in row_of(table, "L", "whole", "bsi")["remarks"]


def state(
    size: float = 1.0, *, flagged: bool = False, left: float = math.nan, **protocol: object
) -> ScanState:
    return ScanState(np.diag([size, 1.0, 1.0, 1.0]), flagged, protocol, {"L": left})


def test_reasons_to_refuse_or_to_review_a_scan() -> None:
    left = side([3000, 2940, math.nan, 2900], [0, -200, math.nan, -100])
    found = followed(left, refused=3)
    states = [
        state(RepetitionTime=2.3, Manufacturer="Siemens"),
        state(RepetitionTime=2.31, Manufacturer="SIEMENS ", EchoTime=0.003),
        state(1.3, flagged=True, RepetitionTime=2.3),
        state(5),
    ]
    table = quality_table(course([0, 1, 2, 3]), found, states)
    assert list(table) == list(SERIES_QC_COLUMNS)
    assert table["status"].tolist() == ["used", "used", "used", "refused"]
    assert table["review"].tolist() == ["no", "yes", "yes", "yes"]
    assert table["flags"].fillna("").tolist() == [
        "",
        "methods-disagree_L",
        "scan-flagged missing_L other-voxels",
        "different-head",
    ]
    assert pd.isna(table["reason"][1])
    for fact in ("sub-1_ses-1_T1w.nii.gz", "do not look like the same head", "swapped"):
        assert fact in table["reason"][3]
    assert "left" in table["reasons"][1]
    assert table["similarity"].tolist() == [0.97] * 4


def test_a_side_without_any_change_is_flagged_where_it_is_missing() -> None:
    found = followed(side([3000, 2990], [0, -5]))
    found.missing["R"] = ("not-found", None)
    table = quality_table(course([0, 1]), found, [state(), state()])
    assert table["flags"].fillna("").tolist() == ["missing_R", ""]
    assert "right" in table["reasons"][0]


def test_a_row_repeats_the_flags_that_concern_it() -> None:
    found = followed(*(side([3000, 2970], [0, -25]) for _ in "LR"))
    flags = ["methods-disagree_R", "other-protocol"]
    changes = change_table(course([0, 1]), found, MODEL, flags)
    assert row_of(changes, "L", "whole", "volume")["remarks"] == "to review: other-protocol"
    right = row_of(changes, "R", "whole", "bsi")["remarks"]
    assert right == "to review: methods-disagree_R, other-protocol"


def test_scans_that_no_deformation_joins_are_flagged_and_their_errors_are_unknown() -> None:
    found = followed(side([3000, 1500], [0, -1500], unlike=[0, 1]), side([3000, 2990], [0, -5]))
    table = quality_table(course([0, 1]), found, [state(), state()])
    assert table["flags"].tolist() == ["unlike_L"] * 2
    changes = change_table(course([0, 1]), found, MODEL)
    for method in ("volume", "bsi"):
        left, right = (row_of(changes, hemi, "whole", method) for hemi in "LR")
        assert np.isfinite([left["percent_per_year"], right["percent_per_year_se"]]).all()
        assert np.isnan([left["percent_per_year_se"], left["change_mm3_se"]]).all()
        assert "segmented by itself" in left["remarks"]
        assert pd.isna(right["remarks"])
    volumes = volume_table(course([0, 1]), found, MODEL)
    known = volumes[volumes["part"] == "whole"].set_index("hemi")["volume_mm3_se"]
    assert known["L"].isna().all()
    assert known["R"].notna().all()


def test_one_scan_of_another_shape_leaves_the_others_their_change_and_its_error() -> None:
    nan = math.nan
    left = side([3300, 3000, nan, 2970, 2940], [nan, 0, nan, -30, -60], unlike=[0])
    found, when = followed(left), course([0, 1, 2, 3, 4])
    quality = quality_table(when, found, [state() for _ in range(5)])
    assert quality["flags"].fillna("").tolist() == ["unlike_L", "", "missing_L", "", ""]
    assert quality["agreement_L"].tolist() == [0.7, *[0.95] * 4]
    volumes = volume_table(when, found, MODEL)
    volumes = volumes[(volumes["part"] == "whole") & (volumes["hemi"] == "L")].set_index("scan")
    first, *others = volumes.index
    assert volumes.loc[first, "volume_mm3"] == 3300
    assert volumes.loc[first, ["volume_mm3_se", "change_mm3", "bsi_mm3"]].isna().all()
    assert volumes.loc[others[-1], "change_percent"] == pytest.approx(-2)
    for method in ("volume", "bsi"):
        row = row_of(change_table(when, found, MODEL), "L", "whole", method)
        assert row["n_scans"] == 3
        assert row["change_percent"] == pytest.approx(-2)
        assert row["mm3_per_year"] == pytest.approx(-19.29, abs=0.01)
        assert row["percent_per_year_se"] > 0
        assert first in row["remarks"]


def test_a_volume_that_is_not_that_of_the_scan_by_itself_is_flagged() -> None:
    """A spoiled scan must not change the volumes of others without a word."""
    found = followed(side([3000, 2990, 2980], [0, -5, -15]))
    states = [state(left=3200), state(left=2500), state(left=3600)]
    table = quality_table(course([0, 1, 2]), found, states)
    assert table["flags"].fillna("").tolist() == ["", "unlike-itself_L", "unlike-itself_L"]
    assert "left" in table["reasons"][1]


def test_all_codes_have_words() -> None:
    codes = [*REFUSALS, "scan-flagged", "missing_L", "unlike_R", "unlike-itself_R"]
    for code in (*codes, "methods-disagree_L", "other-voxels", "other-protocol"):
        note = describe_series_flag(code, "another scan")
        assert code.partition("_")[0] not in note.finding.split(), code
        assert note.advice, code


def test_another_protocol_is_flagged() -> None:
    states = [state(MagneticFieldStrength=1.5), state(MagneticFieldStrength=3)]
    table = quality_table(course([0, 1]), followed(side([3000, 2990], [0, -5])), states)
    assert table["flags"].fillna("").tolist() == ["", "other-protocol"]
