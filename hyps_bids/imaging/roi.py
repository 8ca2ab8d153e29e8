"""Boxes: the part of an image around a point, on its own grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hyps_bids.imaging.resample import extent, resample


def box_affine(center: Sequence[float], shape: Sequence[int], spacing: float = 1.0) -> np.ndarray:
    """Return the voxel-to-world transform of a world-aligned box.

    Parameters
    ----------
    center : sequence of float
        World coordinates of the box's center, mm.
    shape : sequence of int
        Voxels along each axis.
    spacing : float
        Voxel size, mm.

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
    """Find the voxels of one grid that a box on another grid touches.

    Parameters
    ----------
    shape, affine : sequence of int, numpy.ndarray
        Shape and voxel-to-world transform of the box.
    within, to : sequence of int, numpy.ndarray
        Shape and voxel-to-world transform of the grid to index.
    margin : int
        Voxels to add on each side.

    Returns
    -------
    tuple of slice
        Indices into the grid; possibly empty.
    """
    lowest, highest = extent(shape, np.linalg.inv(to) @ affine)
    low = np.maximum(np.floor(lowest).astype(int) - margin, 0)
    high = np.minimum(np.ceil(highest).astype(int) + margin + 1, within)
    x, y, z = (slice(int(a), int(max(a, b))) for a, b in zip(low, high, strict=True))
    return x, y, z


def bounding_box(mask: np.ndarray, margin: int | Sequence[int] = 0) -> tuple[slice, ...] | None:
    """Find the smallest box that holds a mask; None if the mask is empty.

    Parameters
    ----------
    mask : numpy.ndarray
        Boolean mask.
    margin : int or sequence of int
        Voxels to add on each side, along all axes or each of them, within the array.

    Examples
    --------
    >>> bounding_box(np.array([[0, 0, 0, 0], [0, 1, 0, 0]], bool), margin=(0, 1))
    (slice(1, 2, None), slice(0, 3, None))
    """
    box = []
    for axis, more in enumerate(np.broadcast_to(margin, mask.ndim)):
        others = tuple(k for k in range(mask.ndim) if k != axis)
        found = np.flatnonzero(mask.any(axis=others))
        if not found.size:
            return None
        box.append(slice(max(0, int(found[0] - more)), int(found[-1] + more) + 1))
    return tuple(box)


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
        Shape and voxel-to-world transform of the box.

    Returns
    -------
    values : numpy.ndarray
        Intensities in the box, float32; zero beyond the image.
    inside : numpy.ndarray
        Boolean mask of the box: True where the image has voxels.
    """
    region = index_range(shape, target, data.shape, affine, margin=3)
    if any(part.stop - part.start < 2 for part in region):
        return np.zeros(shape, np.float32), np.zeros(shape, bool)
    origin = shifted(affine, [part.start for part in region])
    spacing = float(np.abs(target[0, 0]))
    values = resample(data[region], origin, shape, target, smooth=spacing, oversampling=1)
    to_image = np.linalg.inv(affine) @ target
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    voxel = index @ to_image[:3, :3].T + to_image[:3, 3]
    inside = ((voxel >= 0) & (voxel <= np.array(data.shape) - 1)).all(axis=-1)
    return values, inside


def inside_box(shape: Sequence[int], box: Sequence[int]) -> np.ndarray:
    """Mark a box in the middle of a grid.

    Examples
    --------
    >>> int(inside_box((4, 4, 4), (2, 4, 4)).sum())
    32
    """
    out = np.zeros(shape, dtype=bool)
    out[middle(shape, box)] = True
    return out


def middle(shape: Sequence[int], box: Sequence[int]) -> tuple[slice, ...]:
    """Return where a box lies in the middle of a grid.

    Examples
    --------
    >>> middle((4, 5), (2, 5))
    (slice(1, 3, None), slice(0, 5, None))
    """
    starts = [(side - length) // 2 for side, length in zip(shape, box, strict=True)]
    return tuple(slice(a, a + length) for a, length in zip(starts, box, strict=True))


def mirror(data: np.ndarray) -> np.ndarray:
    """Swap left and right by flipping the x axis, the third from the end."""
    return np.ascontiguousarray(np.flip(data, axis=-3))
