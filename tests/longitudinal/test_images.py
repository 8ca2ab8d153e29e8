"""What is kept of scans, and where labels lie in their own and in the midway space."""

from __future__ import annotations

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine
from scipy.spatial.transform import Rotation

from hyps_bids.imaging.conform import ConformedImage, canonical_view
from hyps_bids.longitudinal.images import midway_grid, time_point, time_point_images
from hyps_bids.longitudinal.pipeline import Followed, FollowedSide


def conformed(shape: tuple[int, int, int], axes: str = "RAS") -> ConformedImage:
    """An image whose file has these axes; each voxel has a value of its own."""
    orientation = nib.orientations.axcodes2ornt(axes)
    data = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[:3, 3] = -60, -70, -80
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), orientation)
    native = nib.apply_orientation(data, turn).shape
    return ConformedImage(data, affine, native, orientation)


def test_of_a_scan_only_what_its_series_needs_is_kept() -> None:
    image = conformed((120, 140, 90), "PIR")
    mask = np.zeros(image.native_shape, np.uint8)
    canonical_view(mask, image.orientation)[50:60, 60:80, 40:50] = 1
    centers = {"L": (-25.0, 0.0, 0.0)}
    point = time_point(image, mask, centers)
    assert point.image.data.base is None
    assert point.image.data.size < image.data.size / 2
    start = np.round(apply_affine(np.linalg.inv(image.affine), point.image.affine[:3, 3])).astype(
        int
    )
    region = tuple(slice(a, a + n) for a, n in zip(start, point.image.data.shape, strict=True))
    np.testing.assert_array_equal(point.image.data, image.data[region])
    np.testing.assert_array_equal(point.intracranial_affine, point.image.affine)
    assert point.intracranial.sum() == mask.sum()
    low = point.image.affine[:3, 3]
    assert (low <= np.maximum(np.array(centers["L"]) - 44, image.affine[:3, 3])).all()
    # Without a brain, nothing is known.
    nothing = time_point(image, np.zeros_like(mask), {})
    assert nothing.image.data.shape == image.data.shape


def block(center: np.ndarray, affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Probabilities of two parts: a block of 8 × 12 × 8 mm, divided along y."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    offset = apply_affine(affine, index) - center
    inside = (np.abs(offset) <= [4, 6, 4]).all(axis=-1)
    front = inside & (offset[..., 1] > 0)
    return np.stack([~inside, front, inside & ~front]).astype(np.float32)


def test_labels_lie_at_the_same_place_of_the_head_in_both_spaces() -> None:
    move = np.eye(4)
    move[:3, :3] = Rotation.from_euler("xyz", [12, -8, 15], degrees=True).as_matrix()
    move[:3, 3] = 3, 4, -5
    shape = (43, 59, 43)
    sides, centers = {}, {"L": np.array([-27.0, -20, -15]), "R": np.array([27.0, -21, -14])}
    for hemi, center in centers.items():
        box = np.eye(4)
        box[:3, 3] = center - (21, 29, 21)
        found = block(center, box, shape)
        sides[hemi] = FollowedSide(
            affine=box,
            probabilities=(found, None),
            volumes=np.full((2, 3), 1.0),
            boundary_shift=np.full((2, 3), 0.0),
            images=(np.full(shape, 5, np.float32), None),
            agreement=(0.95, 0.95),
            unlike=(False, False),
        )
    followed = Followed((move, np.eye(4)), (None, None), ({}, {}), sides, ("front", "back"))
    image = conformed((120, 140, 90), "PIR")
    grid = midway_grid(followed)
    images = time_point_images(0, followed, image, image.data.shape, grid)
    assert images.labels.shape == image.native_shape
    assert images.midway_labels.shape == images.midway_image.shape == tuple(grid[0])
    own = canonical_view(images.labels, image.orientation)
    for hemi, first in (("L", 1), ("R", 3)):
        places = np.argwhere((own == first) | (own == first + 1))
        middle = apply_affine(image.affine, places).mean(axis=0)
        np.testing.assert_allclose(apply_affine(move, middle), centers[hemi], atol=0.6)
        # Voxels of the scan have 2 mm³.
        assert 2 * len(places) == np.clip(2 * len(places), 0.85 * 9 * 13 * 9, 1.15 * 9 * 13 * 9)
        there = np.argwhere((images.midway_labels == first) | (images.midway_labels == first + 1))
        assert len(there) == 9 * 13 * 9
        np.testing.assert_allclose(apply_affine(grid[1], there).mean(axis=0), centers[hemi])
        front = apply_affine(grid[1], np.argwhere(images.midway_labels == first)).mean(axis=0)
        assert front[1] > centers[hemi][1] + 2
    assert set(np.unique(images.midway_image)) == {0, 5}
    gone = time_point_images(1, followed, image, image.data.shape, grid)
    assert not gone.labels.any()
    assert not gone.midway_labels.any()
