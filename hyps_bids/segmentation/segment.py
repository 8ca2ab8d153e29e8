"""Segment each hippocampus in its own box."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hyps_bids.imaging.conform import ConformedImage
from hyps_bids.imaging.roi import box_affine, box_from_image, inside_box, mirror
from hyps_bids.networks.cards import GRID
from hyps_bids.outputs.scan_files import BOX
from hyps_bids.segmentation.inference import cached_adapted
from hyps_bids.segmentation.localize import Location

#: Largest absolute value of a standardized image.
LARGEST_VALUE = 5.0
#: Smallest standard deviation, as a share of the largest absolute value; less is rounding error.
SMALLEST_SD = 1e-6


@dataclass(frozen=True)
class SegmentedSide:
    """One hippocampus in its box.

    Attributes
    ----------
    probabilities : numpy.ndarray
        Classes with the background first, float32, sum 1, shape ``(classes, *GRID)``; axes along
        right, anterior, superior.
    affine : numpy.ndarray
        Voxel-to-world transform of the box.
    inside : numpy.ndarray
        Boolean mask of what the network saw, shape ``GRID``.
    """

    probabilities: np.ndarray
    affine: np.ndarray
    inside: np.ndarray


@dataclass(frozen=True)
class Segmentation:
    """What the segmentation network found.

    Attributes
    ----------
    sides : dict of str to SegmentedSide
        By hemisphere; only hippocampi that the localizer found.
    parts : tuple of str
        The network's classes in order, background left out.
    device : str
        Where it was computed; ``none`` if there was nothing to compute.
    """

    sides: dict[str, SegmentedSide]
    parts: tuple[str, ...]
    device: str


def segment(
    image: ConformedImage,
    locations: Mapping[str, Location | None],
    adapter: Path,
    base: Path,
    device: str = "cpu",
) -> Segmentation:
    """Segment the hippocampi that were found.

    The network knows left hippocampi only, so right boxes are mirrored, and mirrored back.

    Parameters
    ----------
    image : ConformedImage
        T1w image.
    locations : mapping of str to Location or None
        By hemisphere, from :func:`hyps_bids.segmentation.localize.localize`.
    adapter, base : Path
        Weights of the segmentation network.
    device : str
        Where to compute: ``cpu``, ``cuda`` or ``cuda:N``.
    """
    network = cached_adapted(adapter, base, device)
    parts = network.labels
    found = {hemi: location for hemi, location in locations.items() if location is not None}
    if not found:
        return Segmentation({}, parts, "none")
    boxes = {hemi: box_affine(location.center, GRID) for hemi, location in found.items()}
    values, insides = {}, {}
    for hemi, box in boxes.items():
        values[hemi], covered = box_from_image(image.data, image.affine, GRID, box)
        insides[hemi] = covered & inside_box(GRID, BOX)
    batch = np.stack([_to_left(hemi, standardize(values[hemi], insides[hemi])) for hemi in found])
    probabilities, used = network.predict(batch[:, None])
    sides = {
        hemi: SegmentedSide(_to_left(hemi, probability), boxes[hemi], insides[hemi])
        for hemi, probability in zip(found, probabilities, strict=True)
    }
    return Segmentation(sides, parts, used)


def standardize(volume: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Scale a volume to zero mean and unit variance inside a mask, and set the rest to zero.

    Parameters
    ----------
    volume, inside : numpy.ndarray
        The volume, float32, and a boolean mask of the same shape.

    Returns
    -------
    numpy.ndarray
        float32, within plus or minus :data:`LARGEST_VALUE`.

    Examples
    --------
    >>> standardize(np.float32([2, 4, 100]), np.array([True, True, False])).tolist()
    [-1.0, 1.0, 0.0]
    """
    seen = volume[inside]
    if not seen.size:
        return np.zeros_like(volume)
    centered = np.where(inside, volume - seen.mean(dtype=np.float64), 0)
    least = max(SMALLEST_SD * float(np.abs(seen).max()), float(np.finfo(np.float32).tiny))
    sd = max(float(np.sqrt(np.mean(np.square(centered[inside])))), least)
    return np.clip(centered / sd, -LARGEST_VALUE, LARGEST_VALUE).astype(np.float32)


def _to_left(hemisphere: str, data: np.ndarray) -> np.ndarray:
    """Mirror right boxes; doing so twice changes nothing."""
    return mirror(data) if hemisphere == "R" else data
