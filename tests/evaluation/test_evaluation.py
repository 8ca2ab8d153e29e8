"""The shipped weights on a real head, against FreeSurfer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import nibabel.processing
import numpy as np
import pandas as pd
import pytest

from hyps_bids.errors import MissingInput
from hyps_bids.evaluation.images import evaluate_images, pairs_in
from hyps_bids.evaluation.orientation import evaluate_orientation
from hyps_bids.evaluation.retest import evaluate_retest
from hyps_bids.evaluation.tables import report
from hyps_bids.networks.cards import ADAPTER, BASE, LOCALIZER, shipped_weights
from hyps_bids.segmentation.pipeline import Pipeline
from tests.raising import raises


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    weights = [shipped_weights(name) for name in (LOCALIZER, BASE, ADAPTER)]
    return Pipeline(*weights, "cpu")


@pytest.fixture
def coarse_pair(coarse_head: nib.Nifti1Image, root: Path, tmp_path: Path) -> Path:
    """Folder with the head and FreeSurfer's hippocampi, both at 2 mm."""
    reference = nib.load(root / "tests/data/sub-0001_desc-hippocampus_dseg.nii.gz")
    coarse = nibabel.processing.resample_from_to(reference, coarse_head, order=0)
    nib.save(coarse_head, tmp_path / "sub-0001_T1w.nii.gz")
    nib.save(coarse, tmp_path / "sub-0001_dseg.nii.gz")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("n4", [False, True])
def test_coarse_head_agrees_with_freesurfer(
    pipeline: Pipeline, coarse_pair: Path, n4: bool
) -> None:
    pairs = pairs_in(coarse_pair)
    table = evaluate_images(replace(pipeline, n4=n4), pairs, (1, 2))
    assert table["hemi"].tolist() == ["L", "R"]
    # At 2 mm, across two protocols
    assert (table["dice"] > 0.75).all()
    # METHOD: the protocol is 10 to 25 % smaller than FreeSurfer's
    assert (table["volume_mm3"] / table["reference_mm3"]).between(0.7, 0.95).all()


@pytest.mark.slow
def test_moved_head_gives_the_same_hippocampi(pipeline: Pipeline, coarse_pair: Path) -> None:
    paths = [coarse_pair / "sub-0001_T1w.nii.gz"]
    table = evaluate_retest(pipeline, paths, moves=1)
    # A 2 mm grid alone costs several points
    assert (table["dice"] > 0.85).all()
    assert (table["volume_change"].abs() < 0.08).all()


def test_summary_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pd.DataFrame(
        {
            "hemi": ["L", "R", "L", "R"],
            "dice": [0.8, 0.9, 0.7, 1.0],
            "volume_mm3": [1.0, 2.0, 3.0, 4.0],
            "reference_mm3": [2.0, 4.0, 6.0, 8.0],
        }
    )
    report(table, tmp_path / "table.tsv")
    summary = json.loads(capsys.readouterr().out)
    assert summary["dice_mean"] == 0.85
    assert summary["dice_min"] == 0.7
    assert summary["volume_correlation"] == 1
    assert summary["volume_ratio"] == 0.5
    assert len((tmp_path / "table.tsv").read_text().splitlines()) == 5


def test_folder_without_pairs(tmp_path: Path) -> None:
    with raises(MissingInput, "no-image-pair", tmp_path):
        pairs_in(tmp_path)


@pytest.mark.slow
def test_whole_head_agrees_with_freesurfer(pipeline: Pipeline, demo_bids: Path, root: Path) -> None:
    pair = (
        demo_bids / "sub-0001/anat/sub-0001_T1w.nii.gz",
        root / "tests/data/sub-0001_desc-hippocampus_dseg.nii.gz",
    )
    table = evaluate_images(pipeline, [pair], (1, 2))
    assert (table["dice"] > 0.82).all()


@pytest.mark.slow
def test_orientations_give_the_same_hippocampi(
    pipeline: Pipeline, coarse_pair: Path, tmp_path: Path
) -> None:
    path = coarse_pair / "sub-0001_T1w.nii.gz"
    # All 48 are in the tests of conform and of the outputs
    table = evaluate_orientation(pipeline, path, tmp_path, every=25)
    assert table["axes"].tolist() == ["RAS", "ASL"]
    assert np.allclose(table[["dice_L", "dice_R"]], 1)
