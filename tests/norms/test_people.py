"""Age, sex, head size and site of the people in scans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hyps_bids.cohort.all_sessions import all_sessions
from hyps_bids.cohort.metadata import join, read_metadata
from hyps_bids.norms.people import describe_people
from tests.cohort.study import MadeStudy


def scans(**columns: Any) -> pd.DataFrame:
    n = max(len(values) for values in columns.values())
    base = {
        "participant_id": [f"sub-{i}" for i in range(n)],
        "session_id": [None] * n,
        "scan": [f"scan-{i}" for i in range(n)],
        "flags": [None] * n,
        "icv_mm3": [1.5e6] * n,
    }
    return pd.DataFrame(base | columns)


@pytest.mark.parametrize(
    ("unit", "age"), [("years", 2.0), ("months", 24.0), ("weeks", 104.357), ("d", 730.5), ("", 2.0)]
)
def test_ages_are_in_years_whatever_their_unit(unit: str, age: float) -> None:
    people = describe_people(scans(Age=[age]), {"Age": {"Units": unit}})
    assert people.table["age"].tolist() == pytest.approx([2.0], abs=1e-4)
    assert people.columns == {"age": "Age"}


def test_the_age_at_the_first_session_grows_with_the_dates_of_the_others() -> None:
    frame = scans(
        participant_id=["a", "a", "b", "b", "c"],
        session_id=["1", "2", "1", "2", "1"],
        age=[70.0, 70.0, 60.0, 63.0, 50.0],
        acq_time=["2001-01-01", "2003-01-01", "2001-01-01", "2004-01-01", None],
    )
    people = describe_people(frame, {}).table
    assert people["age"].round(1).tolist() == [70.0, 72.0, 60.0, 63.0, 50.0]
    assert people["doubt"].isna().all()


def test_one_age_for_sessions_without_dates_is_doubtful(caplog: pytest.LogCaptureFixture) -> None:
    frame = scans(participant_id=["a", "a", "b"], session_id=["1", "2", "1"], age=[70.0, 70.0, 60])
    people = describe_people(frame, {}).table
    assert people["doubt"].notna().tolist() == [True, True, False]
    assert "a" in caplog.text


SESSIONS = "session_id acq_time\nses-1 2000-01-01\nses-2 2015-01-01"
SCANS = "filename acq_time\nanat/sub-a_ses-{0}_T1w.nii.gz {1}"
ONE_AGE = "participant_id age\nsub-a 60"


@pytest.mark.parametrize(
    ("tables", "age", "doubtful"),
    [
        ({"sub-a/sub-a_sessions.tsv": SESSIONS}, 75, False),
        ({"sub-a/sub-a_sessions.tsv": SESSIONS + "\nses-3 n/a"}, 75, True),
        ({"sub-a/sub-a_sessions.tsv": "session_id\nses-1\nses-2"}, 60, True),
        # The earlier session is known by its folder only.
        ({}, 60, True),
        (
            {
                "sub-a/ses-1/sub-a_ses-1_scans.tsv": SCANS.format(1, "2000-01-01"),
                "sub-a/ses-2/sub-a_ses-2_scans.tsv": SCANS.format(2, "2015-01-01"),
            },
            75,
            False,
        ),
        # Only functional images were taken at the first session.
        (
            {
                "sub-a/sub-a_scans.tsv": "filename acq_time\n"
                "ses-1/func/sub-a_ses-1_task-rest_bold.nii.gz 2000-01-01\n"
                "ses-2/anat/sub-a_ses-2_T1w.nii.gz 2015-01-01"
            },
            75,
            False,
        ),
        # Dates that are the same everywhere say nothing.
        ({"participants.tsv": "participant_id age acq_time\nsub-a 60 2000-01-01"}, 60, True),
        # Ages of sessions are those at the sessions.
        (
            {
                "sub-a/sub-a_sessions.tsv": "session_id acq_time age\n"
                "ses-1 2000-01-01 45\nses-2 2015-01-01 60"
            },
            60,
            False,
        ),
        (
            {
                "participants.tsv": "participant_id\nsub-a",
                "sub-a/sub-a_sessions.tsv": "session_id acq_time age\n"
                "ses-1 2000-01-01 n/a\nses-2 2015-01-01 60",
            },
            60,
            False,
        ),
    ],
)
def test_sessions_that_are_not_selected_count(
    tmp_path: Path, tables: dict[str, str], age: float, doubtful: bool
) -> None:
    study = MadeStudy.create(tmp_path / "study")
    (study.raw / "sub-a" / "ses-1").mkdir(parents=True)
    for name, text in ({"participants.tsv": ONE_AGE} | tables).items():
        study.table(name, text)
    frame = scans(participant_id=["sub-a"], session_id=["ses-2"], scan=["sub-a_ses-2"])
    metadata = read_metadata(study.raw, frame)
    frame["age"] = join(frame, metadata)[0]["age"].astype(float)
    sessions = all_sessions(study.raw, metadata, frame)
    (person,) = describe_people(frame, {}, None, sessions).table.itertuples()
    assert person.age == pytest.approx(age, abs=0.05)
    assert pd.notna(person.doubt) == doubtful


@pytest.mark.parametrize(
    ("column", "values", "levels"),
    [
        ("sex", ["Female", "male", None], None),
        ("Gender", ["F", "m", "n/a"], None),
        ("M/F", ["F", "M", None], None),
        ("sex", [2.0, 1.0, np.nan], {"1": "male", "2": "Female"}),
        ("sex", ["w", "m", "d"], {"w": "woman", "m": "man", "d": "diverse"}),
    ],
)
def test_sexes_are_understood_by_level_and_by_meaning(
    column: str, values: list[Any], levels: dict[str, str] | None
) -> None:
    described = {column: {"Levels": levels}} if levels else {}
    people = describe_people(scans(**{column: values}), described)  # type: ignore[arg-type]
    assert people.table["sex"].tolist() == ["F", "M", ""]


def test_codes_of_sexes_without_meaning_are_not_guessed(caplog: pytest.LogCaptureFixture) -> None:
    assert describe_people(scans(sex=[1.0, 2.0]), {}).table["sex"].tolist() == ["", ""]
    assert "1, 2" in caplog.text


@pytest.mark.parametrize("flag", ["low_icv_mm3", "high_icv_cut", "low_entropy_L geometry"])
def test_a_flagged_intracranial_volume_is_not_used(flag: str) -> None:
    people = describe_people(scans(flags=[flag, "low_confidence_L", None]), {})
    assert people.table["icv"].isna().tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("values", "sites"),
    [
        ([1.0, 12.0, np.nan], ["1", "12", ""]),
        ([1, 12, 3], ["1", "12", "3"]),
        (["Köln | 1", None, "a/b"], ["Köln | 1", "", "a/b"]),
    ],
)
def test_sites_have_the_same_name_whether_or_not_others_are_missing(
    values: list[Any], sites: list[str]
) -> None:
    assert describe_people(scans(center=values), {}, "center").table["site"].tolist() == sites
