"""Sessions are found, contrasts are made, and rescans are compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from hyps_bids.errors import BadData, MissingInput
from hyps_bids.evaluation.contrasts import SIMULATED, find_sessions, simulate_contrasts
from hyps_bids.evaluation.rescans import evaluate_rescans
from hyps_bids.evaluation.tables import head_name
from hyps_bids.imaging.conform import ConformedImage
from tests.raising import raises


def touch(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).touch()


def test_sessions_of_a_dataset(tmp_path: Path) -> None:
    one, two = tmp_path / "sub-1/anat", tmp_path / "sub-2/ses-a/anat"
    touch(one, "sub-1_T1w.nii.gz", "sub-1_ce-x_T1w.nii.gz", "sub-1_T2w.nii", "sub-1_T1w.json")
    touch(two, "sub-2_ses-a_FLAIR.nii.gz", "sub-2_ses-a_run-2_T1w.nii.gz")
    touch(tmp_path / "sub-3/anat", "sub-3_T2w.nii.gz")
    first, second = find_sessions(tmp_path)
    assert first.t1w == one / "sub-1_T1w.nii.gz"
    assert first.others == {
        "ce-x_T1w": one / "sub-1_ce-x_T1w.nii.gz",
        "T2w": one / "sub-1_T2w.nii",
    }
    assert second.t1w == two / "sub-2_ses-a_run-2_T1w.nii.gz"
    assert list(second.others) == ["FLAIR"]
    assert head_name(first.others["T2w"]) == "sub-1"
    with raises(MissingInput, "no-t1w", tmp_path / "sub-3"):
        find_sessions(tmp_path / "sub-3")


def test_simulated_contrasts_have_the_order_of_their_tissues() -> None:
    rng = np.random.default_rng(0)
    # Air, fluid, gray and white matter in slabs, with some noise but in air
    data = np.repeat([0, 200, 500, 800], 8).astype(np.float32)[:, None, None]
    data = np.broadcast_to(data, (32, 16, 16)) + (data > 0) * rng.normal(0, 15, (32, 16, 16))
    image = ConformedImage(data.astype(np.float32), np.eye(4), data.shape, np.eye(3, 2))
    brain = np.ones(data.shape, bool)
    found = dict(simulate_contrasts(image, brain))
    assert set(found) == set(SIMULATED)
    for name, other in found.items():
        air, *tissues = (other.data[start + 2 : start + 6].mean() for start in (0, 8, 16, 24))
        assert air == 0
        assert np.allclose(tissues, 1000 * np.array(SIMULATED[name]), atol=40)
        assert other == replace(image, data=other.data)


class Threshold:
    """Finds the left hippocampus where voxels are gray, and the right one where they are white."""

    def segment(self, image: ConformedImage) -> np.ndarray:
        return np.round(2 * image.data / image.data.max()).astype(np.uint8)


def test_rescans(tmp_path: Path) -> None:
    for name, left, right in (("a", 100, 100), ("b", 90, 110), ("c", 50, 100), ("d", 0, 9)):
        data = np.zeros((40, 40, 40), np.int16)
        data.ravel()[:left] = np.arange(left) + 500
        data.ravel()[300 : 300 + right] = np.arange(right) + 1000
        nib.save(nib.Nifti1Image(data, np.diag([2.0, 2, 2, 1])), tmp_path / f"{name}_T1w.nii.gz")
    table = tmp_path / "scans.tsv"
    table.write_text("id\tsubject\na\tx\nb\tx\nc\ty\nd\tz\nb\tz\n", encoding="utf-8")
    rows = evaluate_rescans(Threshold(), table)
    assert rows["subject"].tolist() == ["x", "z"]
    assert rows.loc[0, ["difference_L", "difference_R"]].tolist() == pytest.approx(
        [10 / 95, 10 / 105]
    )
    assert rows.loc[0, "difference"] == 0
    # A hippocampus that was not found has no difference.
    assert rows.loc[1, ["difference_L", "difference"]].isna().all()
    table.write_text("id\tsubject\na\tx\nb\ty\n", encoding="utf-8")
    with raises(BadData, "no-rescan", table):
        evaluate_rescans(Threshold(), table)
    table.write_text("id\na\n", encoding="utf-8")
    with raises(BadData, "rescans-table-columns", table):
        evaluate_rescans(Threshold(), table)
    table.write_text("id\tsubject\na\tx\ne\tx\n", encoding="utf-8")
    with raises(MissingInput, "image-missing", "e_T1w"):
        evaluate_rescans(Threshold(), table)
