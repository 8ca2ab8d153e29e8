"""The same box in all scans of one person, with intensities that are matched to each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hyps_bids.imaging.conform import ConformedImage
from hyps_bids.imaging.resample import resample
from hyps_bids.imaging.roi import index_range, shifted
from hyps_bids.imaging.volumes import SOFT_MARGIN, within
from hyps_bids.longitudinal.alignment import covered_by
from hyps_bids.longitudinal.boundary_shift import estimate_tissues


def sample_box(
    image: ConformedImage, move: np.ndarray, shape: Sequence[int], box: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sample a scan once, from its own grid, in a box of the midway world.

    Parameters
    ----------
    image : ConformedImage
        The scan.
    move : numpy.ndarray
        From the midway world to the world of the scan.
    shape, box : sequence of int, numpy.ndarray
        Shape and voxel-to-world transform of the box in the midway world.

    Returns
    -------
    values : numpy.ndarray
        Intensities, float32; zero beyond the image.
    inside : numpy.ndarray
        Boolean mask: True where the scan has voxels.
    """
    grid = move @ box
    inside = covered_by(image, shape, grid)
    region = index_range(shape, grid, image.data.shape, image.affine, margin=3)
    if any(part.stop - part.start < 2 for part in region):
        return np.zeros(shape, np.float32), np.zeros(shape, bool)
    origin = shifted(image.affine, [part.start for part in region])
    spacing = float(box[0, 0])
    values = resample(image.data[region], origin, shape, grid, smooth=spacing, oversampling=1)
    return values, inside


def match(images: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """Bring the tissues of all scans to the same intensities, in a box.

    Parameters
    ----------
    images, covered : numpy.ndarray
        Intensities, and masks of where the scans have voxels, shape ``(scans, x, y, z)``.

    Returns
    -------
    numpy.ndarray
        Intensities on a common scale, float32.
    """
    both = covered.all(axis=0)
    if both.sum() < 1000:
        return images
    means = np.array([estimate_tissues(image[both]).means for image in images])
    wanted = means.mean(axis=0)
    return np.stack(
        [_interpolate(image, own, wanted) for image, own in zip(images, means, strict=True)]
    )


def _interpolate(image: np.ndarray, own: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Map three levels to three others, linearly between and beyond them."""
    first = (wanted[1] - wanted[0]) / (own[1] - own[0])
    last = (wanted[2] - wanted[1]) / (own[2] - own[1])
    slope = np.where(image < own[1], first, last)
    mapped: np.ndarray = wanted[1] + slope * (image - own[1])
    return mapped.astype(np.float32)


def soft_volumes(probabilities: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Sum the probabilities of each part near the segmentation, in a box with voxels of 1 mm³.

    Parameters
    ----------
    probabilities : numpy.ndarray
        Classes, background first, shape ``(classes, x, y, z)``.
    mask : numpy.ndarray
        Boolean mask of the structure.

    Returns
    -------
    numpy.ndarray
        mm³ of each part and of the whole.
    """
    near = within(mask, SOFT_MARGIN, (1.0, 1.0, 1.0))
    parts = probabilities[1:, near].sum(axis=1, dtype=np.float64)
    return np.append(parts, parts.sum())
