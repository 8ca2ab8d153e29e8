"""Linear resampling between voxel grids, with smoothing where the target is coarser.

World coordinates are RAS, mm. Images are sampled by torch's trilinear kernel, which is several
times faster than a spline of order one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

__all__ = ["coarsen", "resample", "world_grid"]

_SLAB = 16


def world_grid(
    shape: Sequence[int], affine: np.ndarray, spacing: float
) -> tuple[tuple[int, int, int], np.ndarray]:
    """Find the world-aligned grid that covers an image.

    Parameters
    ----------
    shape : sequence of int
        Shape of the image.
    affine : numpy.ndarray
        Its voxel-to-world transform.
    spacing : float
        Voxel side of the new grid, mm.

    Returns
    -------
    shape : tuple of int
        Shape of the new grid.
    affine : numpy.ndarray
        Its voxel-to-world transform, axes along right, anterior, superior.

    Examples
    --------
    >>> shape, affine = world_grid((10, 10, 20), np.diag([1.0, 1.0, 1.0, 1.0]), 2.0)
    >>> shape, affine[:3, 3].tolist()
    ((5, 5, 10), [0.5, 0.5, 0.5])
    """
    corners = np.array(np.meshgrid(*[(-0.5, side - 0.5) for side in shape])).reshape(3, -1)
    world = affine[:3, :3] @ corners + affine[:3, 3:]
    low, high = world.min(axis=1), world.max(axis=1)
    count = np.maximum(1, np.round((high - low) / spacing).astype(int))
    grid = np.diag([spacing, spacing, spacing, 1.0])
    grid[:3, 3] = (low + high) / 2 - (count - 1) / 2 * spacing
    return (int(count[0]), int(count[1]), int(count[2])), grid


def coarsen(
    data: np.ndarray, affine: np.ndarray, spacing: float, oversampling: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """Smooth along the image's own axes to the resolution of a coarser grid.

    Each axis finer than ``spacing / oversampling`` is averaged with a triangular kernel of the
    full width `spacing` at half maximum and sampled at ``spacing / oversampling``; others are kept.

    Parameters
    ----------
    data : numpy.ndarray
        Image, shape ``(x, y, z)``.
    affine : numpy.ndarray
        Voxel-to-world transform.
    spacing : float
        Voxel side of the grid to be sampled next, mm.
    oversampling : int
        Samples per `spacing`.

    Returns
    -------
    data : numpy.ndarray
        Smoothed image, float32.
    affine : numpy.ndarray
        Its voxel-to-world transform.
    """
    zooms = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    out = torch.from_numpy(np.ascontiguousarray(data, dtype=np.float32))
    matrix = np.eye(4)
    for axis, (side, zoom) in enumerate(zip(data.shape, zooms, strict=True)):
        step = spacing / oversampling / zoom
        if step <= 1:
            continue
        count = max(1, round(side / step))
        start = ((side - 1) - (count - 1) * step) / 2
        centers = start + step * torch.arange(count, dtype=torch.float32)
        distance = (torch.arange(side)[None] - centers[:, None]).abs() / (spacing / zoom)
        weights = (1 - distance).clamp(min=0)
        weights /= weights.sum(dim=1, keepdim=True)
        # matrix products along each axis in place: a permutation would copy the volume
        if axis == 0:
            out = (weights @ out.reshape(side, -1)).reshape(count, *out.shape[1:])
        elif axis == 1:
            out = weights @ out
        else:
            out = out @ weights.T
        matrix[axis, axis], matrix[axis, 3] = step, start
    return out.contiguous().numpy(), affine @ matrix


def resample(
    data: np.ndarray,
    affine: np.ndarray,
    shape: Sequence[int],
    target: np.ndarray,
    *,
    outside: float = 0.0,
) -> np.ndarray:
    """Sample an image linearly on another grid.

    Parameters
    ----------
    data : numpy.ndarray
        Image, shape ``(x, y, z)`` or ``(channels, x, y, z)``.
    affine : numpy.ndarray
        Its voxel-to-world transform.
    shape : sequence of int
        Shape of the new grid.
    target : numpy.ndarray
        Voxel-to-world transform of the new grid.
    outside : float
        Value beyond the centers of the outermost voxels.

    Returns
    -------
    numpy.ndarray
        float32, shape `shape`, with a leading channel axis if `data` had one.
    """
    volume = torch.from_numpy(np.ascontiguousarray(data, dtype=np.float32))
    volume = volume.reshape(1, -1, *volume.shape[-3:])
    sides = np.array(volume.shape[2:])
    to_source = np.linalg.inv(affine) @ target
    # voxel index i of n to the normalized coordinate of grid_sample, x last axis first
    half = np.maximum(sides - 1, 1) / 2
    normalized = np.diag([*(1 / half), 1.0]) @ to_source
    normalized[:3, 3] -= (sides - 1) / 2 / half
    normalized = torch.from_numpy(normalized[:3]).float()
    x, y, z = (torch.arange(side, dtype=torch.float32) for side in shape)
    plane = (
        normalized[:, 3] + y[:, None, None] * normalized[:, 1] + z[None, :, None] * normalized[:, 2]
    )
    out = torch.empty(volume.shape[1], *shape)
    # slabs keep the sampling grid, three numbers per voxel, small
    for start in range(0, len(x), _SLAB):
        slab = plane + x[start : start + _SLAB, None, None, None] * normalized[:, 0]
        out[:, start : start + _SLAB] = F.grid_sample(
            volume - outside, slab.flip(-1)[None], padding_mode="zeros", align_corners=True
        )[0]
    return (out + outside).numpy().reshape(*data.shape[:-3], *shape)
