"""The chain from the scans of one person to their change, told once.

align → boxes midway → match intensities → segment all time points → volumes and boundary shift.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from nibabel.affines import apply_affine

from hyps_bids.imaging.conform import ConformedImage
from hyps_bids.imaging.roi import box_affine, mirror
from hyps_bids.imaging.volumes import decide, largest_component
from hyps_bids.longitudinal.boundary_shift import boundary_shift, estimate_tissues
from hyps_bids.longitudinal.boxes import match, sample_box, soft_volumes
from hyps_bids.longitudinal.heads import REFUSALS, Scan, align
from hyps_bids.outputs.labels import HEMISPHERES
from hyps_bids.segmentation.inference import Network
from hyps_bids.segmentation.localize import SMALLEST_HIPPOCAMPUS
from hyps_bids.segmentation.segment import LATTICE, segment_views

__all__ = ["REFUSALS", "Followed", "FollowedSide", "TimePoint", "follow"]

#: Smallest share of a hippocampus that a scan must cover.
_VISIBLE = 0.995


@dataclass(frozen=True)
class TimePoint:
    """One scan of a series, as the cross-sectional run left it.

    Attributes
    ----------
    image : ConformedImage
        The scan, with the bias field corrected if the run does so.
    intracranial, intracranial_affine : numpy.ndarray
        Probability of being inside the skull, or a mask, on a grid of its own, and that grid's
        voxel-to-world transform.
    centers : mapping of str to sequence of float
        Hemisphere → center of the box that the network saw, world mm. Sides that were not found
        are absent.
    """

    image: ConformedImage
    intracranial: np.ndarray
    intracranial_affine: np.ndarray
    centers: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class FollowedSide:
    """One hippocampus at all time points, in one box.

    Attributes
    ----------
    affine : numpy.ndarray
        Voxel-to-world transform of the box in the midway world; voxels of 1 mm.
    probabilities : tuple of numpy.ndarray or None
        For each time point the classes, background first, float32, shape ``(classes, *LATTICE)``;
        axes along right, anterior, superior. None where the time point has none.
    volumes : numpy.ndarray
        mm³, shape ``(time points, parts + whole)``; NaN where missing.
    boundary_shift : numpy.ndarray
        mm³ gained since the first time point that has this side, by the boundary shift integral,
        shape as `volumes`; NaN where refused or missing.
    images : tuple of numpy.ndarray or None
        Intensities of each time point in the box, matched to each other, float32.
    reasons : tuple of str or None
        Why a time point has none: ``out-of-view`` or ``not-found``.
    boundary_refusal : str or None
        Why there is no boundary shift integral, as in :class:`.boundary_shift.Shift`.
    figures : dict of str to float
        What describes this side over all time points.
    """

    affine: np.ndarray
    probabilities: tuple[np.ndarray | None, ...]
    volumes: np.ndarray
    boundary_shift: np.ndarray
    images: tuple[np.ndarray | None, ...]
    reasons: tuple[str | None, ...]
    boundary_refusal: str | None = None
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Followed:
    """What was found in the scans of one person, in the order in which they were given.

    Attributes
    ----------
    to_midway : tuple of numpy.ndarray or None
        From the world of each scan to the midway world, rigid, shape (4, 4); None where refused.
    refusals : tuple of str or None
        Code of the reason; see :data:`REFUSALS`.
    figures : tuple of dict
        For each time point: mask_overlap, similarity, rotation_deg, translation_mm and more.
    sides : dict of str to FollowedSide
        Hemisphere → hippocampus; only those with two time points or more.
    parts : tuple of str
        Names of the parts.
    """

    to_midway: tuple[np.ndarray | None, ...]
    refusals: tuple[str | None, ...]
    figures: tuple[dict[str, float], ...]
    sides: dict[str, FollowedSide]
    parts: tuple[str, ...]


def follow(points: Sequence[TimePoint], network: Network) -> Followed:
    """Follow both hippocampi over the scans of one person.

    Parameters
    ----------
    points : sequence of TimePoint
        Two or more scans, in the order of time.
    network : Network
        The segmentation network, as :func:`.inference.cached_adapted` returns it.

    Returns
    -------
    Followed
        Changes are relative to the first scan. Which scan is first matters for nothing else:
        reversing the order reverses the signs of all changes.
    """
    aligned = align(
        [Scan(p.image, p.intracranial, p.intracranial_affine, p.centers) for p in points]
    )
    moves = {i: move for i, move in enumerate(aligned.moves) if move is not None}
    boxes = {}
    if len(moves) > 1:
        for hemi in HEMISPHERES:
            center = _box_center(hemi, points, moves)
            if center is not None:
                boxes[hemi] = box_affine(center, LATTICE)
    sides = _follow_sides(points, moves, boxes, network)
    return Followed(
        to_midway=tuple(None if move is None else np.linalg.inv(move) for move in aligned.moves),
        refusals=aligned.refusals,
        figures=aligned.figures,
        sides=sides,
        parts=network.labels,
    )


def _box_center(
    hemi: str, points: Sequence[TimePoint], moves: Mapping[int, np.ndarray]
) -> list[float] | None:
    """Find the median of a hippocampus' places in the midway world; None if it has none."""
    places = [
        apply_affine(np.linalg.inv(move), points[i].centers[hemi])
        for i, move in moves.items()
        if hemi in points[i].centers
    ]
    return [float(c) for c in np.median(places, axis=0)] if places else None


def _follow_sides(
    points: Sequence[TimePoint],
    moves: Mapping[int, np.ndarray],
    boxes: Mapping[str, np.ndarray],
    network: Network,
) -> dict[str, FollowedSide]:
    used = list(moves)
    images, covered = {}, {}
    for hemi, box in boxes.items():
        sampled = [sample_box(points[i].image, move, LATTICE, box) for i, move in moves.items()]
        covered[hemi] = np.stack([inside for _, inside in sampled])
        images[hemi] = match(np.stack([values for values, _ in sampled]), covered[hemi])
    if not boxes:
        return {}
    views, _ = segment_views(
        network,
        [_to_left(hemi, each) for hemi in boxes for each in images[hemi]],
        [_to_left(hemi, each) for hemi in boxes for each in covered[hemi]],
    )
    sides = {}
    for k, (hemi, box) in enumerate(boxes.items()):
        own = views[k * len(used) : (k + 1) * len(used)]
        found = np.stack([_to_left(hemi, view.probabilities) for view in own])
        sides[hemi] = _finish_side(box, found, images[hemi], covered[hemi], len(points), used)
    return {hemi: side for hemi, side in sides.items() if side is not None}


def _to_left(hemi: str, data: np.ndarray) -> np.ndarray:
    return mirror(data) if hemi == "R" else data


def _finish_side(
    box: np.ndarray,
    probabilities: np.ndarray,
    images: np.ndarray,
    covered: np.ndarray,
    count: int,
    used: Sequence[int],
) -> FollowedSide | None:
    """Measure one side; None if fewer than two time points have it."""
    reasons: list[str | None] = [None] * count
    kept = []
    masks = [largest_component(decide(each[1:]) > 0)[0] for each in probabilities]
    for k, i in enumerate(used):
        size = int(masks[k].sum())
        seen = float((masks[k] & covered[k]).sum()) / max(size, 1)
        if size < SMALLEST_HIPPOCAMPUS:
            reasons[i] = "not-found"
        elif seen < _VISIBLE:
            reasons[i] = "out-of-view"
        else:
            kept.append(k)
    if len(kept) < 2:
        return None
    parts = probabilities.shape[1] - 1
    volumes = np.full((count, parts + 1), math.nan)
    shifts = volumes.copy()
    rows = [used[k] for k in kept]
    volumes[rows] = [soft_volumes(probabilities[k], masks[k]) for k in kept]
    tissues = estimate_tissues(images[kept].mean(axis=0)[covered[kept].all(axis=0)])
    shift = boundary_shift(
        images[kept],
        probabilities[kept, 1:].mean(axis=0),
        np.stack([masks[k] for k in kept]),
        tissues,
    )
    shifts[rows] = shift.gained
    at = dict(zip(rows, kept, strict=True))
    return FollowedSide(
        affine=box,
        probabilities=tuple(probabilities[at[i]] if i in at else None for i in range(count)),
        volumes=volumes,
        boundary_shift=shifts,
        images=tuple(images[at[i]] if i in at else None for i in range(count)),
        reasons=tuple(reasons),
        boundary_refusal=shift.refusal,
    )
