"""Surfaces are closed, turned outward, at the right place, and enclose the labeled volume."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from scipy import ndimage
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial.transform import Rotation

from hyps_bids.imaging.surfaces import find_surface
from hyps_bids.outputs.surface_files import Surface

#: Half axes of an ellipsoid about as large as a hippocampus, mm.
HALF_AXES = np.array([7.0, 18.0, 6.0])
CENTER = np.array([-25.0, -20.0, -12.0])
#: Grids: voxel sizes, angles in degrees, and whether the first axis points left.
GRIDS = {
    "isotropic": ((1, 1, 1), (0, 0, 0), False),
    "coarse": ((2, 2, 2), (0, 0, 0), False),
    "thick axial": ((0.9, 0.9, 5), (0, 0, 0), False),
    "thick sagittal": ((4, 1, 1), (0, 0, 0), True),
    "oblique": ((1, 1, 1), (20, -15, 30), False),
    "oblique and thick": ((0.8, 3, 0.8), (12, 25, -8), True),
}
#: The grids of the everyday part.
EVERY_DAY = ("thick axial", "oblique and thick")


def make_grid(zooms: Sequence[float], angles: Sequence[float], flip: bool) -> np.ndarray:
    """The transform of a grid of 50 mm around the center."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag(zooms)
    affine[:3, 0] *= -1 if flip else 1
    affine[:3, 3] = CENTER - affine[:3, :3] @ ((shape_of(zooms) - 1) / 2) + (0.3, -0.2, 0.1)
    return affine


def shape_of(zooms: Sequence[float]) -> np.ndarray:
    return np.ceil(50 / np.asarray(zooms)).astype(int)


def ellipsoid(affine: np.ndarray, zooms: Sequence[float]) -> np.ndarray:
    """The share of each voxel that is inside."""
    times = np.maximum(2, np.round(np.asarray(zooms) / 0.5)).astype(int)
    axes = [(np.arange(n * k) + 0.5) / k - 0.5 for n, k in zip(shape_of(zooms), times, strict=True)]
    voxels = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    away = (voxels @ affine[:3, :3].T + affine[:3, 3] - CENTER) / HALF_AXES
    inside = (away**2).sum(axis=-1) < 1
    n, k = shape_of(zooms), times
    return inside.reshape(n[0], k[0], n[1], k[1], n[2], k[2]).mean(axis=(1, 3, 5))


def is_closed(surface: Surface) -> bool:
    """Whether each edge is that of two triangles, which run along it in opposite directions."""
    corners = surface.triangles
    edges = np.concatenate([corners[:, [0, 1]], corners[:, [1, 2]], corners[:, [2, 0]]])
    one_way = {tuple(edge) for edge in edges.tolist()}
    return len(one_way) == len(edges) and one_way == {edge[::-1] for edge in one_way}


def count_pieces(surface: Surface) -> int:
    corners = surface.triangles
    links = np.concatenate([corners[:, :2], corners[:, 1:]]).T
    size = (len(surface.points),) * 2
    joined = coo_matrix((np.ones(links.shape[1]), links), shape=size)
    return int(connected_components(joined, directed=False)[0])


def volume_of(mask: np.ndarray, affine: np.ndarray) -> float:
    return float(mask.sum() * abs(np.linalg.det(affine[:3, :3])))


@pytest.mark.parametrize("kind", ["probabilities", "labels"])
@pytest.mark.parametrize(
    "grid",
    [
        pytest.param(grid, marks=[pytest.mark.slow] if grid not in EVERY_DAY else [])
        for grid in GRIDS
    ],
)
def test_ellipsoid(grid: str, kind: str) -> None:
    zooms, angles, flip = GRIDS[grid]
    affine = make_grid(zooms, angles, flip)
    probability = ellipsoid(affine, zooms)
    mask = probability >= 0.5
    surface = find_surface(mask, affine, probability if kind == "probabilities" else None)
    assert is_closed(surface)
    assert count_pieces(surface) == 1
    assert surface.euler_characteristic == 2
    assert surface.points.dtype == np.float32
    assert surface.triangles.dtype == np.int32
    # A positive volume also means that triangles are turned outward.
    assert surface.volume_mm3 == pytest.approx(volume_of(mask, affine), rel=0.005)
    # In units of the half axes, the true surface is at the distance 1 from the center.
    places = np.linalg.norm((surface.points - CENTER) / HALF_AXES, axis=1)
    far = HALF_AXES.min() * np.abs(places - 1)
    assert far.mean() < (0.1 if kind == "probabilities" else 0.2) * max(zooms)
    # Knud Thomsen's approximation is exact to 1.1 %.
    a, b, c = HALF_AXES**1.6075
    area = 4 * np.pi * ((a * b + a * c + b * c) / 3) ** (1 / 1.6075)
    assert surface.area_mm2 == pytest.approx(area, rel=0.08)


def test_surface_ends_where_the_image_ends() -> None:
    mask = np.zeros((12, 20, 12), bool)
    mask[3:9, 0:14, 3:9] = True
    surface = find_surface(mask, np.eye(4), mask.astype(float))
    assert is_closed(surface)
    assert surface.volume_mm3 == pytest.approx(mask.sum(), rel=0.01)
    assert surface.points[:, 1].min() == pytest.approx(-0.5, abs=0.3)


@pytest.mark.parametrize("sizes", [(0.4, 0.4, 0.4), (0.9, 0.9, 5)])
@pytest.mark.parametrize("probability", [None, 0.51])
def test_one_voxel(sizes: tuple[float, ...], probability: float | None) -> None:
    mask = np.zeros((5, 5, 5), bool)
    mask[4, 2, 2] = True
    affine = np.diag([*sizes, 1.0])
    field = None if probability is None else np.where(mask, probability, 0.1)
    surface = find_surface(mask, affine, field)
    assert is_closed(surface)
    assert count_pieces(surface) == 1
    assert surface.volume_mm3 == pytest.approx(np.prod(sizes), rel=0.03)
    np.testing.assert_allclose(surface.points.mean(axis=0), np.multiply((4, 2, 2), sizes), atol=0.2)


def test_other_components_and_cavities_leave_no_surface() -> None:
    probability = np.zeros((24, 24, 24))
    probability[6:18, 6:18, 6:18] = 1
    probability[11:13, 11:13, 11:13] = 0
    mask = probability >= 0.5
    probability[19:21, 8:16, 8:16] = 0.9
    surface = find_surface(mask, np.eye(4), ndimage.gaussian_filter(probability, 0.6))
    assert is_closed(surface)
    assert count_pieces(surface) == 1
    assert surface.points[:, 0].max() < 18.5
    assert surface.volume_mm3 == pytest.approx(12**3, rel=0.005)


def test_edited_labels_in_two_pieces_keep_both() -> None:
    mask = np.zeros((30, 20, 20), bool)
    mask[4:12, 5:15, 5:15] = mask[17:24, 5:15, 5:15] = True
    surface = find_surface(mask, np.eye(4))
    assert is_closed(surface)
    assert count_pieces(surface) == 2
    assert surface.volume_mm3 == pytest.approx(mask.sum(), rel=0.005)


def test_labels_that_the_probabilities_do_not_explain_count() -> None:
    mask = np.zeros((24, 24, 24), bool)
    mask[6:18, 6:18, 6:18] = True
    for field in (np.zeros(mask.shape), np.where(mask, 0.6, 0.59)):
        surface = find_surface(mask, np.eye(4), field)
        assert surface.volume_mm3 == pytest.approx(mask.sum(), rel=0.005)


@pytest.mark.slow
def test_voxels_far_apart_need_no_endless_grid() -> None:
    mask = np.zeros((100, 100, 100), bool)
    mask[5, 5, 5] = mask[94, 94, 94] = True
    surface = find_surface(mask, np.eye(4))
    assert is_closed(surface)
    assert count_pieces(surface) == 2
