"""Linear resampling between voxel grids, with smoothing where the target is coarser.

World coordinates are RAS, mm. PyTorch's trilinear kernel is several times faster than a spline of
order one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from nibabel.affines import voxel_sizes

#: Planes that are sampled at a time, which keeps the sampling grid (three numbers per voxel) small.
_SLAB = 16


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
    out = torch.from_numpy(np.ascontiguousarray(data, dtype=np.float32))
    matrix = np.eye(4)
    for axis, (side, zoom) in enumerate(zip(data.shape, voxel_sizes(affine), strict=True)):
        step = spacing / oversampling / zoom
        if step <= 1:
            continue
        count = max(1, round(side / step))
        start = ((side - 1) - (count - 1) * step) / 2
        centers = start + step * torch.arange(count, dtype=torch.float32)
        distance = (torch.arange(side)[None] - centers[:, None]).abs() / (spacing / zoom)
        weights = (1 - distance).clamp(min=0)
        weights /= weights.sum(dim=1, keepdim=True)
        # A permutation of axes would copy the volume, so each axis has its own matrix product.
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
    data, affine : numpy.ndarray
        Image, shape ``(x, y, z)`` or ``(channels, x, y, z)``, and its voxel-to-world transform.
    shape, target : sequence of int, numpy.ndarray
        Shape and voxel-to-world transform of the new grid.
    outside : float
        Value beyond the centers of the outermost voxels.

    Returns
    -------
    numpy.ndarray
        Sampled image, float32, with a leading channel axis if `data` had one.
    """
    volume = torch.from_numpy(np.ascontiguousarray(data, dtype=np.float32))
    volume = volume.reshape(1, -1, *volume.shape[-3:])
    sides = np.array(volume.shape[2:])
    to_source = np.linalg.inv(affine) @ target
    # grid_sample's coordinates run from -1 to 1 between the centers of the outermost voxels.
    half = np.maximum(sides - 1, 1) / 2
    scaled = np.diag([*(1 / half), 1.0]) @ to_source
    scaled[:3, 3] -= (sides - 1) / 2 / half
    normalized = torch.from_numpy(scaled[:3]).float()
    x, y, z = (torch.arange(side, dtype=torch.float32) for side in shape)
    plane = (
        normalized[:, 3] + y[:, None, None] * normalized[:, 1] + z[None, :, None] * normalized[:, 2]
    )
    out = torch.empty(volume.shape[1], *shape)
    for start in range(0, len(x), _SLAB):
        slab = plane + x[start : start + _SLAB, None, None, None] * normalized[:, 0]
        # It also wants the last axis first.
        out[:, start : start + _SLAB] = F.grid_sample(
            volume - outside, slab.flip(-1)[None], padding_mode="zeros", align_corners=True
        )[0]
    return (out + outside).numpy().reshape(*data.shape[:-3], *shape)
