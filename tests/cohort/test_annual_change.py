"""Change per year, from dates or ages."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from hyps_bids.cohort.annual_change import annual_change
from hyps_bids.outputs.columns import CHANGE_COLUMNS

NAME = "volume_mm3_L_whole"


def wide(rows: list[tuple[str, str, str | None, float | None, float | None]]) -> pd.DataFrame:
    names = ["participant_id", "session_id", "acq_time", "age", NAME]
    frame = pd.DataFrame(rows, columns=names).astype({"acq_time": "str", "age": "float64"})
    return frame.assign(software_version="1", models="m")


def test_slope_is_that_of_a_least_squares_line() -> None:
    years, values = [0.0, 1.1, 2.0, 3.2], [3000.0, 2930.0, 2890.0, 2770.0]
    frame = wide(
        [("sub-1", f"ses-{t}", None, 70 + t, v) for t, v in zip(years, values, strict=True)]
    )
    row = annual_change(frame).iloc[0]
    line = stats.linregress(years, values)
    assert row["mm3_per_year"] == pytest.approx(line.slope)
    assert row["mm3_per_year_se"] == pytest.approx(line.stderr)
    assert row["baseline_mm3"] == pytest.approx(line.intercept)
    assert row["percent_per_year"] == pytest.approx(100 * line.slope / line.intercept)
    assert (row["n_scans"], row["n_sessions"], row["time_source"]) == (4, 4, "age")
    assert row["span_years"] == pytest.approx(3.2)


def test_dates() -> None:
    frame = wide(
        [
            ("sub-1", "ses-1", "1880-01-01T12:00:00", 70, 3000.0),
            ("sub-1", "ses-2", "1882-01-01T12:00:00Z", 70, 2800.0),
        ]
    )
    (row,) = annual_change(frame).to_dict("records")
    assert row["mm3_per_year"] == pytest.approx(-100, rel=1e-3)
    assert row["percent_per_year"] == pytest.approx(-100 / 30, rel=1e-3)
    assert row["time_source"] == "acq_time"
    assert np.isnan(row["mm3_per_year_se"])


def test_one_scan_without_date_means_ages() -> None:
    frame = wide(
        [("sub-1", "ses-1", "2001-01-01", 70, 3000.0), ("sub-1", "ses-2", None, 74, 2800.0)]
    )
    (row,) = annual_change(frame).to_dict("records")
    assert (row["mm3_per_year"], row["time_source"]) == (-50, "age")


def test_ages_in_whole_years_say_little_about_a_short_time() -> None:
    rows = [("sub-1", f"ses-{n}", None, 70.0 + n, 3000.0 - 10 * n) for n in range(3)]
    rows += [("sub-2", f"ses-{n}", None, 70.0 + 2 * n, 3000.0 - 20 * n) for n in range(3)]
    rows += [("sub-3", f"ses-{n}", None, 70.5 + n, 3000.0 - 10 * n) for n in range(3)]
    table = annual_change(wide(rows)).set_index("participant_id")
    assert np.isnan(table.loc["sub-1", "mm3_per_year"])
    assert table.loc["sub-1", "span_years"] == 2
    assert table.loc[["sub-2", "sub-3"], "mm3_per_year"].tolist() == pytest.approx([-10, -10])
    whole = [isinstance(text, str) and "whole years" in text for text in table["remarks"]]
    assert whole == [True, True, False]


def test_subjects_without_a_slope(caplog: pytest.LogCaptureFixture) -> None:
    frame = wide(
        [
            ("sub-1", "ses-1", "2001-01-01", None, 3000.0),
            ("sub-1", "ses-2", "2001-01-20", None, 2900.0),
            ("sub-2", "ses-1", None, 70, 3000.0),
            ("sub-2", "ses-2", None, 72, 2900.0),
            ("sub-3", "ses-1", None, 70, 3000.0),
            ("sub-4", "ses-1", "not a date", 70, 3000.0),
            ("sub-4", "ses-2", "not a date", 70, 3000.0),
            ("sub-5", "ses-1", None, 70, 3000.0),
            ("sub-5", "ses-2", None, 73, None),
        ]
    )
    frame.loc[3, "models"] = "other"
    table = annual_change(frame).set_index("participant_id")
    assert table["mm3_per_year"].isna().all()
    assert table["remarks"].to_dict() == {
        "sub-1": "times less than three months apart",
        "sub-2": "scans made by different models or versions",
        "sub-5": "times less than three months apart",
    }
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    for fact in ("acq_time", "2 scans", "not a date"):
        assert fact in record.getMessage()


def test_nobody() -> None:
    table = annual_change(wide([("sub-1", "ses-1", None, 70, 3000.0)]))
    assert table.empty
    assert list(table.columns) == list(CHANGE_COLUMNS)
    without = wide([("sub-1", "ses-1", None, None, 3000.0)]).drop(columns=["age", "acq_time"])
    assert annual_change(without).empty
