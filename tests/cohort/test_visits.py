"""Which scan of a participant is the first, and how long after it the others are."""

from __future__ import annotations

import json
import logging
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hyps_bids.classification.contrast import Contrast, label_scans
from hyps_bids.cohort.visits import count_sources, first_scans, order_scans

N, D = None, np.nan


def visits(*rows: tuple[str | None, str | None, float]) -> pd.DataFrame:
    """One participant's scans: session, date, age."""
    frame = pd.DataFrame(rows, columns=["session_id", "acq_time", "age"]).astype({"age": float})
    return frame.assign(participant_id="sub-1", scan=[f"run-{i}" for i in range(len(rows))])


def order_of(frame: pd.DataFrame, *args: Any) -> tuple[list[int], str, list[float]]:
    order = order_scans(frame, *args)
    (source,) = order["order_source"].unique()
    years = order["years_since_first_scan"].fillna(-1).round(2).tolist()
    return order["scan_number"].tolist(), source, years


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        # The name contradicts the dates, which BIDS allows to be moved to before 1925.
        (
            [("ses-A", "1602-01-01T00:00:00", D), ("ses-B", "1600-01-01T00:00:00", D)],
            ([2, 1], "acq_time", [2, 0]),
        ),
        # One date is missing, so the ages count for all scans.
        (
            [("a", "2001-01-01", 72), ("b", N, 70), ("c", "2000-01-01", 71)],
            ([3, 1, 2], "age", [2, 0, 1]),
        ),
        # One age and one date are missing.
        ([("ses-10", "2001-01-01", 72), ("ses-9", N, D)], ([2, 1], "name", [-1, -1])),
        # The age of participants.tsv is the same for all sessions and says nothing.
        ([("ses-10", N, 72), ("ses-9", N, 72)], ([2, 1], "name", [-1, -1])),
        # Ages in whole years: equal ones are put in order by name.
        ([("ses-2", N, 72), ("ses-1", N, 72), ("ses-3", N, 71)], ([3, 2, 1], "age", [1, 1, 0])),
        # Two scans of one day, with and without a time of day.
        ([("s", "2001-01-01T09:00:00", D), ("s", "2001-01-01", D)], ([2, 1], "acq_time", [0, 0])),
        ([("ses-2", "2001-01-01", D), ("ses-1", "2001-01-01", D)], ([2, 1], "name", [0, 0])),
        # The dates of all visits were set to one day.
        ([("a", "1900-01-01", 75), ("b", "1900-01-01", 70)], ([2, 1], "age", [5, 0])),
        # Repeated scans of one visit, and a single scan, need no date.
        ([("ses-1", N, D), ("ses-1", N, D)], ([1, 2], "name", [0, 0])),
        ([(N, N, D), (N, N, 70)], ([1, 2], "name", [0, 0])),
        ([(N, N, D)], ([1], "name", [0])),
        ([(N, "2001-01-01", 70)], ([1], "acq_time", [0])),
    ],
)
def test_order(
    caplog: pytest.LogCaptureFixture,
    rows: list[Any],
    expected: tuple[list[int], str, list[float]],
) -> None:
    frame = visits(*rows).set_axis([7] * len(rows))
    numbers, source, years = order_of(frame)
    assert (numbers, source) == expected[:2]
    assert years == pytest.approx(expected[2], abs=0.01)
    assert not caplog.records


def test_rows_of_a_table_come_before_names() -> None:
    frame = visits(("ses-followup", N, 70), ("ses-baseline", N, 70), ("ses-again", N, 70))
    rows = {"sessions.tsv": pd.Series([5.0, 4.0, 6.0])}
    assert order_of(frame, rows) == ([2, 1, 3], "sessions.tsv", [-1, -1, -1])
    # A session without a row makes the table unusable for this participant.
    rows = {"sessions.tsv": pd.Series([5.0, np.nan, 6.0])}
    assert order_of(frame, rows)[:2] == ([3, 2, 1], "name")
    # Equal ages are put in order by the table.
    frame["age"] = [70.0, 70.0, 71.0]
    rows = {"sessions.tsv": pd.Series([5.0, 4.0, 6.0])}
    assert order_of(frame, rows) == ([2, 1, 3], "age", [0, 0, 1])


@pytest.mark.parametrize(
    ("unit", "years"), [("months", 1.0), ("Days", 0.03), ("weeks", 0.23), ("years", 12.0)]
)
def test_units_of_age(unit: str, years: float) -> None:
    frame = visits(("a", N, 24), ("b", N, 36)).rename(columns={"age": "Age"})
    assert order_of(frame, None, unit) == ([1, 2], "age", [0, years])


def test_dates_that_contradict_ages_are_named(caplog: pytest.LogCaptureFixture) -> None:
    good = visits(("a", "2001-01-01", 70), ("b", "2003-01-01", 72))
    odd = visits(("a", "2001-01-01", 70), ("b", "1990-01-01", 72)).assign(participant_id="sub-2")
    order_scans(pd.concat([good, odd], ignore_index=True))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    for fact in ("acq_time", "age", ": sub-2"):
        assert fact in record.getMessage()


def test_what_is_no_date_is_named(caplog: pytest.LogCaptureFixture) -> None:
    frame = visits(("a", "########", 70), ("b", "########", 71))
    assert order_of(frame) == ([1, 2], "age", [0, 1])
    (record,) = caplog.records
    for fact in ("acq_time", "2 scans", "########"):
        assert fact in record.getMessage()


def test_converters_have_the_class_of_their_earliest_scan() -> None:
    frame = pd.concat(
        [
            visits(("ses-A", "2003-01-01", D), ("ses-B", "2001-01-01", D)).assign(dx=["AD", "CN"]),
            visits(("ses-A", N, 70), ("ses-B", N, 73)).assign(dx=["CN", "AD"]),
            *(visits((N, N, D)).assign(dx=level) for level in ("AD", "AD", "CN", "CN")),
        ],
        ignore_index=True,
    )
    frame["participant_id"] = ["s1", "s1", "s2", "s2", "s3", "s4", "s5", "s6"]
    label = label_scans(frame, "dx", Contrast.parse("AD:CN"))
    assert label.fillna(-1).tolist() == [-1, 1, 1, -1, 0, 0, 1, 1]
    assert first_scans(frame)["dx"].to_dict() == {
        **{"s1": "CN", "s2": "CN", "s3": "AD", "s4": "AD", "s5": "CN", "s6": "CN"}
    }
    assert count_sources(frame) == {"acq_time": 1, "age": 1}


def test_the_wide_table_tells_the_order(study: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for stem in ("sub-1_ses-post", "sub-1_ses-pre", "sub-2_ses-1", "sub-2_ses-2", "sub-3"):
        study.scan(stem)
    study.failed_scan("sub-2_ses-0", "no brain")
    study.table("participants.tsv", "participant_id visit scan_number\nsub-1 x 7\nsub-2 y 8")
    # The rows of a repeated session keep their place.
    rows = "session_id mood\npre 1\npre 2\npost 3"
    study.table("sub-1/sub-1_sessions.tsv", rows)
    study.table("sub-2/sub-2_sessions.tsv", "session_id age\n2 840\n1 852")
    (study.raw / "sessions.json").write_text(json.dumps({"age": {"Units": "months"}}))
    wide = study.write_tables(model=("volume_mm3_L_whole ~ time",)).set_index("scan")
    columns = ["scan_number", "order_source", "years_since_first_scan"]
    assert wide[columns].fillna("?").to_dict("index") == {
        "sub-1_ses-post": dict(zip(columns, [2, "sessions.tsv", "?"], strict=True)),
        "sub-1_ses-pre": dict(zip(columns, [1, "sessions.tsv", "?"], strict=True)),
        "sub-2_ses-0": dict(zip(columns, ["?", "?", "?"], strict=True)),
        "sub-2_ses-1": dict(zip(columns, [2, "age", 1.0], strict=True)),
        "sub-2_ses-2": dict(zip(columns, [1, "age", 0.0], strict=True)),
        "sub-3": dict(zip(columns, [1, "name", 0.0], strict=True)),
    }
    assert wide["participants_scan_number"].fillna(-1).tolist() == [7, 7, 8, 8, 8, -1]
    sidecar = study.group_sidecar("desc-wide_morph")
    assert sidecar["years_since_first_scan"]["Units"] == "year"
    texts = [record.getMessage() for record in caplog.records]
    assert [t for t in texts if "sessions.tsv (1 participant)" in t and "age (1 participant)" in t]
