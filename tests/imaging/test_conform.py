"""Tests of :mod:`hyps_bids.imaging.conform`: each file is right, or refused with a reason."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from hyps_bids.errors import BadData, MissingInput
from hyps_bids.imaging.conform import ConformedImage, conform, restore_orientation

SHAPE = (20, 24, 28)
AFFINE = np.array([[2.0, 0, 0, -19], [0, 2, 0, -25], [0, 0, 2, -30], [0, 0, 0, 1]])
OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.3, -0.2, 0.25) @ np.diag([1.9, 2.0, 2.1]), [-20, -22, -25]
)
#: all 48 assignments of file axes to world axes and senses
ORIENTATIONS = [
    np.array(list(zip(axes, flips, strict=True)))
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]


@pytest.fixture(scope="module")
def head() -> np.ndarray:
    return np.random.default_rng(0).uniform(1, 1000, SHAPE).astype(np.float32)


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
    image.set_qform(AFFINE if qform is None else qform, code=0 if qform is None else 1)
    image.set_sform(AFFINE if sform is None else sform, code=0 if sform is None else 1)
    image = nib.Nifti1Image(data, None, image.header)
    for name, value in (fields or {}).items():
        image.header[name] = value
    nib.save(image, path)
    return path


def refused(path: Path, match: str, error: type[Exception] = BadData) -> None:
    with pytest.raises(error, match=match) as caught:
        conform(path)
    assert str(caught.value).startswith(f"{path}: ")


# ---------------------------------------------------------------- refused with a reason


def test_missing(tmp_path: Path) -> None:
    refused(tmp_path / "none.nii.gz", "no such file$", MissingInput)


def test_dangling_link_names_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "annexed.nii.gz"
    path.symlink_to(tmp_path / ".git/annex/objects/MD5E-s1--0.nii.gz")
    refused(path, "link to content that is not here: run 'datalad get'", MissingInput)


@pytest.mark.parametrize("name", ["empty.nii", "empty.nii.gz"])
def test_empty_file(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"")
    refused(tmp_path / name, "cannot be read as NIfTI")


@pytest.mark.parametrize("extension", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kept", [100, 0.3, 0.9, -4])
def test_truncated(kept: float, extension: str, head: np.ndarray, tmp_path: Path) -> None:
    path = write(tmp_path / f"whole{extension}", head)
    content = path.read_bytes()
    cut = path.with_name(f"cut{extension}")
    cut.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    refused(cut, "truncated or damaged|cannot be read as NIfTI")


def test_damage_inside_a_compressed_file_is_noticed(head: np.ndarray, tmp_path: Path) -> None:
    # a checksum that nibabel never reaches; the values would be plausible
    path = write(tmp_path / "damaged.nii.gz", np.full(SHAPE, 7, np.uint8) + (head > 500))
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)
    refused(path, "truncated or damaged.*fetch or convert it again")


@pytest.mark.parametrize("name", ["text.nii", "text.nii.gz", "text.txt"])
def test_not_nifti(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("this is no image " * 100)
    refused(tmp_path / name, "cannot be read as NIfTI")


def test_folder(tmp_path: Path) -> None:
    (tmp_path / "folder.nii.gz").mkdir()
    refused(tmp_path / "folder.nii.gz", "cannot be read as NIfTI")


def test_another_format(head: np.ndarray, tmp_path: Path) -> None:
    nib.save(nib.MGHImage(head, AFFINE), tmp_path / "a.mgz")
    refused(tmp_path / "a.mgz", "is not NIfTI; convert it")


@pytest.mark.parametrize(("offset", "value"), [(70, 867), (40, 867), (42, -1), (42, 0)])
def test_nonsense_in_the_header(offset: int, value: int, head: np.ndarray, tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", head)
    content = bytearray(path.read_bytes())
    content[offset : offset + 2] = np.int16(value).tobytes()
    path.write_bytes(content)
    refused(path, "cannot be read as NIfTI|too few")


@pytest.mark.parametrize("shape", [(24, 28), (20, 24, 28, 3), (20, 24, 28, 1, 2)])
def test_not_one_volume(shape: tuple[int, ...], tmp_path: Path) -> None:
    data = np.random.default_rng(0).uniform(size=shape).astype(np.float32)
    refused(write(tmp_path / "a.nii.gz", data), "is not one 3-D volume")


def test_colors(tmp_path: Path) -> None:
    rgb = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    refused(write(tmp_path / "a.nii.gz", rgb), "are not gray values")


def test_complex_numbers(head: np.ndarray, tmp_path: Path) -> None:
    refused(write(tmp_path / "a.nii.gz", head.astype(np.complex64)), "are not gray values")


@pytest.mark.parametrize("value", [0, 7])
def test_constant(value: float, tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii.gz", np.full(SHAPE, value, np.int16))
    refused(path, f"all voxels have the value {value}; the image is empty")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nothing_finite(value: float, tmp_path: Path) -> None:
    refused(write(tmp_path / "a.nii.gz", np.full(SHAPE, value, np.float32)), "100% of the voxels")


def test_nan_but_for_a_constant(tmp_path: Path) -> None:
    data = np.full(SHAPE, np.nan, np.float32)
    data[5:] = 3
    refused(write(tmp_path / "a.nii.gz", data), "all voxels have the value 3")


@pytest.mark.parametrize("voxel", [0.01, 50.0])
@pytest.mark.parametrize("axes", [[0, 1, 2], [2]])
def test_absurd_voxels(voxel: float, axes: list[int], head: np.ndarray, tmp_path: Path) -> None:
    affine = AFFINE.copy()
    affine[axes, axes] = voxel
    path = write(tmp_path / "a.nii.gz", head, sform=affine, qform=affine)
    refused(path, f"{voxel:g}.* mm are outside .*check pixdim, the affine and the spatial unit")


def test_no_transform(head: np.ndarray, tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii.gz", head, sform=None, qform=None)
    refused(path, r"neither sform nor qform is valid \(codes 0 and 0\).*left and right are unknown")


@pytest.mark.parametrize("row", [[0, 0, 0, 5], [0, 2, 0, 1], [np.nan, 0, 0, 0]])
def test_singular_sform(row: list[float], head: np.ndarray, tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii.gz", head, qform=None, fields={"srow_x": row})
    refused(path, "neither sform nor qform is valid")


@pytest.mark.parametrize("shape", [(4, 24, 28), (24, 24, 1), (9, 9, 9)])
def test_tiny(shape: tuple[int, ...], head: np.ndarray, tmp_path: Path) -> None:
    data = np.random.default_rng(0).uniform(size=shape).astype(np.float32)
    refused(write(tmp_path / "a.nii.gz", data), "too few to hold a brain")


# ---------------------------------------------------------------- right


def expect(image: ConformedImage, data: np.ndarray, *remarks: str) -> None:
    np.testing.assert_allclose(image.data, data, rtol=1e-5)
    assert image.data.dtype == np.float32
    assert image.data.flags.c_contiguous
    assert image.native_shape == SHAPE
    assert len(image.remarks) == len(remarks)
    assert all(words in remark for words, remark in zip(remarks, image.remarks, strict=True))


@pytest.mark.parametrize("extension", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "u4", "f4", "f8", ">i2", ">f4"])
def test_data_types(dtype: str, extension: str, head: np.ndarray, tmp_path: Path) -> None:
    data = (head / 4).astype(dtype)
    expect(conform(write(tmp_path / f"a{extension}", data)), data)


@pytest.mark.parametrize("extra", [(1,), (1, 1)])
def test_one_volume_in_more_dimensions(
    extra: tuple[int, ...], head: np.ndarray, tmp_path: Path
) -> None:
    expect(conform(write(tmp_path / "a.nii.gz", head.reshape(*SHAPE, *extra))), head)


def test_negative_integers(head: np.ndarray, tmp_path: Path) -> None:
    data = (head - 500).astype(np.int16)
    assert data.min() < 0
    expect(conform(write(tmp_path / "a.nii.gz", data)), data)


def test_slope_and_intercept(head: np.ndarray, tmp_path: Path) -> None:
    data = head.astype(np.int16)
    image = nib.Nifti1Image(data, AFFINE)
    image.header.set_slope_inter(0.5, -20)
    nib.save(image, tmp_path / "a.nii.gz")
    stored = np.asarray(nib.load(tmp_path / "a.nii.gz").dataobj)
    result = conform(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(result.data, stored, atol=1e-3)
    raw = write(tmp_path / "raw.nii", data)
    content = bytearray(raw.read_bytes())
    content[112:120] = np.array([0.5, -20], np.float32).tobytes()
    raw.write_bytes(content)
    np.testing.assert_allclose(conform(raw).data, data * 0.5 - 20, atol=1e-3)


def test_nan_background(head: np.ndarray, tmp_path: Path) -> None:
    data = head.copy()
    data[:8] = np.nan
    expected = np.nan_to_num(data, nan=float(np.nanmin(data)))
    expect(conform(write(tmp_path / "a.nii.gz", data)), expected, "40.00% of voxels not finite")


def test_few_infinities(head: np.ndarray, tmp_path: Path) -> None:
    data = head - 100
    data[3, 4, 5], data[6, 7, 8] = np.inf, -np.inf
    expected = np.where(np.isfinite(data), data, 0)
    expect(conform(write(tmp_path / "a.nii.gz", data)), expected, "0.01% of voxels not finite")


@pytest.mark.parametrize(
    ("factor", "offset"), [(1e300, 0), (1e35, 0), (3e305, 1e307), (1e-40, 0), (1.0, 1e9)]
)
def test_values_beyond_single_precision(
    factor: float, offset: float, head: np.ndarray, tmp_path: Path
) -> None:
    # scaled linearly: the networks normalize intensities anyway
    data = (head.astype(np.float64) - 500) * factor + offset
    result = conform(write(tmp_path / "a.nii", data)).data
    assert np.isfinite(result).all()
    expected = head.astype(np.float64)
    expected = (expected - expected.min()) / np.ptp(expected)
    np.testing.assert_allclose(result, expected, atol=1e-6)


@pytest.mark.parametrize("only", ["sform", "qform"])
def test_one_transform_is_enough(only: str, head: np.ndarray, tmp_path: Path) -> None:
    other = {"sform": "qform", "qform": "sform"}[only]
    path = write(tmp_path / "a.nii.gz", head, **{only: OBLIQUE, other: None})
    result = conform(path)
    expect(result, head)
    np.testing.assert_allclose(result.affine, OBLIQUE, atol=1e-4)


def test_invalid_sform_falls_back_to_the_qform(head: np.ndarray, tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii.gz", head, fields={"srow_x": [0, 0, 0, 0]})
    result = conform(path)
    expect(result, head, "sform is not valid and was ignored")
    np.testing.assert_allclose(result.affine, AFFINE)


def test_small_differences_of_the_transforms_go_unmentioned(
    head: np.ndarray, tmp_path: Path
) -> None:
    moved = AFFINE.copy()
    moved[0, 3] += 0.5
    expect(conform(write(tmp_path / "a.nii.gz", head, qform=moved)), head)


def test_transforms_that_disagree(head: np.ndarray, tmp_path: Path) -> None:
    moved, flipped = AFFINE.copy(), AFFINE.copy()
    moved[0, 3] += 10
    flipped[0] *= -1
    result = conform(write(tmp_path / "a.nii.gz", head, qform=moved))
    expect(result, head, "qform and sform differ by 10.0 mm; sform used")
    np.testing.assert_allclose(result.affine, AFFINE)
    with pytest.raises(BadData, match=r"b\.nii\.gz: qform and sform contradict .* left and right"):
        conform(write(tmp_path / "b.nii.gz", head, qform=flipped))


@pytest.mark.parametrize("affine", [AFFINE, OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize("kind", ["sform", "qform"])
def test_all_orientations_conform_to_the_same_image(
    kind: str, affine: np.ndarray, head: np.ndarray, tmp_path: Path
) -> None:
    other = {"sform": "qform", "qform": "sform"}[kind]
    codes = set()
    for i, orientation in enumerate(ORIENTATIONS):
        stored = nib.apply_orientation(head, orientation)
        transform = affine @ nib.orientations.inv_ornt_aff(orientation, SHAPE)
        codes.add("".join(nib.aff2axcodes(transform)))
        path = write(tmp_path / f"{i}.nii", stored, **{kind: transform, other: None})
        result = conform(path)
        assert np.array_equal(result.data, head)
        np.testing.assert_allclose(result.affine, affine, atol=1e-4)
        assert result.native_shape == stored.shape
        assert not result.remarks
        assert np.array_equal(restore_orientation(result.data, result.orientation), stored)
        labeled = np.stack((head, -head), axis=-1)
        back = restore_orientation(labeled, result.orientation)
        assert np.array_equal(back, np.stack((stored, -stored), axis=-1))
    assert len(codes) == 48


def test_demo_images_conform(demo_bids: Path) -> None:
    for path in sorted(demo_bids.glob("sub-*/anat/*_T1w.nii.gz")):
        image = conform(path)
        assert np.isfinite(image.data).all()
        assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
