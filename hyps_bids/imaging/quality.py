"""Quality measures of a segmented hippocampus."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import ndimage

from hyps_bids.imaging.resample import resample
from hyps_bids.imaging.volumes import RestoredSide

__all__ = ["asymmetry", "side_quality"]

#: mm around the segmentation over which the entropy is averaged
_ENTROPY_MARGIN = 3.0


def side_quality(
    probabilities: np.ndarray,
    inside: np.ndarray,
    box: np.ndarray,
    restored: RestoredSide,
    shape: tuple[int, ...],
    localized: np.ndarray,
    localized_affine: np.ndarray,
) -> dict[str, float]:
    """Compute the QC figures of one hippocampus.

    Parameters
    ----------
    probabilities : numpy.ndarray
        Classes in the box, background first, shape ``(classes, x, y, z)``.
    inside : numpy.ndarray
        What the network saw, boolean, shape ``(x, y, z)``.
    box : numpy.ndarray
        The box's voxel-to-world transform; 1 mm voxels.
    restored : RestoredSide
        The same on the image's grid.
    shape : tuple of int
        The image's shape.
    localized, localized_affine : numpy.ndarray
        The localizer's probability of this hippocampus and its transform.

    Returns
    -------
    dict of str to float
        ``confidence``, ``entropy``, ``component_fraction``, ``border_voxels``, ``agreement``:
        defined in ``data/qc.json``. Not a number where nothing was segmented.
    """
    whole = 1 - probabilities[0]
    mask = whole >= 0.5
    coarse = resample(localized, localized_affine, mask.shape, box) > 0.5
    total = mask.sum() + coarse.sum()
    if not mask.any():
        nan = float("nan")
        return dict.fromkeys(
            ("confidence", "entropy", "component_fraction", "border_voxels"), nan
        ) | {"agreement": 0.0}
    near = ndimage.distance_transform_edt(~mask) <= _ENTROPY_MARGIN
    p = np.clip(whole[near].astype(np.float64), 1e-7, 1 - 1e-7)
    entropy = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    seen_edge = inside & ~ndimage.binary_erosion(inside)
    return {
        "confidence": float(whole[mask].mean()),
        "entropy": float(entropy.mean()),
        "component_fraction": restored.component_fraction,
        "border_voxels": float((mask & seen_edge).sum() + _on_image_edge(restored, shape)),
        "agreement": float(2 * (mask & coarse).sum() / total),
    }


def _on_image_edge(restored: RestoredSide, shape: tuple[int, ...]) -> int:
    edge = np.zeros(restored.labels.shape, dtype=bool)
    for axis, (part, side) in enumerate(zip(restored.region, shape, strict=True)):
        view = np.moveaxis(edge, axis, 0)
        if len(view) and part.start == 0:
            view[0] = True
        if len(view) and part.stop == side:
            view[-1] = True
    return int((edge & (restored.labels > 0)).sum())


def asymmetry(volumes: Mapping[str, float]) -> float:
    """Asymmetry ``(L - R) / ((L + R) / 2)`` of two volumes; not a number unless both are there.

    Examples
    --------
    >>> asymmetry({"L": 3300.0, "R": 2700.0})
    0.2
    """
    left, right = volumes.get("L", 0.0), volumes.get("R", 0.0)
    if not left or not right:
        return float("nan")
    return (left - right) / ((left + right) / 2)
