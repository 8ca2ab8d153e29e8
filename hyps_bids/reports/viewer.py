"""Volumes and surfaces for the interactive viewer, NiiVue, as files in memory.

World coordinates are those of the derivatives: every file carries its transform, so left is left
whatever the axes of the scan are.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from scipy import ndimage

__all__ = ["LEVELS", "Level", "close_up", "head", "mz3", "nifti", "region_around", "surface"]

#: mm around the hippocampi that the close-up shows
_MARGIN = 15.0
#: mm between the points from which a surface is made
_SPACING = 1.0


@dataclass(frozen=True)
class Level:
    """How much detail the viewer gets.

    Attributes
    ----------
    spacing : float
        mm: finer voxels of the close-up are averaged to about this; 0 keeps them.
    greys : int
        Number of gray values, at most 256; fewer compress better.
    head_spacing : float
        The same for the whole head; 0 leaves it out.
    """

    spacing: float
    greys: int
    head_spacing: float


#: from the best to the smallest
LEVELS = (
    Level(0.0, 256, 2.0),
    Level(0.0, 128, 2.5),
    Level(0.9, 64, 3.0),
    Level(1.2, 64, 4.0),
    Level(1.2, 32, 0.0),
    Level(1.6, 32, 0.0),
    Level(2.2, 16, 0.0),
)


def region_around(labels: np.ndarray, affine: np.ndarray) -> tuple[slice, slice, slice] | None:
    """Find the part of an image that holds the hippocampi with a margin.

    Parameters
    ----------
    labels : numpy.ndarray
        Segmentation, shape ``(x, y, z)``.
    affine : numpy.ndarray
        Voxel to world.

    Returns
    -------
    tuple of slice or None
        None if nothing is segmented.
    """
    found = ndimage.find_objects((labels > 0).view(np.uint8))
    if not found:
        return None
    margins = np.ceil(_MARGIN / np.linalg.norm(affine[:3, :3], axis=0)).astype(int)
    x, y, z = (
        slice(max(0, part.start - int(margin)), min(side, part.stop + int(margin)))
        for part, margin, side in zip(found[0], margins, labels.shape, strict=True)
    )
    return x, y, z


def close_up(
    t1w: np.ndarray, affine: np.ndarray, region: Sequence[slice], level: Level
) -> tuple[np.ndarray, np.ndarray]:
    """Cut the hippocampi out of an image, in bytes.

    Returns
    -------
    data : numpy.ndarray
        uint8.
    affine : numpy.ndarray
        Its transform.
    """
    start = [part.start for part in region]
    data, moved = _coarse(t1w[tuple(region)], _moved(affine, start), level.spacing)
    return _bytes(data, level.greys), moved


def head(t1w: np.ndarray, affine: np.ndarray, level: Level) -> tuple[np.ndarray, np.ndarray]:
    """Average the whole image to coarse voxels, in bytes; returns data and transform."""
    data, moved = _coarse(t1w, affine, level.head_spacing)
    return _bytes(data, min(level.greys, 64)), moved


def nifti(data: np.ndarray, affine: np.ndarray, *, slope: float = 1.0) -> bytes:
    """Write a volume as NIfTI, sform only.

    Examples
    --------
    >>> content = nifti(np.zeros((2, 2, 2), np.uint8), np.eye(4))
    >>> len(content), content[344:347]
    (360, b'n+1')
    """
    image = nib.Nifti1Image(np.asarray(data), affine)
    image.header.set_xyzt_units("mm")
    image.header.set_slope_inter(slope, 0)
    return image.to_bytes()


def surface(
    probabilities: np.ndarray,
    labels: np.ndarray,
    affine: np.ndarray,
    indices: Sequence[int],
    colors: Mapping[int, str],
) -> bytes | None:
    """Make the surface of a hippocampus where its probability passes one half.

    Parameters
    ----------
    probabilities : numpy.ndarray
        Of the parts in the order of `indices`, shape ``(parts, x, y, z)``.
    labels : numpy.ndarray
        Segmentation of the same region, ``(x, y, z)``; what is further than two voxels from these
        labels is another component and left out.
    affine : numpy.ndarray
        Voxel to world of the region.
    indices : sequence of int
        Labels of the parts.
    colors : mapping of int to str
        Label → ``#rrggbb``.

    Returns
    -------
    bytes or None
        An mz3 file, world coordinates, mm, each point in the color of its part; None if nothing
        is segmented.
    """
    from skimage.measure import marching_cubes

    mask = np.isin(labels, list(indices))
    if not mask.any():
        return None
    near = ndimage.binary_dilation(mask, iterations=2)
    parts = np.where(near, probabilities, 0)
    corners = np.array(np.meshgrid(*[(0, side - 1) for side in mask.shape])).reshape(3, -1)
    world = affine[:3, :3] @ corners + affine[:3, 3:]
    low, high = world.min(axis=1) - _SPACING, world.max(axis=1) + _SPACING
    shape = np.ceil((high - low) / _SPACING).astype(int) + 1
    grid = np.diag([_SPACING, _SPACING, _SPACING, 1.0])
    grid[:3, 3] = low
    matrix = np.linalg.inv(affine) @ grid
    sampled = np.stack(
        [
            ndimage.affine_transform(
                part, matrix[:3, :3], matrix[:3, 3], output_shape=tuple(shape), order=1
            )
            for part in parts
        ]
    )
    whole = sampled.sum(axis=0)
    if not whole.min() < 0.5 < whole.max():
        return None
    points, faces, _, _ = marching_cubes(whole, 0.5)
    of_part = np.stack(
        [ndimage.map_coordinates(part, points.T, order=1) for part in sampled]
    ).argmax(axis=0)
    palette = np.array([_rgb(colors[index]) for index in indices], dtype=np.uint8)
    # hundredths of a mm are enough, and compress better
    vertices = np.round((points * _SPACING + low) * 64) / 64
    return mz3(vertices, faces, palette[of_part])


def mz3(vertices: np.ndarray, faces: np.ndarray, colors: np.ndarray) -> bytes:
    """Write a triangulated surface as mz3, the format of Surfice and NiiVue.

    Parameters
    ----------
    vertices, faces, colors : numpy.ndarray
        Coordinates ``(n, 3)``, indices ``(m, 3)`` and RGB in bytes ``(n, 3)``.
    """
    has_faces, has_vertices, has_colors = 1, 2, 4
    attributes = has_faces | has_vertices | has_colors
    start = struct.pack("<HHIII", 0x5A4D, attributes, len(faces), len(vertices), 0)
    opaque = np.concatenate([colors, np.full((len(colors), 1), 255)], axis=1)
    return b"".join(
        (
            start,
            faces.astype("<i4").tobytes(),
            vertices.astype("<f4").tobytes(),
            opaque.astype(np.uint8).tobytes(),
        )
    )


def _moved(affine: np.ndarray, start: Sequence[float]) -> np.ndarray:
    out = affine.copy()
    out[:3, 3] += affine[:3, :3] @ np.asarray(start, dtype=float)
    return out


def _coarse(data: np.ndarray, affine: np.ndarray, spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """Average blocks of voxels so that their sides come near the spacing."""
    zooms = np.linalg.norm(affine[:3, :3], axis=0)
    factors = [
        int(np.clip(np.round(spacing / zoom), 1, side))
        for zoom, side in zip(zooms, data.shape, strict=True)
    ]
    moved = _moved(affine, [(factor - 1) / 2 for factor in factors])
    moved[:3, :3] = affine[:3, :3] * factors
    out = data
    for axis, factor in enumerate(factors):
        if factor > 1:
            count = out.shape[axis] // factor
            whole = np.moveaxis(out, axis, 0)[: count * factor]
            blocks = whole.reshape(count, factor, *whole.shape[1:])
            out = np.moveaxis(blocks.mean(axis=1, dtype=np.float32), 0, axis)
    return out, moved


def _bytes(data: np.ndarray, greys: int) -> np.ndarray:
    """Bring intensities to bytes, between robust extremes."""
    low, high = np.percentile(data, (0.1, 99.8))
    scaled = np.clip((data - low) / max(float(high - low), 1e-12), 0, 1)
    levels = np.round(scaled * (greys - 1)) * (255 / (greys - 1))
    return np.round(levels).astype(np.uint8)


def _rgb(color: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(color.removeprefix("#"))
    return red, green, blue
