"""Folders and files that we did not make are never written over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hyps_bids.errors import UsageError
from hyps_bids.outputs.dataset import write_dataset_files
from hyps_bids.outputs.location import check_output
from hyps_bids.outputs.ownership import find_foreign, refuse_foreign_file
from hyps_bids.reports.citation import bibtex
from hyps_bids.settings import Settings
from tests.raising import raises

DESCRIPTION = "dataset_description.json"
FMRIPREP = {"Name": "Maps", "DatasetType": "derivative", "GeneratedBy": [{"Name": "fMRIPrep"}]}


def make(folder: Path, files: dict[str, Any]) -> Path:
    """Write files; a dictionary is written as JSON, and None makes a folder."""
    for name, content in files.items():
        path = folder / name
        if content is None:
            path.mkdir(parents=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def settings(tmp_path: Path, level: str = "participant", **options: Any) -> Settings:
    raw = make(tmp_path / "raw", {DESCRIPTION: {"Name": "x", "BIDSVersion": "1.9.0"}})
    return Settings(bids_dir=raw, output_dir=tmp_path / "out", analysis_level=level, **options)


@pytest.mark.parametrize(
    ("files", "owner"),
    [
        ({DESCRIPTION: FMRIPREP}, "fMRIPrep"),
        ({DESCRIPTION: {"Name": "Old", "PipelineDescription": {"Name": "MRIQC"}}}, "MRIQC"),
        ({DESCRIPTION: {"Name": "My study", "BIDSVersion": "1.9.0"}}, "raw dataset"),
        ({DESCRIPTION: {"Name": "R", "GeneratedBy": [{"Name": "HeuDiConv"}]}}, "raw dataset"),
        ({DESCRIPTION: "{"}, "cannot be read"),
        ({DESCRIPTION: "[]"}, "cannot be read"),
        ({DESCRIPTION: None}, "cannot be read"),
        ({"README.md": "My notes"}, "README.md"),
        ({".bidsignore": "extra\n"}, ".bidsignore"),
        ({"sub-01.html": "<html>"}, "sub-01.html"),
        ({"group_report.html": "<html>"}, "group_report.html"),
        ({"logs/CITATION.md": "We used fMRIPrep"}, "logs/CITATION.md"),
        ({"sub-01/anat/sub-01_T1w.nii.gz": "", "participants.tsv": ""}, "sub-01_T1w.nii.gz"),
        ({"sub-01/mri/orig.mgz": ""}, "orig.mgz"),
    ],
)
def test_folders_of_others_are_refused_and_stay(
    tmp_path: Path, files: dict[str, Any], owner: str
) -> None:
    out = make(tmp_path / "out", files)
    before = sorted(out.rglob("*"))
    with raises(UsageError, "output-not-ours", out, owner):
        check_output(settings(tmp_path))
    assert sorted(out.rglob("*")) == before


@pytest.mark.parametrize(
    "files",
    [
        {},
        {DESCRIPTION: {"Name": "x", "GeneratedBy": [{"Name": "hyps-bids", "Version": "0.0.1"}]}},
        # A run that was killed at once, and one before the description was written.
        {"work/20260101T000000_0123456789ab/participant_wf": None},
        {"logs/20260101T000000_0123456789ab/hyps-bids.log": "", ".0123abcd.README.md": ""},
        # The description was removed.
        {"sub-01/anat/sub-01_seg-hippocampus_qc.tsv": "", "sub-02/anat": None},
        {"sub-01": "a file where a folder should be"},
        # Nothing that we would write over.
        {"slurm-1.out": "", ".datalad/config": "", "code/run.sh": "", "logs/slurm.out": ""},
    ],
)
def test_our_folders_and_free_ones_are_accepted(tmp_path: Path, files: dict[str, Any]) -> None:
    make(tmp_path / "out", files)
    check_output(settings(tmp_path))


def test_what_we_write_is_recognized_without_its_description(tmp_path: Path) -> None:
    given = settings(tmp_path)
    write_dataset_files(given)
    out = given.output_dir
    (out / DESCRIPTION).unlink()
    make(out, {"logs/CITATION.bib": bibtex()})
    assert find_foreign(out) is None


@pytest.mark.parametrize(
    ("options", "names", "refused"),
    [
        ({"clean_workdir": True}, ["fmriprep_wf"], True),
        ({"clean_workdir": True}, ["participant_wf", "thesis.tex"], True),
        ({"clean_workdir": True}, ["participant_wf", "reports_wf", "caches", "caches_1"], False),
        ({"clean_workdir": False}, ["thesis.tex"], False),
        ({"train_adapter": "x", "analysis_level": "group"}, ["adapter-x/config.json"], True),
        ({"train_adapter": "x", "analysis_level": "group"}, ["adapter-x/run.json"], False),
    ],
)
def test_work_folders_of_others_are_not_emptied(
    tmp_path: Path, options: dict[str, Any], names: list[str], refused: bool
) -> None:
    work = make(tmp_path / "work", dict.fromkeys(names, ""))
    level = options.pop("analysis_level", "participant")
    given = settings(tmp_path, level, work_dir=work, **options)
    if refused:
        with raises(UsageError, "work-not-ours", names[-1].split("/")[-1]):
            check_output(given)
    else:
        check_output(given)


def test_files_of_others_are_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "participants.tsv"
    refuse_foreign_file(path, b"id\tdice")
    path.write_text("participant_id\tage\n")
    with raises(UsageError, "file-not-ours", path):
        refuse_foreign_file(path, b"id\tdice")
    path.write_text("id\tdice_whole\n")
    refuse_foreign_file(path, b"id\tdice")
