"""BIDS names of files of any name."""

from __future__ import annotations

from pathlib import Path

import pytest

from hyps_bids.api.names import name_scan, name_scans


@pytest.mark.parametrize(
    ("name", "suffix", "expected"),
    [
        ("T1.nii.gz", None, "sub-T1_T1w"),
        ("my-head_2 (copy).NII.GZ", None, "sub-myhead2copy_T1w"),
        ("head.mgz", "T2w", "sub-head_T2w"),
        ("p1_T2w.nii", None, "sub-p1_T2w"),
        ("p1_T2w.nii", "FLAIR", "sub-p1_FLAIR"),
        ("sub-01_ses-2_acq-x_T1w.nii.gz", None, "sub-01_ses-2_acq-x_T1w"),
        ("sub-01_foo-2_T1w.nii.gz", None, "sub-sub01foo2_T1w"),
        ("sub-01_run-1_run-2_T1w.nii.gz", None, "sub-sub01run1run2_T1w"),
        ("a.b.nii", None, "sub-ab_T1w"),
        ("DICOM", None, "sub-DICOM_T1w"),
        ("---.nii", None, "sub-image_T1w"),
        ("x" * 300 + ".nii", None, "sub-" + "x" * 60 + "_T1w"),
    ],
)
def test_names(name: str, suffix: str | None, expected: str) -> None:
    assert name_scan(name, suffix).path.name == f"{expected}.nii.gz"


def test_folders_tell_equal_names_apart_in_any_order() -> None:
    paths = [
        Path(p) for p in ("/s/p1/x/T1.nii", "/s/p2/x/T1.nii", "/s/p2/y.nii", "/s/sub-1_T1w.nii")
    ]
    found = [scan.subject for scan in name_scans(paths)]
    assert found == ["p1xT1", "p2xT1", "y", "1"]
    assert [scan.subject for scan in name_scans(paths[::-1])] == found[::-1]


def test_equal_bids_names_keep_their_entities() -> None:
    paths = [Path(f"/{study}/sub-01_ses-2_T1w.nii.gz") for study in "ab"]
    assert [scan.stem for scan in name_scans(paths)] == ["sub-a01_ses-2", "sub-b01_ses-2"]
