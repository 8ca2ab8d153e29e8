"""Segment each hippocampus in its own box."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hyps_bids.imaging.agreement import dice
from hyps_bids.imaging.conform import ConformedImage
from hyps_bids.imaging.roi import box_affine, box_from_image, inside_box, mirror
from hyps_bids.networks.cards import GRID
from hyps_bids.segmentation.inference import Network, cached_adapted
from hyps_bids.segmentation.localize import Location

#: Mm along each axis that the network sees at once, as in the crops that it learned from.
VIEW = (36, 52, 36)
#: The network sees each hippocampus twice, the second time this many voxels further along each
#: axis. An odd number, so that its patches of two voxels lie elsewhere.
VIEW_SHIFT = 3
#: Shape of the box that holds both views, voxels of 1 mm.
LATTICE = tuple(side + VIEW_SHIFT for side in GRID)
#: Largest absolute value of a standardized image.
LARGEST_VALUE = 5.0
#: Smallest standard deviation, as a share of the largest absolute value; less is rounding error.
SMALLEST_SD = 1e-6
_WINDOWS = tuple(tuple(slice(start, start + side) for side in GRID) for start in (0, VIEW_SHIFT))


@dataclass(frozen=True)
class SegmentedSide:
    """One hippocampus in its box.

    Attributes
    ----------
    probabilities : numpy.ndarray
        Classes with the background first, float32, sum 1, shape ``(classes, *LATTICE)``; axes along
        right, anterior, superior. The mean of two views.
    affine : numpy.ndarray
        Voxel-to-world transform of the box.
    inside : numpy.ndarray
        Boolean mask of what the network saw in either view, shape ``LATTICE``.
    disagreement : float
        1 - Dice of the hippocampi in the two views, in [0, 1]; NaN if neither has one.
    """

    probabilities: np.ndarray
    affine: np.ndarray
    inside: np.ndarray
    disagreement: float = math.nan


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
        Where to compute: ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
    """
    network = cached_adapted(adapter, base, device)
    parts = network.labels
    found = {hemi: location for hemi, location in locations.items() if location is not None}
    if not found:
        return Segmentation({}, parts, "none")
    boxes = {hemi: box_affine(location.center, LATTICE) for hemi, location in found.items()}
    values, covered = {}, {}
    for hemi, box in boxes.items():
        sampled = box_from_image(image.data, image.affine, LATTICE, box)
        values[hemi], covered[hemi] = (_to_left(hemi, array) for array in sampled)
    views, used = segment_views(network, list(values.values()), list(covered.values()))
    sides = {
        hemi: SegmentedSide(
            _to_left(hemi, merged.probabilities),
            boxes[hemi],
            _to_left(hemi, merged.inside),
            merged.disagreement,
        )
        for hemi, merged in zip(found, views, strict=True)
    }
    return Segmentation(sides, parts, used)


class MergedViews(NamedTuple):
    """Mean of the views of a left-oriented box; fields as in :class:`SegmentedSide`."""

    probabilities: np.ndarray
    inside: np.ndarray
    disagreement: float


def segment_views(
    network: Network,
    volumes: Sequence[np.ndarray],
    covered: Sequence[np.ndarray],
    size: Sequence[int] = VIEW,
) -> tuple[list[MergedViews], str]:
    """Segment left-oriented boxes in two views each, and average these.

    Two views that are shifted against each other agree better with raters than one (Dice of the
    parts +0.003 to +0.006); more views bring nothing.

    Parameters
    ----------
    network : Network
        Segmentation network.
    volumes, covered : sequence of numpy.ndarray
        Intensities, and boolean masks of where the image has voxels, shape ``LATTICE`` each.
    size : sequence of int
        What the network may see in one view, voxels along each axis.

    Returns
    -------
    views : list of MergedViews
        One for each volume.
    used : str
        The device that computed them.
    """
    shown = inside_box(GRID, size)
    visible = [[mask[window] & shown for window in _WINDOWS] for mask in covered]
    batch = [
        standardize(volume[window], seen)
        for volume, masks in zip(volumes, visible, strict=True)
        for window, seen in zip(_WINDOWS, masks, strict=True)
    ]
    probabilities, used = network.predict(np.stack(batch)[:, None])
    pairs = probabilities.reshape(len(volumes), len(_WINDOWS), *probabilities.shape[1:])
    return [_merge(pair, masks) for pair, masks in zip(pairs, visible, strict=True)], used


def _merge(views: np.ndarray, visible: Sequence[np.ndarray]) -> MergedViews:
    """Average the views where they see; what neither sees is background."""
    total = np.zeros((views.shape[1], *LATTICE), np.float32)
    count = np.zeros(LATTICE, np.float32)
    masks = np.zeros((len(views), *LATTICE), bool)
    for window, view, seen, mask in zip(_WINDOWS, views, visible, masks, strict=True):
        total[:, *window] += view * seen
        count[window] += seen
        mask[window] = (view[0] < 0.5) & seen
    inside = count > 0
    total /= np.maximum(count, 1)
    total[0, ~inside] = 1
    union = int((masks[0] | masks[1]).sum())
    return MergedViews(total, inside, 1 - dice(*masks) if union else math.nan)


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
