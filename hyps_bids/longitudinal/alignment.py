"""Rigid alignment of the scans of one person to a space midway between them.

All time points are moved at once towards the mean of the others, and the mean of their movements is
kept at zero, so that none of them is the reference. What is compared are images whose intensities
were standardized locally: bias fields, gamma and the scale of intensities then hardly matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from nibabel.affines import apply_affine
from scipy import ndimage
from scipy.spatial.transform import Rotation

from hyps_bids.imaging.conform import ConformedImage
from hyps_bids.imaging.registration import rigid_between
from hyps_bids.imaging.resample import covered, extent, resample, world_grid
from hyps_bids.imaging.roi import bounding_box, index_range, shifted

#: Standard deviation of the window in which intensities are standardized, voxels.
_WINDOW = 3.0
#: Smallest standard deviation in a window, as a share of the usual one; less is noise.
_FLAT = 0.3
#: Tukey's constant: residuals beyond this many robust standard deviations count nothing.
_TUKEY = 4.685
#: Movements that end an iteration: mm at the edge of the brain.
_STILL = 0.003
_BRAIN_RADIUS = 70.0


@dataclass(frozen=True)
class Structure:
    """The local structure of one scan at one scale, on a world-aligned grid.

    Attributes
    ----------
    channels : numpy.ndarray
        Locally standardized intensities, and how much each voxel counts (0 to 1), float32, shape
        ``(2, x, y, z)``.
    affine : numpy.ndarray
        Voxel-to-world transform, shape (4, 4).
    """

    channels: np.ndarray
    affine: np.ndarray


def structure(
    image: ConformedImage, mask: np.ndarray, mask_affine: np.ndarray, spacing: float
) -> Structure:
    """Standardize the intensities inside the skull locally.

    Parameters
    ----------
    image : ConformedImage
        The scan.
    mask, mask_affine : numpy.ndarray
        Probability of being inside the skull, and its voxel-to-world transform.
    spacing : float
        Voxel size of the scale, mm; finer voxels are averaged.
    """
    region = bounding_box(mask > 0.5, margin=1)
    assert region is not None
    there = shifted(mask_affine, [part.start for part in region])
    shape, grid = world_grid(mask[region].shape, there, spacing)
    part = index_range(shape, grid, image.data.shape, image.affine, margin=4)
    origin = shifted(image.affine, [piece.start for piece in part])
    data = resample(image.data[part], origin, shape, grid, smooth=spacing)
    inside = resample(mask, mask_affine, shape, grid) > 0.5
    counts = (inside & covered(image.data.shape, image.affine, shape, grid)).astype(np.float32)
    weight = ndimage.gaussian_filter(counts, _WINDOW, truncate=3)
    level = np.maximum(weight, 1e-3)
    residual = data - ndimage.gaussian_filter(data * counts, _WINDOW, truncate=3) / level
    square = ndimage.gaussian_filter(residual**2 * counts, _WINDOW, truncate=3) / level
    sd = np.sqrt(square)
    known = counts > 0
    usual = float(np.median(sd[known])) if known.any() else 0.0
    least = max(_FLAT * usual, float(np.finfo(np.float32).tiny))
    values = np.clip(residual / np.maximum(sd, least), -3, 3) * counts
    return Structure(np.stack([values, counts]).astype(np.float32), grid)


def first_guess(
    masks: Sequence[tuple[np.ndarray, np.ndarray]],
    centers: Sequence[Mapping[str, Sequence[float]]],
) -> list[np.ndarray]:
    """Align scans roughly by the middle of the intracranial space and both hippocampi.

    Parameters
    ----------
    masks : sequence of (numpy.ndarray, numpy.ndarray)
        Intracranial probability of each scan, and its voxel-to-world transform.
    centers : sequence of mapping
        Hemisphere → middle of the hippocampus, world mm.

    Returns
    -------
    list of numpy.ndarray
        For each scan, from the midway world to its world, shape (4, 4).
    """
    middles = [
        apply_affine(affine, np.array(ndimage.center_of_mass(mask))) for mask, affine in masks
    ]
    sides = [hemi for hemi in ("L", "R") if all(hemi in own for own in centers)]
    places = [
        np.array([middle, *(own[hemi] for hemi in sides)], float)
        for middle, own in zip(middles, centers, strict=True)
    ]
    moves = [rigid_between(places[0], own) for own in places]
    return centered(moves, places[0].mean(axis=0))


def centered(moves: Sequence[np.ndarray], center: np.ndarray) -> list[np.ndarray]:
    """Change the common space so that the mean rotation of all scans is none.

    Parameters
    ----------
    moves : sequence of numpy.ndarray
        From the common space to the world of each scan, rigid.
    center : numpy.ndarray
        Middle of the brain in the common space; afterwards, it is the mean of its places in the
        worlds of all scans.

    Examples
    --------
    >>> step = np.eye(4)
    >>> step[0, 3] = 2.0
    >>> [float(move[0, 3]) for move in centered([np.eye(4), step], np.zeros(3))]
    [-1.0, 1.0]
    """
    mean = Rotation.from_matrix([move[:3, :3] for move in moves]).mean().as_matrix()
    middle = np.mean([move[:3, :3] @ center + move[:3, 3] for move in moves], axis=0)
    back = np.eye(4)
    back[:3, :3] = mean.T
    back[:3, 3] = center - mean.T @ middle
    return [move @ back for move in moves]


def refine(
    structures: Sequence[Structure],
    moves: Sequence[np.ndarray],
    spacing: float,
    iterations: int = 20,
) -> list[np.ndarray]:
    """Align scans at one scale by Gauss-Newton steps towards the mean of the others.

    Parameters
    ----------
    structures : sequence of Structure
        Two or more scans at this scale.
    moves : sequence of numpy.ndarray
        From the midway world to the world of each scan, roughly.
    spacing : float
        Voxel size of the grid of comparison, mm.
    iterations : int
        Most steps.

    Returns
    -------
    list of numpy.ndarray
        The improved transforms; their mean rotation and shift are none.
    """
    moves = list(moves)
    for _ in range(iterations):
        shape, grid = common_grid(structures, moves, spacing)
        center = apply_affine(grid, (np.array(shape) - 1) / 2)
        sampled = sample_all(structures, moves, shape, grid)
        steps = _steps(sampled, grid, center)
        moves = centered([move @ step for move, step in zip(moves, steps, strict=True)], center)
        if max(_travel(step, center) for step in steps) < _STILL:
            break
    return moves


def common_grid(
    structures: Sequence[Structure], moves: Sequence[np.ndarray], spacing: float
) -> tuple[tuple[int, int, int], np.ndarray]:
    """Find a grid in the midway world that covers all scans, about: the mean of their extents."""
    ends = [
        extent(each.channels.shape[1:], np.linalg.inv(move) @ each.affine)
        for each, move in zip(structures, moves, strict=True)
    ]
    low, high = np.mean(ends, axis=0)
    count = np.maximum(8, np.ceil((high - low) / spacing)).astype(int)
    grid = np.diag([spacing, spacing, spacing, 1.0])
    grid[:3, 3] = (low + high) / 2 - (count - 1) / 2 * spacing
    return (int(count[0]), int(count[1]), int(count[2])), grid


def sample_all(
    structures: Sequence[Structure],
    moves: Sequence[np.ndarray],
    shape: Sequence[int],
    grid: np.ndarray,
) -> np.ndarray:
    """Sample all scans on a grid of the midway world, shape ``(scans, 2, *shape)``."""
    return np.stack(
        [
            resample(each.channels, each.affine, shape, move @ grid)
            for each, move in zip(structures, moves, strict=True)
        ]
    )


def _steps(sampled: np.ndarray, grid: np.ndarray, center: np.ndarray) -> list[np.ndarray]:
    """Compute for each scan the rigid step that brings it closer to the mean of the others."""
    count = len(sampled)
    values, weights = sampled[:, 0], sampled[:, 1]
    total, weight = values.sum(axis=0), weights.sum(axis=0)
    spacing = grid[0, 0]
    steps = []
    for own, counts in zip(values, weights, strict=True):
        others = weight - counts
        mean = (total - own) / np.maximum(others, 1e-3)
        slopes = [slope / spacing for slope in np.gradient((own + mean) / 2)]
        both = np.minimum(counts, others / (count - 1))
        used = np.nonzero(both > 0.9)
        y = apply_affine(grid, np.stack(used, axis=1)) - center
        g = np.stack([slope[used] for slope in slopes], axis=1)
        design = np.concatenate([np.cross(y, g), g], axis=1)
        residual = (mean - own)[used]
        trust = _tukey(residual)
        normal = (design * trust[:, None]).T @ design
        answer = np.linalg.solve(
            normal + 1e-6 * np.diag(np.diag(normal)), design.T @ (trust * residual)
        )
        # All scans move, so that each goes only its share of the way.
        steps.append(_rigid(answer * (count - 1) / count, center))
    return steps


def _tukey(residual: np.ndarray) -> np.ndarray:
    """Weigh residuals so that outliers, such as real change, do not count."""
    scale = max(1.4826 * float(np.median(np.abs(residual))), 1e-6)
    inside: np.ndarray = np.maximum(1 - (residual / (_TUKEY * scale)) ** 2, 0)
    return inside**2


def _rigid(parameters: np.ndarray, center: np.ndarray) -> np.ndarray:
    """Return the transform of a rotation vector about `center` and a shift."""
    move = np.eye(4)
    move[:3, :3] = Rotation.from_rotvec(parameters[:3]).as_matrix()
    move[:3, 3] = center - move[:3, :3] @ center + parameters[3:]
    return move


def _travel(step: np.ndarray, center: np.ndarray) -> float:
    """Return about how far a rigid step moves the edge of the brain, mm."""
    angle = Rotation.from_matrix(step[:3, :3]).magnitude()
    shift = step[:3, :3] @ center + step[:3, 3] - center
    return float(np.linalg.norm(shift) + angle * _BRAIN_RADIUS)
