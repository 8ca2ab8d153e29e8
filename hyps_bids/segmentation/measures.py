"""Measures of a segmented scan: volumes, quality measures and flags."""

from __future__ import annotations

import math
from collections.abc import Mapping

from hyps_bids.imaging.conform import ConformedImage
from hyps_bids.imaging.volumes import RestoredSide, measure
from hyps_bids.outputs.labels import HEMISPHERES
from hyps_bids.outputs.quality import EXPECTED, EXPECTED_LOW, flags
from hyps_bids.outputs.scan_files import ScanMeasures
from hyps_bids.segmentation.expected import expect_dice
from hyps_bids.segmentation.features import describe_sides
from hyps_bids.segmentation.localize import Localization, Location
from hyps_bids.segmentation.segment import Segmentation

#: Features that are quality measures of their own.
_FEATURES = (
    "confidence",
    "entropy",
    "component_fraction",
    "border_voxels",
    "agreement",
    "disagreement",
)


def measure_scan(
    image: ConformedImage,
    localization: Localization,
    segmentation: Segmentation,
    restored: Mapping[str, RestoredSide],
    networks: Mapping[str, str] | None = None,
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
    networks : mapping of str to str, optional
        SHA-256 sums of the networks by their role, for which the expected Dice may be calibrated.
    """
    features = describe_sides(image, localization, segmentation.sides, restored)
    expected, note = expect_dice(features, networks or {})
    volumes: dict[str, list[tuple[int, float, float]]] = {}
    measures: dict[str, float] = {}
    missing = [hemi for hemi in HEMISPHERES if hemi not in restored]
    for hemi, side in restored.items():
        rows = measure(side, image.affine)
        found = _side_figures(features.get(hemi, {}), localization.hippocampi[hemi])
        if rows[-1].voxels:
            volumes[hemi] = [*rows]
            found["volume_mm3"] = rows[-1].volume_mm3
            if estimate := expected.get(hemi):
                found |= {EXPECTED: estimate.expected, EXPECTED_LOW: estimate.low}
        else:
            # It was localized, but the network saw no hippocampus there: missing, not 0 mm³.
            missing.append(hemi)
        measures |= {f"{name}_{hemi}": value for name, value in found.items()}
    measures["asymmetry"] = asymmetry({hemi: rows[-1][1] for hemi, rows in volumes.items()})
    measures["brightness_difference"] = brightness_difference(features)
    measures["icv_mm3"] = localization.icv_mm3
    measures["icv_cut"] = localization.icv_cut
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
        expected_dice=note,
    )


def _side_figures(features: Mapping[str, float], place: Location | None) -> dict[str, float]:
    """Choose the measures that the QC table shows; without a single voxel, most are NaN."""
    found = {name: features.get(name, math.nan) for name in _FEATURES}
    if not features:
        found["agreement"] = 0.0
    return found | ({"localiser_confidence": place.confidence} if place else {})


def brightness_difference(features: Mapping[str, Mapping[str, float]]) -> float:
    """Return the absolute difference of the sides' ``level``; NaN unless both have one.

    Networks take a resection cavity for the hippocampus that was there, but its intensity is not
    that of the other side.

    Examples
    --------
    >>> round(brightness_difference({"L": {"level": 0.4}, "R": {"level": 0.1}}), 3)
    0.3
    """
    levels = [features.get(hemi, {}).get("level", math.nan) for hemi in HEMISPHERES]
    return abs(levels[0] - levels[1])


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
