"""Measures of a segmented scan: volumes, quality measures and flags."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage

from hyps_bids.imaging.agreement import dice
from hyps_bids.imaging.conform import ConformedImage
from hyps_bids.imaging.resample import resample
from hyps_bids.imaging.volumes import RestoredSide, measure, within
from hyps_bids.outputs.labels import HEMISPHERES
from hyps_bids.outputs.quality import flags
from hyps_bids.outputs.scan_files import ScanMeasures
from hyps_bids.segmentation.localize import Localization
from hyps_bids.segmentation.segment import Segmentation, SegmentedSide

#: Distance from the segmentation within which the entropy is averaged, mm.
_ENTROPY_MARGIN = 3.0


def measure_scan(
    image: ConformedImage,
    localization: Localization,
    segmentation: Segmentation,
    restored: Mapping[str, RestoredSide],
) -> ScanMeasures:
    """Compute all numbers that are written for a scan.

    Parameters
    ----------
    image : ConformedImage
        The image that the networks saw.
    localization, segmentation : Localization, Segmentation
        What they found.
    restored : mapping of str to RestoredSide
        Hemisphere → hippocampus on the image's grid.
    """
    volumes: dict[str, list[tuple[int, float, float]]] = {}
    measures: dict[str, float] = {}
    missing = [hemi for hemi in HEMISPHERES if hemi not in restored]
    for hemi, side in restored.items():
        rows = measure(side, image.affine)
        found = side_quality(
            segmentation.sides[hemi],
            side,
            image.data.shape,
            localization.hippocampus[HEMISPHERES.index(hemi)],
            localization.affine,
        )
        if rows[-1].voxels:
            volumes[hemi] = [*rows]
            found["volume_mm3"] = rows[-1].volume_mm3
        else:
            # It was localized, but the network saw no hippocampus there: missing, not 0 mm³.
            missing.append(hemi)
        if place := localization.hippocampi[hemi]:
            found["localiser_confidence"] = place.confidence
        measures |= {f"{name}_{hemi}": value for name, value in found.items()}
    measures["asymmetry"] = asymmetry({hemi: rows[-1][1] for hemi, rows in volumes.items()})
    measures["icv_mm3"] = localization.icv_mm3
    return ScanMeasures(
        parts=segmentation.parts,
        volumes=volumes,
        figures=measures,
        flags=(*image.flags, *(f"missing_{hemi}" for hemi in missing), *flags(measures)),
        remarks=image.remarks,
        box_centers={
            hemi: place.center for hemi, place in localization.hippocampi.items() if place
        },
        # These keys are in the sidecars of earlier versions.
        devices={"localise": localization.device, "segment": segmentation.device},
    )


def side_quality(
    side: SegmentedSide,
    restored: RestoredSide,
    shape: tuple[int, ...],
    localized: np.ndarray,
    localized_affine: np.ndarray,
) -> dict[str, float]:
    """Compute the quality measures of one hippocampus that ``data/qc.json`` defines.

    Parameters
    ----------
    side : SegmentedSide
        The hippocampus in its box, with voxels of 1 mm.
    restored : RestoredSide
        The same on the image's grid.
    shape : tuple of int
        Shape of the image.
    localized, localized_affine : numpy.ndarray
        The localizer's probability of this hippocampus, and its voxel-to-world transform.

    Returns
    -------
    dict of str to float
        ``confidence``, ``entropy``, ``component_fraction``, ``border_voxels`` and ``agreement``.
        If nothing was segmented, the agreement is 0 and all others are NaN.
    """
    whole = 1 - side.probabilities[0]
    mask = whole >= 0.5
    if not mask.any():
        undefined = ("confidence", "entropy", "component_fraction", "border_voxels")
        return dict.fromkeys(undefined, math.nan) | {"agreement": 0.0}
    near = within(mask, _ENTROPY_MARGIN, voxel_sizes(side.affine))
    p = np.clip(whole[near].astype(np.float64), 1e-7, 1 - 1e-7)
    entropy = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    edge = side.inside & ~ndimage.binary_erosion(side.inside)
    coarse = resample(localized, localized_affine, mask.shape, side.affine) > 0.5
    return {
        "confidence": float(whole[mask].mean()),
        "entropy": float(entropy.mean()),
        "component_fraction": restored.component_fraction,
        "border_voxels": float((mask & edge).sum() + _count_on_image_edge(restored, shape)),
        "agreement": dice(mask, coarse),
    }


def _count_on_image_edge(restored: RestoredSide, shape: tuple[int, ...]) -> int:
    edge = np.zeros(restored.labels.shape, dtype=bool)
    for axis, (part, side) in enumerate(zip(restored.region, shape, strict=True)):
        view = np.moveaxis(edge, axis, 0)
        if part.start == 0:
            view[:1] = True
        if part.stop == side:
            view[-1:] = True
    return int((edge & (restored.labels > 0)).sum())


def asymmetry(volumes: Mapping[str, float]) -> float:
    """Return ``(L - R) / ((L + R) / 2)`` of two volumes; NaN unless both are there.

    Examples
    --------
    >>> asymmetry({"L": 3300.0, "R": 2700.0})
    0.2
    """
    left, right = volumes.get("L", 0.0), volumes.get("R", 0.0)
    if not left or not right:
        return math.nan
    return (left - right) / ((left + right) / 2)
