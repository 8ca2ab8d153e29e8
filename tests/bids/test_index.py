"""Images are found and selected, and every failure to find one is reported."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from bids.layout import BIDSLayout

from hyps_bids.bids import layouts
from hyps_bids.bids.index import find_scans
from hyps_bids.errors import (
    BadData,
    CannotCreateOutput,
    InvalidBids,
    MissingInput,
    NothingMatches,
    UsageError,
)
from hyps_bids.settings import Settings
from tests.permissions import run_bound_by_permissions
from tests.raising import raises

NAMES = (
    "sub-01/anat/sub-01_acq-mprage_T1w.nii.gz",
    "sub-01/anat/sub-01_run-01_T1w.nii.gz",
    "sub-01/anat/sub-01_run-2_T1w.nii.gz",
    "sub-02/ses-M00/anat/sub-02_ses-M00_T1w.nii.gz",
    "sub-02/ses-M12/anat/sub-02_ses-M12_rec-norm_T1w.nii",
    "sub-101/anat/sub-101_T1w.nii.gz",
)


def add(root: Path, *names: str) -> None:
    image = nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4))
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(image, path)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    root = tmp_path / "raw"
    add(root, *NAMES)
    write_description(root)
    return root


def write_description(root: Path) -> None:
    content = {"Name": "test", "BIDSVersion": "1.10.0"}
    (root / "dataset_description.json").write_text(json.dumps(content))


def make_settings(root: Path, **options: Any) -> Settings:
    output = root.parent / "out"
    return Settings(bids_dir=root, output_dir=output, analysis_level="participant", **options)


def find(root: Path, **options: Any) -> list[str]:
    scans = find_scans(make_settings(root, **options))
    return [scan.path.relative_to(root).as_posix() for scan in scans]


@pytest.fixture
def filter_file(tmp_path: Path) -> Callable[[Any], Path]:
    def write(query: Any) -> Path:
        path = tmp_path / "filter.json"
        path.write_text(json.dumps({"t1w": query}))
        return path

    return write


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, NAMES),
        ({"participant_label": ("01",)}, NAMES[:3]),
        # A label is neither a prefix nor a pattern.
        ({"participant_label": ("101",)}, NAMES[5:]),
        ({"participant_label": ("02", "01", "02")}, NAMES[:5]),
        ({"exclude_participant_label": ("01",)}, NAMES[3:]),
        ({"exclude_participant_label": ("nobody",)}, NAMES),
        ({"participant_label": ("01", "02"), "exclude_participant_label": ("02",)}, NAMES[:3]),
        ({"session_label": ("M12",)}, NAMES[4:5]),
        ({"session_label": ("M00", "M12")}, NAMES[3:5]),
        # M24 is a session of another participant.
        ({"participant_label": ("02",), "session_label": ("M00", "M24")}, NAMES[3:4]),
    ],
)
def test_labels(dataset: Path, options: dict[str, Any], expected: tuple[str, ...]) -> None:
    (dataset / "sub-101/ses-M24/func").mkdir(parents=True)
    assert find(dataset, **options) == list(expected)


@pytest.mark.parametrize(
    ("options", "code", "facts"),
    [
        ({"participant_label": ("01", "03")}, "participant-unknown", ["03", "01, 02, 101"]),
        ({"participant_label": ("*",)}, "participant-unknown", ["*"]),
        (
            {"participant_label": ("01",), "exclude_participant_label": ("01",)},
            "all-excluded",
            ["--exclude-participant-label"],
        ),
        ({"session_label": ("M99",)}, "session-unknown", ["M99", "M00, M12, M24"]),
        ({"session_label": ("M00", "M99")}, "session-unknown", ["M99", "M00, M12, M24"]),
        (
            {"participant_label": ("01",), "session_label": ("M00",)},
            "no-images-selected",
            ["participant 01, session M00"],
        ),
    ],
)
def test_labels_that_match_nothing(
    dataset: Path, options: dict[str, Any], code: str, facts: list[str]
) -> None:
    (dataset / "sub-101/ses-M24/func").mkdir(parents=True)
    with raises(NothingMatches, code, *facts):
        find(dataset, **options)


def test_participant_without_image_is_named(
    dataset: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (dataset / "sub-03").mkdir()
    for labels in ((), ("01", "03")):
        caplog.clear()
        find(dataset, participant_label=labels)
        (record,) = (r for r in caplog.records if r.levelname == "WARNING")
        assert "03 (" in record.message
        assert "01 (" not in record.message


@pytest.mark.parametrize(
    ("name", "fact"),
    [
        ("anat/sub-03_T1W.nii.gz", "_T1w.nii.gz"),
        ("anat/sub-03_t1w.nii", "_T1w.nii"),
        ("anat/sub-03_T1w.NII.GZ", "_T1w.nii.gz"),
        ("anat/sub-03_T1w.nii.gz ", "white space"),
        ("anat/sub-03_acq-0.8mm_T1w.nii.gz", "dots"),
        ("anat/sub-03_acq-caf\udce9_T1w.nii.gz", "UTF-8"),
        ("Anat/sub-03_T1w.nii.gz", "Anat, not anat"),
        ("sub-03_T1w.nii.gz", "sub-03, not anat"),
        ("ses-1/anat/nifti/sub-03_ses-1_T1w.nii.gz", "nifti, not anat"),
        ("anat/sub-03_UNIT1.nii.gz", "--suffix UNIT1"),
        ("anat/sub-03_acq-mprage.nii.gz", "not T1w"),
        ("anat/sub-03_acq-t2w_T1W.nii.gz", "_T1w.nii.gz"),
        ("anat/sub-03_T1w.mgz", "NIfTI"),
        ("anat/sub-03_part-phase_T1w.nii.gz", "part-phase"),
        ("anat/sub-03_space-MNI152NLin2009cAsym_T1w.nii.gz", "template"),
        ("anat/sub-03_T2w.nii.gz", "--suffix T2w"),
        ("anat/sub-03_PDT2.nii.gz", "beside"),
        # A session may be called like the contrast.
        ("ses-t1/anat/sub-03_ses-t1_T2w.nii.gz", "--suffix T2w"),
    ],
)
def test_near_misses_are_named(
    dataset: Path, caplog: pytest.LogCaptureFixture, name: str, fact: str
) -> None:
    path = dataset / "sub-03" / name
    path.parent.mkdir(parents=True)
    path.touch()
    shown = path.name.replace("\udce9", "\\udce9")
    assert find(dataset) == list(NAMES)
    assert any(shown in r.message and fact in r.message for r in caplog.records)
    with raises(NothingMatches, "no-images-selected", shown, fact):
        find(dataset, participant_label=("03",))


def test_near_misses_beside_images_and_participants(
    dataset: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (dataset / "sub-101/anat/sub-101_run-2_T1W.nii.gz").touch()
    # The resource fork of a file that was copied from a Mac.
    (dataset / "sub-101/anat/._sub-101_T1w.nii.gz").touch()
    (dataset / "Sub-04" / "anat").mkdir(parents=True)
    assert find(dataset) == list(NAMES)
    assert [r.message.rpartition(": ")[2] for r in caplog.records] == [
        "sub-101/anat/sub-101_run-2_T1W.nii.gz",
        "Sub-04",
    ]
    caplog.clear()
    assert find(dataset, participant_label=("01",)) == list(NAMES[:3])
    assert not caplog.records


@pytest.mark.parametrize(
    ("label", "facts"),
    [
        ("01\r", [r"01\r", "Perhaps 01 is"]),
        ("01,02", ["by spaces"]),
        ("1", ["Perhaps 01 is"]),
        ("Sub-04", ["The folder Sub-04 must"]),
        ("01\u200b", [r"01\u200b", "Perhaps 01 is"]),
    ],
)
def test_hints_about_labels(dataset: Path, label: str, facts: list[str]) -> None:
    (dataset / "Sub-04").mkdir()
    with raises(NothingMatches, "participant-unknown", *facts):
        find(dataset, participant_label=(label,))


def test_images_with_another_meaning(
    dataset: Path, filter_file: Callable[[Any], Path], caplog: pytest.LogCaptureFixture
) -> None:
    taken = [f"sub-03/anat/sub-03_{e}_T1w.nii.gz" for e in ("desc-preproc", "part-mag")]
    taken += [f"sub-03/anat/sub-03_space-{s}_T1w.nii.gz" for s in ("T1w", "orig", "scanner")]
    spaces = [f"sub-03/anat/sub-03_space-{s}_T1w.nii.gz" for s in ("MNI152NLin6Asym", "fsaverage")]
    parts = [f"sub-03/anat/sub-03_part-{p}_T1w.nii.gz" for p in ("imag", "phase", "real")]
    others = [f"sub-03/anat/sub-03_{e}_T1w.nii.gz" for e in ("hemi-L", "label-brain", "seg-x")]
    add(dataset, *taken, *spaces, *parts, *others)
    assert find(dataset, participant_label=("03",)) == taken
    assert len([r for r in caplog.records if "left out" in r.message]) == 8
    for query, expected in (
        ({"space": "fsaverage"}, spaces[1:]),
        ({"part": ["phase", "real"]}, parts[1:]),
        ({"part": None, "space": None}, taken[:1]),
        ({"desc": "preproc"}, taken[:1]),
        ({"segmentation": "x"}, None),
    ):
        options: dict[str, Any] = {"bids_filter_file": filter_file(query)}
        if expected is None:
            with raises(NothingMatches, "no-images-selected"):
                find(dataset, participant_label=("03",), **options)
        else:
            assert find(dataset, participant_label=("03",), **options) == expected


def test_derivative_dataset_is_said(dataset: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = {"Name": "test", "BIDSVersion": "1.10.0", "DatasetType": "derivative"}
    (dataset / "dataset_description.json").write_bytes(
        b"\xef\xbb\xbf" + json.dumps(content).encode()
    )
    assert find(dataset) == list(NAMES)
    assert "'derivative'" in caplog.text


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"acquisition": None}, NAMES[1:]),
        ({"acquisition": "*"}, NAMES[:1]),
        ({"acquisition": "Query.ANY"}, NAMES[:1]),
        ({"acquisition": ["mprage"]}, NAMES[:1]),
        ({"acquisition": "MPRAGE|other", "regex_search": True}, NAMES[:1]),
        # A run is a number, however it is padded.
        ({"run": 1}, NAMES[1:2]),
        ({"run": "01"}, NAMES[1:2]),
        ({"run": "02"}, NAMES[2:3]),
        ({"run": [1, 2]}, NAMES[1:3]),
        ({"run": None, "session": None}, (NAMES[0], NAMES[5])),
        ({"session": ["M00", "M12"]}, NAMES[3:5]),
        ({"subject": "101"}, NAMES[5:]),
        ({}, NAMES),
        # Other apps need the first two, so their users write them.
        ({"datatype": "anat", "suffix": "T1w", "session": "M00"}, NAMES[3:4]),
        ({"datatype": ["anat"], "suffix": ["T1w"], "extension": [".nii.gz", "nii"]}, NAMES),
        ({"extension": ".nii"}, NAMES[4:5]),
    ],
)
def test_filter_file(
    dataset: Path, filter_file: Callable[[Any], Path], query: Any, expected: tuple[str, ...]
) -> None:
    assert find(dataset, bids_filter_file=filter_file(query)) == list(expected)


def test_filter_says_what_passed(
    dataset: Path, filter_file: Callable[[Any], Path], caplog: pytest.LogCaptureFixture
) -> None:
    path = filter_file({"run": 1})
    with caplog.at_level("INFO", "hyps_bids"):
        find(dataset, bids_filter_file=path)
    assert f"{path} passed 1 of 6" in caplog.text


@pytest.mark.parametrize("regex", [False, True])
def test_filter_narrows_the_labels(
    dataset: Path, filter_file: Callable[[Any], Path], regex: bool
) -> None:
    query = {"session": "M.*" if regex else "M00", "regex_search": regex}
    path = filter_file(query)
    assert find(dataset, bids_filter_file=path, session_label=("M00",)) == [NAMES[3]]
    path = filter_file({"session": "M00"})
    with raises(NothingMatches, "no-images-selected", path):
        find(dataset, bids_filter_file=path, session_label=("M12",))
    # As a pattern, the label 01 would also match 101.
    path = filter_file({"run": None, "regex_search": regex})
    assert find(dataset, bids_filter_file=path, participant_label=("01",)) == [NAMES[0]]


@pytest.mark.parametrize(
    ("text", "code", "fact"),
    [
        ("{", "json-invalid", ""),
        ("[]", "json-no-object", ""),
        ('{"bold": {}}', "filter-query", "t1w"),
        ('{"t1w": []}', "filter-query", "t1w"),
        ('{"t1w": {"acq": "mprage"}}', "filter-not-accepted", "'acq'"),
        ('{"t1w": {"suffix": "T2w"}}', "filter-fixed", "suffix"),
        ('{"t1w": {"suffix": ["T1w", "T2w"]}}', "filter-fixed", "--suffix"),
        ('{"t2w": {"suffix": "T2w"}}', "filter-query", "--suffix selects T1w"),
        ('{"t1w": {"datatype": null, "extension": ""}}', "filter-fixed", "datatype, extension"),
        ('{"t1w": {"run": {"from": 1}}}', "filter-value", "run"),
        ('{"t1w": {"return_type": "file"}}', "filter-argument", "return_type"),
        ('{"t1w": {"invalid_filters": "allow"}}', "filter-argument", "invalid_filters"),
        ('{"t1w": {"acquisition": "(", "regex_search": true}}', "filter-not-accepted", ""),
    ],
)
def test_filter_file_that_cannot_be_used(
    dataset: Path, tmp_path: Path, text: str, code: str, fact: str
) -> None:
    path = tmp_path / "filter.json"
    path.write_text(text)
    with raises(UsageError, code, path, fact):
        find(dataset, bids_filter_file=path)


def test_filter_file_missing_or_passing_nothing(
    dataset: Path, tmp_path: Path, filter_file: Callable[[Any], Path]
) -> None:
    with raises(MissingInput, "json-unreadable", tmp_path / "nowhere.json"):
        find(dataset, bids_filter_file=tmp_path / "nowhere.json")
    path = filter_file({"reconstruction": "other"})
    with raises(NothingMatches, "no-images-selected", path, "6 T1w"):
        find(dataset, bids_filter_file=path)


def test_unused_queries_are_named(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "filter.json"
    path.write_text('{"t1w": {"run": 1}, "bold": {"task": "rest"}}')
    assert find(dataset, bids_filter_file=path) == [NAMES[1]]
    assert [record.args for record in caplog.records] == [(path, "bold", "'t1w'")]


def test_database_serves_any_later_selection(dataset: Path, tmp_path: Path) -> None:
    database = tmp_path / "db"
    first = find(dataset, bids_database_dir=database, participant_label=("01",))
    assert first == list(NAMES[:3])
    written = (database / "layout_index.sqlite").stat().st_mtime_ns
    second = find(dataset, bids_database_dir=database, participant_label=("02",))
    assert second == list(NAMES[3:5])
    assert (database / "layout_index.sqlite").stat().st_mtime_ns == written
    # No temporary folder is left.
    assert [path.name for path in database.iterdir()] == ["layout_index.sqlite"]


def change(root: Path, what: str) -> None:
    """Change a dataset after it has been indexed."""
    if what == "image added":
        add(root, "sub-101/anat/sub-101_run-2_T1w.nii.gz")
    elif what == "session added":
        add(root, "sub-02/ses-M24/anat/sub-02_ses-M24_T1w.nii.gz")
    elif what == "participant added":
        add(root, "sub-03/anat/sub-03_T1w.nii.gz")
    elif what == "image removed":
        (root / NAMES[5]).unlink()
    elif what == "image renamed":
        (root / NAMES[5]).rename(root / "sub-101/anat/sub-101_acq-x_T1w.nii.gz")
    elif what == "participant removed":
        shutil.rmtree(root / "sub-101")
    else:
        (root / "sub-101").rename(root / "sub-102")
        (root / "sub-102/anat/sub-101_T1w.nii.gz").rename(root / "sub-102/anat/sub-102_T1w.nii.gz")


@pytest.mark.parametrize(
    "what",
    [
        "image added",
        "session added",
        "participant added",
        "image removed",
        "image renamed",
        "participant removed",
        "participant renamed",
    ],
)
def test_database_is_renewed(
    dataset: Path,
    tmp_path: Path,
    filter_file: Callable[[Any], Path],
    caplog: pytest.LogCaptureFixture,
    what: str,
) -> None:
    database = tmp_path / "db"
    find(dataset, bids_database_dir=database)
    change(dataset, what)
    expected = find(dataset)
    assert expected != list(NAMES)
    with caplog.at_level("INFO", "hyps_bids"):
        filtered = filter_file({"extension": [".nii", ".nii.gz"]})
        assert find(dataset, bids_database_dir=database, bids_filter_file=filtered) == expected
        assert "was renewed" in caplog.text
        caplog.clear()
        assert find(dataset, bids_database_dir=database, bids_filter_file=filtered) == expected
        assert "was renewed" not in caplog.text
    assert [path.name for path in database.iterdir()] == ["layout_index.sqlite"]


def test_database_of_another_version_is_renewed(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(layouts, "_ENTITIES", ("bids",))
        find(dataset, bids_database_dir=tmp_path / "db")
    with caplog.at_level("INFO", "hyps_bids"):
        assert find(dataset, bids_database_dir=tmp_path / "db") == list(NAMES)
    assert "another version" in caplog.text


def test_database_of_an_array_job(dataset: Path, tmp_path: Path) -> None:
    database = tmp_path / "db"
    find(dataset, bids_database_dir=database)
    written = (database / "layout_index.sqlite").stat().st_mtime_ns
    # A job looks into the folders of its own participants only.
    change(dataset, "participant added")
    assert find(dataset, bids_database_dir=database, participant_label=("01",)) == list(NAMES[:3])
    assert (database / "layout_index.sqlite").stat().st_mtime_ns == written
    assert find(dataset, bids_database_dir=database, participant_label=("03",))
    assert (database / "layout_index.sqlite").stat().st_mtime_ns > written


def test_database_that_cannot_be_renewed(
    dataset: Path,
    tmp_path: Path,
    filter_file: Callable[[Any], Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    database = tmp_path / "db"
    find(dataset, bids_database_dir=database)
    change(dataset, "participant added")
    monkeypatch.setattr(
        Path, "replace", lambda *_: (_ for _ in ()).throw(PermissionError(13, "no"))
    )
    options: dict[str, Any] = {
        "bids_database_dir": database,
        "bids_filter_file": filter_file({"subject": ["03", "101"]}),
    }
    assert find(dataset, **options) == ["sub-03/anat/sub-03_T1w.nii.gz", NAMES[5]]
    (record,) = caplog.records
    for fact in ("lacks 1 image", "sub-03", "(no)", str(database), f"{datetime.now():%Y-%m-%d}"):
        assert fact in record.message


@pytest.mark.parametrize(
    "name", ["a?b", "50%", "100%25", "a#b", "a b", "a;b&c=d", "caf\udce9", "é"]
)
def test_database_in_a_folder_with_any_name(
    dataset: Path, tmp_path: Path, filter_file: Callable[[Any], Path], name: str
) -> None:
    database = tmp_path / name
    for _ in range(2):
        path = filter_file({"subject": "101"})
        assert find(dataset, bids_database_dir=database, bids_filter_file=path) == [NAMES[5]]
    assert [path.name for path in database.iterdir()] == ["layout_index.sqlite"]
    assert {path.name for path in tmp_path.iterdir()} == {"raw", "filter.json", name}


@pytest.mark.parametrize("name", ["a?b", "50%", "a#b", "a b", "é"])
def test_dataset_in_a_folder_with_any_name(
    dataset: Path, tmp_path: Path, filter_file: Callable[[Any], Path], name: str
) -> None:
    root = dataset.rename(tmp_path / name)
    path = filter_file({"subject": "101"})
    for _ in range(2):
        assert find(root, bids_database_dir=tmp_path / "db", bids_filter_file=path) == [NAMES[5]]


def test_path_that_is_no_text(dataset: Path, tmp_path: Path) -> None:
    root = dataset.rename(tmp_path / "caf\udce9")
    with raises(UsageError, "path-not-utf8", r"caf\udce9"):
        find(root)


def test_database_that_cannot_be_used(dataset: Path, tmp_path: Path) -> None:
    ours, foreign = tmp_path / "ours", tmp_path / "foreign"
    find(dataset, bids_database_dir=ours)
    other = tmp_path / "other"
    shutil.copytree(dataset, other)
    with raises(UsageError, "index-of-other-dataset", ours, dataset):
        find(other, bids_database_dir=ours)
    BIDSLayout(dataset, database_path=foreign)
    with raises(UsageError, "index-of-other-version", foreign):
        find(dataset, bids_database_dir=foreign)
    (tmp_path / "file").touch()
    with raises(CannotCreateOutput, "not-writable", tmp_path / "file"):
        find(dataset, bids_database_dir=tmp_path / "file")
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "layout_index.sqlite").write_text("no database" * 500)
    with raises(BadData, "index-unreadable", tmp_path / "db"):
        find(dataset, bids_database_dir=tmp_path / "db")


def test_dangling_link_matters_only_if_asked_for(
    dataset: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = dataset / NAMES[0]
    broken.unlink()
    broken.symlink_to("../../.git/annex/objects/aa/bb/MD5E-s1--00.nii.gz")
    (dataset / "sub-101" / "anat" / "sub-101_T2w.nii.gz").symlink_to("nowhere")
    assert find(dataset, exclude_participant_label=("01",)) == list(NAMES[3:])
    # The image flows on and fails as one scan, unless there is nothing else.
    assert find(dataset, participant_label=("01",)) == list(NAMES[:3])
    (record,) = (r for r in caplog.records if "datalad get" in r.message)
    assert str(broken) in record.message
    for name in NAMES[1:3]:
        (dataset / name).unlink()
    with raises(MissingInput, "content-not-fetched", f"datalad get {broken}"):
        find(dataset, participant_label=("01",))
    # The group level needs the names only.
    scans = find_scans(make_settings(dataset), need_content=False)
    assert len(scans) == len(NAMES) - 2


def test_dangling_folder_of_another_participant_is_ignored(dataset: Path) -> None:
    (dataset / "sub-77").symlink_to("nowhere")
    assert find(dataset) == list(NAMES)


def test_links_keep_the_names_of_the_dataset(dataset: Path, tmp_path: Path) -> None:
    store = tmp_path / "annex" / "MD5E-s1--00.nii.gz"
    store.parent.mkdir()
    (dataset / NAMES[5]).rename(store)
    (dataset / NAMES[5]).symlink_to(store)
    link = tmp_path / "link"
    link.symlink_to(dataset)
    assert find(dataset, participant_label=("101",)) == [NAMES[5]]
    # The dataset itself may be a link, and so may a participant's folder.
    assert find(link) == list(NAMES)
    (dataset / "sub-101").rename(tmp_path / "elsewhere")
    (dataset / "sub-101").symlink_to(tmp_path / "elsewhere")
    assert find(dataset, participant_label=("101",)) == [NAMES[5]]


def test_same_image_twice_is_refused(dataset: Path) -> None:
    add(dataset, "sub-101/anat/sub-101_T1w.nii")
    with raises(InvalidBids, "image-twice", "sub-101_T1w.nii", "sub-101_T1w.nii.gz"):
        find(dataset)
    assert find(dataset, participant_label=("01",)) == list(NAMES[:3])


def test_missing_or_empty_dataset(tmp_path: Path) -> None:
    with raises(MissingInput, "folder-missing", tmp_path / "nowhere"):
        find(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with raises(InvalidBids, "not-a-folder", tmp_path / "file"):
        find(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with raises(NothingMatches, "no-participants", tmp_path / "empty"):
        find(tmp_path / "empty", skip_bids_validation=True)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (None, "json-unreadable"),
        ("{", "json-invalid"),
        ("[]", "json-no-object"),
        ('{"Name": "x"}', "description-incomplete"),
    ],
)
def test_bad_description(dataset: Path, text: str | None, code: str) -> None:
    path = dataset / "dataset_description.json"
    path.unlink()
    if text is not None:
        path.write_text(text)
    with raises(InvalidBids, code, path, "--skip-bids-validation"):
        find(dataset)
    if text is None:
        assert find(dataset, skip_bids_validation=True) == list(NAMES)


def test_nothing_else_is_picked_up(dataset: Path) -> None:
    add(
        dataset,
        "sub-01/anat/sub-01_T2w.nii.gz",
        "sub-01/anat/sub-01_desc-x_T1w.nii.gz.part.nii.gz",
        "sub-01/anat/old/sub-01_T1w.nii.gz",
        "sub-01/func/sub-01_T1w.nii.gz",
        "sub-01/sub-01_T1w.nii.gz",
        "derivatives/fmriprep/sub-01/anat/sub-01_desc-preproc_T1w.nii.gz",
        "sourcedata/sub-01/anat/sub-01_T1w.nii.gz",
        "code/sub-01/anat/sub-01_T1w.nii.gz",
        ".hidden/sub-01/anat/sub-01_T1w.nii.gz",
    )
    (dataset / "sub-01/anat/sub-01_T1w.json").write_text("{}")
    (dataset / "sub-01_T1w.nii.gz").touch()
    assert find(dataset) == list(NAMES)


def test_dataset_is_only_read(dataset: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in [dataset, *dataset.rglob("*")]}
    paths = [*dataset.rglob("*"), dataset]
    for path in paths:
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    try:
        assert find(dataset) == list(NAMES)
    finally:
        for path in reversed(paths):
            path.chmod(path.stat().st_mode | stat.S_IWUSR)
    assert {path: path.stat().st_mtime_ns for path in [dataset, *dataset.rglob("*")]} == before


def test_only_asked_folders_are_indexed(dataset: Path) -> None:
    # Indexing a folder that leads back to itself would never end.
    (dataset / "sub-02" / "func").mkdir()
    (dataset / "sub-02" / "func" / "loop").symlink_to(dataset)
    (dataset / "sub-01" / "ses-x").symlink_to(dataset / "sub-02")
    # pybids reads these files while it indexes, and fails if they are not JSON.
    for folder in ("sub-02", "sub-01/func", "derivatives"):
        (dataset / folder).mkdir(exist_ok=True)
        (dataset / folder / "layout_config.json").write_text("not JSON")
    assert find(dataset, participant_label=("101",)) == [NAMES[5]]


@pytest.mark.parametrize("above", ["func", "anat", "run-03", "sub-01/ses-x/acq-y/rec-z", "a.b_T1w"])
@pytest.mark.parametrize("indexed", [False, True])
def test_folders_above_the_dataset_say_nothing(
    tmp_path: Path, filter_file: Callable[[Any], Path], above: str, indexed: bool
) -> None:
    root = tmp_path / above / "raw"
    add(root, *NAMES)
    write_description(root)
    options: dict[str, Any] = {"bids_database_dir": tmp_path / "db"} if indexed else {}
    assert find(root, **options) == list(NAMES)
    for query, expected in (
        ({"run": 1}, NAMES[1:2]),
        ({"subject": "101"}, NAMES[5:]),
        ({"session": None}, (*NAMES[:3], NAMES[5])),
        ({"acquisition": None, "reconstruction": None}, (*NAMES[1:4], NAMES[5])),
    ):
        assert find(root, bids_filter_file=filter_file(query), **options) == list(expected)
    with raises(NothingMatches, "no-images-selected", "6 T1w"):
        find(root, bids_filter_file=filter_file({"run": 3}), **options)


@pytest.mark.parametrize("way", ["raw", "./raw", "../here/raw", "raw/sub-01/.."])
def test_dataset_by_any_path(dataset: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    here = dataset.parent / "here"
    here.mkdir()
    dataset.rename(here / "raw")
    monkeypatch.chdir(here)
    scans = find_scans(make_settings(Path(way)))
    assert [scan.path for scan in scans] == [Path(way) / name for name in NAMES]


@pytest.mark.parametrize(
    "name",
    [
        "sub-01/anat/sub-02_T1w.nii.gz",
        "sub-02/ses-M00/anat/sub-02_ses-M12_T1w.nii.gz",
        "sub-02/ses-M00/anat/sub-02_T1w.nii.gz",
        "sub-01/anat/sub-01_ses-M00_T1w.nii.gz",
        "sub-01/anat/01_T1w.nii.gz",
    ],
)
@pytest.mark.parametrize("indexed", [False, True])
def test_name_that_contradicts_its_folder(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, indexed: bool
) -> None:
    add(dataset, name)
    options: dict[str, Any] = {"bids_database_dir": tmp_path / "db"} if indexed else {}
    with raises(InvalidBids, "name-contradicts-folder", dataset / name):
        find(dataset, **options)
    # The image of another participant does not matter.
    assert find(dataset, participant_label=("101",), **options) == [NAMES[5]]
    assert find(dataset, skip_bids_validation=True, **options) == list(NAMES)
    assert [record.args[0] for record in caplog.records] == [dataset / name]


OTHERS = (
    "sub-01/anat/sub-01_T2w.nii.gz",
    "sub-01/anat/sub-01_acq-x_FLAIR.nii",
    "sub-02/ses-M00/anat/sub-02_ses-M00_T2w.nii.gz",
    "sub-02/ses-M00/anat/sub-02_ses-M00_space-T1w_T2w.nii.gz",
)


@pytest.mark.parametrize(
    ("suffix", "expected"),
    [
        (("T1w",), NAMES),
        (("T2w",), (OTHERS[0], *sorted(OTHERS[2:]))),
        (("FLAIR", "T1w", "FLAIR"), sorted([*NAMES, OTHERS[1]])),
        (("T1w", "T2w", "FLAIR"), sorted([*NAMES, *OTHERS])),
    ],
)
@pytest.mark.parametrize("indexed", [False, True])
def test_contrasts_are_selected(
    dataset: Path, tmp_path: Path, suffix: tuple[Any, ...], expected: Any, indexed: bool
) -> None:
    options: dict[str, Any] = {"bids_database_dir": tmp_path / "db"} if indexed else {}
    if indexed:
        # An index of an earlier version has T1w images only.
        layouts.StoredIndex(tmp_path / "db/layout_index.sqlite", dataset).renew(NAMES, "")
    add(dataset, *OTHERS)
    assert find(dataset, suffix=suffix, **options) == list(expected)
    # An index that was made for these contrasts has those of later runs.
    assert find(dataset, suffix=("T2w",), **options) == [OTHERS[0], *sorted(OTHERS[2:])]


def test_participants_without_one_of_the_contrasts_are_named(
    dataset: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add(dataset, *OTHERS[:2], "sub-02/ses-M00/anat/sub-02_ses-M00_PDw.nii.gz")
    (dataset / "sub-101/anat/sub-101_T2W.nii.gz").touch()
    (dataset / "sub-101/anat/sub-101_acq-3d_flair.nii.gz").touch()
    (dataset / "sub-03").mkdir()
    with caplog.at_level("INFO", "hyps_bids"):
        find(dataset, suffix=("T1w", "T2w", "FLAIR"))
    none, t2w, flair, misspelled, selected = (record.message for record in caplog.records)
    assert "1 participant without a selected T1w, T2w or FLAIR image: 03 (" in none
    assert "2 participants without a selected T2w image" in t2w
    assert "sub-101_T2W.nii.gz: its name must end with _T2w.nii.gz" in t2w
    assert "beside sub-02_ses-M00_" in t2w
    assert "; --suffix PDw selects" in t2w
    assert "2 participants without a selected FLAIR image" in flair
    assert "its name must end with _FLAIR.nii.gz" in flair
    assert "sub-101_T2W.nii.gz, " in misspelled
    assert "sub-101_acq-3d_flair.nii.gz" in misspelled
    assert "6 T1w images, 1 T2w image, 1 FLAIR image of 3 participants" in selected
    with raises(NothingMatches, "no-images-selected", "T2w or FLAIR", "03", "no files"):
        find(dataset, suffix=("T2w", "FLAIR"), participant_label=("03",))
    caplog.clear()
    assert find(dataset) == list(NAMES)
    assert [r.message.partition(":")[0] for r in caplog.records] == [
        "1 participant without a selected T1w image"
    ]


def test_what_absent_participants_have_is_that_of_the_session(
    dataset: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = "sub-03/ses-{0}/anat/sub-03_ses-{0}_{1}.nii.gz"
    add(dataset, folder.format("M00", "T2w"), folder.format("M12", "PDw"))
    (dataset / "sub-101/anat/sub-101_acq-t1w_T2W.nii.gz").touch()
    find(dataset, session_label=("M00",))
    find(dataset, session_label=("M12",))
    first, second = (r.message for r in caplog.records if "sub-03_" in r.message)
    assert "beside sub-03_ses-M00_T2w.nii.gz; --suffix T2w selects" in first
    assert "beside sub-03_ses-M12_PDw.nii.gz; --suffix PDw selects" in second
    add(dataset, folder.format("M24", "T1w"))
    caplog.clear()
    find(dataset, session_label=("M12",))
    (text,) = (r.message for r in caplog.records if "sub-03_" in r.message)
    assert "only in other sessions, such as sub-03/ses-M24/" in text
    assert "--suffix" not in text
    # The end of the name says which contrast is meant.
    caplog.clear()
    find(dataset, suffix=("T1w", "T2w"))
    assert "sub-101_acq-t1w_T2W.nii.gz: its name must end with _T2w" in caplog.text


def test_each_contrast_has_a_filter(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add(dataset, *OTHERS)
    path = tmp_path / "filter.json"
    path.write_text('{"t1w": {"run": 1}, "t2w": {"suffix": "T2w", "space": null}, "bold": {}}')
    options: dict[str, Any] = {"bids_filter_file": path}
    assert find(dataset, suffix=("T1w",), **options) == [NAMES[1]]
    assert find(dataset, suffix=("T2w",), **options) == [OTHERS[0], OTHERS[2]]
    caplog.clear()
    both = find(dataset, suffix=("T1w", "T2w", "FLAIR"), **options)
    assert both == sorted([NAMES[1], OTHERS[0], OTHERS[1], OTHERS[2]])
    assert [r.args for r in caplog.records if r.args and path in r.args] == [
        (path, "flair", "FLAIR"),
        (path, "bold", "'t1w' or 't2w'"),
    ]
    with raises(UsageError, "filter-query", path, "'flair'", "--suffix"):
        find(dataset, suffix=("FLAIR",), **options)
    path.write_text('{"t2w": {"suffix": "T1w"}}')
    with raises(UsageError, "filter-fixed", path, "t2w", "--suffix"):
        find(dataset, suffix=("T2w",), **options)


def test_one_image_twice_and_links_to_nowhere_of_other_contrasts(
    dataset: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add(dataset, OTHERS[0], OTHERS[0].removesuffix(".gz"))
    (dataset / "sub-101/anat/sub-101_FLAIR.nii.gz").symlink_to("nowhere")
    assert find(dataset) == list(NAMES)
    assert not caplog.records
    with raises(InvalidBids, "image-twice", "sub-01_T2w.nii.gz", "sub-01_T2w.nii "):
        find(dataset, suffix=("T2w",))
    with raises(MissingInput, "content-not-fetched", "sub-101_FLAIR.nii.gz"):
        find(dataset, suffix=("FLAIR",))
    assert len(find(dataset, suffix=("T1w", "FLAIR"))) == len(NAMES) + 1
    assert "datalad get" in caplog.text


def test_thousands_of_participants(tmp_path: Path) -> None:
    root = tmp_path / "raw"
    source = tmp_path / "image.nii.gz"
    add(tmp_path, source.name)
    count = 1500
    for i in range(count):
        folder = root / f"sub-{i:05d}" / "anat"
        folder.mkdir(parents=True)
        os.link(source, folder / f"sub-{i:05d}_T1w.nii.gz")
    write_description(root)
    assert len(find(root)) == count


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["", "sub-02", "sub-02/ses-M00", "sub-101/anat"])
def test_folder_that_may_not_be_read_is_named(dataset: Path, folder: str) -> None:
    locked = dataset / folder
    locked.chmod(0o300)
    command = (dataset, dataset.parent / "out", "participant", "--dry-run", "--participant-label")
    label = (folder or NAMES[0]).split("/")[0]
    try:
        done = run_bound_by_permissions(*command, "01", "02", "101")
        alone = run_bound_by_permissions(*command, label)
    finally:
        locked.chmod(0o755)
    for one in (done, alone):
        assert str(locked) in one.stderr
        assert "convert" not in one.stderr
    others = [name for name in NAMES if folder and not name.startswith(folder)]
    assert done.stdout.splitlines() == [str(dataset / name) for name in others]
    # A participant may have other sessions that can be read.
    assert done.returncode == (1 if folder else 66)
    assert alone.returncode == (1 if folder == "sub-02/ses-M00" else 66)


def test_settings_of_pybids_are_not_read(dataset: Path, tmp_path: Path) -> None:
    broken = tmp_path / "pybids_config.json"
    broken.write_text('{"config_paths": {}}')
    done = subprocess.run(
        [sys.executable, "-m", "hyps_bids", dataset, tmp_path / "out", "participant", "--dry-run"],
        env=os.environ | {"HOME": str(tmp_path), "PYBIDS_CONFIG": str(broken)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(done.stdout.splitlines()) == len(NAMES)
