"""The files of a series: complete, in the right space, and removed when they are no longer true."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from scipy import ndimage
from scipy.spatial.transform import Rotation

from hyps_bids.outputs.columns import (
    ANNUAL_CHANGE_COLUMNS,
    LONGITUDINAL_COLUMNS,
    SERIES_QC_COLUMNS,
)
from hyps_bids.outputs.names import scan_paths, sidecar_path
from hyps_bids.outputs.provenance import Provenance
from hyps_bids.outputs.reading import read_table
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.series import Series, time_point_paths
from hyps_bids.outputs.series_files import (
    SeriesResult,
    TimePointImages,
    remove_series,
    write_series,
    write_series_failure,
)
from hyps_bids.outputs.series_state import (
    Member,
    find_members,
    is_series_current,
    is_series_done,
    read_series_record,
    recorded_scans,
    series_fingerprint,
)
from hyps_bids.outputs.transforms import itk_transform

SERIES = Series("1", "T1w")
PROVENANCE: Provenance = {"SoftwareVersion": "1", "Models": {}, "BiasFieldCorrection": "none"}
GRID = np.diag([1.0, 1.0, 1.0, 1.0])


def rigid() -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", [10, -5, 20], degrees=True).as_matrix()
    matrix[:3, 3] = 3, -4, 5
    return matrix


def test_transform_is_read_by_itk(tmp_path: Path) -> None:
    """SimpleITK resamples an image to the midway space as the matrix says."""
    rng = np.random.default_rng(0)
    data = ndimage.gaussian_filter(rng.normal(size=(30, 32, 34)), 3).astype(np.float32)
    affine = np.diag([-2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = 28, -30, -33
    nib.save(nib.Nifti1Image(data, affine), tmp_path / "scan.nii")
    grid = np.diag([1.5, 1.5, 1.5, 1.0])
    grid[:3, 3] = -15, -12, -10
    nib.save(nib.Nifti1Image(np.zeros((18, 17, 16), np.float32), grid), tmp_path / "midway.nii")
    (tmp_path / "xfm.txt").write_text(itk_transform(rigid()))
    moving, fixed = (sitk.ReadImage(str(tmp_path / f"{n}.nii")) for n in ("scan", "midway"))
    transform = sitk.ReadTransform(str(tmp_path / "xfm.txt"))
    found = sitk.GetArrayFromImage(sitk.Resample(moving, fixed, transform)).T
    to_voxels = np.linalg.inv(affine) @ np.linalg.inv(rigid()) @ grid
    index = np.indices(found.shape).reshape(3, -1)
    places = to_voxels[:3, :3] @ index + to_voxels[:3, 3:]
    expected = ndimage.map_coordinates(data, places, order=1).reshape(found.shape)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(expected) > 0.05


@pytest.fixture
def members(tmp_path: Path) -> list[Member]:
    """Three scans with images and outputs of their own."""
    for session in "abc":
        scan = Scan.from_path(Path(f"sub-1_ses-{session}_T1w.nii.gz"))
        raw = tmp_path / "raw" / scan.folder
        raw.mkdir(parents=True)
        nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.uint8), np.eye(4)), raw / scan.path.name)
        for path in scan_paths(scan, tmp_path / "out").values():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            sidecar_path(path).write_text(json.dumps({"Fingerprint": f"of {session}"}))
    return members_of(tmp_path)


def members_of(root: Path) -> list[Member]:
    scans = [Scan.from_stem(f"sub-1_ses-{session}") for session in "abcd"]
    return find_members(scans, root / "raw", root / "out")


def result(members: list[Member]) -> SeriesResult:
    labels, values = np.ones((4, 5, 6), np.uint8), np.ones((7, 8, 9), np.float32)
    images = [TimePointImages(labels, values.astype(np.uint8), values, rigid()) for _ in members]
    tables = (
        pd.DataFrame([{name: 1 for name in columns}])
        for columns in (LONGITUDINAL_COLUMNS, ANNUAL_CHANGE_COLUMNS, SERIES_QC_COLUMNS)
    )
    return SeriesResult(*tables, GRID, [member.scan for member in members], images)


def written(root: Path, members: list[Member], found: SeriesResult | None = None) -> str:
    mark = series_fingerprint(members, {}, PROVENANCE)
    write_series(SERIES, members, found or result(members), mark, PROVENANCE, root / "out")
    return mark


def files(root: Path) -> set[str]:
    return {path.name for path in (root / "out").rglob("*") if path.is_file()}


def test_files_of_a_series(tmp_path: Path, members: list[Member]) -> None:
    own = files(tmp_path)
    mark = written(tmp_path, members)
    out = tmp_path / "out"
    assert is_series_done(SERIES, out, mark)
    assert len(files(tmp_path) - own) == 2 * (3 + 3 * 4)
    paths = time_point_paths(members[1].scan, out)
    image = nib.load(paths["midway_image"])
    np.testing.assert_array_equal(image.affine, GRID)
    assert image.shape == nib.load(paths["midway_dseg"]).shape == (7, 8, 9)
    np.testing.assert_array_equal(nib.load(paths["dseg"]).affine, np.eye(4))
    sidecar = json.loads(sidecar_path(paths["midway_dseg"]).read_text())
    first = "sub-1/ses-a/anat/sub-1_ses-a_space-midway_desc-longitudinal_T1w.nii.gz"
    assert sidecar["SpatialReference"] == f"bids::{first}"
    assert sidecar["Sources"][2] == "bids:raw:sub-1/ses-c/anat/sub-1_ses-c_T1w.nii.gz"
    (out / first).unlink()
    assert not is_series_done(SERIES, out, mark)


def test_what_a_series_no_longer_uses_is_removed(tmp_path: Path, members: list[Member]) -> None:
    own = files(tmp_path)
    written(tmp_path, members)
    written(tmp_path, members, result(members[:2]))
    written(tmp_path, members)
    # The third scan has failed meanwhile.
    mark = series_fingerprint(members[:2], {}, PROVENANCE)
    known, out = [member.scan for member in members], tmp_path / "out"
    assert not write_series(
        SERIES, members[:2], result(members[:2]), mark, PROVENANCE, out, known, lambda: False
    )
    assert not is_series_done(SERIES, out, mark)
    gone = time_point_paths(members[2].scan, tmp_path / "out").values()
    assert not any(path.exists() or sidecar_path(path).exists() for path in gone)
    refused = replace(result([]), morph=pd.DataFrame(), annual=pd.DataFrame())
    mark = written(tmp_path, members, refused)
    assert is_series_done(SERIES, tmp_path / "out", mark)
    qc = SERIES.paths(tmp_path / "out")["qc"]
    assert files(tmp_path) - own == {qc.name, sidecar_path(qc).name}
    written(tmp_path, members)
    remove_series(SERIES, [member.scan for member in members], tmp_path / "out")
    assert files(tmp_path) == own


def test_a_killed_or_failed_series_is_not_done(
    tmp_path: Path, members: list[Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    own, out = files(tmp_path), tmp_path / "out"
    first = written(tmp_path, members)
    changed = [*members[:2], members[2]._replace(fingerprint="other")]
    broken = result(changed)
    killed = replace(broken, images=(each for each in [*broken.images][:1]))
    with pytest.raises(ValueError, match="shorter"):
        written(tmp_path, changed, killed)
    assert read_series_record(SERIES, out) is None
    assert not is_series_done(SERIES, out, first)
    assert is_series_done(SERIES, out, written(tmp_path, changed))
    scans = [member.scan for member in members]
    write_series_failure(SERIES, scans, out, "a reason\nof two lines")
    table = read_table(SERIES.paths(out)["qc"])
    assert table["status"].tolist() == ["failed"] * 3
    assert table["reason"][0] == "a reason of two lines"
    assert files(tmp_path) - own == {SERIES.paths(out)["qc"].name}


def test_the_scans_of_a_removal_that_was_interrupted_are_still_known(
    tmp_path: Path, members: list[Member]
) -> None:
    out = tmp_path / "out"
    stems = [each.scan.stem for each in members]
    table = pd.DataFrame({"scan": [*stems, "sub-2_ses-1", "sub-1_ses-1_space-T2w", None]})
    written(tmp_path, members, replace(result(members), qc=table))
    sidecar_path(SERIES.paths(out)["qc"]).unlink()
    assert [scan.stem for scan in recorded_scans(SERIES, out)] == stems
    SERIES.paths(out)["qc"].write_bytes(b"scan\n\xff\n")
    assert recorded_scans(SERIES, out) == []


def test_hidden_files_of_killed_jobs_are_removed_in_all_folders(
    tmp_path: Path, members: list[Member]
) -> None:
    name = ".0123abcd.sub-1_ses-b_seg-hippocampus_desc-longitudinal_dseg.nii.gz"
    left = tmp_path / "out" / members[1].scan.folder / name
    left.write_bytes(b"half")
    os.utime(left, (1, 1))
    written(tmp_path, members)
    assert not left.exists()


def test_only_scans_with_image_and_results_belong_to_a_series(
    tmp_path: Path, members: list[Member]
) -> None:
    assert [member.fingerprint for member in members] == ["of a", "of b", "of c"]
    written(tmp_path, members)
    assert is_series_current(SERIES, tmp_path / "out")
    members[0].scan.path.unlink()
    # A link to content that is not here is an image that may be fetched.
    members[1].scan.path.unlink()
    members[1].scan.path.symlink_to("nowhere")
    scan_paths(members[2].scan, tmp_path / "out")["dseg"].unlink()
    assert [member.scan.session for member in members_of(tmp_path)] == ["b"]
    sidecar_path(scan_paths(members[2].scan, tmp_path / "out")["qc"]).unlink()
    assert not is_series_current(SERIES, tmp_path / "out")
