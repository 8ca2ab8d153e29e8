"""Participants, sessions, scans and phenotype tables as people write them."""

from __future__ import annotations

import json
import logging
from typing import Any

import pandas as pd
import pytest

from hyps_bids.cohort.metadata import join, read_metadata
from hyps_bids.errors import UsageError
from tests.raising import raises


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (b"participant_id\tname\tage\nsub-01\tJos\xe9\t70\n", "Windows-1252"),
        ("participant_id\tname\tage\nsub-01\tJosé\t70\n".encode("utf-16"), "UTF-16"),
        ("\ufeffparticipant_id\tname\tage\r\nsub-01\tJosé\t70\r\n".encode(), None),
        ("participant_id,name,age\nsub-01,José,70\n".encode(), "commas"),
        ("participant_id;name;age\nsub-01;José;70\n".encode(), "semicolons"),
        ("participant_id\tname\tage\n01\tJosé\t70\n".encode(), "sub-"),
        ('"participant_id"\t"name"\t"age"\n"sub-01"\t"José"\t70\n'.encode(), None),
        ("participant_id\tname\tage\tname\nsub-01\tJosé\t70\tx\n".encode(), "column name"),
        ("participant_id\tname\tage\nsub-01\tJosé\t70\nsub-02\ta\t1\t2\n".encode(), "row 3"),
        ("\nparticipant_id\tname\tage\t\nsub-01 \t José\t70\t\n\n".encode(), None),
    ],
)
def test_odd_files_are_read(
    study: Any, caplog: pytest.LogCaptureFixture, content: bytes, fact: str | None
) -> None:
    (study.raw / "participants.tsv").write_bytes(content)
    frame = read_metadata(study.raw, frame_of()).participants
    assert frame.to_dict("records") == [{"participant_id": "sub-01", "name": "José", "age": "70"}]
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == (fact is not None)
    for text in messages:
        assert "participants.tsv" in text
        assert str(fact) in text


@pytest.mark.parametrize("content", [b"", b"name\tage\nx\t1\n", b"\x00\x01\x02"])
def test_useless_file(study: Any, caplog: pytest.LogCaptureFixture, content: bytes) -> None:
    (study.raw / "participants.tsv").write_bytes(content)
    metadata = read_metadata(study.raw, frame_of())
    assert metadata.participants.empty
    assert len(caplog.records) == (content != b"\x00\x01\x02")


def test_no_files(study: Any, caplog: pytest.LogCaptureFixture) -> None:
    frame = frame_of(("sub-01", None))
    metadata = read_metadata(study.raw, frame, ["MMSE"])
    assert list(join(frame, metadata)[0]) == []
    assert not caplog.records


def test_participants_twice(study: Any, caplog: pytest.LogCaptureFixture) -> None:
    study.table(
        "participants.tsv",
        "participant_id age sex\nsub-1 70 F\nsub-2 60 M\nsub-1 71 F\nsub-2 60 M\nsub-3 50 n/a",
    )
    frame = (
        read_metadata(study.raw, frame_of()).participants.set_index("participant_id").sort_index()
    )
    # Values on which the rows agree are known.
    assert frame["sex"].fillna("?").tolist() == ["F", "M", "?"]
    assert frame["age"].fillna("?").tolist() == ["?", "60", "50"]
    (record,) = caplog.records
    for fact in ("participants.tsv", "sub-1, sub-2", "missing", "age"):
        assert fact in record.getMessage()


def frame_of(*scans: tuple[str, str | None]) -> pd.DataFrame:
    rows = [(sub, ses, f"{sub}_{ses}" if ses else sub) for sub, ses in scans]
    return pd.DataFrame(rows, columns=["participant_id", "session_id", "scan"])


def test_session_wins_over_participant(study: Any) -> None:
    study.table("participants.tsv", "participant_id age sex\nsub-1 70 F\nsub-2 60 M")
    study.table("sub-1/sub-1_sessions.tsv", "session_id age MMSE\nses-A 70.5 29\nses-B n/a 28")
    study.table("sub-2/sub-2_sessions.tsv", "session_id age mood\n2 61 n/a")
    frame = frame_of(("sub-1", "ses-B"), ("sub-2", "ses-2"), ("sub-1", "ses-A"), ("sub-3", None))
    metadata = read_metadata(study.raw, frame)
    joined, origins = join(frame, metadata)
    assert origins == {name: name for name in ("age", "sex", "MMSE", "mood")}
    assert joined["age"].fillna("?").tolist() == ["70", "61", "70.5", "?"]
    assert joined["sex"].fillna("?").tolist() == ["F", "M", "F", "?"]
    assert joined["MMSE"].fillna("?").tolist() == ["28", "?", "29", "?"]


def test_dates_of_scans_win_over_those_of_sessions(study: Any) -> None:
    study.table(
        "sub-1/sub-1_sessions.tsv", "session_id acq_time\nses-A 2001-01-01\nses-B 2002-01-01"
    )
    study.table(
        "sub-1/ses-A/sub-1_ses-A_scans.tsv",
        "filename acq_time\nanat/sub-1_ses-A_T1w.nii.gz 2001-03-04T05:06:07\n"
        "anat/sub-1_ses-A_T2w.nii.gz 1999-01-01T00:00:00",
    )
    frame = frame_of(("sub-1", "ses-A"), ("sub-1", "ses-B"))
    joined, _ = join(frame, read_metadata(study.raw, frame))
    assert joined["acq_time"].tolist() == ["2001-03-04T05:06:07", "2002-01-01"]


def test_phenotype_on_request(study: Any) -> None:
    study.table("participants.tsv", "participant_id age\nsub-1 70")
    study.table("phenotype/mmse.tsv", "participant_id session_id MMSE age\nsub-1 ses-A 29 1")
    study.table("phenotype/genes.tsv", "participant_id APOE4\nsub-1 2")
    (study.raw / "phenotype/genes.json").write_text(
        json.dumps({"MeasurementToolMetadata": {}, "APOE4": {"Description": "Alleles"}})
    )
    frame = frame_of(("sub-1", "ses-A"), ("sub-1", "ses-B"))
    nothing, _ = join(frame, read_metadata(study.raw, frame))
    assert "MMSE" not in nothing
    metadata = read_metadata(study.raw, frame, ["MMSE", "APOE4", "age", "nowhere"])
    joined, _ = join(frame, metadata)
    assert joined["MMSE"].fillna("?").tolist() == ["29", "?"]
    assert joined["APOE4"].tolist() == ["2", "2"]
    assert joined["age"].tolist() == ["70", "70"]
    assert metadata.columns["APOE4"] == {"Description": "Alleles"}
    study.table("phenotype/other.tsv", "participant_id MMSE\nsub-1 30")
    with raises(UsageError, "phenotype-column-ambiguous", "MMSE", "mmse.tsv", "other.tsv"):
        read_metadata(study.raw, frame, ["MMSE"])


def test_our_columns_keep_their_names(study: Any) -> None:
    header = "participant_id status scan visit participants_status"
    study.table("participants.tsv", f"{header}\nsub-1 retired 3T 2 x")
    frame = frame_of(("sub-1", None)).assign(status="done")
    added, origins = join(frame, read_metadata(study.raw, frame_of()), reserved=["visit"])
    assert added.loc[0].to_dict() == {
        "participants_status_": "retired",
        "participants_scan": "3T",
        "participants_visit": "2",
        "participants_status": "x",
    }
    assert list(origins.values()) == ["status", "scan", "visit", "participants_status"]


def test_many_files_with_one_fault_give_one_warning(
    study: Any, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"sub-{i}" for i in range(5)]
    for name in names:
        study.table(f"{name}/{name}_sessions.tsv", "session_id,age\nses-1,70")
    metadata = read_metadata(study.raw, frame_of(*((name, "ses-1") for name in names)))
    assert len(metadata.sessions) == 5
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    for fact in ("sub-0_sessions.tsv", "4 more", "commas"):
        assert fact in record.getMessage()
