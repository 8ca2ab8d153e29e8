"""Tests of :mod:`hyps_bids.imaging.roi`."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyps_bids.imaging.roi import (
    box_affine,
    box_from_image,
    index_range,
    inside_box,
    mirror,
    shifted,
)

BOX = (20, 24, 16)


def grid(zooms: tuple[float, ...], angles: tuple[float, ...] = (0, 0, 0)) -> np.ndarray:
    matrix = nib.eulerangles.euler2mat(*angles) @ np.diag(zooms)
    # The middle of 60 voxels at the world's origin
    return nib.affines.from_matvec(matrix, -matrix @ np.full(3, 29.5))


def test_box_is_centered() -> None:
    box = box_affine((5, -3, 2), BOX, 0.5)
    middle = nib.affines.apply_affine(box, (np.array(BOX) - 1) / 2)
    np.testing.assert_allclose(middle, (5, -3, 2))
    np.testing.assert_allclose(box[:3, :3], np.eye(3) * 0.5)


@settings(max_examples=50, deadline=None)
@given(
    center=st.tuples(*[st.floats(-80, 80)] * 3),
    zooms=st.tuples(*[st.floats(0.4, 3)] * 3),
    angles=st.tuples(*[st.floats(-3, 3)] * 3),
)
def test_index_range_holds_every_voxel_in_the_box(
    center: tuple[float, ...], zooms: tuple[float, ...], angles: tuple[float, ...]
) -> None:
    affine, within = grid(zooms, angles), (60, 60, 60)
    box = box_affine(center, BOX)
    region = index_range(BOX, box, within, affine, margin=0)
    index = np.stack(np.meshgrid(*map(np.arange, within), indexing="ij"), axis=-1)
    inbox = nib.affines.apply_affine(np.linalg.inv(box) @ affine, index)
    touched = ((inbox >= -0.5) & (inbox <= np.array(BOX) - 0.5)).all(axis=-1)
    assert all(0 <= part.start <= part.stop <= 60 for part in region) or not touched.any()
    assert touched[region].sum() == touched.sum()


def test_shifted() -> None:
    affine = grid((1, 2, 3), (0.1, 0.2, 0.3))
    np.testing.assert_allclose(
        nib.affines.apply_affine(shifted(affine, (4, 5, 6)), (1, 1, 1)),
        nib.affines.apply_affine(affine, (5, 6, 7)),
    )


@pytest.mark.parametrize(
    ("zooms", "angles"),
    [
        ((1, 1, 1), (0, 0, 0)),
        ((0.5, 0.5, 0.5), (0.2, -0.3, 0.1)),
        ((2, 1, 3), (0.2, -0.3, 0.1)),
        ((0.2, 0.3, 0.4), (0.2, -0.3, 0.1)),
    ],
)
def test_box_holds_the_image_in_place(zooms: tuple[float, ...], angles: tuple[float, ...]) -> None:
    affine = grid(zooms, angles)
    index = np.stack(np.meshgrid(*[np.arange(60)] * 3, indexing="ij"), axis=-1)
    data = nib.affines.apply_affine(affine, index) @ np.array([1.0, -2, 0.5]) + 100
    # For fine voxels the whole image is smaller than the box
    box = box_affine((1.3, -0.7, 0.4), BOX)
    values, inside = box_from_image(data, affine, BOX, box)
    assert values.dtype == np.float32
    where = np.stack(np.meshgrid(*map(np.arange, BOX), indexing="ij"), axis=-1)
    world = nib.affines.apply_affine(box, where)
    voxel = nib.affines.apply_affine(np.linalg.inv(affine), world)
    # Mm from the outermost voxel centers
    depth = (np.minimum(voxel, 59 - voxel) * zooms).min(axis=-1)
    np.testing.assert_array_equal(inside, depth >= 0)
    deep = depth > 1.5
    assert deep.any()
    expected = world @ np.array([1.0, -2, 0.5]) + 100
    np.testing.assert_allclose(values[deep], expected[deep], atol=0.05)
    # Values fade to zero over one voxel of the coarser grid
    outside = depth < -1.1 * max(1, *zooms)
    assert not values[outside].any()


@pytest.mark.parametrize("far", [(500, 0, 0), (0, -500, 0), (0, 0, 500), (41, 0, 0)])
def test_box_outside_the_image_is_empty(far: tuple[float, ...]) -> None:
    data = np.ones((60, 60, 60), np.float32)
    values, inside = box_from_image(data, grid((1, 1, 1)), BOX, box_affine(far, BOX))
    assert values.shape == inside.shape == BOX
    assert not inside.any()


def test_box_that_sticks_out_says_so() -> None:
    data = np.ones((60, 60, 60), np.float32)
    values, inside = box_from_image(data, grid((1, 1, 1)), BOX, box_affine((30, 0, 0), BOX))
    assert 0.4 < inside.mean() < 0.6
    np.testing.assert_allclose(values[inside], 1, atol=1e-5)
    assert not values[~inside].any() or values[~inside].max() < 1


def test_inside_box_is_centered() -> None:
    mask = inside_box((10, 14, 9), (6, 8, 5))
    assert mask.sum() == 6 * 8 * 5
    assert np.array_equal(mask, mask[::-1, ::-1, ::-1])


def test_mirror_is_its_own_inverse_and_flips_x_only() -> None:
    data = np.random.default_rng(0).normal(size=(2, 4, 5, 6))
    assert np.array_equal(mirror(mirror(data)), data)
    assert np.array_equal(mirror(data), data[:, ::-1])
    assert np.array_equal(mirror(data[0]), data[0, ::-1])
    assert mirror(data).flags.c_contiguous
