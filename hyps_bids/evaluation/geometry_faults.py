"""Spoil where an image lies and what it covers: poses, headers, fields of view, resolution."""

from __future__ import annotations

import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.eulerangles import euler2mat

from hyps_bids.evaluation.heads import Head, Spoiled
from hyps_bids.imaging.resample import resample
from hyps_bids.imaging.roi import bounding_box, shifted

#: Smallest extent of an image that is left after a cut, mm.
_SMALLEST = 24.0


def rotate(head: Head, rng: np.random.Generator, axis: int, degrees: float) -> Spoiled:
    """Turn the head in its image, in a random direction about one axis of the world."""
    turn = _turn(head, axis, degrees * rng.choice((-1, 1)))
    data = resample(
        head.data, turn @ head.affine, head.data.shape, head.affine, outside=_outside(head)
    )
    return Spoiled(data, head.affine, turn)


def turn_header(head: Head, rng: np.random.Generator, axis: int, degrees: float) -> Spoiled:
    """Turn the transform of the header alone, so that the head lies askew in the world."""
    turn = _turn(head, axis, degrees * rng.choice((-1, 1)))
    return Spoiled(head.data, turn @ head.affine, turn)


def acquire_obliquely(head: Head, rng: np.random.Generator, axis: int, degrees: float) -> Spoiled:
    """Turn the voxel grid around a head that stays where it is."""
    grid = _turn(head, axis, degrees * rng.choice((-1, 1))) @ head.affine
    return Spoiled(
        resample(head.data, head.affine, head.data.shape, grid, outside=_outside(head)), grid
    )


def scale_header(head: Head, _: np.random.Generator, factors: tuple[float, ...]) -> Spoiled:
    """State wrong voxel sizes in the header, so that the head is too large or too small."""
    # Along the axes of the voxels, which stay perpendicular
    matrix = head.affine @ np.diag([*factors, 1.0]) @ np.linalg.inv(head.affine)
    center = _center(head)
    matrix[:3, 3] = center - matrix[:3, :3] @ center
    return Spoiled(head.data, matrix @ head.affine, matrix)


def cut(head: Head, _: np.random.Generator, axis: int, end: str, share: float) -> Spoiled:
    """End the field of view so that a share of the hippocampal voxels lies beyond it.

    `end` is ``low`` (left, posterior, inferior) or ``high``. From left and right, the share is
    that of the hippocampus on that side.
    """
    near = head.sides.get("L" if end == "low" else "R") if axis == 0 else None
    places = _places(head, axis) if near is None else np.nonzero(near)[axis]
    side = head.data.shape[axis]
    if end == "low":
        return _crop(head, axis, int(np.quantile(places, share)), side)
    return _crop(head, axis, 0, int(np.quantile(places, 1 - share)) + 1)


def keep_hemisphere(head: Head, _: np.random.Generator, hemisphere: str) -> Spoiled:
    """Keep the half of the image that holds the hippocampus of one side."""
    middle = round(float(np.mean([np.argwhere(m)[:, 0].mean() for m in head.sides.values()])))
    side = head.data.shape[0]
    return _crop(head, 0, *((0, middle) if hemisphere == "L" else (middle, side)))


def keep_slab(head: Head, _: np.random.Generator, axes: tuple[int, ...], margin: float) -> Spoiled:
    """Keep the hippocampi and `margin` mm before and behind them along some axes."""
    spoiled = Spoiled(head.data, head.affine)
    box = [slice(0, side) for side in head.data.shape]
    for axis in axes:
        voxels = margin / voxel_sizes(head.affine)[axis]
        places = _places(head, axis)
        low, high = int(places.min() - voxels), int(places.max() + voxels) + 1
        box[axis] = slice(*_widen(head, axis, low, high))
    data = spoiled.data[tuple(box)]
    return Spoiled(data, shifted(head.affine, [part.start for part in box]))


def keep_apart(head: Head, _: np.random.Generator, axis: int, end: str) -> Spoiled:
    """Keep only what lies `low` or `high` of the hippocampi, none of which is left."""
    gap = 5 / voxel_sizes(head.affine)[axis]
    places = _places(head, axis)
    if end == "low":
        return _crop(head, axis, 0, int(places.min() - gap))
    return _crop(head, axis, int(places.max() + gap), head.data.shape[axis])


def slice_thickly(
    head: Head, rng: np.random.Generator, axes: tuple[int, ...], thickness: float, gap: float = 0
) -> Spoiled:
    """Average over slices of this thickness, mm, with gaps that are not seen between them.

    Several axes make large voxels. The first slice begins anywhere.
    """
    data, affine = head.data, head.affine
    for axis in axes:
        data, affine = average_axis(data, affine, axis, thickness, gap, rng.uniform())
    return Spoiled(data, affine)


def average_axis(
    data: np.ndarray, affine: np.ndarray, axis: int, thickness: float, gap: float, phase: float
) -> tuple[np.ndarray, np.ndarray]:
    """Average an image over slices along one axis.

    Parameters
    ----------
    data, affine : numpy.ndarray
        Image and its voxel-to-world transform.
    axis : int
        Direction in which slices follow each other.
    thickness, gap : float
        Of slices, and between them, mm.
    phase : float
        Where the first slice begins, as a share of a slice and its gap, in [0, 1].

    Returns
    -------
    data, affine : numpy.ndarray
        The slices that are completely inside the image.
    """
    size, side = voxel_sizes(affine)[axis], data.shape[axis]
    width, step = thickness / size, (thickness + gap) / size
    spare = side - step * int((side - width) // step) - width
    starts = np.arange(0.0, side - width + 1e-6, step) + phase * max(0.0, spare)
    voxels = np.arange(side)
    overlap = np.minimum(voxels + 1, starts[:, None] + width) - np.maximum(voxels, starts[:, None])
    weights = (np.maximum(overlap, 0) / width).astype(np.float32)
    out = np.moveaxis(np.tensordot(weights, data, axes=(1, axis)), 0, axis)
    matrix = np.eye(4)
    matrix[axis, axis], matrix[axis, 3] = step, starts[0] + width / 2 - 0.5
    return np.ascontiguousarray(out), affine @ matrix


def wrap_around(head: Head, _: np.random.Generator, axis: int, share: float) -> Spoiled:
    """Fold what lies outside a field of view of a share of the head's length onto its other end."""
    low, high = head_range(head, axis)
    length = max(8, round((high - low) * share))
    start = (low + high - length) // 2
    data = np.moveaxis(head.data, axis, 0)
    folded = np.full((length, *data.shape[1:]), 0, np.float32)
    air = np.float32(head.tissues.air)
    for first in range(start % length - length, len(data), length):
        part = data[max(0, first) : first + length]
        at = max(0, first) - first
        folded[at : at + len(part)] += part - air
    begin = [0, 0, 0]
    begin[axis] = start
    return Spoiled(np.moveaxis(folded + air, 0, axis), shifted(head.affine, begin))


def displace(head: Head, _: np.random.Generator, axis: int, share: float) -> Spoiled:
    """Shift the head by a share of the field of view, so that one end enters at the other."""
    voxels = round(head.data.shape[axis] * share)
    step = np.zeros(3)
    step[axis] = voxels
    moved = np.eye(4)
    moved[:3, 3] = head.affine[:3, :3] @ step
    return Spoiled(np.roll(head.data, voxels, axis), head.affine, moved)


def head_range(head: Head, axis: int) -> tuple[int, int]:
    """Find the first voxel of the head along an axis, and the one after its last."""
    if head.is_crop:
        return 0, head.data.shape[axis]
    threshold = head.tissues.air + 0.25 * (head.tissues.white - head.tissues.air)
    filled = (head.data > threshold).mean(axis=tuple(k for k in range(3) if k != axis)) > 0.02
    box = bounding_box(filled)
    return (box[0].start, box[0].stop) if box else (0, head.data.shape[axis])


def _crop(head: Head, axis: int, low: int, high: int) -> Spoiled:
    low, high = _widen(head, axis, low, high)
    start = [0, 0, 0]
    start[axis] = low
    data = np.take(head.data, range(low, high), axis=axis)
    return Spoiled(data, shifted(head.affine, start))


def _widen(head: Head, axis: int, low: int, high: int) -> tuple[int, int]:
    """Keep a range of voxels within the image, and large enough for an image."""
    side = head.data.shape[axis]
    least = min(side, int(np.ceil(_SMALLEST / voxel_sizes(head.affine)[axis])))
    low, high = max(0, low), min(side, high)
    if high - low < least:
        # It grows away from the rest of the image, if it can.
        low, high = (0, least) if low == 0 else (max(0, high - least), high)
    return low, high


def _places(head: Head, axis: int) -> np.ndarray:
    return np.concatenate([np.nonzero(mask)[axis] for mask in head.sides.values()])


def _outside(head: Head) -> float:
    return head.tissues.air if not head.is_crop else float(np.median(head.data))


def _center(head: Head) -> np.ndarray:
    center: np.ndarray = (head.affine @ [*(np.array(head.data.shape) - 1) / 2, 1])[:3]
    return center


def _turn(head: Head, axis: int, degrees: float) -> np.ndarray:
    angles = np.zeros(3)
    angles[axis] = np.deg2rad(degrees)
    rotation = euler2mat(angles[2], angles[1], angles[0])
    center = _center(head)
    turn = np.eye(4)
    turn[:3, :3] = rotation
    turn[:3, 3] = center - rotation @ center
    return turn
