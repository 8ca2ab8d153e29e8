"""When scans were taken, from the tables of a dataset as people write them."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest

from hyps_bids.cohort.scan_times import order_visits, read_times

STEMS = ["sub-1_ses-a", "sub-1_ses-b", "sub-1_ses-c"]


def write(root: Path, name: str, *rows: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row}\n".replace(",", "\t") for row in rows))


def visits(root: Path, *stems: str) -> dict[str, tuple[int, str, float]]:
    times = read_times(root, stems or STEMS)
    return {
        stem[-1]: (each.number, each.source, round(each.years, 2))
        for stem, each in order_visits(times).items()
    }


def test_dates_of_scans_come_first(tmp_path: Path) -> None:
    write(tmp_path, "participants.tsv", "participant_id,age", "sub-1,70")
    for session, year in zip("abc", (2003, 2001, 2002), strict=True):
        name = f"sub-1/ses-{session}/sub-1_ses-{session}_scans.tsv"
        image = f"anat/sub-1_ses-{session}_T1w.nii.gz"
        write(tmp_path, name, "filename,acq_time", f"{image},{year}-01-01T12:00:00")
    assert visits(tmp_path) == {
        "a": (3, "acq_time", 2),
        "b": (1, "acq_time", 0),
        "c": (2, "acq_time", 1),
    }


def test_ages_of_sessions_in_their_unit(tmp_path: Path) -> None:
    write(tmp_path, "sub-1/sub-1_sessions.tsv", "session_id,Age", "ses-a,30", "ses-b,24", "c,48")
    (tmp_path / "sessions.json").write_text('{"Age": {"Units": "months"}}')
    assert visits(tmp_path) == {"a": (2, "age", 0.5), "b": (1, "age", 0), "c": (3, "age", 2)}
    # A scan that has failed does not change the others.
    assert visits(tmp_path, *STEMS[::2]) == {"a": (1, "age", 0), "c": (2, "age", 1.5)}


def test_without_dates_and_ages_the_order_is_that_of_rows_or_names(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unknown = {"a": (1, "name", math.nan), "b": (2, "name", math.nan), "c": (3, "name", math.nan)}
    assert str(visits(tmp_path)) == str(unknown)
    rows = ("ses-c,yesterday", "ses-a,n/a", "ses-b,n/a")
    write(tmp_path, "sub-1/sub-1_sessions.tsv", "session_id,acq_time", *rows)
    with caplog.at_level(logging.WARNING):
        found = visits(tmp_path)
    assert [found[key][:2] for key in "cab"] == [(i, "sessions.tsv") for i in (1, 2, 3)]
    assert "yesterday" in caplog.text
