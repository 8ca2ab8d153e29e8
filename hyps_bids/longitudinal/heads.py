"""Align the scans of one person, and refuse scans that are not of the same head."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from scipy import ndimage
from scipy.sparse.csgraph import connected_components
from scipy.spatial.transform import Rotation

from hyps_bids.imaging.conform import ConformedImage
from hyps_bids.longitudinal.alignment import (
    Structure,
    common_grid,
    first_guess,
    refine,
    sample_all,
    structure,
)

#: Scales from coarse to fine, mm. The first two decide whether the heads are the same.
_COARSE, _MIDDLE, _FINE = 5.0, 2.5, 1.5
#: Smallest correlation of local structure at the middle scale. It is 0.96 to 0.99 for two scans of
#: one head (0.86 after contrast agent, 0.96 with slices of 3 mm), at most 0.54 for different heads,
#: and at most 0.65 for a head and its mirror image.
SAME_HEAD = 0.75
#: Largest correlation of images of other contrasts; that of different heads is 0.28 or more.
_OTHER_CONTRAST = 0.2
#: Smallest overlap of the intracranial masks; 0.97 or more for the same head.
SMALLEST_OVERLAP = 0.8
#: Reasons to refuse a scan, and what they mean.
REFUSALS = {
    "different-head": "these do not look like the same head",
    "sides-swapped": "left and right are swapped in one of the scans",
    "different-contrast": "the contrast is another one",
    "little-overlap": "the scans show different parts of the head",
    "no-brain": "no intracranial space was found",
    "same-image": "the image is a copy of another one",
    "not-aligned": "the registration failed at its last step",
}


class Scan(NamedTuple):
    """What the alignment needs of a scan; fields as in :class:`.pipeline.TimePoint`."""

    image: ConformedImage
    intracranial: np.ndarray
    intracranial_affine: np.ndarray
    centers: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Aligned:
    """Scans in their midway space.

    Attributes
    ----------
    moves : tuple of numpy.ndarray or None
        From the midway world to the world of each scan, rigid, shape (4, 4); None where refused.
    refusals : tuple of str or None
        Key of :data:`REFUSALS`.
    figures : tuple of dict
        For each scan mask_overlap (share of the smaller mask), similarity (correlation of the local
        structure with the others, at 2.5 mm), residual (robust standard deviation of the
        difference of local structure, at the fine scale), rotation_deg and translation_mm (to the
        midway space), and voxel_mm (its largest voxel size).
    """

    moves: tuple[np.ndarray | None, ...]
    refusals: tuple[str | None, ...]
    figures: tuple[dict[str, float], ...]


def align(scans: Sequence[Scan]) -> Aligned:
    """Align the scans of one person to the space midway between them.

    Parameters
    ----------
    scans : sequence of Scan
        Two or more scans.
    """
    figures: list[dict[str, float]] = [
        {"voxel_mm": float(voxel_sizes(scan.image.affine).max())} for scan in scans
    ]
    refusals: list[str | None] = [
        None if (scan.intracranial > 0.5).any() else "no-brain" for scan in scans
    ]
    moves: list[np.ndarray | None] = [None] * len(scans)
    for i in _copies([scan.image.data for scan in scans]):
        refusals[i] = "same-image"
    seen = [i for i, refusal in enumerate(refusals) if refusal is None]
    if len(seen) > 1:
        chosen = [scans[i] for i in seen]
        rough = _middle_scale(chosen)
        found = _judge(chosen, rough)
        for i, refusal, figure in zip(seen, found, _similarities(rough), strict=True):
            refusals[i] = refusal
            figures[i] |= figure
        same = [i for i, refusal in zip(seen, found, strict=True) if refusal is None]
        if len(same) > 1:
            start = [rough.moves[seen.index(i)] for i in same]
            final, residuals = _fine_scale([scans[i] for i in same], start)
            correlation, _ = _compare([rough.structures[seen.index(i)] for i in same], final)
            np.fill_diagonal(correlation, 0)
            similar = correlation.max(axis=0)
            for i, move, residual, best in zip(same, final, residuals, similar, strict=True):
                figures[i] |= {"residual": residual} | _motion(move, scans[i])
                if best >= SAME_HEAD:
                    moves[i] = move
                else:
                    refusals[i] = "not-aligned"
    return Aligned(tuple(moves), tuple(refusals), tuple(figures))


def _copies(images: Sequence[np.ndarray]) -> list[int]:
    """Return the positions of images whose voxels are all those of another one.

    Rescans never have the same noise, and nobody knows at which time a copied image was taken.
    """
    marks = [zlib.crc32(image.tobytes()) for image in images]
    return [
        i
        for i, (image, mark) in enumerate(zip(images, marks, strict=True))
        if any(
            mark == marks[k] and np.array_equal(image, other)
            for k, other in enumerate(images)
            if k != i
        )
    ]


class _Rough(NamedTuple):
    """Scans at the middle scale: transforms, and correlations and overlaps of each two."""

    moves: list[np.ndarray]
    structures: list[Structure]
    correlation: np.ndarray
    overlap: np.ndarray


def _structures(scans: Sequence[Scan], spacing: float) -> list[Structure]:
    return [
        structure(scan.image, scan.intracranial, scan.intracranial_affine, spacing)
        for scan in scans
    ]


def _middle_scale(scans: Sequence[Scan]) -> _Rough:
    moves = first_guess(
        [(scan.intracranial, scan.intracranial_affine) for scan in scans],
        [scan.centers for scan in scans],
    )
    moves = refine(_structures(scans, _COARSE), moves, _COARSE)
    structures = _structures(scans, _MIDDLE)
    moves = refine(structures, moves, _MIDDLE)
    correlation, overlap = _compare(structures, moves)
    return _Rough(moves, structures, correlation, overlap)


def _compare(
    structures: Sequence[Structure], moves: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the correlation and the overlap of each two scans, as a share of the smaller one."""
    shape, grid = common_grid(structures, moves, _MIDDLE)
    sampled = sample_all(structures, moves, shape, grid)
    inside = (sampled[:, 1] > 0.5).reshape(len(sampled), -1).astype(np.float32)
    values = sampled[:, 0].reshape(len(sampled), -1) * inside
    # Local standardization makes the means zero, about.
    squares = values**2 @ inside.T
    correlation = values @ values.T / np.maximum(np.sqrt(squares * squares.T), 1e-6)
    sizes = inside.sum(axis=1)
    # A part of a head may be beyond the field of view of one scan.
    overlap = inside @ inside.T / np.maximum(np.minimum(sizes[:, None], sizes), 1)
    return correlation, overlap


def _judge(scans: Sequence[Scan], rough: _Rough) -> list[str | None]:
    """Keep the largest group of scans of one head, and say what is wrong with the others."""
    alike = (rough.correlation >= SAME_HEAD) & (rough.overlap >= SMALLEST_OVERLAP)
    _, group = connected_components(alike, directed=False)
    sizes = np.bincount(group)
    largest = np.flatnonzero(sizes == sizes.max())
    # Nobody knows which of two scans is the wrong one.
    kept = (
        group == largest[0] if len(largest) == 1 and sizes.max() > 1 else np.zeros(len(group), bool)
    )
    refusals: list[str | None] = []
    for i, inside in enumerate(kept):
        candidates = kept.nonzero()[0].tolist() or list(range(len(kept)))
        others = [j for j in candidates if j != i]
        refusals.append(None if inside else _reason(scans, rough, i, others))
    return refusals


def _reason(scans: Sequence[Scan], rough: _Rough, i: int, others: Sequence[int]) -> str:
    best = max(others, key=lambda j: float(rough.correlation[i, j]))
    if rough.overlap[i, best] < SMALLEST_OVERLAP and rough.correlation[i, best] >= SAME_HEAD:
        return "little-overlap"
    again = _middle_scale([scans[best], mirrored(scans[i])])
    if again.correlation[0, 1] >= SAME_HEAD:
        return "sides-swapped"
    if rough.correlation[i, best] < _OTHER_CONTRAST:
        return "different-contrast"
    return "different-head"


def mirrored(scan: Scan) -> Scan:
    """Mirror a scan in its world, about the middle of its intracranial space."""
    middle = apply_affine(
        scan.intracranial_affine, np.array(ndimage.center_of_mass(scan.intracranial))
    )
    flip = np.diag([-1.0, 1.0, 1.0, 1.0])
    flip[0, 3] = 2 * middle[0]

    def turned(affine: np.ndarray, side: int) -> np.ndarray:
        # The first axis keeps its direction in the world, about.
        back = np.diag([-1.0, 1.0, 1.0, 1.0])
        back[0, 3] = side - 1
        return flip @ affine @ back

    image = replace(
        scan.image,
        data=scan.image.data[::-1],
        affine=turned(scan.image.affine, scan.image.data.shape[0]),
    )
    other = {"L": "R", "R": "L"}
    centers = {other[hemi]: apply_affine(flip, center) for hemi, center in scan.centers.items()}
    grid = turned(scan.intracranial_affine, scan.intracranial.shape[0])
    return Scan(image, scan.intracranial[::-1], grid, centers)


def _similarities(rough: _Rough) -> list[dict[str, float]]:
    """Describe how well each scan fits the one that it fits best."""
    found = []
    for i in range(len(rough.moves)):
        others = np.delete(rough.correlation[i], i)
        overlaps = np.delete(rough.overlap[i], i)
        best = int(others.argmax())
        found.append({"mask_overlap": float(overlaps[best]), "similarity": float(others[best])})
    return found


def _fine_scale(
    scans: Sequence[Scan], moves: list[np.ndarray]
) -> tuple[list[np.ndarray], list[float]]:
    """Align scans of one head at the fine scale; also return the residual of each."""
    structures = _structures(scans, _FINE)
    moves = refine(structures, moves, _FINE)
    shape, grid = common_grid(structures, moves, _FINE)
    sampled = sample_all(structures, moves, shape, grid)
    used = (sampled[:, 1] > 0.9).all(axis=0)
    values = sampled[:, 0, used]
    others = (values.sum(axis=0) - values) / (len(values) - 1)
    return moves, [
        float(1.4826 * np.median(np.abs(own - other)))
        for own, other in zip(values, others, strict=True)
    ]


def _motion(move: np.ndarray, scan: Scan) -> dict[str, float]:
    """Return the size of a movement: its angle, and how far the middle of the brain moves."""
    middle = apply_affine(
        scan.intracranial_affine, np.array(ndimage.center_of_mass(scan.intracranial))
    )
    there = apply_affine(np.linalg.inv(move), middle)
    angle = float(np.rad2deg(Rotation.from_matrix(move[:3, :3]).magnitude()))
    return {
        "rotation_deg": angle,
        "translation_mm": float(np.linalg.norm(there - middle)),
    }
