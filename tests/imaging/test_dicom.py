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
from tests.dicom_files import RLE, ROOT, rle, write_by_hand, write_color, write_series
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


#: The first slice of the made image as gdcmconv compresses it, without loss.
JPEG_LS = bytes.fromhex(
    "ffd8fff7000b100009000a01011100fff8000d01ffff0012004301140040ffda0008010100000000a6bcd79ab35e6a"
    "da768d9f66c1883105a1484a210e8642a0c418888886868686848482d05a122448912142850a4290a142850a142850"
    "94250a1428a28a28a21108a28208208208743a082082082082190c8208208208208500ffd9"
)


def test_run_length_encoding(tmp_path: Path) -> None:
    write_by_hand(made_image(), tmp_path, syntax=RLE, encode=rle)
    expect_same_places(read_dicom(tmp_path).image, made_image())


def test_jpeg_ls(tmp_path: Path) -> None:
    syntax = "1.2.840.10008.1.2.4.80"
    write_by_hand(made_image(), tmp_path, syntax=syntax, encode=lambda pixels: JPEG_LS)
    first = np.asarray(made_image().dataobj)[:, :, :1]
    repeated = nib.Nifti1Image(np.repeat(first, 12, axis=2), made_image().affine)
    expect_same_places(read_dicom(tmp_path).image, repeated)


@pytest.mark.parametrize(
    ("code", "syntax"),
    [
        ("dicom-not-decodable", "1.2.840.10008.1.2.4.100"),  # MPEG2
        ("dicom-not-decodable", "1.2.840.10008.1.2.4.201"),  # JPEG 2000 with high throughput
        ("dicom-without-image", "1.2.3.4.5"),  # of a vendor
    ],
)
def test_unknown_compression(tmp_path: Path, code: str, syntax: str) -> None:
    write_by_hand(made_image(), tmp_path, syntax=syntax, encode=lambda pixels: b"\xff\x4f" * 9)
    with raises(BadData, code, "IM0000", "dcm2niix"):
        read_dicom(tmp_path)


def test_rescale_differs_between_slices(tmp_path: Path) -> None:
    made = made_image()
    slopes, intercepts = np.tile([1, 0.5, 2], 4), -np.arange(12)
    write_by_hand(
        made,
        tmp_path,
        each=lambda k: {
            "0028|1052": ("DS", str(intercepts[k])),
            "0028|1053": ("DS", str(slopes[k])),
        },
    )
    values = (np.asarray(made.dataobj) * slopes + intercepts).astype(np.float32)
    expect_same_places(read_dicom(tmp_path).image, nib.Nifti1Image(values, made.affine))


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


def test_series_with_the_same_names_of_files_are_told_apart_by_their_folders(
    tmp_path: Path,
) -> None:
    made = made_image()
    write_series(made, tmp_path / "left", number=1)
    other = nib.Nifti1Image(np.asarray(made.dataobj) + 1, made.affine)
    write_series(other, tmp_path / "right", number=2)
    with raises(BadData, "several-dicom-series", "left/", "right/"):
        read_dicom(tmp_path)


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


@pytest.mark.parametrize(
    ("skip", "tags", "fact"),
    [
        ((11,), {"0020|1002": "12"}, "12 images"),
        ((0, 1), {}, "begin with 3"),
        # These are known to nobody; the log says how far the image reaches.
        ((10, 11), {}, ""),
        ((), {}, ""),
    ],
)
def test_missing_end(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    skip: tuple[int, ...],
    tags: dict[str, str],
    fact: str,
) -> None:
    caplog.set_level(logging.INFO)
    write_series(made_image(), tmp_path, skip=skip, tags=tags)
    read_dicom(tmp_path)
    count = 12 - len(skip)
    warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warned) == bool(fact)
    assert all(fact in text for text in warned)
    assert f"{count} slices that are 1.5 mm apart, {1.5 * count:g} mm in all" in caplog.text


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


def test_enhanced(tmp_path: Path) -> None:
    tags = {"0008|0016": ("UI", "1.2.840.10008.5.1.4.1.1.4.1"), "0028|0008": ("IS", "12")}
    write_by_hand(made_image(), tmp_path, tags=tags)
    with raises(BadData, "dicom-multi-frame", "dcm2niix"):
        read_dicom(tmp_path)


def test_inverted(tmp_path: Path) -> None:
    write_by_hand(made_image(), tmp_path, tags={"0028|0004": ("CS", "MONOCHROME1")})
    with raises(BadData, "dicom-inverted", "MONOCHROME1"):
        read_dicom(tmp_path)


def test_palette(tmp_path: Path) -> None:
    """Numbers that stand for colors, as in maps of statistics."""
    table = np.arange(256, dtype="<u2").tobytes()
    size = np.array([256, 0, 16], "<u2").tobytes()
    bits = {"0028|0100": ("US", 8), "0028|0101": ("US", 8), "0028|0102": ("US", 7)}
    for color in "123":
        bits |= {f"0028|110{color}": ("US", size), f"0028|120{color}": ("OW", table)}
    tags = bits | {"0028|0004": ("CS", "PALETTE COLOR"), "0028|0103": ("US", 0)}
    write_by_hand(made_image(), tmp_path, tags=tags)
    with raises(BadData, "dicom-color", "by hand"):
        read_dicom(tmp_path)


def test_a_screenshot_in_the_series_of_the_image(tmp_path: Path) -> None:
    """It is named, and nothing is read from a mixture."""
    write_color(tmp_path, number=1)
    write_series(made_image(), tmp_path, number=2, tags={"0020|000e": f"{ROOT}.1"})
    with raises(BadData, "dicom-color", "13 files"):
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
