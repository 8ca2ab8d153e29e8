"""Linear resampling between voxel grids, with smoothing where the target is coarser.

World coordinates are RAS, mm. Where the axes of two grids are parallel, as is common, each axis is
sampled on its own by a matrix product; otherwise, the eight neighbors of each voxel are looked up.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from nibabel.affines import voxel_sizes

#: Largest deviation of parallel axes, voxels; single precision resolves no less at 512 voxels.
_PARALLEL = 2.0**-15
#: Rows of a matrix that are multiplied at a time: as each has few weights, which are close to each
#: other, most of the matrix is zero and is left out.
_ROWS = 16


def extent(shape: Sequence[int], affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and the highest coordinates that the voxels of a grid touch.

    Parameters
    ----------
    shape : sequence of int
        Shape of the grid.
    affine : numpy.ndarray
        From its voxels to the coordinates.

    Examples
    --------
    >>> [end.tolist() for end in extent((2, 3, 4), np.eye(4))]
    [[-0.5, -0.5, -0.5], [1.5, 2.5, 3.5]]
    """
    corners = np.array(np.meshgrid(*[(-0.5, side - 0.5) for side in shape])).reshape(3, -1)
    points = affine[:3, :3] @ corners + affine[:3, 3:]
    return points.min(axis=1), points.max(axis=1)


def world_grid(
    shape: Sequence[int], affine: np.ndarray, spacing: float
) -> tuple[tuple[int, int, int], np.ndarray]:
    """Find the world-aligned grid that covers an image.

    Parameters
    ----------
    shape, affine : sequence of int, numpy.ndarray
        Shape of the image and its voxel-to-world transform.
    spacing : float
        Voxel size of the new grid, mm.

    Returns
    -------
    shape, affine : tuple of int, numpy.ndarray
        The new grid, with axes along right, anterior, superior.

    Examples
    --------
    >>> shape, affine = world_grid((10, 10, 20), np.diag([1.0, 1.0, 1.0, 1.0]), 2.0)
    >>> shape, affine[:3, 3].tolist()
    ((5, 5, 10), [0.5, 0.5, 0.5])
    """
    low, high = extent(shape, affine)
    count = np.maximum(1, np.round((high - low) / spacing).astype(int))
    grid = np.diag([spacing, spacing, spacing, 1.0])
    grid[:3, 3] = (low + high) / 2 - (count - 1) / 2 * spacing
    return (int(count[0]), int(count[1]), int(count[2])), grid


def covered(
    shape: Sequence[int], affine: np.ndarray, target_shape: Sequence[int], target: np.ndarray
) -> np.ndarray:
    """Mark the voxels of a grid that lie between the voxels of an image.

    Parameters
    ----------
    shape, affine : sequence of int, numpy.ndarray
        Shape of the image and its voxel-to-world transform.
    target_shape, target : sequence of int, numpy.ndarray
        Shape and voxel-to-world transform of the grid.

    Examples
    --------
    >>> covered((2, 2, 2), np.eye(4), (3, 1, 1), np.eye(4)).ravel().tolist()
    [True, True, False]
    """
    to_image = np.linalg.inv(affine) @ target
    x, y, z = (np.arange(side, dtype=np.float32) for side in target_shape)
    inside = np.ones(tuple(target_shape), bool)
    for row, side in zip(to_image, shape, strict=False):
        place = row[0] * x[:, None, None] + row[1] * y[:, None] + row[2] * z + row[3]
        inside &= (place >= 0) & (place <= side - 1)
    return inside


def coarsen(
    data: np.ndarray, affine: np.ndarray, spacing: float, oversampling: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """Smooth an image along its own axes to the resolution of a coarser grid.

    Each axis finer than ``spacing / oversampling`` is averaged with a triangular kernel whose full
    width at half maximum is `spacing`, and sampled at ``spacing / oversampling``. Other axes are
    left as they are.

    Parameters
    ----------
    data, affine : numpy.ndarray
        Image, shape ``(x, y, z)``, and its voxel-to-world transform.
    spacing : float
        Voxel size of the grid to be sampled next, mm.
    oversampling : int
        Samples per `spacing`.

    Returns
    -------
    data, affine : numpy.ndarray
        Smoothed image, float32, and its voxel-to-world transform.
    """
    layout = _memory_order(data)
    out = np.asarray(data, dtype=np.float32).transpose(layout)
    kernels, matrix = _kernels(out.shape, voxel_sizes(affine)[layout], spacing, oversampling)
    for axis, kernel in enumerate(kernels):
        out = out if kernel is None else _multiply(kernel, out, axis)
    back = np.argsort(layout)
    return out.transpose(back), affine @ matrix[np.ix_([*back, 3], [*back, 3])]


def resample(
    data: np.ndarray,
    affine: np.ndarray,
    shape: Sequence[int],
    target: np.ndarray,
    *,
    outside: float = 0.0,
    smooth: float | None = None,
    oversampling: int = 2,
) -> np.ndarray:
    """Sample an image linearly on another grid.

    Parameters
    ----------
    data, affine : numpy.ndarray
        Image, shape ``(x, y, z)`` or, unless it is smoothed, ``(channels, x, y, z)``, and its
        voxel-to-world transform.
    shape, target : sequence of int, numpy.ndarray
        Shape and voxel-to-world transform of the new grid.
    outside : float
        Value beyond the centers of the outermost voxels.
    smooth : float, optional
        Smooth the image to this voxel size first, mm, as :func:`coarsen` does.
    oversampling : int
        Samples per `smooth`.

    Returns
    -------
    numpy.ndarray
        Sampled image, float32, contiguous, with a leading channel axis if `data` had one.
    """
    # All is done in the order of axes in memory, as turning a whole image takes long.
    layout = _memory_order(data)
    turned = [*layout, 3]
    to_source = (np.linalg.inv(affine) @ target)[np.ix_(turned, turned)]
    sides = [shape[axis] for axis in layout]
    order = _parallel_axes(to_source[:3, :3], sides)
    if order is None and smooth is not None:
        smoothed, there = coarsen(data, affine, smooth, oversampling)
        return resample(smoothed, there, shape, target, outside=outside)
    volume = np.asarray(data, dtype=np.float32).reshape(-1, *data.shape[-3:])
    volume = volume.transpose(0, *(1 + layout))
    if order is None:
        out = _look_up(volume, to_source, sides, outside)
    else:
        spacing = 0.0 if smooth is None else smooth
        zooms = voxel_sizes(affine)[layout]
        kernels, matrix = _kernels(volume.shape[1:], zooms, spacing, oversampling)
        to_kernels = np.linalg.inv(matrix) @ to_source
        out = _sample_axes(volume, kernels, to_kernels, order, sides, outside)
    out = np.ascontiguousarray(out.transpose(0, *(1 + np.argsort(layout))))
    return out.reshape(*data.shape[:-3], *shape)


def _memory_order(data: np.ndarray) -> np.ndarray:
    """List the last three axes from the slowest to the fastest in memory."""
    return np.argsort([-abs(stride) for stride in data.strides[-3:]], kind="stable")


def _kernels(
    sides: Sequence[int], zooms: Sequence[float], spacing: float, oversampling: int
) -> tuple[list[np.ndarray | None], np.ndarray]:
    """Return the kernel of each axis, None if it stays, and the transform from smoothed voxels."""
    kernels: list[np.ndarray | None] = []
    matrix = np.eye(4)
    for axis, (side, zoom) in enumerate(zip(sides, zooms, strict=True)):
        step = spacing / oversampling / zoom
        if step <= 1:
            kernels.append(None)
            continue
        count = max(1, round(side / step))
        start = ((side - 1) - (count - 1) * step) / 2
        weights = _hat(start + step * np.arange(count), side, spacing / zoom)
        kernels.append(weights / weights.sum(axis=1, keepdims=True))
        matrix[axis, axis], matrix[axis, 3] = step, start
    return kernels, matrix


def _sample_axes(
    volume: np.ndarray,
    kernels: Sequence[np.ndarray | None],
    to_source: np.ndarray,
    order: np.ndarray,
    shape: Sequence[int],
    outside: float,
) -> np.ndarray:
    """Smooth and sample one axis after the other, on a grid whose axes are parallel to them."""
    out = volume.transpose(0, *(1 + order))
    inside = np.ones((1, 1, 1))
    for axis, source in enumerate(order):
        places = to_source[source, 3] + to_source[source, axis] * np.arange(shape[axis])
        kernel = kernels[source]
        side = volume.shape[1 + source] if kernel is None else len(kernel)
        weights = _hat(places, side)
        inside = inside * np.expand_dims(weights.sum(axis=1), [k for k in range(3) if k != axis])
        out = _multiply(weights if kernel is None else weights @ kernel, out, 1 + axis)
    if outside:
        out += (outside * (1 - inside)).astype(np.float32)
    return out


def _hat(places: np.ndarray, side: int, width: float = 1.0) -> np.ndarray:
    """Weigh the voxels of an axis by their distance from places: 1 there, 0 at `width` voxels."""
    distance = np.abs(np.arange(side) - places[:, None]) / width
    weights: np.ndarray = np.maximum(1 - distance, 0)
    return weights


def _multiply(weights: np.ndarray, data: np.ndarray, axis: int) -> np.ndarray:
    """Multiply a matrix whose weights are near its diagonal with one axis of an array."""
    before, side, after = data.shape[:axis], data.shape[axis], data.shape[axis + 1 :]
    # Products of the last axis with the transposed matrix need no copy of the array.
    columns = np.ascontiguousarray(data).reshape(math.prod(before), side, math.prod(after))
    out = np.empty((len(columns), len(weights), columns.shape[2]), np.float32)
    for start in range(0, len(weights), _ROWS):
        rows = weights[start : start + _ROWS].astype(np.float32)
        used = np.flatnonzero(rows.any(axis=0))
        low, high = (int(used[0]), int(used[-1]) + 1) if used.size else (0, 0)
        band = rows[:, low:high]
        part = out[:, start : start + _ROWS]
        if after:
            np.matmul(band, columns[:, low:high], out=part)
        else:
            np.matmul(columns[:, low:high, 0], band.T, out=part[..., 0])
    return out.reshape(*before, len(weights), *after)


def _parallel_axes(directions: np.ndarray, shape: Sequence[int]) -> np.ndarray | None:
    """Find the source axis that each target axis is parallel to; None if any is to none."""
    order: np.ndarray = np.abs(directions).argmax(axis=0)
    across = np.abs(directions)
    across[order, range(3)] = 0
    if len(set(order)) < 3 or (across @ np.asarray(shape)).max() > _PARALLEL:
        return None
    return order


def _look_up(
    volume: np.ndarray, to_source: np.ndarray, shape: Sequence[int], outside: float
) -> np.ndarray:
    """Interpolate between the eight neighbors of each voxel of a grid, plane by plane."""
    padded = np.pad(volume, ((0, 0), *[(1, 1)] * 3), constant_values=outside)
    sides = padded.shape[1:]
    strides = (sides[1] * sides[2], sides[2], 1)
    corners = [sum(steps) for steps in itertools.product(*[(0, stride) for stride in strides])]
    channels = [
        [values[corner:] for corner in corners] for values in padded.reshape(len(padded), -1)
    ]
    y, z = np.arange(shape[1])[:, None], np.arange(shape[2])
    # The voxel 0 has the index 1 in the padded array.
    plane = [(row[1] * y + row[2] * z + row[3] + 1).astype(np.float32) for row in to_source[:3]]
    out = np.empty((len(volume), *shape), np.float32)
    for x in range(shape[0]):
        first, fractions = np.zeros(plane[0].shape, np.int32), []
        for axis, side in enumerate(sides):
            place = np.clip(plane[axis] + float(to_source[axis, 0] * x), 0, side - 1)
            lower = np.minimum(place.astype(np.int32), side - 2)
            fractions.append(place - lower.astype(np.float32))
            first += lower * strides[axis]
        index = first.astype(np.intp)
        for channel, neighbors in enumerate(channels):
            near = [values.take(index, mode="clip") for values in neighbors]
            # From the last axis to the first, each fraction halves the number of neighbors.
            for fraction in reversed(fractions):
                near = [a + fraction * (b - a) for a, b in zip(near[::2], near[1::2], strict=True)]
            out[channel, x] = near[0]
    return out
