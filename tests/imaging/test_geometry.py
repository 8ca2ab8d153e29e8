"""Tests of :mod:`hyps_bids.imaging.geometry`: contradictions in a header are flagged or refused."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from hyps_bids.errors import BadData
from hyps_bids.imaging.conform import conform
from hyps_bids.imaging.geometry import Geometry, read_geometry
from hyps_bids.outputs.quality import GEOMETRY
from tests.raising import raises

SHAPE = (40, 30, 20)
PLAIN = np.array([[-2.0, 0, 0, 38], [0, 2, 0, -30], [0, 0, 2.5, -20], [0, 0, 0, 1]])
OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.2, -0.1, 0.15) @ np.diag([0.9375, 0.9375, 1.2]), [-20, -22, -25]
)
#: Offset of pixdim in a NIfTI-1 header.
PIXDIM = 76


def shear(amount: float) -> np.ndarray:
    matrix = np.eye(4)
    matrix[0, 1] = amount
    return matrix


def turn(degrees: float) -> np.ndarray:
    return nib.affines.from_matvec(nib.eulerangles.euler2mat(x=np.radians(degrees)), [0, 0, 0])


def read(
    folder: Path,
    sform: np.ndarray | None,
    qform: np.ndarray | None,
    *,
    pixdim: object = None,
    unit: int = 2,
) -> Geometry:
    """Write a file; a transform that is None gets the code 0, and pixdim is that of the qform."""
    image = nib.Nifti1Image(np.zeros(SHAPE, np.uint8), PLAIN if qform is None else qform)
    image.set_qform(PLAIN if qform is None else qform, code=0 if qform is None else 1)
    image.set_sform(PLAIN if sform is None else sform, code=0 if sform is None else 1)
    path = folder / "a.nii"
    nib.save(image, path)
    content = bytearray(path.read_bytes())
    if pixdim is not None:
        content[PIXDIM + 4 : PIXDIM + 16] = np.array(pixdim, np.float32).tobytes()
    content[123] = unit
    path.write_bytes(content)
    return read_geometry(nib.load(path), path)


def longer(affine: np.ndarray, *factors: float) -> np.ndarray:
    return affine @ np.diag([*factors, 1])


@pytest.mark.parametrize("affine", [PLAIN, OBLIQUE])
@pytest.mark.parametrize(
    "sform",
    [
        longer(np.eye(4), 1.1, 1.1, 1.1),
        longer(np.eye(4), 1, 1, 1.02),
        longer(np.eye(4), 0.5, 0.5, 0.5),
        # The axes are exchanged, and the volume is right
        longer(np.eye(4), 1.1, 1 / 1.1, 1),
        longer(np.eye(4), 1.004, 1.004, 1.004),
        shear(0.1),
        shear(-0.03),
    ],
)
@pytest.mark.parametrize("both", [True, False])
def test_sizes_and_shears_that_contradict_pixdim_are_flagged(
    affine: np.ndarray, sform: np.ndarray, both: bool, tmp_path: Path
) -> None:
    pixdim = nib.affines.voxel_sizes(affine)
    found = read(tmp_path, affine @ sform, affine if both else None, pixdim=pixdim)
    assert found.contradictory
    assert found.remarks
    np.testing.assert_allclose(found.affine, affine @ sform, rtol=1e-5)


@pytest.mark.parametrize(
    ("pixdim", "sizes"),
    [
        # As printed with two digits
        ([0.94, 0.94, 1.2], [0.9375, 0.9375, 1.2]),
        ([0.87, 0.87, 1.0], [0.868, 0.868, 1.0]),
        ([1.0, 1.0, 1.0], [1.0000001, 1, 0.9999995]),
    ],
)
def test_rounding_is_not_flagged(pixdim: list[float], sizes: list[float], tmp_path: Path) -> None:
    found = read(tmp_path, np.diag([*sizes, 1.0]), None, pixdim=pixdim)
    assert (found.remarks, found.contradictory) == ((), False)


def test_transforms_rounded_to_three_digits_are_not_flagged(tmp_path: Path) -> None:
    found = read(tmp_path, np.round(OBLIQUE, 3), OBLIQUE)
    assert (found.remarks, found.contradictory) == ((), False)


@pytest.mark.parametrize(
    ("move", "fact"),
    [
        (nib.affines.from_matvec(np.eye(3), [10, 0, 0]), "10.0 mm"),
        (turn(12), "mm; sform used"),
        (nib.affines.from_matvec(np.eye(3), [0.5, 0, 0]), ""),
    ],
)
def test_another_position_or_a_small_turn_is_only_remarked(
    move: np.ndarray, fact: str, tmp_path: Path
) -> None:
    found = read(tmp_path, move @ OBLIQUE, OBLIQUE)
    assert not found.contradictory
    assert len(found.remarks) == bool(fact)
    assert fact in " ".join(found.remarks)
    np.testing.assert_allclose(found.affine, move @ OBLIQUE, atol=1e-5)


def test_directions_that_contradict_each_other_are_flagged(tmp_path: Path) -> None:
    found = read(tmp_path, turn(90) @ PLAIN, PLAIN)
    assert found.contradictory
    assert "90°" in " ".join(found.remarks)


@pytest.mark.parametrize("unit", [1, 3])
def test_units_in_which_no_head_is_measured_are_flagged(unit: int, tmp_path: Path) -> None:
    found = read(tmp_path, PLAIN, PLAIN, unit=unit)
    assert found.contradictory
    assert "taken as mm" in found.remarks[0]


@pytest.mark.parametrize("unit", [0, 2, 7, 2 | 8])
def test_unknown_units_are_taken_as_mm(unit: int, tmp_path: Path) -> None:
    assert read(tmp_path, PLAIN, PLAIN, unit=unit) == Geometry(pytest.approx(PLAIN))


@pytest.mark.parametrize("pixdim", [[0, 0, 0], [2, 2, 0], [np.nan, 2, 2]])
def test_sizes_that_are_missing(pixdim: list[float], tmp_path: Path) -> None:
    # The sform knows them; the qform alone does not, and 1 mm would be a guess
    found = read(tmp_path, PLAIN, PLAIN, pixdim=pixdim)
    assert not found.contradictory
    assert "qform" in " ".join(found.remarks)
    np.testing.assert_allclose(found.affine, PLAIN)
    assert read(tmp_path, PLAIN, None, pixdim=pixdim) == Geometry(pytest.approx(PLAIN))
    with raises(BadData, "no-valid-transform", "a.nii", "pixdim"):
        read(tmp_path, None, PLAIN, pixdim=pixdim)


def test_negative_sizes(tmp_path: Path) -> None:
    negative = [-2, 2, 2.5]
    assert read(tmp_path, None, PLAIN, pixdim=negative).contradictory
    assert not read(tmp_path, PLAIN, PLAIN, pixdim=negative).contradictory
    assert read(tmp_path, longer(PLAIN, 1.1, 1, 1), PLAIN, pixdim=negative).contradictory


def test_the_scan_gets_the_flag(tmp_path: Path) -> None:
    data = np.random.default_rng(0).uniform(1, 9, SHAPE).astype(np.float32)
    image = nib.Nifti1Image(data, PLAIN)
    image.set_sform(longer(PLAIN, 1.1, 1.1, 1.1), 1)
    image.set_qform(PLAIN, 1)
    nib.save(image, tmp_path / "a.nii")
    assert conform(tmp_path / "a.nii").flags == (GEOMETRY,)


@pytest.mark.shared
@pytest.mark.parametrize(
    "pattern", ["*/colin27_T1w*", "*/mit*_T1w*", "**/sub-*_T1w.nii.gz", "malf/*_T1w*"]
)
def test_real_heads_are_not_flagged(pattern: str, shared_data: Path) -> None:
    paths = sorted(shared_data.glob(pattern))
    assert paths
    for path in paths:
        found = read_geometry(nib.load(path), path)
        assert not found.contradictory, path
        assert not found.remarks, path
