"""Tests of what :mod:`hyps_bids.segmentation.pipeline` does between the networks and the files."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from hyps_bids.imaging.conform import ConformedImage, restore_orientation
from hyps_bids.imaging.resample import resample
from hyps_bids.imaging.roi import box_affine
from hyps_bids.imaging.volumes import RestoredSide
from hyps_bids.segmentation.pipeline import native_images

SHAPE = (30, 34, 26)
CENTER = (3.0, -4.0, 2.0)
OBLIQUE = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, -0.2, 0.15), [-12, -20, -9])


def conformed(orientation: str, affine: np.ndarray) -> ConformedImage:
    ornt = nib.orientations.axcodes2ornt(orientation)
    shape = restore_orientation(np.zeros(SHAPE), ornt).shape
    return ConformedImage(np.zeros(SHAPE, np.float32), affine, shape, ornt)


@pytest.mark.parametrize("orientation", ["RAS", "LIA", "PSR"])
@pytest.mark.parametrize(
    "affine", [box_affine(CENTER, SHAPE), OBLIQUE], ids=["parallel", "oblique"]
)
@pytest.mark.parametrize("reach", [4, 9])
def test_results_return_to_the_axes_of_the_file(
    orientation: str, affine: np.ndarray, reach: int
) -> None:
    rng = np.random.default_rng(0)
    image = conformed(orientation, affine)
    # A head within the image, or one that reaches beyond it
    grid = box_affine(CENTER, (20, 20, 20), 2.5)
    intracranial = np.zeros((20, 20, 20), np.float32)
    inner = slice(10 - reach, 10 + reach)
    intracranial[inner, inner, inner] = rng.uniform(0.4, 1, (2 * reach,) * 3)
    region = (slice(5, 12), slice(0, 9), slice(20, 26))
    probabilities = rng.uniform(0, 0.5, (2, 7, 9, 6)).astype(np.float32)
    side = RestoredSide(region, probabilities, rng.integers(0, 3, (7, 9, 6), np.uint8), 1.0)
    found = native_images(image, {"R": side}, intracranial, grid, 2)

    labels, values = np.zeros(SHAPE, np.uint8), np.zeros((4, *SHAPE), np.uint8)
    labels[region] = np.where(side.labels > 0, side.labels + 2, 0)
    values[2:, *region] = np.round(255 * probabilities)
    inside = resample(intracranial, grid, SHAPE, affine) > 0.5
    expected = [restore_orientation(each, image.orientation) for each in (labels, inside, *values)]
    for got, wanted in zip(
        (found.labels, found.intracranial, *found.probabilities), expected, strict=True
    ):
        assert got.dtype == np.uint8
        assert np.array_equal(got, wanted)
    assert inside.any()
    assert not inside.all()


def test_no_head_is_inside_of_nothing() -> None:
    image = conformed("LAS", OBLIQUE)
    found = native_images(image, {}, np.full((9, 9, 9), 0.5, np.float32), OBLIQUE, 1)
    assert not found.intracranial.any()
    assert not np.any(list(found.probabilities))
    far = nib.affines.from_matvec(np.eye(3), [500, 0, 0])
    assert not native_images(image, {}, np.ones((9, 9, 9)), far, 1).intracranial.any()
