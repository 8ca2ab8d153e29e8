"""Boxes: the part of an image around a point, on a grid of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hyps_bids.imaging.resample import coarsen, resample

__all__ = ["box_affine", "box_from_image", "index_range", "inside_box", "mirror", "shifted"]


def box_affine(center: Sequence[float], shape: Sequence[int], spacing: float = 1.0) -> np.ndarray:
    """Return the voxel-to-world transform of a world-aligned box.

    Parameters
    ----------
    center : sequence of float
        World coordinates of the box's center, mm.
    shape : sequence of int
        Voxels along each axis.
    spacing : float
        Voxel side, mm.

    Examples
    --------
    >>> box_affine((0, 0, 0), (3, 3, 3))[:3, 3].tolist()
    [-1.0, -1.0, -1.0]
    """
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = np.asarray(center, dtype=float) - (np.asarray(shape) - 1) / 2 * spacing
    return affine


def index_range(
    shape: Sequence[int], affine: np.ndarray, within: Sequence[int], to: np.ndarray, margin: int = 1
) -> tuple[slice, slice, slice]:
    """Find which voxels of one grid a box on another grid touches.

    Parameters
    ----------
    shape, affine : sequence of int, numpy.ndarray
        The box.
    within, to : sequence of int, numpy.ndarray
        Shape and transform of the grid to index.
    margin : int
        Voxels to add on each side.

    Returns
    -------
    tuple of slice
        Possibly empty, never beyond the grid.
    """
    corners = np.array(np.meshgrid(*[(-0.5, side - 0.5) for side in shape])).reshape(3, -1)
    matrix = np.linalg.inv(to) @ affine
    points = matrix[:3, :3] @ corners + matrix[:3, 3:]
    low = np.floor(points.min(axis=1)).astype(int) - margin
    high = np.ceil(points.max(axis=1)).astype(int) + margin + 1
    low, high = np.maximum(low, 0), np.minimum(high, within)
    x, y, z = (slice(int(a), int(max(a, b))) for a, b in zip(low, high, strict=True))
    return x, y, z


def shifted(affine: np.ndarray, start: Sequence[int]) -> np.ndarray:
    """Return the transform of a sub-grid that begins at the voxel `start`."""
    out = affine.copy()
    out[:3, 3] += affine[:3, :3] @ np.asarray(start, dtype=float)
    return out


def box_from_image(
    data: np.ndarray, affine: np.ndarray, shape: Sequence[int], target: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sample an image in a box; voxels finer than the box's are averaged.

    Parameters
    ----------
    data, affine : numpy.ndarray
        Image and its voxel-to-world transform.
    shape, target : sequence of int, numpy.ndarray
        The box.

    Returns
    -------
    values : numpy.ndarray
        float32, shape `shape`; zero beyond the image.
    inside : numpy.ndarray
        Boolean, True where the image has voxels.
    """
    region = index_range(shape, target, data.shape, affine, margin=3)
    if any(part.stop - part.start < 2 for part in region):
        return np.zeros(shape, np.float32), np.zeros(shape, bool)
    cut = data[region]
    cut_affine = shifted(affine, [part.start for part in region])
    cut, cut_affine = coarsen(cut, cut_affine, float(np.abs(target[0, 0])), oversampling=1)
    values = resample(cut, cut_affine, shape, target)
    to_image = np.linalg.inv(affine) @ target
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    voxel = index @ to_image[:3, :3].T + to_image[:3, 3]
    inside = ((voxel >= 0) & (voxel <= np.array(data.shape) - 1)).all(axis=-1)
    return values, inside


def inside_box(shape: Sequence[int], box: Sequence[int]) -> np.ndarray:
    """Mark a centerd box within a grid.

    Examples
    --------
    >>> int(inside_box((4, 4, 4), (2, 4, 4)).sum())
    32
    """
    out = np.zeros(shape, dtype=bool)
    out[tuple(slice((s - b) // 2, (s - b) // 2 + b) for s, b in zip(shape, box, strict=True))] = (
        True
    )
    return out


def mirror(data: np.ndarray) -> np.ndarray:
    """Swap left and right: flip the x axis, third from the end."""
    return np.ascontiguousarray(np.flip(data, axis=-3))
