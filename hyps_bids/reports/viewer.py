"""Volumes and surfaces for the interactive viewer, NiiVue, as files in memory.

World coordinates are those of the derivatives. Every file carries its transform, so left is left
whatever the axes of the scan are.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage

from hyps_bids.reports.scan_images import Region, Voxels

#: Margin around the hippocampi in the close-up, mm.
_MARGIN = 15.0
#: Distance of the points from which a surface is made, mm.
_SPACING = 1.0


@dataclass(frozen=True)
class Level:
    """How much detail the viewer gets.

    Voxels of the close-up that are finer than `spacing` (mm) are averaged, and those of the whole
    head if they are finer than `head_spacing`; 0 keeps the close-up as it is, and leaves out the
    head. Fewer gray values, at most 256, compress better.
    """

    spacing: float
    grays: int
    head_spacing: float


#: From the most to the least detail.
LEVELS = (
    Level(0.0, 256, 2.0),
    Level(0.0, 128, 2.5),
    Level(0.9, 64, 3.0),
    Level(1.2, 64, 4.0),
    Level(1.2, 32, 0.0),
    Level(1.6, 32, 0.0),
    Level(2.2, 16, 0.0),
)


def region_around(labels: Voxels) -> Region | None:
    """Find the part of a segmentation that holds the hippocampi and a margin; None if empty."""
    content = labels.content()
    if content is None:
        return None
    margins = np.ceil(_MARGIN / voxel_sizes(labels.affine)).astype(int)
    x, y, z = (
        slice(max(0, part.start - int(margin)), min(side, part.stop + int(margin)))
        for part, margin, side in zip(content, margins, labels.data.shape, strict=True)
    )
    return x, y, z


def close_up(anatomy: Voxels, region: Region, level: Level) -> Voxels:
    """Take the region of the hippocampi out of an image, in bytes."""
    return _bytes(_coarse(anatomy.part(region), level.spacing), level.grays)


def head(anatomy: Voxels, level: Level) -> Voxels:
    """Average the whole image to coarse voxels, in bytes."""
    return _bytes(_coarse(anatomy, level.head_spacing), min(level.grays, 64))


def nifti(voxels: Voxels, *, slope: float = 1.0) -> bytes:
    """Write a volume as NIfTI, with an sform only.

    Examples
    --------
    >>> content = nifti(Voxels(np.zeros((2, 2, 2), np.uint8), np.eye(4)))
    >>> len(content), content[344:347]
    (360, b'n+1')
    """
    image = nib.Nifti1Image(np.asarray(voxels.data), voxels.affine)
    image.header.set_xyzt_units("mm")
    image.header.set_slope_inter(slope, 0)
    return image.to_bytes()


def surface(probabilities: np.ndarray, labels: Voxels, colors: Mapping[int, str]) -> bytes | None:
    """Make the surface of a hippocampus where its probability passes one half, as an mz3 file.

    The probabilities are those of the parts in the order of `colors`, and the labels are the
    segmentation of the same region. Probabilities more than two voxels away from these labels
    belong to another component and are left out. Each point has the color of its part. The result
    is None if nothing is segmented.
    """
    # Imported here, because skimage costs time that most runs do not need.
    from skimage.measure import marching_cubes

    content = Voxels(np.isin(labels.data, list(colors)), labels.affine).content()
    if content is None:
        return None
    # One voxel more than the dilation reaches, so that probabilities fall to zero between voxels.
    region = tuple(
        slice(max(0, part.start - 3), min(side, part.stop + 3))
        for part, side in zip(content, labels.data.shape, strict=True)
    )
    origin = labels.extent()[0]
    labels, probabilities = labels.part(region), probabilities[:, *region]
    near = ndimage.binary_dilation(np.isin(labels.data, list(colors)), iterations=2)
    low, high = labels.extent()
    # The points do not depend on what is cut off here.
    low = origin + (np.floor((low - origin) / _SPACING) - 1) * _SPACING
    high = high + _SPACING
    shape = np.ceil((high - low) / _SPACING).astype(int) + 1
    grid = np.diag([_SPACING, _SPACING, _SPACING, 1.0])
    grid[:3, 3] = low
    matrix = np.linalg.inv(labels.affine) @ grid
    sampled = np.stack(
        [
            ndimage.affine_transform(
                part, matrix[:3, :3], matrix[:3, 3], output_shape=tuple(shape), order=1
            )
            for part in np.where(near, probabilities, 0)
        ]
    )
    whole = sampled.sum(axis=0)
    if not whole.min() < 0.5 < whole.max():
        return None
    points, faces, _, _ = marching_cubes(whole, 0.5)
    at_points = [ndimage.map_coordinates(part, points.T, order=1) for part in sampled]
    palette = np.array([list(bytes.fromhex(c.removeprefix("#"))) for c in colors.values()])
    # Steps of 1/64 mm are fine enough, and they compress better.
    vertices = np.round((points * _SPACING + low) * 64) / 64
    return _mz3(vertices, faces, palette[np.argmax(at_points, axis=0)])


def _mz3(vertices: np.ndarray, faces: np.ndarray, colors: np.ndarray) -> bytes:
    """Write a triangulated surface as mz3, the format of Surfice and NiiVue."""
    has_faces, has_vertices, has_colors = 1, 2, 4
    attributes = has_faces | has_vertices | has_colors
    start = struct.pack("<HHIII", 0x5A4D, attributes, len(faces), len(vertices), 0)
    opaque = np.concatenate([colors, np.full((len(colors), 1), 255)], axis=1)
    parts = (faces.astype("<i4"), vertices.astype("<f4"), opaque.astype(np.uint8))
    return start + b"".join(part.tobytes() for part in parts)


def _coarse(voxels: Voxels, spacing: float) -> Voxels:
    """Average blocks of voxels so that their sides come near the spacing."""
    data = voxels.data
    factors = [
        int(np.clip(np.round(spacing / size), 1, side))
        for size, side in zip(voxel_sizes(voxels.affine), data.shape, strict=True)
    ]
    affine = voxels.moved([(factor - 1) / 2 for factor in factors])
    affine[:3, :3] *= factors
    for axis, factor in enumerate(factors):
        if factor > 1:
            count = data.shape[axis] // factor
            whole = np.moveaxis(data, axis, 0)[: count * factor]
            # Adding the voxels of all blocks at once is several times faster than a mean by block.
            total = whole[::factor].astype(np.float32)
            for offset in range(1, factor):
                total += whole[offset::factor]
            total /= factor
            data = np.moveaxis(total, 0, axis)
    return Voxels(data, affine)


def _bytes(voxels: Voxels, grays: int) -> Voxels:
    """Bring intensities between robust extremes to bytes."""
    low, high = np.percentile(voxels.data, (0.1, 99.8))
    scaled = np.clip((voxels.data - low) / max(float(high - low), 1e-12), 0, 1)
    levels = np.round(scaled * (grays - 1)) * (255 / (grays - 1))
    return Voxels(np.round(levels).astype(np.uint8), voxels.affine)
