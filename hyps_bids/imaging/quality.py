"""QC figures of a segmented hippocampus, and the flags that follow from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

import numpy as np
from scipy import ndimage

from hyps_bids.imaging.resample import resample
from hyps_bids.imaging.volumes import RestoredSide

__all__ = ["asymmetry", "flags", "side_quality", "thresholds"]

#: mm around the segmentation over which the entropy is averaged
_ENTROPY_MARGIN = 3.0


@cache
def thresholds() -> dict[str, dict[str, float | str]]:
    """Read what each figure means and between which bounds it is inconspicuous."""
    return json.loads((files("hyps_bids") / "data" / "qc.json").read_text())


def side_quality(
    probabilities: np.ndarray,
    inside: np.ndarray,
    box: np.ndarray,
    restored: RestoredSide,
    shape: tuple[int, ...],
    localised: np.ndarray,
    localised_affine: np.ndarray,
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
    localised, localised_affine : numpy.ndarray
        The localiser's probability of this hippocampus and its transform.

    Returns
    -------
    dict of str to float
        ``confidence``, ``entropy``, ``component_fraction``, ``border_voxels``, ``agreement``:
        defined in ``data/qc.json``. Not a number where nothing was segmented.
    """
    whole = 1 - probabilities[0]
    mask = whole >= 0.5
    coarse = resample(localised, localised_affine, mask.shape, box) > 0.5
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


def flags(figures: Mapping[str, float]) -> list[str]:
    """Name the figures outside their bounds.

    Parameters
    ----------
    figures : mapping of str to float
        Names as in ``data/qc.json``, with ``_L`` or ``_R`` appended for one side.

    Returns
    -------
    list of str
        ``low_NAME`` or ``high_NAME``; figures that are not a number are passed over.

    Examples
    --------
    >>> flags({"confidence_L": 0.5, "confidence_R": 0.95, "asymmetry": 0.4})
    ['low_confidence_L', 'high_asymmetry']
    """
    found = []
    for name, value in figures.items():
        bounds = thresholds()[name.removesuffix("_L").removesuffix("_R")]
        if value < float(bounds.get("low", -np.inf)):
            found.append(f"low_{name}")
        elif value > float(bounds.get("high", np.inf)):
            found.append(f"high_{name}")
    return found
