from __future__ import annotations

import json
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np

MIB = 2**20


def test_demo_dataset_is_valid_bids(demo_bids: Path, validator: str, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [validator, str(demo_bids), "--format", "json", "--outfile", str(report)]

    finished = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    assert report.is_file(), finished.stderr
    issues = json.loads(report.read_text())["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []
    assert finished.returncode == 0


def test_demo_dataset_is_small(demo_bids: Path) -> None:
    assert sum(path.stat().st_size for path in demo_bids.rglob("*")) < 12 * MIB


def test_every_participant_has_a_readable_image(demo_bids: Path) -> None:
    rows = [line.split("\t") for line in (demo_bids / "participants.tsv").read_text().splitlines()]
    participants = {row[0] for row in rows[1:]}

    images = {path.parents[1].name: path for path in demo_bids.glob("sub-*/anat/*_T1w.nii.gz")}

    assert set(images) == participants
    for path in images.values():
        image = nib.load(path)
        assert image.ndim == 3
        assert np.isfinite(image.affine).all()
        assert path.with_name(path.name.replace(".nii.gz", ".json")).is_file()
