"""Tests of :mod:`hyps_bids.imaging.conform`: each file is read right, or refused with a reason."""

from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from hyps_bids.errors import BadData, HypsError, MissingInput
from hyps_bids.imaging.conform import ConformedImage, conform, restore_orientation
from tests.raising import raises

SHAPE = (20, 24, 28)
AFFINE = np.array([[2.0, 0, 0, -19], [0, 2, 0, -25], [0, 0, 2, -30], [0, 0, 0, 1]])
OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.3, -0.2, 0.25) @ np.diag([1.9, 2.0, 2.1]), [-20, -22, -25]
)
#: All 48 assignments of file axes to world axes and senses.
ORIENTATIONS = [
    np.array(list(zip(axes, flips, strict=True)))
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]


@pytest.fixture(scope="module")
def head() -> np.ndarray:
    return noise(SHAPE)


def noise(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).uniform(1, 1000, shape).astype(np.float32)


def write(
    path: Path,
    data: np.ndarray,
    *,
    sform: np.ndarray | None = AFFINE,
    qform: np.ndarray | None = AFFINE,
    fields: dict[str, object] | None = None,
) -> Path:
    """Write a NIfTI file; a transform that is None gets the code 0."""
    image = nib.Nifti1Image(data, AFFINE)
    used = AFFINE if sform is None else sform
    image.set_qform(used if qform is None else qform, code=0 if qform is None else 1)
    image.set_sform(used, code=0 if sform is None else 1)
    image = nib.Nifti1Image(data, None, image.header)
    for name, value in (fields or {}).items():
        image.header[name] = value
    nib.save(image, path)
    return path


def refused(path: Path, code: str, *facts: object, kind: type[HypsError] = BadData) -> None:
    with raises(kind, code, *facts) as caught:
        conform(path)
    assert str(caught.value).startswith(f"{path}: ")


# ---------------------------------------------------------------- refused with a reason


def test_missing_file_and_dangling_link(tmp_path: Path) -> None:
    refused(tmp_path / "none.nii.gz", "image-missing", kind=MissingInput)
    path = tmp_path / "annexed.nii.gz"
    path.symlink_to(tmp_path / ".git/annex/objects/MD5E-s1--0.nii.gz")
    refused(path, "image-missing", "datalad get", kind=MissingInput)


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        (b"/annex/objects/MD5E-s1--0.nii.gz\n", ("git-annex", "datalad get")),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            ("Git LFS", "git lfs pull"),
        ),
    ],
)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_pointer_instead_of_content(
    content: bytes, facts: tuple[str, ...], name: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, "image-not-fetched", *facts, kind=MissingInput)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.ESTALE])
def test_file_that_may_not_be_read(
    number: int, head: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.nii.gz", head)

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "open", fail)
    with raises(MissingInput, "image-locked", path, os.strerror(number)) as caught:
        conform(path)
    # Who may not read a file cannot convert it either.
    assert "convert" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"this is no image " * 100])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.txt"])
def test_not_an_image(content: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, "not-readable-nifti")


def test_folder(tmp_path: Path) -> None:
    (tmp_path / "folder.nii.gz").mkdir()
    refused(tmp_path / "folder.nii.gz", "not-readable-nifti")


@pytest.mark.parametrize("extension", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kept", [100, 0.3, -4])
def test_truncated(kept: float, extension: str, head: np.ndarray, tmp_path: Path) -> None:
    path = write(tmp_path / f"whole{extension}", head)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    refused(path, "not-readable-nifti" if kept == 100 else "damaged-image")


@pytest.mark.parametrize("place", [-8, -1, 0.4, 0.9])
def test_damage_inside_a_compressed_file_is_noticed(
    place: float, head: np.ndarray, tmp_path: Path
) -> None:
    # nibabel never reaches the checksum; the values would be plausible
    path = write(tmp_path / "damaged.nii.gz", np.full(SHAPE, 7, np.uint8) + (head > 500))
    content = bytearray(path.read_bytes())
    content[place if isinstance(place, int) else int(place * len(content))] ^= 1
    path.write_bytes(content)
    refused(path, "damaged-image")


def test_another_format(head: np.ndarray, tmp_path: Path) -> None:
    nib.save(nib.MGHImage(head, AFFINE), tmp_path / "a.mgz")
    refused(tmp_path / "a.mgz", "not-nifti")


@pytest.mark.parametrize(
    ("offset", "value", "code"),
    [
        (70, 867, "not-readable-nifti"),
        (40, 867, "not-readable-nifti"),
        (42, -1, "image-too-small"),
        (42, 0, "image-too-small"),
    ],
)
def test_nonsense_in_the_header(
    offset: int, value: int, code: str, head: np.ndarray, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.nii", head)
    content = bytearray(path.read_bytes())
    content[offset : offset + 2] = np.int16(value).tobytes()
    path.write_bytes(content)
    refused(path, code)


@pytest.mark.parametrize("shape", [(24, 28), (20, 24, 28, 3), (20, 24, 28, 1, 2)])
def test_not_one_volume(shape: tuple[int, ...], tmp_path: Path) -> None:
    refused(write(tmp_path / "a.nii.gz", noise(shape)), "not-one-volume", shape)


@pytest.mark.parametrize("dtype", ["c8", [("R", "u1"), ("G", "u1"), ("B", "u1")]])
def test_colors_and_complex_numbers(dtype: object, tmp_path: Path) -> None:
    refused(write(tmp_path / "a.nii.gz", np.zeros(SHAPE, dtype)), "not-gray-values")


@pytest.mark.parametrize("rare", [255, 2035, -1])
def test_labels_keep_their_values(rare: int, tmp_path: Path) -> None:
    # A few voxels far above all others would be mended in an image of gray values.
    labels = np.zeros((40, 40, 40), np.int16)
    labels[10:30, 10:30, 10:30] = 17
    labels[20, 20, 20:23] = rare
    path = tmp_path / "a_dseg.nii.gz"
    nib.save(nib.Nifti1Image(labels, np.eye(4)), path)
    assert (conform(path, is_label=True).data == labels).all()


@pytest.mark.parametrize("value", [0, 7])
@pytest.mark.parametrize("background", [True, False])
def test_constant(value: float, background: bool, tmp_path: Path) -> None:
    data = np.full(SHAPE, value, np.float32)
    if background:
        data[:5] = np.nan
    refused(write(tmp_path / "a.nii.gz", data), "empty-image", f"value {value}")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nothing_finite(value: float, tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii.gz", np.full(SHAPE, value, np.float32))
    refused(path, "mostly-nonfinite", "100%")


@pytest.mark.parametrize("voxel", [0.01, 50.0])
@pytest.mark.parametrize("axes", [[0, 1, 2], [2]])
def test_absurd_voxels(voxel: float, axes: list[int], head: np.ndarray, tmp_path: Path) -> None:
    affine = AFFINE.copy()
    affine[axes, axes] = voxel
    path = write(tmp_path / "a.nii.gz", head, sform=affine, qform=affine)
    refused(path, "absurd-voxel-size", f"{voxel:g}")


@pytest.mark.parametrize("row", [None, [0, 0, 0, 5], [0, 2, 0, 1], [np.nan, 0, 0, 0]])
def test_no_valid_transform(row: list[float] | None, head: np.ndarray, tmp_path: Path) -> None:
    sform, fields = (None, None) if row is None else (AFFINE, {"srow_x": row})
    path = write(tmp_path / "a.nii.gz", head, sform=sform, qform=None, fields=fields)
    refused(path, "no-valid-transform", f"codes {int(row is not None)} and 0")


def test_transforms_that_contradict_each_other(head: np.ndarray, tmp_path: Path) -> None:
    flipped = np.diag([-1, 1, 1, 1]) @ AFFINE
    refused(write(tmp_path / "a.nii.gz", head, qform=flipped), "transforms-contradict")


@pytest.mark.parametrize("shape", [(4, 24, 28), (24, 24, 1), (9, 9, 9)])
def test_tiny(shape: tuple[int, ...], tmp_path: Path) -> None:
    refused(write(tmp_path / "a.nii.gz", noise(shape)), "image-too-small", shape)


# ---------------------------------------------------------------- right


def expect(image: ConformedImage, data: np.ndarray, *remarks: str) -> None:
    np.testing.assert_allclose(image.data, data, rtol=1e-5)
    assert image.data.dtype == np.float32
    assert min(image.data.strides) > 0
    assert image.native_shape == SHAPE
    assert len(image.remarks) == len(remarks)
    assert all(words in remark for words, remark in zip(remarks, image.remarks, strict=True))


@pytest.mark.parametrize("extension", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "u4", "f4", "f8", ">i2", ">f4"])
def test_data_types(dtype: str, extension: str, head: np.ndarray, tmp_path: Path) -> None:
    shift = 500 if dtype == "i2" else 0
    data = ((head - shift) / 4).astype(dtype)
    expect(conform(write(tmp_path / f"a{extension}", data)), data)


@pytest.mark.parametrize("extra", [(1,), (1, 1)])
def test_one_volume_in_more_dimensions(
    extra: tuple[int, ...], head: np.ndarray, tmp_path: Path
) -> None:
    expect(conform(write(tmp_path / "a.nii.gz", head.reshape(*SHAPE, *extra))), head)


def test_slope_and_intercept(head: np.ndarray, tmp_path: Path) -> None:
    path = write(tmp_path / "raw.nii", head.astype(np.int16))
    content = bytearray(path.read_bytes())
    content[112:120] = np.array([0.5, -20], np.float32).tobytes()
    path.write_bytes(content)
    np.testing.assert_allclose(conform(path).data, head.astype(np.int16) * 0.5 - 20, atol=1e-3)


def test_nan_background(head: np.ndarray, tmp_path: Path) -> None:
    data = head.copy()
    data[:8] = np.nan
    expected = np.nan_to_num(data, nan=float(np.nanmin(data)))
    expect(conform(write(tmp_path / "a.nii.gz", data)), expected, "40.00%")


def test_few_infinities(head: np.ndarray, tmp_path: Path) -> None:
    data = head - 100
    data[3, 4, 5], data[6, 7, 8] = np.inf, -np.inf
    expected = np.where(np.isfinite(data), data, 0)
    expect(conform(write(tmp_path / "a.nii.gz", data)), expected, "0.01%")


@pytest.mark.parametrize(
    ("factor", "offset"),
    [(1e300, 0), (1e35, 0), (3e305, 1e307), (1e-40, 0), (1e-20, 0), (1.0, 1e9)],
)
def test_values_beyond_single_precision(
    factor: float, offset: float, head: np.ndarray, tmp_path: Path
) -> None:
    # They are scaled linearly: the networks normalize intensities anyway
    data = (head.astype(np.float64) - 500) * factor + offset
    result = conform(write(tmp_path / "a.nii", data)).data.astype(np.float64)
    # The mean of squares, in single precision, neither overflows nor underflows
    assert 0.1 < np.ptp(result) < 1e8
    scaled, expected = ((x - x.min()) / np.ptp(x) for x in (result, head.astype(np.float64)))
    np.testing.assert_allclose(scaled, expected, atol=1e-6)


@pytest.mark.parametrize("dtype", ["i4", "u4", "f8"])
def test_contrast_on_a_large_offset(dtype: str, head: np.ndarray, tmp_path: Path) -> None:
    data = (np.round(head).astype(np.float64) + 2e9).astype(dtype)
    result = conform(write(tmp_path / "a.nii", data)).data
    expected = (data - data.min()) / np.ptp(data)
    np.testing.assert_allclose(result, expected, atol=1e-6)


@pytest.mark.parametrize("slope", [1e-30, 1e-9, 1e20, 1e36])
@pytest.mark.parametrize("dtype", ["u1", "i2", "i4"])
def test_extreme_slopes_change_nothing_but_the_unit(
    dtype: str, slope: float, head: np.ndarray, tmp_path: Path
) -> None:
    stored = (head / 4).astype(dtype)
    path = write(tmp_path / "raw.nii", stored)
    content = bytearray(path.read_bytes())
    content[112:120] = np.array([slope, 0], np.float32).tobytes()
    path.write_bytes(content)
    result = conform(path)
    assert 0.1 < np.ptp(result.data) < 1e8
    np.testing.assert_allclose(result.data / result.data.max(), stored / stored.max(), rtol=1e-6)
    assert not result.remarks


def test_invalid_sform_falls_back_to_the_qform(head: np.ndarray, tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii.gz", head, fields={"srow_x": [0, 0, 0, 0]})
    result = conform(path)
    expect(result, head, "sform")
    np.testing.assert_allclose(result.affine, AFFINE)


@pytest.mark.parametrize(("kind", "affine"), [("sform", OBLIQUE), ("qform", AFFINE)])
def test_all_orientations_conform_to_the_same_image(
    kind: str, affine: np.ndarray, head: np.ndarray, tmp_path: Path
) -> None:
    """One of the two transforms is enough, and the axes come back as they were."""
    other = {"sform": "qform", "qform": "sform"}[kind]
    codes = set()
    for i, orientation in enumerate(ORIENTATIONS):
        stored = nib.apply_orientation(head, orientation)
        transform = affine @ nib.orientations.inv_ornt_aff(orientation, SHAPE)
        codes.add("".join(nib.aff2axcodes(transform)))
        path = write(tmp_path / f"{i}.nii", stored, **{kind: transform, other: None})
        result = conform(path)
        assert np.array_equal(result.data, head)
        assert min(result.data.strides) > 0
        np.testing.assert_allclose(result.affine, affine, atol=1e-4)
        assert result.native_shape == stored.shape
        assert not result.remarks
        labeled = np.stack((head, -head), axis=-1)
        back = restore_orientation(labeled, result.orientation)
        assert np.array_equal(back, np.stack((stored, -stored), axis=-1))
    assert len(codes) == 48
