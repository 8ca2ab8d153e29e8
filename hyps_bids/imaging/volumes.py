"""From probabilities in boxes to labels and volumes on an image's own grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from hyps_bids.imaging.resample import resample
from hyps_bids.imaging.roi import index_range, shifted

__all__ = ["RestoredSide", "VolumeRow", "decide", "largest_component", "measure", "restore"]

#: mm around the segmentation within which probabilities count for the soft volume; at least one
#: voxel in every direction
SOFT_MARGIN = 2.0


@dataclass(frozen=True)
class RestoredSide:
    """One hippocampus on the image's grid, as the region that holds it.

    Attributes
    ----------
    region : tuple of slice
        Where in the image.
    probabilities : numpy.ndarray
        Foreground classes, float32 in [0, 1], shape ``(parts, *region)``.
    labels : numpy.ndarray
        0 background, ``1 … parts``; one connected component, same region.
    component_fraction : float
        Share of the labeled voxels that the kept component has, in [0, 1]; nan without any.
    """

    region: tuple[slice, slice, slice]
    probabilities: np.ndarray
    labels: np.ndarray
    component_fraction: float


@dataclass(frozen=True)
class VolumeRow:
    """Volumes of one structure.

    Attributes
    ----------
    voxels : int
        Number of voxels.
    volume_mm3 : float
        That number times the voxel volume.
    volume_soft_mm3 : float
        Sum of the probabilities within 2 mm (or one voxel, if that is more) of the whole
        hippocampus, times the voxel volume.
    """

    voxels: int
    volume_mm3: float
    volume_soft_mm3: float


def restore(
    probabilities: np.ndarray,
    box: np.ndarray,
    shape: Sequence[int],
    affine: np.ndarray,
) -> RestoredSide:
    """Bring class probabilities from a box to an image's grid and label it.

    Probabilities, not labels, are interpolated; voxels coarser than the box's get the mean of
    what they cover. Of the labeled voxels the largest connected component is kept.

    Parameters
    ----------
    probabilities : numpy.ndarray
        Classes with the background first, shape ``(1 + parts, x, y, z)``.
    box : numpy.ndarray
        The box's voxel-to-world transform.
    shape, affine : sequence of int, numpy.ndarray
        The image's grid.

    Returns
    -------
    RestoredSide
        The hippocampus on the image's grid.
    """
    region = index_range(probabilities.shape[1:], box, shape, affine)
    sides = [part.stop - part.start for part in region]
    zooms = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    spacing = abs(box[0, 0])
    factors = np.maximum(1, np.round(zooms / spacing)).astype(int)
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
    """Label voxels: hippocampus where its parts together reach one half, then the likeliest part.

    A plain arg-max would leave a seam of background between parts that share a voxel.

    Parameters
    ----------
    foreground : numpy.ndarray
        Probabilities of the parts, shape ``(parts, ...)``.

    Returns
    -------
    numpy.ndarray
        0 background, ``1 … parts``, uint8.

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
        Boolean.
    fraction : float
        Its share of the mask; nan if the mask is empty.

    Examples
    --------
    >>> largest_component(np.array([1, 1, 0, 1], bool))
    (array([ True,  True, False, False]), 0.6666666666666666)
    """
    components, count = ndimage.label(mask)
    if count == 0:
        return mask, float("nan")
    sizes = np.bincount(components.ravel())[1:]
    return components == sizes.argmax() + 1, float(sizes.max() / sizes.sum())


def measure(side: RestoredSide, affine: np.ndarray) -> list[VolumeRow]:
    """Measure each part of a hippocampus, then the whole.

    Parameters
    ----------
    side : RestoredSide
        The hippocampus.
    affine : numpy.ndarray
        The image's voxel-to-world transform.

    Returns
    -------
    list of VolumeRow
        One row per part in order of class, and a last one for the whole.
    """
    voxel = float(abs(np.linalg.det(affine[:3, :3])))
    zooms = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    mask = side.labels > 0
    if mask.any():
        # partial volumes lie in the next voxel, also where voxels are large
        margin = max(SOFT_MARGIN, float(np.linalg.norm(zooms)))
        near = ndimage.distance_transform_edt(~mask, sampling=zooms) <= margin
    else:
        near = mask
    counts = [int((side.labels == i + 1).sum()) for i in range(len(side.probabilities))]
    soft = [float(part[near].sum(dtype=np.float64)) for part in side.probabilities]
    rows = zip([*counts, sum(counts)], [*soft, sum(soft)], strict=True)
    return [VolumeRow(count, count * voxel, total * voxel) for count, total in rows]
