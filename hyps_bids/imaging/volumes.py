"""From probabilities in boxes to labels and volumes on an image's own grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage

from hyps_bids.imaging.resample import resample
from hyps_bids.imaging.roi import bounding_box, index_range, shifted

#: Distance from the segmentation within which probabilities count for the soft volume, mm; at
#: least one voxel in every direction.
SOFT_MARGIN = 2.0


@dataclass(frozen=True)
class RestoredSide:
    """One hippocampus on an image's grid, stored as the region that holds it.

    Attributes
    ----------
    region : tuple of slice
        Part of the image that the arrays cover.
    probabilities : numpy.ndarray
        Foreground classes, float32 in [0, 1], shape ``(parts, *region)``.
    labels : numpy.ndarray
        0 for background, ``1 … parts``; one connected component.
    component_fraction : float
        Share of the labeled voxels that are in that component, in [0, 1]; NaN if none is labeled.
    """

    region: tuple[slice, slice, slice]
    probabilities: np.ndarray
    labels: np.ndarray
    component_fraction: float


class VolumeRow(NamedTuple):
    """Volumes of one structure; ``MORPH_COLUMNS`` in the outputs defines them."""

    voxels: int
    volume_mm3: float
    volume_soft_mm3: float


def restore(
    probabilities: np.ndarray,
    box: np.ndarray,
    shape: Sequence[int],
    affine: np.ndarray,
) -> RestoredSide:
    """Bring class probabilities from a box to an image's grid, and label the voxels there.

    Probabilities are interpolated, not labels. Voxels larger than the box's get the mean over
    their volume. Only the largest connected component of the labeled voxels is kept.

    Parameters
    ----------
    probabilities : numpy.ndarray
        Classes with the background first, shape ``(1 + parts, x, y, z)``.
    box : numpy.ndarray
        Voxel-to-world transform of the box, which may be turned.
    shape, affine : sequence of int, numpy.ndarray
        Shape and voxel-to-world transform of the image.
    """
    region = index_range(probabilities.shape[1:], box, shape, affine)
    sides = [part.stop - part.start for part in region]
    factors = np.maximum(1, np.round(voxel_sizes(affine) / voxel_sizes(box)[0])).astype(int)
    fine = np.diag([*(1 / factors), 1.0])
    fine[:3, 3] = -(factors - 1) / 2 / factors
    grid = shifted(affine, [part.start for part in region]) @ fine
    sampled = resample(
        probabilities[1:], box, [s * f for s, f in zip(sides, factors, strict=True)], grid
    )
    blocks = sampled.reshape(
        len(sampled), sides[0], factors[0], sides[1], factors[1], sides[2], factors[2]
    )
    foreground = np.clip(blocks.mean(axis=(2, 4, 6)), 0, 1)
    labels = decide(foreground)
    component, fraction = largest_component(labels > 0)
    return RestoredSide(region, foreground, labels * component, fraction)


def decide(foreground: np.ndarray) -> np.ndarray:
    """Label the voxels where the parts together reach one half with the likeliest part.

    A plain arg-max would leave a seam of background between parts that share a voxel.

    Parameters
    ----------
    foreground : numpy.ndarray
        Probabilities of the parts, shape ``(parts, ...)``.

    Returns
    -------
    numpy.ndarray
        0 for background, ``1 … parts``, uint8.

    Examples
    --------
    >>> decide(np.array([[0.3, 0.4, 0.1], [0.4, 0.2, 0.2]]))
    array([2, 1, 0], dtype=uint8)
    """
    whole = foreground.sum(axis=0) >= 0.5
    return np.where(whole, foreground.argmax(axis=0) + 1, 0).astype(np.uint8)


def largest_component(mask: np.ndarray) -> tuple[np.ndarray, float]:
    """Keep the largest face-connected component of a mask.

    Returns
    -------
    component : numpy.ndarray
        Boolean mask.
    fraction : float
        Its share of the mask; NaN if the mask is empty.

    Examples
    --------
    >>> largest_component(np.array([1, 1, 0, 1], bool))
    (array([ True,  True, False, False]), 0.6666666666666666)
    """
    box = bounding_box(mask)
    if box is None:
        return mask, float("nan")
    components, _ = ndimage.label(mask[box])
    sizes = np.bincount(components.ravel())[1:]
    component = np.zeros_like(mask)
    component[box] = components == sizes.argmax() + 1
    return component, float(sizes.max() / sizes.sum())


def within(mask: np.ndarray, distance: float, sizes: Sequence[float]) -> np.ndarray:
    """Mark the voxels whose distance from a mask is at most as given.

    Parameters
    ----------
    mask : numpy.ndarray
        Boolean mask, shape ``(x, y, z)``.
    distance : float
        Distance between centers of voxels, mm.
    sizes : sequence of float
        Voxel sizes, mm.

    Examples
    --------
    >>> within(np.array([0, 0, 0, 1, 0, 0], bool), 2, [1.5])
    array([False, False,  True,  True,  True, False])
    """
    near = np.zeros_like(mask)
    # Distances in a whole image take long.
    box = bounding_box(mask, margin=[int(distance / size) for size in sizes])
    if box is not None:
        near[box] = ndimage.distance_transform_edt(~mask[box], sampling=sizes) <= distance
    return near


def measure(side: RestoredSide, affine: np.ndarray) -> list[VolumeRow]:
    """Measure each part of a hippocampus.

    Parameters
    ----------
    side : RestoredSide
        The hippocampus.
    affine : numpy.ndarray
        Voxel-to-world transform of the image.

    Returns
    -------
    list of VolumeRow
        One row per part in the order of classes, and a last one for the whole hippocampus.
    """
    voxel = float(abs(np.linalg.det(affine[:3, :3])))
    sizes = voxel_sizes(affine)
    # Partial volumes lie in the neighboring voxels, also where voxels are large.
    near = within(side.labels > 0, max(SOFT_MARGIN, float(np.linalg.norm(sizes))), sizes)
    counts = [int((side.labels == i + 1).sum()) for i in range(len(side.probabilities))]
    soft = [float(part[near].sum(dtype=np.float64)) for part in side.probabilities]
    rows = zip([*counts, sum(counts)], [*soft, sum(soft)], strict=True)
    return [VolumeRow(count, count * voxel, total * voxel) for count, total in rows]
