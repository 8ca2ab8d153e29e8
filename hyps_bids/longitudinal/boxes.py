"""The same box in all scans of one person, and what they have in common there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from hyps_bids.imaging.agreement import dice
from hyps_bids.imaging.conform import ConformedImage
from hyps_bids.imaging.resample import coarsen, covered
from hyps_bids.imaging.roi import index_range, shifted
from hyps_bids.imaging.volumes import SOFT_MARGIN, decide, largest_component, within
from hyps_bids.longitudinal.deformation import carry, expansion, inverse

#: Standard deviation of a Gaussian whose full width at half maximum is 1.
_SD = 0.4247
#: Smallest Dice of what the network found in a scan and what all scans together say.
_ALIKE = 0.85


def sample_box(
    image: ConformedImage, move: np.ndarray, shape: Sequence[int], box: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sample a scan once, from its own grid, in a box of the midway world.

    Cubic splines blur less than linear interpolation, whose blur depends on where the voxels lie.

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
    inside = covered(image.data.shape, image.affine, shape, grid)
    region = index_range(shape, grid, image.data.shape, image.affine, margin=8)
    if any(part.stop - part.start < 2 for part in region):
        return np.zeros(shape, np.float32), np.zeros(shape, bool)
    origin = shifted(image.affine, [part.start for part in region])
    data, origin = coarsen(image.data[region], origin, float(box[0, 0]))
    to_image = np.linalg.inv(origin) @ grid
    values = ndimage.affine_transform(
        data, to_image[:3, :3], to_image[:3, 3], output_shape=tuple(shape), order=3, mode="nearest"
    )
    # Splines overshoot beside edges; intensities below those of the image would shift its scale.
    return np.clip(values, data.min(), data.max()) * inside, inside


def blur_alike(
    images: np.ndarray, scans: Sequence[ConformedImage], moves: Sequence[np.ndarray]
) -> np.ndarray:
    """Smooth scans with finer voxels as those with coarser voxels are, along each axis of the box.

    Parameters
    ----------
    images : numpy.ndarray
        Intensities in a box of 1 mm voxels, shape ``(scans, x, y, z)``.
    scans, moves : sequence of ConformedImage, sequence of numpy.ndarray
        Where they come from, and the transforms from the midway world.
    """
    sizes = []
    for scan, move in zip(scans, moves, strict=True):
        directions = np.linalg.inv(move)[:3, :3] @ scan.affine[:3, :3]
        sizes.append(np.sqrt((directions**2).sum(axis=1)))
    missing = np.sqrt(np.maximum(np.max(sizes, axis=0) ** 2 - np.square(sizes), 0))
    # Differences of a few hundredths of a millimeter are those of rotations.
    sigmas = np.where(missing > 0.5, _SD * missing, 0)
    return np.stack(
        [
            ndimage.gaussian_filter(image, sigma) if sigma.any() else image
            for image, sigma in zip(images, sigmas, strict=True)
        ]
    )


class Fused(NamedTuple):
    """What all scans together say about a structure.

    Attributes
    ----------
    mean : numpy.ndarray
        Probabilities of the classes in the mean shape, shape ``(classes, x, y, z)``.
    probabilities : numpy.ndarray
        The same, carried back to the shape of each scan, shape ``(scans, classes, x, y, z)``.
    volumes : numpy.ndarray
        mm³ of each part and of the whole, shape ``(scans, parts + 1)``.
    agreement : numpy.ndarray
        Dice of what the network found in each scan and what all scans say, shape ``(scans,)``.
    together : bool
        Whether the scans agree; otherwise, each has its own probabilities and volumes.
    """

    mean: np.ndarray
    probabilities: np.ndarray
    volumes: np.ndarray
    agreement: np.ndarray
    together: bool


def fuse(own: np.ndarray, displacements: np.ndarray) -> Fused:
    """Let the probabilities of all scans inform each other along the deformations between them.

    The mean of what the network found in all scans, in the mean shape, is carried to each scan.
    Without change, all scans get the same; real change is in the deformation. Volumes change as
    the deformation says, by the determinant of its Jacobian. The network alone, with its sense of
    usual shapes, finds 0.7 of simulated atrophy, and three times as much change where there is
    none. Where the deformation does not explain what the network found (a resection, for example),
    each scan keeps its own.

    Parameters
    ----------
    own : numpy.ndarray
        Probabilities of the classes, background first, shape ``(scans, classes, x, y, z)``.
    displacements : numpy.ndarray
        From the mean shape to each scan, voxels, shape ``(scans, 3, x, y, z)``.
    """
    mean = np.mean([carry(p, u) for p, u in zip(own, displacements, strict=True)], axis=0)
    fused = np.stack([carry(mean, inverse(u)) for u in displacements])
    agreement = np.array([dice(mask_of(a), mask_of(b)) for a, b in zip(own, fused, strict=True)])
    if agreement.min() < _ALIKE:
        volumes = np.stack([soft_volumes(p, mask_of(p)) for p in own])
        return Fused(own.mean(axis=0), own, volumes, agreement, False)
    mask = mask_of(mean)
    volumes = np.stack([soft_volumes(mean * expansion(u), mask) for u in displacements])
    return Fused(mean, fused, volumes, agreement, True)


def mask_of(probabilities: np.ndarray) -> np.ndarray:
    """Mark the largest component of what is labeled; classes with the background first."""
    return largest_component(decide(probabilities[1:]) > 0)[0]


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
