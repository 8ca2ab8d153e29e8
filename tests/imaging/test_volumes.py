"""Tests of :mod:`hyps_bids.imaging.volumes`: shapes of known volume, there and back."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from hyps_bids.imaging.roi import box_affine
from hyps_bids.imaging.volumes import (
    SOFT_MARGIN,
    RestoredSide,
    VolumeRow,
    largest_component,
    measure,
    restore,
    within,
)

GRID = (40, 56, 40)
#: Mm; a sphere of 3,600 mm³, about a hippocampus.
RADIUS = 9.5
BALL = 4 / 3 * np.pi * RADIUS**3
CENTER = np.array([-26.3, -21.8, -12.4])
BOX = box_affine(CENTER, GRID)


def world(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return nib.affines.apply_affine(affine, index)


def ball(center: np.ndarray = CENTER, radius: float = RADIUS) -> np.ndarray:
    """Probabilities of a ball whose front half is class 1 and back half class 2, edge 2 mm soft."""
    place = world(BOX, GRID)
    distance = np.linalg.norm(place - center, axis=-1)
    inside = np.clip((radius - distance) / 2 + 0.5, 0, 1)
    front = np.clip((place[..., 1] - center[1]) / 2 + 0.5, 0, 1)
    return np.stack((1 - inside, inside * front, inside * (1 - front))).astype(np.float32)


def image_grid(
    zooms: tuple[float, float, float], angles: tuple[float, float, float] = (0, 0, 0)
) -> tuple[tuple[int, ...], np.ndarray]:
    shape = tuple(int(100 / zoom) for zoom in zooms)
    matrix = nib.eulerangles.euler2mat(*angles) @ np.diag(zooms)
    return shape, nib.affines.from_matvec(matrix, CENTER + 4 - matrix @ (np.array(shape) / 2))


@pytest.mark.parametrize(
    ("zooms", "tolerance"),
    [
        ((0.8, 0.8, 0.8), 0.02),
        ((1, 1, 1), 0.02),
        ((2, 2, 2), 0.03),
        ((3, 3, 3), 0.06),
        ((0.9, 0.9, 3), 0.03),
        ((0.5, 2, 1.2), 0.03),
    ],
)
@pytest.mark.parametrize("angles", [(0, 0, 0), (0.3, -0.2, 0.25)], ids=["straight", "oblique"])
def test_volume_and_place_of_a_ball_are_kept(
    zooms: tuple[float, float, float], tolerance: float, angles: tuple[float, float, float]
) -> None:
    shape, affine = image_grid(zooms, angles)
    side = restore(ball(), BOX, shape, affine)
    front, back, whole = measure(side, affine)
    assert whole.volume_mm3 == pytest.approx(BALL, rel=tolerance)
    # The soft volume hardly depends on the grid, nor does that of the halves
    assert whole.volume_soft_mm3 == pytest.approx(float(ball()[1:].sum()), rel=0.01)
    assert front.voxels + back.voxels == whole.voxels
    assert front.volume_soft_mm3 == pytest.approx(back.volume_soft_mm3, rel=0.03)
    place = world(affine, shape)[side.region]
    np.testing.assert_allclose(place[side.labels > 0].mean(axis=0), CENTER, atol=0.15 * max(zooms))
    assert place[side.labels == 1][:, 1].mean() > place[side.labels == 2][:, 1].mean() + 5
    assert side.component_fraction == 1
    assert side.probabilities.min() >= 0
    assert side.probabilities.sum(axis=0).max() <= 1 + 1e-5


def test_region_stops_at_the_image() -> None:
    shape, affine = image_grid((1, 1, 1))
    cut = int(shape[0] / 2) - 4
    side = restore(ball(), BOX, (cut, *shape[1:]), affine)
    whole = restore(ball(), BOX, shape, affine)
    assert side.region[0].stop == cut
    seen = slice(0, cut - whole.region[0].start)
    assert np.array_equal(side.labels > 0, whole.labels[seen] > 0)
    rows = measure(side, affine)
    assert 0.3 * BALL < rows[-1].volume_mm3 < 0.7 * BALL


@pytest.mark.parametrize("away", [0, 500], ids=["nothing segmented", "box outside the image"])
def test_nothing_in_the_image(away: float) -> None:
    probabilities = ball() if away else np.stack((np.ones(GRID), *np.zeros((2, *GRID))))
    shape, affine = image_grid((1, 1, 1))
    side = restore(probabilities, box_affine(CENTER + away, GRID), shape, affine)
    assert len(side.probabilities) == 2
    assert not side.labels.any()
    assert np.isnan(side.component_fraction)
    assert measure(side, affine) == [VolumeRow(0, 0.0, 0.0)] * 3


def test_only_the_largest_component_is_kept() -> None:
    both = np.maximum(ball()[1:], ball(CENTER + np.array([0, 20, 0]), 4)[1:])
    probabilities = np.concatenate((1 - both.sum(axis=0, keepdims=True), both))
    shape, affine = image_grid((1, 1, 1))
    side = restore(probabilities, BOX, shape, affine)
    whole = measure(side, affine)[-1]
    assert whole.volume_mm3 == pytest.approx(BALL, rel=0.02)
    small = 4 / 3 * np.pi * 4**3
    assert side.component_fraction == pytest.approx(BALL / (BALL + small), abs=0.01)
    # The soft volume leaves the far component out too
    assert whole.volume_soft_mm3 == pytest.approx(float(ball()[1:].sum()), rel=0.02)


def test_largest_component_by_faces() -> None:
    mask = np.zeros((6, 6, 6), bool)
    mask[:2, :2, :2] = True
    mask[2, 2, 2] = True  # touches by a corner only
    component, fraction = largest_component(mask)
    assert component.sum() == 8
    assert fraction == pytest.approx(8 / 9)
    component, fraction = largest_component(np.zeros((3, 3, 3), bool))
    assert not component.any()
    assert np.isnan(fraction)


def test_measure_by_hand() -> None:
    affine = np.diag([-1.0, 2.0, 1.5, 1.0])
    probabilities = np.zeros((2, 9, 9, 9), np.float32)
    probabilities[0, 4, 4, 4] = 0.9
    probabilities[1, 5, 4, 4] = 0.6
    probabilities[0, 6, 4, 4] = 0.25  # 1 mm beyond: counts
    probabilities[0, 8, 4, 4] = 0.25  # 3 mm beyond: does not
    labels = np.zeros((9, 9, 9), np.uint8)
    labels[4, 4, 4], labels[5, 4, 4] = 1, 2
    region = (slice(0, 9),) * 3
    assert SOFT_MARGIN == 2
    rows = measure(RestoredSide(region, probabilities, labels, 1.0), affine)
    assert [row.voxels for row in rows] == [1, 1, 2]
    assert [row.volume_mm3 for row in rows] == pytest.approx([3, 3, 6])
    assert [row.volume_soft_mm3 for row in rows] == pytest.approx([3.45, 1.8, 5.25])


@pytest.mark.parametrize("sizes", [(1, 1, 1), (0.4, 1.1, 3)])
def test_voxels_near_a_mask(sizes: tuple[float, ...]) -> None:
    mask = np.zeros((19, 22, 25), bool)
    mask[2:5, 11, 20:] = mask[9, 0, 3] = True
    distance = ndimage.distance_transform_edt(~mask, sampling=sizes)
    for limit in (0, 1, 2.2, 3, 50):
        assert np.array_equal(within(mask, limit, sizes), distance <= limit)
    assert not within(np.zeros_like(mask), 3, sizes).any()


def test_a_component_at_the_edge_is_kept_in_place() -> None:
    mask = np.zeros((5, 6, 7), bool)
    mask[4, 4:, 1:3] = mask[1, 1, 1:4] = True
    component, fraction = largest_component(mask)
    expected = np.zeros_like(mask)
    expected[4, 4:, 1:3] = True
    assert np.array_equal(component, expected)
    assert fraction == 4 / 7
