"""Tables over all scans, of datasets that are not complete."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from hyps_bids.bids.derivatives import output_path, read_table, write_table
from hyps_bids.bids.index import Scan
from hyps_bids.errors import MissingInput, NothingMatches
from hyps_bids.group.tables import gather, write_group_tables
from hyps_bids.settings import Settings
from hyps_bids.workflows.outputs import MORPH_COLUMNS, qc_columns, write_failure

NAMES = (
    "sub-01/anat/sub-01_T1w.nii.gz",
    "sub-02/ses-M00/anat/sub-02_ses-M00_run-01_T1w.nii.gz",
    "sub-02/ses-M12/anat/sub-02_ses-M12_T1w.nii.gz",
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    raw, output = tmp_path / "raw", tmp_path / "out"
    for name in NAMES:
        (raw / name).parent.mkdir(parents=True)
        nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)), raw / name)
    content = {"Name": "x", "BIDSVersion": "1.10.0"}
    (raw / "dataset_description.json").write_text(json.dumps(content))
    output.mkdir()
    return Settings(bids_dir=raw, output_dir=output, analysis_level="group")


def scans(settings: Settings) -> list[Scan]:
    return [Scan.from_path(settings.bids_dir / name) for name in NAMES]


def write_scan(settings: Settings, scan: Scan, voxels: int | None) -> None:
    def path(kind: str) -> Path:
        return output_path(
            settings.output_dir, scan, seg="hippocampus", suffix=kind, extension=".tsv"
        )

    morph = pd.DataFrame(
        {
            "index": pd.array([1, None], dtype="Int64"),
            "name": ["Left hippocampus", "Left hippocampus"],
            "hemi": "L",
            "part": ["hippocampus", "whole"],
            "voxels": pd.array([voxels, voxels], dtype="Int64"),
            "volume_mm3": None if voxels is None else voxels * 0.5,
            "volume_soft_mm3": None if voxels is None else voxels * 0.51,
            "icv_mm3": 1_500_123.25,
        },
        columns=list(MORPH_COLUMNS),
    )
    write_table(path("morph"), morph)
    row: dict[str, Any] = {"status": "done", "confidence_L": 0.95}
    if voxels is None:
        row["flags"] = "missing_L"
    else:
        row["border_voxels_L"] = 1012
    write_table(path("qc"), pd.DataFrame([row], columns=list(qc_columns())))


def group(settings: Settings, kind: str) -> pd.DataFrame:
    return read_table(settings.output_dir / f"group_seg-hippocampus_{kind}.tsv")


def test_complete(settings: Settings) -> None:
    for i, scan in enumerate(scans(settings)):
        write_scan(settings, scan, 2000 + i)
    write_group_tables(settings)
    morph = group(settings, "morph")
    assert list(morph.columns) == ["participant_id", "session_id", "scan", *MORPH_COLUMNS]
    assert morph["participant_id"].tolist() == ["sub-01"] * 2 + ["sub-02"] * 4
    assert morph["session_id"].fillna("none").tolist()[::2] == ["none", "ses-M00", "ses-M12"]
    assert morph["scan"].tolist()[::2] == ["sub-01", "sub-02_ses-M00_run-01", "sub-02_ses-M12"]
    assert morph["voxels"].tolist()[::2] == [2000, 2001, 2002]
    qc = group(settings, "qc")
    assert list(qc.columns) == ["participant_id", "session_id", "scan", *qc_columns()]
    assert qc["status"].tolist() == ["done"] * 3
    for kind, table in (("morph", morph), ("qc", qc)):
        path = settings.output_dir / f"group_seg-hippocampus_{kind}.json"
        assert set(json.loads(path.read_text())) == set(table.columns)


def test_missing_and_failed_scans_are_listed(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, third = scans(settings)
    write_scan(settings, first, None)
    write_failure(second, settings.output_dir, "all voxels\nare  zero")
    write_group_tables(settings)
    qc = group(settings, "qc")
    assert qc["scan"].tolist() == [first.stem, second.stem, third.stem]
    assert qc["status"].tolist() == ["done", "failed", "missing"]
    assert qc["reason"].tolist()[1] == "all voxels are zero"
    assert qc["session_id"].tolist()[1:] == ["ses-M00", "ses-M12"]
    assert f"{third.stem}: no outputs yet" in caplog.text
    morph = group(settings, "morph")
    # a hippocampus that is not there has no volume, not one of zero
    assert morph["scan"].unique().tolist() == [first.stem]
    assert morph["voxels"].isna().all()


def test_counts_stay_whole_numbers(settings: Settings) -> None:
    first, second, _ = scans(settings)
    write_scan(settings, first, 2000)
    write_scan(settings, second, None)
    write_group_tables(settings)
    for kind, column, values in (
        ("morph", "voxels", ["2000", "2000", "n/a", "n/a"]),
        ("morph", "index", ["1", "n/a", "1", "n/a"]),
        ("qc", "border_voxels_L", ["1012", "n/a", "n/a"]),
    ):
        lines = (settings.output_dir / f"group_seg-hippocampus_{kind}.tsv").read_text().splitlines()
        place = lines[0].split("\t").index(column)
        assert [line.split("\t")[place] for line in lines[1:]] == values


def test_all_failed(settings: Settings) -> None:
    for scan in scans(settings):
        write_failure(scan, settings.output_dir, "no brain")
    write_group_tables(settings)
    assert group(settings, "qc")["status"].tolist() == ["failed"] * 3
    morph = group(settings, "morph")
    assert morph.empty
    assert list(morph.columns) == ["participant_id", "session_id", "scan", *MORPH_COLUMNS]


def test_nothing_to_gather(settings: Settings) -> None:
    assert gather(settings.output_dir, "qc").empty
    with pytest.raises(MissingInput, match="participant level first"):
        write_group_tables(settings)
    assert list(settings.output_dir.iterdir()) == []


def test_images_need_not_be_there(settings: Settings) -> None:
    for scan in scans(settings):
        write_scan(settings, scan, 2000)
        scan.path.unlink()
        scan.path.symlink_to("nowhere")
    write_group_tables(settings)
    assert group(settings, "qc")["status"].tolist() == ["done"] * 3


def test_numeric_labels_stay_text(settings: Settings) -> None:
    write_scan(settings, scans(settings)[0], 2000)
    frame = gather(settings.output_dir, "morph")
    assert frame["participant_id"].tolist() == ["sub-01"] * 2


def test_second_time_gives_the_same(settings: Settings) -> None:
    for scan in scans(settings):
        write_scan(settings, scan, 2000)
    write_group_tables(settings)
    before = {path: path.read_bytes() for path in settings.output_dir.glob("group_*")}
    write_group_tables(settings)
    assert {path: path.read_bytes() for path in settings.output_dir.glob("group_*")} == before
    assert len(before) == 4


def test_unknown_participant(settings: Settings) -> None:
    write_scan(settings, scans(settings)[0], 2000)
    wrong = Settings(
        bids_dir=settings.bids_dir,
        output_dir=settings.output_dir,
        analysis_level="group",
        participant_label=("nobody",),
    )
    with pytest.raises(NothingMatches):
        write_group_tables(wrong)
