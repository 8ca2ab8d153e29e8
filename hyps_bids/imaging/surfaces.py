"""Closed surfaces of structures, from probabilities or from labels.

A field with cubic interpolation is cut at the level at which the surface encloses the volume of the
labeled voxels. A fixed level of one half would miss it by up to 7 % where slices are thick.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from scipy import ndimage
from scipy.optimize import brentq

from hyps_bids.imaging.resample import extent
from hyps_bids.imaging.roi import bounding_box, shifted
from hyps_bids.outputs.surface_files import Surface

#: Distance of the points that are sampled, mm: about that of the voxels, within these bounds.
SPACING = (0.5, 0.7)
#: Least number of them along a side of a cube of the structure's volume, and most points in all.
_FEWEST, _MOST = 8, 1e6
#: Empty voxels around the labels. Probabilities further away belong to something else.
MARGIN, _NEAR = 3, 2
#: Probability that labeled voxels have, less the rounding of stored probabilities.
_LEAST = 0.45
#: Standard deviation of the smoothing of labels, voxels.
_SMOOTHING = 0.7
#: Relative error of the volume with which a surface of probabilities is used.
_USABLE = 0.02
#: Relative error of the volume that ends the search for the level, and the most attempts.
_TOLERANCE, _ATTEMPTS = 0.003, 20
#: Share of the range of values by which levels are above the lowest, and beside those of points.
_STEP = 1e-5
#: The search begins between the levels of this times the volume, and its reciprocal.
_BRACKETS = (1.1, 4.0)


def find_surface(
    mask: np.ndarray, affine: np.ndarray, probability: np.ndarray | None = None
) -> Surface:
    """Make the surface of a structure.

    Parameters
    ----------
    mask : numpy.ndarray
        True in the voxels of the structure, of which there is at least one, shape ``(x, y, z)``.
    affine : numpy.ndarray
        Voxel-to-world transform (RAS, mm).
    probability : numpy.ndarray, optional
        Its probability, of the same shape. If it is left out, or the voxels are not where it is
        high, the surface follows from the labels alone: from the distance to their boundary.

    Returns
    -------
    Surface
        Closed, with triangles whose corners turn left as seen from outside. Cavities are filled.
        Pieces of the structure that do not touch each other are separate pieces of the surface.
    """
    region = bounding_box(mask)
    assert region is not None
    there = shifted(affine, [part.start - MARGIN for part in region])
    inside = _cut(mask, region)
    filled = ndimage.binary_fill_holes(inside)
    volume = float(filled.sum()) * abs(np.linalg.det(affine[:3, :3]))
    if probability is not None and probability[mask].min() >= _LEAST:
        near = ndimage.binary_dilation(inside, iterations=_NEAR)
        surface = _enclose(np.where(near, _cut(probability, region), 0), inside, there, volume)
        if abs(surface.volume_mm3 / volume - 1) < _USABLE:
            return surface
    return _enclose(_signed_distance(inside, voxel_sizes(affine)), inside, there, volume)


def _cut(data: np.ndarray, region: Sequence[slice]) -> np.ndarray:
    """Take a region with a margin, which is empty beyond the image."""
    wide = [(part.start - MARGIN, part.stop + MARGIN) for part in region]
    inner = tuple(slice(max(0, a), b) for a, b in wide)
    pads = [(max(0, -a), max(0, b - side)) for (a, b), side in zip(wide, data.shape, strict=True)]
    return np.pad(data[inner], pads)


def _signed_distance(inside: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the smoothed distance to the boundary, mm, above 0 inside."""
    distance = ndimage.distance_transform_edt(inside, sampling=sizes)
    distance -= ndimage.distance_transform_edt(~inside, sampling=sizes)
    smoothed: np.ndarray = ndimage.gaussian_filter(distance, _SMOOTHING, mode="nearest")
    return smoothed


def _enclose(field: np.ndarray, inside: np.ndarray, affine: np.ndarray, volume: float) -> Surface:
    """Cut a field at the level at which the surface encloses a volume."""
    low, high = extent(field.shape, affine)
    sizes = float(np.clip(voxel_sizes(affine).min(), *SPACING)), volume ** (1 / 3) / _FEWEST
    spacing = max(min(sizes), float(np.prod(high - low) / _MOST) ** (1 / 3))
    shape = np.ceil((high - low) / spacing).astype(int) + 1
    grid = np.diag([spacing, spacing, spacing, 1.0])
    grid[:3, 3] = low
    to_field = np.linalg.inv(affine) @ grid

    def sample(data: np.ndarray, order: int) -> np.ndarray:
        sampled: np.ndarray = ndimage.affine_transform(
            data.astype(np.float32),
            to_field[:3, :3],
            to_field[:3, 3],
            output_shape=tuple(shape),
            order=order,
            cval=float(data.min()),
        )
        return sampled

    values, labeled = sample(field, 3), sample(inside, 0) > 0.5
    # Whatever the level, the surface is closed.
    edge = np.ones(values.shape, dtype=bool)
    edge[1:-1, 1:-1, 1:-1] = False
    values[edge] = values.min()
    lowest = float(values.min() + _STEP * np.ptp(values))
    best: list[tuple[float, Surface]] = []

    def error(level: float) -> float:
        surface = _cut_at(_keep(values, level, labeled), level, grid)
        if surface is None:
            return -1.0
        off = surface.volume_mm3 / volume - 1
        best.append((abs(off), surface))
        return 0.0 if abs(off) < _TOLERANCE else off

    for factor in _BRACKETS:
        # The volume above a level is about that of the points above it.
        ends = [int(volume * f / spacing**3) for f in (factor, 1 / factor)]
        ends = [min(max(1, count), values.size) for count in ends]
        low_level, high_level = (
            max(lowest, float(np.partition(values.ravel(), -n)[-n])) for n in ends
        )
        errors = error(low_level), error(high_level)
        if errors[0] * errors[1] < 0:
            brentq(error, low_level, high_level, maxiter=_ATTEMPTS, disp=False)
        if best and min(off for off, _ in best) < _TOLERANCE:
            break
    return min(best, key=lambda found: found[0])[1]


def _keep(values: np.ndarray, level: float, labeled: np.ndarray) -> np.ndarray:
    """Fill cavities, and remove pieces without a labeled voxel."""
    above = values >= level
    filled = ndimage.binary_fill_holes(above)
    # Surfaces of pieces that touch at a corner only may be joined, so they are one piece.
    pieces, count = ndimage.label(filled, structure=np.ones((3, 3, 3)))
    own = np.zeros(count + 1, dtype=bool)
    own[pieces[labeled & filled]] = True
    kept = own[pieces] & filled
    top, bottom = values.max(), values.min()
    return np.where(kept, np.where(above, values, top), np.where(above, bottom, values))


def _cut_at(values: np.ndarray, level: float, grid: np.ndarray) -> Surface | None:
    """Return the surface, or None if nothing is above the level."""
    # Imported here, because few runs need it.
    from skimage.measure import marching_cubes

    if values.max() <= level:
        return None
    # No point has exactly this value, which would give triangles without an area.
    between = level - _STEP / 2 * float(np.ptp(values))
    points, triangles, _, _ = marching_cubes(values, between)  # type: ignore[no-untyped-call]
    surface = Surface(apply_affine(grid, points).astype(np.float32), triangles, level)
    return surface if surface.volume_mm3 > 0 else surface.turned()
