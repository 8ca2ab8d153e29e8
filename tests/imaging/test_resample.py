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


def test_same_as_scipy() -> None:
    rng = np.random.default_rng(0)
    data = rng.normal(size=(20, 33, 17)).astype(np.float32)
    source, target = oblique((1, 1.2, 0.8), (0.1, 0.2, -0.1)), oblique((0.7, 0.9, 1.1), (0, 0.3, 0))
    shape = (35, 18, 21)
    to_source = np.linalg.inv(source) @ target
    expected = ndimage.affine_transform(
        data, to_source[:3, :3], to_source[:3, 3], shape, order=1, mode="grid-constant", cval=2.0
    )
    got = resample(data, source, shape, target, outside=2.0)
    np.testing.assert_allclose(got, expected, atol=2e-4)
    stack = np.stack((data, -data))
    both = resample(stack, source, shape, target)
    assert both.shape == (2, *shape)
    np.testing.assert_allclose(both[0], -both[1], atol=1e-6)


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


def test_coarse_images_are_left_alone() -> None:
    data = np.random.default_rng(0).normal(size=(9, 8, 7)).astype(np.float32)
    affine = np.diag([3.0, 3, 3, 1])
    same, unchanged = coarsen(data, affine, 2.5)
    assert np.array_equal(same, data)
    assert np.array_equal(unchanged, affine)
