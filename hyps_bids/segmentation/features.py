"""What a run knows about the quality of each hippocampus: the inputs of the expected Dice.

All features are plain numbers, NaN where there is nothing to compute them from. They do not depend
on the number of parts that the network tells apart, nor on the unit of the intensities.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage

from hyps_bids.imaging.agreement import dice
from hyps_bids.imaging.conform import ConformedImage
from hyps_bids.imaging.resample import resample
from hyps_bids.imaging.volumes import RestoredSide, within
from hyps_bids.outputs.labels import HEMISPHERES
from hyps_bids.segmentation.localize import Localization
from hyps_bids.segmentation.segment import SegmentedSide

#: Distance from the segmentation within which the entropy is averaged, mm.
_ENTROPY_MARGIN = 3.0
#: Probabilities between which a voxel is uncertain.
_UNCERTAIN = (0.2, 0.8)
#: Distance from the hippocampus within which its surroundings are looked at, mm.
_SURROUNDINGS = 5.0
#: Voxels finer than this add nothing to the measures of the image, and are skipped, mm.
_FINEST = 0.8
#: Scales the median absolute second difference of white noise to its standard deviation.
_NOISE_SCALE = 1.4826 / math.sqrt(6)


def describe_sides(
    image: ConformedImage,
    localization: Localization | None,
    sides: Mapping[str, SegmentedSide],
    restored: Mapping[str, RestoredSide],
) -> dict[str, dict[str, float]]:
    """Compute the features of every hippocampus that was segmented.

    Parameters
    ----------
    image : ConformedImage
        The image that the networks saw.
    localization : Localization or None
        What the localizer found; None if it was not run, as on crops.
    sides : mapping of str to SegmentedSide
        Hemisphere → hippocampus in its box, with voxels of 1 mm.
    restored : mapping of str to RestoredSide
        Hemisphere → the same on the image's grid.

    Returns
    -------
    dict of str to dict of str to float
        Hemisphere → feature → value. Sides without a single voxel are left out.
    """
    found, centers = {}, {}
    for hemi, side in sides.items():
        mask = _whole(side) >= 0.5
        if not mask.any():
            continue
        shape, centers[hemi] = _shape(mask, side.affine)
        # Left and right lean to opposite sides.
        shape["yaw"] *= 1 if hemi == "L" else -1
        found[hemi] = {
            **_certainty(side, mask),
            **shape,
            **_parts(side, mask),
            **_surroundings(image, restored[hemi]),
            "component_fraction": restored[hemi].component_fraction,
            "border_voxels": float(count_on_image_edge(restored[hemi], image.data.shape)),
            "seen": float(side.inside.mean()),
            "disagreement": side.disagreement,
        }
        if localization is not None:
            found[hemi] |= _agreement(localization, hemi, mask, side.affine, centers[hemi])
    _compare_sides(found, centers)
    return found


def _whole(side: SegmentedSide) -> np.ndarray:
    """Return the probability of the whole hippocampus."""
    whole: np.ndarray = 1 - side.probabilities[0]
    return whole


def _certainty(side: SegmentedSide, mask: np.ndarray) -> dict[str, float]:
    whole = _whole(side)
    near = within(mask, _ENTROPY_MARGIN, voxel_sizes(side.affine))
    p = np.clip(whole[near].astype(np.float64), 1e-7, 1 - 1e-7)
    entropy = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    count = float(mask.sum())
    low, high = _UNCERTAIN
    return {
        "confidence": float(whole[mask].mean()),
        "entropy": float(entropy.mean()),
        "uncertain": float(((whole > low) & (whole < high)).sum() / count),
        "soft_ratio": float(np.log(whole.sum(dtype=np.float64) / count)),
        # Dice that would be expected if the probabilities were true.
        "soft_dice": float(2 * whole[mask].sum() / (count + whole.sum(dtype=np.float64))),
    }


def _shape(mask: np.ndarray, affine: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
    """Describe size, form and direction; also return the center, world coordinates, mm."""
    index = np.argwhere(mask).astype(np.float64)
    count = len(index)
    center = index.mean(axis=0)
    axes = np.linalg.eigh(np.cov(index.T) if count > 3 else np.eye(3))
    long_axis = axes.eigenvectors[:, -1]
    long_axis = long_axis * (1 if long_axis[1] >= 0 else -1)
    spread = np.sqrt(np.maximum(axes.eigenvalues, 1e-6))
    faces = sum(
        int(np.diff(np.pad(mask, 1).astype(np.int8), axis=axis).astype(bool).sum())
        for axis in range(3)
    )
    along = (index - center) @ long_axis
    # A smooth surface has about two thirds of the area of the faces of its voxels.
    sphere = math.pi ** (1 / 3) * (6.0 * count) ** (2 / 3)
    found = {
        "box_volume_mm3": float(count),
        "compactness": sphere / (faces * 2 / 3),
        "length_mm": float(np.ptp(along)) + 1,
        "elongation": float(spread[2] / spread[1]),
        "flatness": float(spread[1] / spread[0]),
        "pitch": math.degrees(math.atan2(long_axis[2], long_axis[1])),
        "yaw": math.degrees(math.atan2(long_axis[0], long_axis[1])),
    }
    return found, affine[:3, :3] @ center + affine[:3, 3]


def _parts(side: SegmentedSide, mask: np.ndarray) -> dict[str, float]:
    """Return the share of the first part, and how clearly parts are told apart."""
    if len(side.probabilities) < 3:
        return {}
    parts = side.probabilities[1:, mask]
    first = float((parts.argmax(axis=0) == 0).mean())
    return {"first_part": first, "part_confidence": float(parts.max(axis=0).mean())}


def _agreement(
    localization: Localization, hemi: str, mask: np.ndarray, affine: np.ndarray, center: np.ndarray
) -> dict[str, float]:
    place = localization.hippocampi[hemi]
    localized = localization.hippocampus[HEMISPHERES.index(hemi)]
    coarse = resample(localized, localization.affine, mask.shape, affine)
    found = {
        "agreement": dice(mask, coarse > 0.5),
        "localizer_inside": float(coarse[mask].mean()),
        "localizer_soft_ratio": float(
            np.log(max(float(coarse.sum()), 1.0) / max(float((coarse > 0.5).sum()), 1.0))
        ),
        "icv_mm3": localization.icv_mm3,
    }
    if (coarse > 0.5).any():
        there = affine[:3, :3] @ np.argwhere(coarse > 0.5).mean(axis=0) + affine[:3, 3]
        found["center_distance_mm"] = float(np.linalg.norm(center - there))
    if place is not None:
        found |= {
            "localiser_confidence": place.confidence,
            "localizer_volume_ratio": math.log(mask.sum() / max(place.volume_mm3, 1.0)),
        }
    inside = localization.intracranial
    if inside.any():
        middle = np.array(ndimage.center_of_mass(inside))
        middle = localization.affine[:3, :3] @ middle + localization.affine[:3, 3]
        radius = (localization.icv_mm3 * 3 / (4 * math.pi)) ** (1 / 3)
        found["depth"] = float(np.linalg.norm(center - middle) / radius)
    return found


def _surroundings(image: ConformedImage, side: RestoredSide) -> dict[str, float]:
    """Describe the image in and around the hippocampus: contrast, noise, sharpness, voxels."""
    sizes = voxel_sizes(image.affine)
    found = {
        "voxel_mm": float(np.prod(sizes) ** (1 / 3)),
        "largest_voxel_mm": float(sizes.max()),
    }
    steps = tuple(slice(None, None, max(1, int(_FINEST // size))) for size in sizes)
    spacing = [size * step.step for size, step in zip(sizes, steps, strict=True)]
    values = image.data[side.region][steps].astype(np.float32)
    p = side.probabilities[(slice(None), *steps)].sum(axis=0)
    core, outside = p > 0.8, p < 0.2
    reach = [2 * max(1, round(_SURROUNDINGS / size)) + 1 for size in spacing]
    ring = outside & (ndimage.uniform_filter((p > 0.5).astype(np.float32), reach) > 1e-4)
    if core.sum() < 5 or ring.sum() < 20:
        return found
    inner, outer = values[core], values[ring]
    dark, middle, bright = np.percentile(outer, (10, 50, 90))
    spread = float(bright - dark)
    if not spread > 0:
        return found
    both = core | ring
    noise, slope = [], []
    for axis, size in enumerate(spacing):
        if values.shape[axis] < 3:
            continue
        here = np.moveaxis(both, axis, 0)[1:-1]
        second = np.abs(np.moveaxis(np.diff(values, 2, axis=axis), axis, 0)[here])
        first = np.abs(np.moveaxis(np.diff(values, axis=axis), axis, 0)[1:][here])
        noise.append(float(np.median(second)) * _NOISE_SCALE / spread)
        slope.append(float(first.mean()) / size / spread)
    return found | {
        "level": float((inner.mean() - dark) / spread),
        "core_sd": float(inner.std() / spread),
        "ring_skew": float((middle - dark) / spread),
        "contrast": abs(float(inner.mean() - outer.mean())) / spread,
        "noise": max(noise, default=math.nan),
        "least_noise": min(noise, default=math.nan),
        "slope": max(slope, default=math.nan),
        "least_slope": min(slope, default=math.nan),
    }


def _compare_sides(
    found: Mapping[str, dict[str, float]], centers: Mapping[str, np.ndarray]
) -> None:
    """Add how the sides differ, if there are two."""
    if len(found) < 2:
        return
    distance = float(np.linalg.norm(centers["L"] - centers["R"]))
    left, right = found["L"], found["R"]
    ratio = abs(math.log(left["box_volume_mm3"] / right["box_volume_mm3"]))
    pitch = abs(left["pitch"] - right["pitch"])
    for side in (left, right):
        side |= {"sides_distance_mm": distance, "sides_ratio": ratio, "sides_pitch": pitch}


def count_on_image_edge(restored: RestoredSide, shape: tuple[int, ...]) -> int:
    """Count the voxels of a hippocampus that lie on the edge of its image."""
    edge = np.zeros(restored.labels.shape, dtype=bool)
    for axis, (part, side) in enumerate(zip(restored.region, shape, strict=True)):
        view = np.moveaxis(edge, axis, 0)
        if part.start == 0:
            view[:1] = True
        if part.stop == side:
            view[-1:] = True
    return int((edge & (restored.labels > 0)).sum())
