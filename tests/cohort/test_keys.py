"""Rows of the dataset's tables find their scans, however their keys are written."""

from __future__ import annotations

import logging
from typing import Any

import pytest

PARTICIPANT, VISITS = ["sub-01"], ["sub-01_ses-01", "sub-01_ses-M06"]


def ages(study: Any, stems: list[str], **options: Any) -> list[float]:
    for stem in stems:
        study.scan(stem)
    wide = study.write_tables(**options).set_index("scan")
    return wide.loc[stems, "age"].astype("float64").fillna(-1).tolist()


def messages(caplog: pytest.LogCaptureFixture, *facts: str) -> list[int]:
    """Return the levels of the messages that state all facts."""
    return [r.levelno for r in caplog.records if all(f in r.getMessage() for f in facts)]


@pytest.mark.parametrize(
    ("name", "text", "stems", "expected"),
    [
        ("participants.tsv", "participant_id session_id age\n01 M06 70", VISITS, [-1, 70]),
        ("participants.tsv", "participant_id session_id age\nsub-1 1 70", VISITS, [70, -1]),
        ("participants.tsv", "participant_id session_id age\nsub-01 ses-9 70", PARTICIPANT, [70]),
        ("participants.tsv", "Participant_ID Session_ID age\nSUB_01 m6 70", VISITS, [-1, 70]),
        ("participants.tsv", "participant_id session_id age\nsub-01 n/a 70", VISITS, [70, 70]),
        (
            "participants.tsv",
            "participant_id session_id age\nsub-01 n/a 70\nsub-01 M06 71",
            VISITS,
            [70, 71],
        ),
        ("sub-01/sub-01_sessions.tsv", "session_id age\n1.0 70\nses-m06 71", VISITS, [70, 71]),
        ("sub-01/sub-01_sessions.tsv", "session_id age\nses-M00 70", PARTICIPANT, [70]),
        # An exact label is never taken for another one, and of two possible ones neither is taken.
        ("sub-01/sub-01_sessions.tsv", "session_id age\n1 70\n01 71", VISITS, [71, -1]),
        ("sub-01/sub-01_sessions.tsv", "session_id age\n1 70\n001 71", VISITS, [-1, -1]),
        ("phenotype/x.tsv", "participant_id session_id age\n1 6 69\n01 M6 70", VISITS, [-1, 70]),
        ("phenotype/x.tsv", "participant_id session_id age\nsub-01 bl 70", PARTICIPANT, [70]),
        ("phenotype/x.tsv", "participant_id age\nsub-1 70", VISITS, [70, 70]),
        ("participants.tsv", "participant_id age\n002_s_13 70", ["sub-002S0013"], [70]),
    ],
)
def test_keys_find_their_scans(
    study: Any, name: str, text: str, stems: list[str], expected: list[float]
) -> None:
    study.table(name, text)
    assert ages(study, stems, covariates=("age",)) == expected


def test_two_participants_with_similar_labels(study: Any) -> None:
    study.table("participants.tsv", "participant_id age\n1 70\n01 71")
    study.scan("sub-1")
    assert ages(study, ["sub-01"]) == [71]
    assert ages(study, ["sub-1"], participant_label=("1",)) == [70]
    # Participants who are not selected still count as possible.
    study.table("participants.tsv", "participant_id age\n001 70")
    assert ages(study, ["sub-1"], participant_label=("1",)) == [-1]


def test_visits_of_a_participant_without_sessions(
    study: Any, caplog: pytest.LogCaptureFixture
) -> None:
    study.table(
        "participants.tsv", "participant_id session_id age sex\nsub-01 a 70 F\nsub-01 b 71 F"
    )
    assert ages(study, PARTICIPANT) == [-1]
    assert study.write_tables()["sex"].tolist() == ["F"]
    assert logging.WARNING in messages(caplog, "participants.tsv", "sub-01", "differ", "age")


@pytest.mark.parametrize(
    ("name", "text", "facts"),
    [
        (
            "participants.tsv",
            "participant_id session_id age\nsub-01 M60 70",
            ("sub-01 ses-M60", "nearest: sub-01 ses-M06"),
        ),
        ("participants.tsv", "participant_id age\nsub-O1 70", ("sub-O1", "nearest: sub-01")),
        (
            "sub-01/sub-01_sessions.tsv",
            "session_id age\nM07 70",
            ("ses-M07", "nearest: sub-01 ses-M06"),
        ),
        ("phenotype/x.tsv", "participant_id age\nsub-O1 70", ("sub-O1", "nearest: sub-01")),
        (
            "sub-01/ses-M06/sub-01_ses-M06_scans.tsv",
            "filename acq_time\nanat/sub-01_ses-M60_T1w.nii.gz 2001-01-01",
            ("sub-01_ses-M60", "nearest: sub-01_ses-M06"),
        ),
    ],
)
def test_keys_that_match_nothing_are_named(
    study: Any, caplog: pytest.LogCaptureFixture, name: str, text: str, facts: tuple[str, ...]
) -> None:
    study.table(name, text)
    for stem in VISITS:
        study.scan(stem)
    study.write_tables(covariates=("age",))
    assert messages(caplog, name.rpartition("_")[2].rpartition("/")[2], *facts) == [logging.WARNING]


def test_sessions_that_are_not_in_the_dataset_are_named(
    study: Any, caplog: pytest.LogCaptureFixture
) -> None:
    rows = "session_id age\nses-01 70\nses-M06 71\nses-M12 72\nses-PET 73"
    study.table("sub-01/sub-01_sessions.tsv", rows)
    (study.raw / "sub-01/ses-PET/pet").mkdir(parents=True)
    assert ages(study, VISITS) == [70, 71]
    # The folder of a session without a T1w image is there.
    assert messages(caplog, "_sessions.tsv", "sub-01 ses-M12") == [logging.WARNING]
    assert messages(caplog, "nearest") == messages(caplog, "ses-PET") == []
    caplog.clear()
    # Rows about scans that are not selected are not named.
    study.write_tables(session_label=("01",))
    assert messages(caplog, "ses-M06") == []


def test_names_of_files_are_keys_too(study: Any) -> None:
    study.table(
        "sub-01/ses-M06/sub-01_ses-M06_scans.tsv",
        "Filename acq_time\nanat\\sub-01_ses-m6_T1w.nii 2001-01-01",
    )
    for stem in VISITS:
        study.scan(stem)
    assert study.write_tables()["acq_time"].fillna("?").tolist() == ["?", "2001-01-01"]


def test_rows_and_files_without_keys_are_named(
    study: Any, caplog: pytest.LogCaptureFixture
) -> None:
    study.table("sub-01/sub-01_sessions.tsv", "session_id age\nses-01 70\nn/a 71")
    study.table("sub-02/sub-02_sessions.tsv", "visit age\nses-01 70")
    assert ages(study, ["sub-01_ses-01", "sub-02_ses-01"]) == [70, -1]
    assert messages(caplog, "sub-01_sessions.tsv", "session_id", "(1)") == [logging.WARNING]
    assert messages(caplog, "sub-02_sessions.tsv", "session_id") == [logging.WARNING]
