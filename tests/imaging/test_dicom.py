"""One series of DICOM files becomes an image with the right axes, or one clear message."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from hyps_bids.errors import BadData, MissingInput
from hyps_bids.imaging.dicom import read_dicom
from tests.dicom_files import write_color, write_series
from tests.raising import raises


def made_image(slices: int = 12, *, mirrored: bool = False) -> nib.Nifti1Image:
    """An oblique image in which every voxel differs from its neighbors."""
    data = np.arange(10 * 9 * slices, dtype=np.int16).reshape(10, 9, slices)
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", (20, -10, 65), degrees=True).as_matrix()
    affine[:3, :3] = turn @ np.diag([0.9, 1.1, -1.5 if mirrored else 1.5])
    affine[:3, 3] = (-31.5, 40.25, 7)
    return nib.Nifti1Image(data, affine)


def expect_same_places(read: nib.Nifti1Image, made: nib.Nifti1Image) -> None:
    """Each voxel has its value at its place in the world, whatever the order of voxels is."""
    to_read = np.linalg.inv(read.affine) @ made.affine
    index = np.indices(made.shape).reshape(3, -1)
    there = to_read[:3, :3] @ index + to_read[:3, 3:]
    np.testing.assert_allclose(there, np.round(there), atol=1e-3)
    found = np.asarray(read.dataobj)[tuple(np.round(there).astype(int))]
    assert (found == np.asarray(made.dataobj)[tuple(index)]).all()


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("compressor", ["", "JPEG", "JPEG2000"])
def test_voxels_keep_their_places(tmp_path: Path, compressor: str, mirrored: bool) -> None:
    made = made_image(mirrored=mirrored)
    try:
        write_series(made, tmp_path, compressor=compressor)
    except RuntimeError:
        pytest.skip(f"SimpleITK does not write {compressor}")
    read = read_dicom(tmp_path).image
    expect_same_places(read, made)
    assert int(read.header["qform_code"]) == int(read.header["sform_code"]) == 1
    np.testing.assert_allclose(read.get_qform(), read.affine, atol=1e-4)


def test_the_series_is_chosen_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    made = made_image()
    write_series(made, tmp_path / "a" / "b", number=3)
    write_series(made, tmp_path / "scout", number=1, tags={"0008|103e": "3-plane Localizer"})
    write_color(tmp_path / "c", number=9)
    (tmp_path / "readme.txt").write_text("not DICOM")
    read = read_dicom(tmp_path)
    expect_same_places(read.image, made)
    assert "series 3 (made 3" in read.title
    assert "series 1 (3-plane Localizer" in caplog.text
    assert "color" in caplog.text


def test_copies_of_files_are_no_further_slices(tmp_path: Path) -> None:
    made = made_image()
    write_series(made, tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    expect_same_places(read_dicom(tmp_path).image, made)


def test_two_series_are_refused_and_a_file_chooses(tmp_path: Path) -> None:
    made = made_image()
    write_series(made, tmp_path, number=1)
    file = write_series(
        nib.Nifti1Image(np.asarray(made.dataobj) + 1, made.affine), tmp_path, number=2
    )[4]
    with raises(BadData, "several-dicom-series", "made 1", "made 2"):
        read_dicom(tmp_path)
    assert np.asarray(read_dicom(file).image.dataobj).min() == 1


@pytest.mark.parametrize("skip", [(1,), (5, 6), (10,)])
def test_missing_slices(tmp_path: Path, skip: tuple[int, ...]) -> None:
    write_series(made_image(), tmp_path, skip=skip)
    with raises(BadData, "dicom-slices-missing", f"about {len(skip)} "):
        read_dicom(tmp_path)


def test_missing_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_series(made_image(), tmp_path, skip=(11,), tags={"0020|1002": "12"})
    read_dicom(tmp_path)
    assert "12 images" in caplog.text


@pytest.mark.parametrize(
    ("code", "tags"),
    [
        ("dicom-localizer", {"0008|0008": "ORIGINAL\\PRIMARY\\LOCALIZER"}),
        ("dicom-localizer", {"0008|103e": "AAHScout"}),
        ("dicom-not-mr", {"0008|0060": "CT"}),
        ("dicom-projection", {"0008|0008": "DERIVED\\SECONDARY\\PROJECTION IMAGE"}),
        ("dicom-secondary-capture", {"0008|0016": "1.2.840.10008.5.1.4.1.1.7"}),
    ],
)
def test_kinds_that_are_refused(tmp_path: Path, code: str, tags: dict[str, str]) -> None:
    write_series(made_image(), tmp_path, tags=tags)
    with raises(BadData, code, "series 1 "):
        read_dicom(tmp_path)


def test_color(tmp_path: Path) -> None:
    write_color(tmp_path, number=4)
    with raises(BadData, "dicom-color", "series 4"):
        read_dicom(tmp_path)


def test_localizer_of_three_planes(tmp_path: Path) -> None:
    made = made_image(4)
    uid = {"0020|000e": "1.2.3"}
    for number, order in enumerate(((0, 1, 2), (1, 2, 0), (2, 0, 1))):
        affine = made.affine.copy()
        affine[:3, :3] = affine[:3, order]
        write_series(nib.Nifti1Image(made.dataobj, affine), tmp_path, number=number, tags=uid)
    with raises(BadData, "dicom-localizer", "orientation"):
        read_dicom(tmp_path)


def test_four_dimensions(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        write_series(made_image(), tmp_path, number=number, tags={"0020|000e": "1.2.3"})
    with raises(BadData, "dicom-several-volumes", "36 files at 12 places"):
        read_dicom(tmp_path)


def test_few_slices(tmp_path: Path) -> None:
    write_series(made_image(3), tmp_path)
    with raises(BadData, "dicom-few-slices", "3 slices"):
        read_dicom(tmp_path)


def test_tilted_slices(tmp_path: Path) -> None:
    made = made_image()
    affine = made.affine.copy()
    affine[:3, 2] += 0.3 * affine[:3, 1]
    write_series(nib.Nifti1Image(made.dataobj, affine), tmp_path)
    with raises(BadData, "dicom-tilted"):
        read_dicom(tmp_path)


@pytest.mark.parametrize("index", [5, 11])
def test_damaged_file(tmp_path: Path, caplog: pytest.LogCaptureFixture, index: int) -> None:
    path = write_series(made_image(), tmp_path)[index]
    path.write_bytes(path.read_bytes()[:-60])
    if index == 5:
        with raises(BadData, "no-usable-dicom-series", path.name, "about 1 are missing"):
            read_dicom(tmp_path)
    else:
        read_dicom(tmp_path)
        warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert path.name in warned[0]


@pytest.mark.parametrize("content", [None, "scan.nii.gz"])
def test_folder_without_dicom(tmp_path: Path, content: str | None) -> None:
    if content:
        (tmp_path / content).touch()
    with raises(MissingInput, "folder-without-dicom", str(tmp_path)):
        read_dicom(tmp_path)
