"""Outputs whose images are gone, and outputs that cannot be read."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hyps_bids import cli
from hyps_bids.errors import MissingInput, NothingMatches
from tests.cohort.study import MadeStudy
from tests.raising import raises

_NOBODY = 65534
KEPT = "--keep-missing-images"


def done(study: MadeStudy, **options: Any) -> list[str]:
    wide = study.write_tables(**options)
    return wide.loc[wide["status"] == "done", "scan"].tolist()


def said(caplog: pytest.LogCaptureFixture, level: int, *facts: str) -> bool:
    texts = [r.getMessage() for r in caplog.records if r.levelno == level]
    return any(all(fact in text for fact in facts) for text in texts)


def remove(study: MadeStudy, stem: str) -> None:
    image = study.image(stem)
    (study.raw / image.folder / image.path).unlink()


def every_place(values: list[Any]) -> list[Any]:
    """Combine folders with values; every day, each occurs once, and the other pairs are slow."""
    places = ["sub-02", "sub-02/ses-1", "sub-02/ses-1/anat"]
    return [
        pytest.param(place, value, marks=[] if i == k else [pytest.mark.slow])
        for i, place in enumerate(places)
        for k, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("before", "gone", "database"),
    [
        (["sub-01", "sub-01_ses-1"], "sub-01", False),
        (["sub-01_acq-a", "sub-01_acq-b"], "sub-01_acq-b", False),
        (["sub-01_ses-1_run-1", "sub-01_ses-1_run-2"], "sub-01_ses-1_run-2", True),
        (["sub-01_ses-1", "sub-01_ses-2"], "sub-01_ses-2", False),
        (["sub-01", "sub-02"], "sub-02", False),
        (["sub-01", "sub-02"], "sub-02", True),
    ],
)
def test_scans_whose_image_is_gone(
    study: MadeStudy,
    caplog: pytest.LogCaptureFixture,
    before: list[str],
    gone: str,
    database: bool,
) -> None:
    index = {"bids_database_dir": study.folder / "index"} if database else {}
    for stem in before:
        study.scan(stem)
    assert done(study, **index) == before
    assert not caplog.records or not said(caplog, logging.WARNING, KEPT)
    remove(study, gone)
    assert done(study, **index) == [stem for stem in before if stem != gone]
    assert gone not in study.group_table("morph")["scan"].tolist()
    assert said(caplog, logging.WARNING, "1 scan ", gone, KEPT)
    caplog.clear()
    assert done(study, **index, keep_missing_images=True) == before
    assert said(caplog, logging.WARNING, "1 scan ", gone, KEPT)


def test_a_participant_without_folder(study: MadeStudy) -> None:
    study.scan("sub-01")
    study.scan("sub-02")
    study.table("participants.tsv", "participant_id age\nsub-01 70\nsub-02 71")
    shutil.rmtree(study.raw / "sub-02")
    wide = study.write_tables().set_index("participant_id")
    assert wide["status"].tolist() == ["done", "missing"]
    assert wide["volume_mm3_L_whole"].isna().tolist() == [False, True]
    asked = {"participant_label": ("02",)}
    with pytest.raises(NothingMatches):
        study.write_tables(**asked)
    assert done(study, **asked, keep_missing_images=True) == ["sub-02"]


@pytest.mark.parametrize("folders", [False, True])
def test_a_dataset_without_images_keeps_all_outputs(
    study: MadeStudy, caplog: pytest.LogCaptureFixture, folders: bool
) -> None:
    stems = ["sub-01", "sub-02_ses-1"]
    for stem in stems:
        study.scan(stem)
    study.table("participants.tsv", "participant_id age\nsub-01 70\nsub-02 71")
    for stem in stems:
        remove(study, stem)
        if not folders:
            shutil.rmtree(study.raw / stem[:6])
    assert study.write_tables()["age"].tolist() == [70, 71]
    assert done(study, participant_label=("02",)) == ["sub-02_ses-1"]
    assert said(caplog, logging.WARNING, str(study.raw), str(study.output))
    assert not said(caplog, logging.WARNING, KEPT)
    with pytest.raises(NothingMatches):
        study.write_tables(participant_label=("nobody",))
    filters = study.folder / "filters.json"
    filters.write_text(json.dumps({"t1w": {"subject": "02"}}))
    with pytest.raises(NothingMatches):
        study.write_tables(bids_filter_file=filters)


def test_images_that_an_old_index_lacks_are_not_gone(study: MadeStudy) -> None:
    index = {"bids_database_dir": study.folder / "index"}
    study.scan("sub-01")
    study.write_tables(**index)
    study.scan("sub-02")
    assert done(study, **index) == ["sub-01", "sub-02"]


@contextmanager
def unprivileged() -> Iterator[None]:
    """Act as a user who is not root, to whom permissions mean something."""
    if os.geteuid():
        yield
        return
    os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def public_study() -> Iterator[MadeStudy]:
    """Make a study of two participants in a folder that other users may enter."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        study = MadeStudy.create(Path(folder) / "study")
        study.scan("sub-01_ses-1")
        study.scan("sub-02_ses-1")
        study.write_tables()
        if not os.geteuid():
            for path in (study.folder, *study.folder.rglob("*")):
                os.chown(path, _NOBODY, _NOBODY)
        yield study
        for path in study.folder.rglob("*"):
            path.chmod(0o755)


@pytest.mark.parametrize(("place", "mode"), every_place([0o000, 0o100, 0o400]))
def test_a_folder_without_permission(
    public_study: MadeStudy, caplog: pytest.LogCaptureFixture, place: str, mode: int
) -> None:
    folder = public_study.output / place
    folder.chmod(mode)
    with unprivileged():
        wide = public_study.write_tables()
    folder.chmod(0o755)
    assert wide["status"].tolist() == ["done", "failed"]
    assert said(caplog, logging.ERROR, str(folder), "Permission denied") or mode == 0o400
    assert "Permission denied" in wide.loc[1, "reason"]


@pytest.mark.parametrize(("place", "link"), every_place([None, "nowhere", "itself"]))
def test_no_folder_where_one_should_be(study: MadeStudy, place: str, link: str | None) -> None:
    study.scan("sub-01")
    study.scan("sub-02_ses-1")
    study.scan("sub-03")
    assert cli.main([str(study.raw), str(study.output), "group"]) == 0
    folder = study.output / place
    shutil.rmtree(folder)
    if link:
        folder.symlink_to(folder if link == "itself" else link)
    else:
        folder.touch()
    assert cli.main([str(study.raw), str(study.output), "group"]) == 1
    qc = study.group_table("qc").set_index("scan")
    assert qc["status"].tolist() == ["done", "failed", "done"]
    assert place in qc.loc["sub-02_ses-1", "reason"]
    assert (study.output / "group_report.html").is_file()


@pytest.mark.parametrize("kind", ["qc", "morph"])
def test_a_table_that_cannot_be_read(
    study: MadeStudy, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    study.scan("sub-01")
    study.scan("sub-02")
    path = study.path("sub-02", kind)
    path.unlink()
    path.mkdir()
    assert cli.main([str(study.raw), str(study.output), "group"]) == 1
    qc = study.group_table("qc").set_index("scan")
    assert qc["status"].tolist() == ["done", "failed"]
    assert path.name in qc.loc["sub-02", "reason"]


def test_all_outputs_are_unreadable(study: MadeStudy) -> None:
    study.image("sub-01")
    (study.output / "sub-01").touch()
    with raises(MissingInput, "scan-tables-missing", study.output):
        study.write_tables()


def test_raw_folders_that_cannot_be_read_are_not_gone(
    study: MadeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    study.scan("sub-01")
    study.scan("sub-02")
    remove(study, "sub-02")
    real = os.listdir

    def fail(path: Any) -> list[str]:
        if str(path).startswith(str(study.raw / "sub-02")):
            raise OSError(5, "Input/output error", str(path))
        return real(path)

    monkeypatch.setattr("hyps_bids.cohort.selection.os.listdir", fail)
    assert done(study) == ["sub-01", "sub-02"]
