"""Tests of :mod:`hyps_bids.imaging.resample`."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from hyps_bids.imaging.resample import coarsen, resample, world_grid


def oblique(zooms: tuple[float, float, float], angles: tuple[float, float, float]) -> np.ndarray:
    return nib.affines.from_matvec(nib.eulerangles.euler2mat(*angles) @ np.diag(zooms), [3, -7, 11])


def field(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A linear function of world coordinates: linear interpolation must reproduce it."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    world = nib.affines.apply_affine(affine, index)
    return world @ np.array([1.0, -2.0, 0.5]) + 4


@settings(max_examples=40, deadline=None)
@given(
    zooms=st.tuples(*[st.floats(0.4, 3)] * 3),
    angles=st.tuples(*[st.floats(-0.6, 0.6)] * 3),
    spacing=st.floats(0.7, 3),
)
def test_linear_functions_of_space_are_kept(
    zooms: tuple[float, float, float], angles: tuple[float, float, float], spacing: float
) -> None:
    shape, affine = (15, 17, 19), oblique(zooms, angles)
    new_shape, target = world_grid(shape, affine, spacing)
    data = field(affine, shape)
    got = resample(data, affine, new_shape, target, outside=-999)
    index = np.stack(np.meshgrid(*map(np.arange, new_shape), indexing="ij"), axis=-1)
    voxel = nib.affines.apply_affine(np.linalg.inv(affine) @ target, index)
    inside = ((voxel > 0.01) & (voxel < np.array(shape) - 1.01)).all(axis=-1)
    far = ((voxel < -1.01) | (voxel > np.array(shape) + 0.01)).any(axis=-1)
    np.testing.assert_allclose(got[inside], field(target, new_shape)[inside], atol=0.02)
    np.testing.assert_allclose(got[far], -999, atol=1e-3)


#: Transforms from a target grid to a source: any direction, and axes that are parallel.
TO_SOURCE = {
    "oblique": np.linalg.inv(oblique((1, 1.2, 0.8), (0.1, 0.2, -0.1)))
    @ oblique((0.7, 0.9, 1.1), (0, 0.3, 0)),
    "finer": nib.affines.from_matvec(np.diag([0.4, 0.9, 0.3]), [1.3, -2.6, 5.8]),
    "mirrored": nib.affines.from_matvec(np.diag([-0.7, 1.9, -1.0]), [22.2, -3.5, 14.0]),
    "permuted": nib.affines.from_matvec([[0, 0, 1.1], [-0.9, 0, 0], [0, 0.7, 0]], [-1.4, 30, 2.2]),
    "nearly parallel": nib.affines.from_matvec([[1, 4e-3, 0], [0, 1, 0], [0, 0, 1]], [0.5, 0, 1]),
}


@pytest.mark.parametrize("kind", TO_SOURCE)
def test_same_as_scipy(kind: str) -> None:
    rng = np.random.default_rng(0)
    data = rng.normal(size=(20, 33, 17)).astype(np.float32)
    source = oblique((1, 1.2, 0.8), (0.1, 0.2, -0.1))
    to_source, shape = TO_SOURCE[kind], (35, 18, 21)
    expected = ndimage.affine_transform(
        data.astype(float), to_source[:3, :3], to_source[:3, 3], shape, order=1,
        mode="grid-constant", cval=2.0,
    )  # fmt: skip
    got = resample(data, source, shape, source @ to_source, outside=2.0)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=2e-5)
    stack = np.stack((data, -data))
    both = resample(stack, source, shape, source @ to_source)
    assert both.shape == (2, *shape)
    np.testing.assert_allclose(both[0], -both[1], atol=1e-6)


@pytest.mark.parametrize("angle", [0, np.pi / 2, 0.6], ids=["parallel", "permuted", "oblique"])
def test_values_between_and_beyond_voxels(angle: float) -> None:
    data = np.broadcast_to(np.array([0.0, 10.0, 30.0])[:, None, None], (3, 9, 9))
    # One line along the first axis, through the middle of the others, in steps of half a voxel;
    # the other axes of the new grid, which has one voxel there, point anywhere.
    turn = nib.eulerangles.euler2mat(x=angle)
    line = nib.affines.from_matvec(turn @ np.diag([0.5, 1, 1]), [-1.5, 4, 4])
    got = resample(data, np.eye(4), (11, 1, 1), line, outside=-8)[:, 0, 0]
    expected = [-8, -8, -4, 0, 5, 10, 20, 30, 11, -8, -8]
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["oblique", "finer", "permuted"])
@pytest.mark.parametrize("smooth", [None, 1.7])
def test_the_order_of_axes_in_memory_does_not_matter(kind: str, smooth: float | None) -> None:
    data = np.random.default_rng(0).normal(size=(18, 15, 12)).astype(np.float32)
    source, shape = oblique((0.5, 0.9, 2.0), (0.1, 0.2, -0.1)), (10, 14, 11)
    target = source @ TO_SOURCE[kind]
    options = {"outside": 1.5, "smooth": smooth}
    expected = resample(data, source, shape, target, **options)
    if smooth:
        parts = coarsen(data, source, smooth)
        np.testing.assert_allclose(
            expected, resample(*parts, shape, target, outside=1.5), atol=1e-5
        )
    padded = np.pad(data, 3)
    for same in (
        np.asfortranarray(data),
        np.ascontiguousarray(data.transpose(1, 2, 0)).transpose(2, 0, 1),
        np.asfortranarray(padded)[3:-3, 3:-3, 3:-3],
        np.ascontiguousarray(data[::-1])[::-1],
    ):
        got = resample(same, source, shape, target, **options)
        np.testing.assert_allclose(got, expected, atol=2e-5)
        assert got.flags.c_contiguous


@pytest.mark.parametrize("shape", [(9, 8, 7), (1, 8, 7)])
def test_identity(shape: tuple[int, ...]) -> None:
    data = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    affine = oblique((1, 2, 3), (0.2, 0.1, 0.4))
    np.testing.assert_allclose(resample(data, affine, shape, affine), data, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(
    zooms=st.tuples(*[st.floats(0.3, 5)] * 3),
    angles=st.tuples(*[st.floats(-3, 3)] * 3),
    spacing=st.floats(0.5, 4),
)
def test_world_grid_covers_the_image(
    zooms: tuple[float, float, float], angles: tuple[float, float, float], spacing: float
) -> None:
    affine = oblique(zooms, angles)
    shape, grid = world_grid((10, 12, 14), affine, spacing)
    corners = np.array(np.meshgrid((-0.5, 9.5), (-0.5, 11.5), (-0.5, 13.5))).reshape(3, -1).T
    voxel = nib.affines.apply_affine(np.linalg.inv(grid) @ affine, corners)
    # Rounding takes half a voxel in all at most
    assert (voxel.min(axis=0) >= -0.5 - 0.26).all()
    assert (voxel.max(axis=0) <= np.array(shape) - 0.5 + 0.26).all()
    np.testing.assert_allclose(grid[:3, :3], np.eye(3) * spacing)


@pytest.mark.parametrize("oversampling", [1, 2])
def test_coarsening_keeps_place_and_level(oversampling: int) -> None:
    affine = oblique((0.5, 1.0, 3.0), (0.1, -0.2, 0.3))
    data = field(affine, (60, 41, 13))
    smooth, new = coarsen(data, affine, 2.5, oversampling)
    zooms = np.linalg.norm(new[:3, :3], axis=0)
    np.testing.assert_allclose(zooms, [2.5 / oversampling, 2.5 / oversampling, 3.0])
    inner = (slice(2, -2), slice(2, -2), slice(None))
    # The kernel is sampled at whole voxels: at most a tenth of a voxel of shift
    np.testing.assert_allclose(smooth[inner], field(new, smooth.shape)[inner], atol=0.1)
    # Nothing is moved: the extent stays centered where it was
    center = nib.affines.apply_affine(affine, (np.array(data.shape) - 1) / 2)
    np.testing.assert_allclose(
        nib.affines.apply_affine(new, (np.array(smooth.shape) - 1) / 2), center, atol=1e-4
    )


def test_coarsening_averages_noise() -> None:
    noise = np.random.default_rng(0).normal(size=(60, 60, 60))
    assert coarsen(noise, np.diag([0.5, 0.5, 0.5, 1]), 2.5)[0].std() < 0.15


def test_coarsening_weighs_by_distance() -> None:
    # The kernel of the first sample, 0.5 voxels from the edge, is 0.75, 0.75, 0.25.
    data = np.broadcast_to(np.array([0.0, 7.0, 14.0, 21.0])[:, None, None], (4, 2, 2))
    affine = np.diag([1.0, 2, 2, 1])
    smooth, new = coarsen(data, affine, 2.0, oversampling=1)
    np.testing.assert_allclose(smooth[:, 0, 0], [5, 16], atol=1e-6)
    np.testing.assert_allclose(new, [[2, 0, 0, 0.5], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])


def test_coarse_images_are_left_alone() -> None:
    data = np.random.default_rng(0).normal(size=(9, 8, 7)).astype(np.float32)
    affine = np.diag([3.0, 3, 3, 1])
    same, unchanged = coarsen(data, affine, 2.5)
    assert np.array_equal(same, data)
    assert np.array_equal(unchanged, affine)
