"""The chain from the scans of one person to their change, told once.

align (:mod:`.heads`) → the same boxes in all scans → match intensities → segment all boxes → deform
to the mean shape → fuse probabilities and measure volumes → boundary shift integral.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from nibabel.affines import apply_affine, voxel_sizes

from hyps_bids.imaging.conform import ConformedImage
from hyps_bids.imaging.roi import box_affine, mirror, shifted
from hyps_bids.longitudinal.boundary_shift import boundary_shift, estimate_tissues, smoothed
from hyps_bids.longitudinal.boxes import (
    Fused,
    blur_alike,
    fuse,
    mask_of,
    sample_box,
    soft_volumes,
)
from hyps_bids.longitudinal.deformation import deform_to_mean
from hyps_bids.longitudinal.heads import REFUSALS, Scan, align
from hyps_bids.longitudinal.intensities import match
from hyps_bids.outputs.labels import HEMISPHERES
from hyps_bids.segmentation.inference import Network
from hyps_bids.segmentation.localize import SMALLEST_HIPPOCAMPUS
from hyps_bids.segmentation.segment import LATTICE, segment_views

__all__ = ["REFUSALS", "Followed", "FollowedSide", "TimePoint", "follow"]

#: Smallest share of a hippocampus that a scan must cover.
_VISIBLE = 0.995
#: Smallest share of a box that a scan must cover.
_COVERED = 0.6
#: Largest voxel size for boundary shift integrals, mm: in thicker slices, most of the boundary of a
#: hippocampus is mixed with other tissue.
_THICKEST = 2.0
#: Voxels around a box that show what deformations near its faces do.
_MARGIN = 8
_MIDDLE = tuple(slice(_MARGIN, _MARGIN + side) for side in LATTICE)


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
    boundary_refusal : str or None
        Why there is no boundary shift integral, as in :class:`.boundary_shift.Shift`, or
        ``thick-slices``.
    agreement : tuple of float
        For each time point the Dice of what the network found there and what all scans together
        say; NaN where missing.
    unlike : tuple of bool
        Whether a time point differs from the others more than a smooth deformation explains. It
        then has its own probabilities and volumes, and no boundary shift unless all are unlike.
    """

    affine: np.ndarray
    probabilities: tuple[np.ndarray | None, ...]
    volumes: np.ndarray
    boundary_shift: np.ndarray
    images: tuple[np.ndarray | None, ...]
    agreement: tuple[float, ...]
    unlike: tuple[bool, ...]
    boundary_refusal: str | None = None

    @property
    def all_unlike(self) -> bool:
        """Whether no two scans were measured together."""
        return bool(np.array(self.unlike)[np.isfinite(self.volumes[:, -1])].all())

    @property
    def comparable(self) -> np.ndarray:
        """Volumes between which a change can be told, as `volumes`, NaN elsewhere.

        The volume of a scan that was measured by itself differs from that of scans that were
        measured together by several percent, also without change.
        """
        alone = np.array(self.unlike)[:, None]
        return self.volumes if self.all_unlike else np.where(alone, math.nan, self.volumes)


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
    missing : dict of str to tuple of str or None
        Hemisphere, also where it has no `sides` → why each time point lacks it: ``out-of-view`` or
        ``not-found``; None if it is there, or if the scan was refused.
    """

    to_midway: tuple[np.ndarray | None, ...]
    refusals: tuple[str | None, ...]
    figures: tuple[dict[str, float], ...]
    sides: dict[str, FollowedSide]
    parts: tuple[str, ...]
    missing: dict[str, tuple[str | None, ...]] = field(default_factory=dict)


def follow(points: Sequence[TimePoint], network: Network, threads: int = 1) -> Followed:
    """Follow both hippocampi over the scans of one person.

    Parameters
    ----------
    points : sequence of TimePoint
        Two or more scans, in the order of time.
    network : Network
        The segmentation network, as :func:`.inference.cached_adapted` returns it.
    threads : int
        With two or more, both sides are sampled and measured at the same time.

    Returns
    -------
    Followed
        Changes are relative to the first scan. Which scan is first matters for nothing else:
        reversing the order reverses the signs of all changes.
    """
    # In an order that does not depend on time, rounding errors do not depend on it either.
    order = sorted(range(len(points)), key=lambda i: _content(points[i].image))
    found = _follow([points[i] for i in order], network, threads)
    place = [order.index(i) for i in range(len(points))]
    return replace(
        found,
        to_midway=tuple(found.to_midway[k] for k in place),
        refusals=tuple(found.refusals[k] for k in place),
        figures=tuple(found.figures[k] for k in place),
        sides={hemi: _in_order(side, place) for hemi, side in found.sides.items()},
        missing={hemi: tuple(each[k] for k in place) for hemi, each in found.missing.items()},
    )


def _content(image: ConformedImage) -> tuple[bytes, bytes]:
    """Return something that orders scans by what they show."""
    some = image.data[tuple(slice(None, None, max(1, side // 16)) for side in image.data.shape)]
    return some.tobytes(), image.affine.tobytes()


def _in_order(side: FollowedSide, place: Sequence[int]) -> FollowedSide:
    """Bring a side to the order of time, and count what is gained from the first scan on."""
    shift = side.boundary_shift[place]
    known = np.flatnonzero(np.isfinite(shift[:, -1]))
    return replace(
        side,
        probabilities=tuple(side.probabilities[k] for k in place),
        volumes=side.volumes[place],
        boundary_shift=shift - shift[known[0]] if known.size else shift,
        images=tuple(side.images[k] for k in place),
        agreement=tuple(side.agreement[k] for k in place),
        unlike=tuple(side.unlike[k] for k in place),
    )


def _follow(points: Sequence[TimePoint], network: Network, threads: int) -> Followed:
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
    with ThreadPoolExecutor(max(1, min(threads, len(HEMISPHERES)))) as pool:
        sides, missing = _follow_sides(points, moves, boxes, network, pool)
    return Followed(
        to_midway=tuple(None if move is None else np.linalg.inv(move) for move in aligned.moves),
        refusals=aligned.refusals,
        figures=aligned.figures,
        sides=sides,
        parts=network.labels,
        missing=missing,
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
    pool: ThreadPoolExecutor,
) -> tuple[dict[str, FollowedSide], dict[str, tuple[str | None, ...]]]:
    """Sample all boxes, segment them in one batch, and finish each side; also tell what lacks."""
    # A side without a box was found in no scan.
    nowhere = tuple("not-found" if i in moves else None for i in range(len(points)))
    missing = dict.fromkeys(HEMISPHERES, nowhere)
    sampled = pool.map(lambda hemi: _sample(hemi, points, moves, boxes[hemi]), boxes)
    samples = {hemi: sample for hemi, sample in zip(boxes, sampled, strict=True) if sample.used}
    if not samples:
        return {}, missing
    images = [_to_left(h, one[_MIDDLE]) for h, each in samples.items() for one in each.images]
    covered = [_to_left(h, one[_MIDDLE]) for h, each in samples.items() for one in each.covered]
    views, _ = segment_views(network, images, covered)
    measured = {}
    for hemi, sample in samples.items():
        own, views = views[: len(sample.used)], views[len(sample.used) :]
        found = np.stack([_to_left(hemi, view.probabilities) for view in own])
        absent = _absent(found, sample)
        missing[hemi] = tuple(absent.get(i) for i in range(len(points)))
        kept = [k for k, i in enumerate(sample.used) if absent[i] is None]
        if len(kept) > 1:
            chosen = boxes[hemi], found[kept], sample.only(kept), len(points)
            measured[hemi] = pool.submit(_finish_side, *chosen)
    return {hemi: future.result() for hemi, future in measured.items()}, missing


class _Sample(NamedTuple):
    """The scans that show a box and its surroundings: their numbers, intensities and masks.

    `absent` has the numbers of the others, with the reason, and `voxel` is the largest voxel size,
    mm.
    """

    used: list[int]
    images: np.ndarray
    covered: np.ndarray
    absent: dict[int, str]
    voxel: float

    def only(self, kept: Sequence[int]) -> _Sample:
        used = [self.used[k] for k in kept]
        return _Sample(used, self.images[kept], self.covered[kept], self.absent, self.voxel)


def _sample(
    hemi: str, points: Sequence[TimePoint], moves: Mapping[int, np.ndarray], box: np.ndarray
) -> _Sample:
    """Sample a box in all scans that cover it and showed the side by themselves.

    Where nothing was found in the whole head, the network would still see a hippocampus in a box
    that is centered on that of other scans, and the box would spoil what is found in these.
    """
    large = shifted(box, [-_MARGIN] * 3)
    shape = [side + 2 * _MARGIN for side in LATTICE]
    sampled = {i: sample_box(points[i].image, move, shape, large) for i, move in moves.items()}
    seen = [i for i, (_, inside) in sampled.items() if inside[_MIDDLE].mean() >= _COVERED]
    used = [i for i in seen if hemi in points[i].centers]
    absent = {i: "not-found" if i in seen else "out-of-view" for i in moves if i not in used}
    if not used:
        return _Sample([], np.zeros((0, *shape)), np.zeros((0, *shape), bool), absent, 0.0)
    covered = np.stack([sampled[i][1] for i in used])
    images = blur_alike(
        np.stack([sampled[i][0] for i in used]),
        [points[i].image for i in used],
        [moves[i] for i in used],
    )
    voxel = max(float(voxel_sizes(points[i].image.affine).max()) for i in used)
    return _Sample(used, match(images, covered), covered, absent, voxel)


def _to_left(hemi: str, data: np.ndarray) -> np.ndarray:
    return mirror(data) if hemi == "R" else data


def _absent(probabilities: np.ndarray, sample: _Sample) -> dict[int, str | None]:
    """Say why scans do not show a side that was segmented; None where they do."""
    absent: dict[int, str | None] = {**sample.absent, **dict.fromkeys(sample.used, "out-of-view")}
    masks = np.stack([mask_of(each) for each in probabilities])
    union = masks.any(axis=0)
    for k, i in enumerate(sample.used):
        seen = (union & sample.covered[k][_MIDDLE]).sum() / max(int(union.sum()), 1)
        if masks[k].sum() < SMALLEST_HIPPOCAMPUS:
            absent[i] = "not-found"
        elif seen >= _VISIBLE:
            absent[i] = None
    return absent


def _finish_side(
    box: np.ndarray, probabilities: np.ndarray, sample: _Sample, count: int
) -> FollowedSide:
    """Measure one side in the scans that show it."""
    alike, fused, agreement = _fuse_alike(probabilities, sample)
    used = [sample.used[k] for k in alike]
    own: dict[int, np.ndarray] = dict(zip(sample.used, probabilities, strict=True))
    final = own | dict(zip(used, fused.probabilities, strict=True))
    images = dict(zip(sample.used, sample.images[(slice(None), *_MIDDLE)], strict=True))
    volumes = np.full((count, probabilities.shape[1]), math.nan)
    for i in set(sample.used) - set(used):
        volumes[i] = soft_volumes(own[i], mask_of(own[i]))
    volumes[used] = fused.volumes
    shifts = np.full_like(volumes, math.nan)
    refusal: str | None = "thick-slices"
    if sample.voxel <= _THICKEST:
        smooth = smoothed(np.stack([images[i] for i in used]))
        tissues = estimate_tissues(smooth.mean(axis=0).ravel())
        masks = np.stack([mask_of(each) for each in fused.probabilities])
        shift = boundary_shift(smooth, fused.mean[1:], masks, tissues)
        shifts[used], refusal = shift.gained, shift.refusal
    agreed = dict(zip(sample.used, agreement, strict=True))
    return FollowedSide(
        affine=box,
        probabilities=tuple(final.get(i) for i in range(count)),
        volumes=volumes,
        boundary_shift=shifts,
        images=tuple(images.get(i) for i in range(count)),
        agreement=tuple(float(agreed.get(i, math.nan)) for i in range(count)),
        unlike=tuple(i in own and not (fused.together and i in used) for i in range(count)),
        boundary_refusal=refusal,
    )


def _fuse_alike(probabilities: np.ndarray, sample: _Sample) -> tuple[list[int], Fused, np.ndarray]:
    """Fuse the scans that are alike; return their positions, the result and all agreements.

    As long as most scans remain, the one that agrees least with the others is left out. If the rest
    does not agree either, nobody knows which scans are the usual ones, and all are returned.
    """
    count = len(probabilities)
    agreement = np.full(count, math.nan)
    alike, first = list(range(count)), None
    while True:
        displacements = deform_to_mean(sample.images[alike], sample.covered[alike])
        fused = fuse(probabilities[alike], displacements[(slice(None), slice(None), *_MIDDLE)])
        agreement[alike] = fused.agreement
        if fused.together:
            return alike, fused, agreement
        first = first or fused
        if 2 * (len(alike) - 1) <= max(count, 2):
            return list(range(count)), first, first.agreement
        del alike[int(fused.agreement.argmin())]
