"""The images of a series: scans as they are read, and labels as they are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine

from hyps_bids.imaging.conform import ConformedImage, canonical_view
from hyps_bids.imaging.resample import resample
from hyps_bids.imaging.roi import bounding_box, shifted
from hyps_bids.imaging.volumes import decide, largest_component, restore
from hyps_bids.longitudinal.pipeline import Followed, FollowedSide, TimePoint
from hyps_bids.outputs.compression import open_compressed
from hyps_bids.outputs.labels import HEMISPHERES
from hyps_bids.outputs.series_files import TimePointImages
from hyps_bids.segmentation.pipeline import Grid, label_image

#: Mm around the intracranial space, and from the middle of a hippocampus, that are kept of a scan.
_AROUND, _NEAR = 12.0, 45.0


def time_point(
    image: ConformedImage, mask: np.ndarray, centers: Mapping[str, Sequence[float]]
) -> TimePoint:
    """Keep of a scan what its series needs, so that twenty scans fit into the memory.

    Parameters
    ----------
    image : ConformedImage
        The scan, with the bias field corrected if the run does so.
    mask : numpy.ndarray
        Its intracranial mask, in the axis order of its file.
    centers : mapping of str to sequence of float
        Hemisphere → center of the box that the network saw, world mm.
    """
    inside = canonical_view(mask, image.orientation)
    # Copies, as views would keep the whole images.
    region = _region(inside, image, centers)
    affine = shifted(image.affine, [part.start for part in region])
    kept = replace(image, data=np.array(image.data[region], order="K"), affine=affine)
    return TimePoint(kept, np.array(inside[region], order="K"), affine, centers)


def _region(
    inside: np.ndarray, image: ConformedImage, centers: Mapping[str, Sequence[float]]
) -> tuple[slice, ...]:
    """Find the part of a scan that holds the head's inside and both hippocampi."""
    to_voxels = np.linalg.inv(image.affine)
    steps = np.linalg.norm(to_voxels[:3, :3], axis=1)
    low, high = np.full(3, np.inf), np.full(3, -np.inf)
    box = bounding_box(inside > 0)
    if box is not None:
        low = np.array([part.start for part in box]) - _AROUND * steps
        high = np.array([part.stop for part in box]) + _AROUND * steps
    for center in centers.values():
        place = apply_affine(to_voxels, np.asarray(center, float))
        low, high = np.minimum(low, place - _NEAR * steps), np.maximum(high, place + _NEAR * steps)
    if not np.isfinite(low).all():
        return tuple(slice(0, side) for side in inside.shape)
    shape = np.array(inside.shape)
    start = np.clip(np.floor(low), 0, shape - 2).astype(int)
    stop = np.maximum(np.clip(np.ceil(high), 0, shape).astype(int), start + 2)
    return tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))


def read_mask(path: Path) -> np.ndarray:
    """Read the voxels of a mask of ours, in the axis order of its file.

    Raises
    ------
    OSError, EOFError, ValueError
        If it cannot be read.
    """
    with open_compressed(path) as stream:
        return np.asarray(nib.Nifti1Image.from_stream(stream).dataobj, dtype=np.uint8)


def midway_grid(followed: Followed) -> Grid:
    """Return the grid that the images of a series share: it holds the boxes of both sides."""
    boxes = list(followed.sides.values())
    affine = boxes[0].affine.copy()
    corners = [_offset(side.affine, affine) for side in boxes]
    low = np.min(corners, axis=0)
    sides = [corner + np.array(_shape(side)) for corner, side in zip(corners, boxes, strict=True)]
    affine = shifted(affine, low.tolist())
    return tuple(int(n) for n in np.max(sides, axis=0) - low), affine


def _offset(box: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Return the nearest voxel of a grid to the first voxel of a box with voxels of its size."""
    return np.round(np.linalg.inv(grid) @ box[:, 3])[:3].astype(int)


def _shape(side: FollowedSide) -> tuple[int, ...]:
    return next(each.shape[1:] for each in side.probabilities if each is not None)


def time_point_images(
    index: int, followed: Followed, image: ConformedImage, shape: Sequence[int], grid: Grid
) -> TimePointImages:
    """Make the images of one scan.

    Parameters
    ----------
    index : int
        Its position in the series.
    followed : Followed
        What was found.
    image : ConformedImage
        Its geometry; its voxels are not used.
    shape : sequence of int
        Canonical shape of the whole scan.
    grid : (shape, affine)
        From :func:`midway_grid`.
    """
    move = followed.to_midway[index]
    assert move is not None
    back = np.linalg.inv(move)
    restored = {
        hemi: restore(found, back @ side.affine, shape, image.affine)
        for hemi, side in followed.sides.items()
        if (found := side.probabilities[index]) is not None
    }
    labels = label_image(image, restored, len(followed.parts))
    there, values = _in_midway(index, followed, grid)
    return TimePointImages(labels, there, values, move)


def _in_midway(index: int, followed: Followed, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Put the labels and the intensities of one scan on the grid of the midway space."""
    size, affine = grid
    labels = np.zeros(tuple(size), np.uint8, order="F")
    image = np.zeros(tuple(size), np.float32, order="F")
    for hemi, side in followed.sides.items():
        found, values = side.probabilities[index], side.images[index]
        if found is None or values is None:
            continue
        start = _offset(side.affine, affine)
        region = tuple(slice(a, a + n) for a, n in zip(start, _shape(side), strict=True))
        box = shifted(affine, start.tolist())
        if not np.allclose(box, side.affine, atol=1e-3):
            found, values = (
                resample(each, side.affine, _shape(side), box) for each in (found, values)
            )
        own = decide(found[1:])
        kept, _ = largest_component(own > 0)
        labels[region][kept] = own[kept] + HEMISPHERES.index(hemi) * len(followed.parts)
        image[region] = values
    return labels, image
