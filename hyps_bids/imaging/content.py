"""Recognize images that are certainly no magnetic resonance images of tissue: CT and label maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hyps_bids.errors import BadData

#: Number of voxels on which shares of values are computed, about.
_SAMPLE = 200_000
#: Hounsfield units of air (with the tolerance of noise), soft tissue and bone.
_AIR, _SOFT, _BONE = (-1100, -850), (-200, 150), 250
#: Slices that are compared with their neighbors, as shares of the number of slices.
_SLICES = (0.3, 0.5, 0.7)
#: Smallest share of equal neighbors in label maps, by the largest number of levels it is for. In
#: 20 maps of whole heads, 83 to 89 % of the voxels have the value of the next one along an axis. In
#: real images it is at most 41 %, and in images quantized to 9, 17 and 33 levels at most 69, 53
#: and 38 %.
_FEW_EQUAL = 0.4
_EQUAL = {5: _FEW_EQUAL, 12: 0.78, 250: 0.65}


def refuse_other_content(data: np.ndarray, path: Path) -> None:
    """Refuse computed tomography and label maps.

    Parameters
    ----------
    data : numpy.ndarray
        Finite values as the file means them, shape ``(x, y, z)``.
    path : Path
        The file, for the message.

    Raises
    ------
    BadData
        If the values are Hounsfield units or labels.
    """
    if _is_tomography(data):
        raise BadData(
            f"{path}: the values are Hounsfield units, so this is computed tomography, which the "
            "networks do not know; select magnetic resonance images",
            code="computed-tomography",
        )
    if levels := _label_levels(data):
        raise BadData(
            f"{path}: it has {levels} different values in uniform patches, so this is a map of "
            "labels and not an image; select images",
            code="label-map-as-image",
        )


def _is_tomography(data: np.ndarray) -> bool:
    """Tell Hounsfield units by air at -1000, soft tissue near 0, and fat and skin between them."""
    # Air surrounds the head on every slice, and looking at all of them takes longer.
    if data[:, :, data.shape[2] // 2].min() >= _AIR[1]:
        return False
    flat = data.ravel(order="K")
    step = max(1, data.size // _SAMPLE)
    # A step that divides the length of a row would always meet the same planes.
    while math.gcd(step, data.size) > 1:
        step += 1
    sample = flat[::step]
    air = np.mean((sample > _AIR[0]) & (sample < _AIR[1]))
    rest = sample[sample >= _AIR[1]]
    if air < 0.05 or rest.size < 0.02 * sample.size:
        return False
    soft = np.mean((rest > _SOFT[0]) & (rest < _SOFT[1]))
    bone = np.mean(rest > _BONE)
    # A background of -1000 around magnetic resonance images leaves the values above it empty.
    fat = np.mean(rest < -20)
    return bool(soft > 0.4 and 0.02 < bone < 0.5 and fat > 0.01)


def _label_levels(data: np.ndarray) -> int:
    """Count the values of a label map; 0 if it is none."""
    side = data.shape[2]
    slices = sorted({min(side - 2, int(share * side)) for share in _SLICES})
    seen = data[:, :, slices]
    darkest = float(seen.min())
    # Most images end here, without the time to count their values.
    if _equal_neighbors(data, slices, darkest, darkest) < _FEW_EQUAL:
        return 0
    levels, counts = np.unique(seen, return_counts=True)
    limits = [limit for most, limit in _EQUAL.items() if len(levels) <= most]
    if not limits:
        return 0
    # A background may be brighter than the darkest voxel, as in standardized images.
    background = darkest if limits[0] == _FEW_EQUAL else float(levels[counts.argmax()])
    share = _equal_neighbors(data, slices, darkest, background)
    return len(np.unique(data)) if share >= limits[0] else 0


def _equal_neighbors(
    data: np.ndarray, slices: Sequence[int], darkest: float, background: float
) -> float:
    """Return the share of voxels, but for two values, that are equal to the next one.

    It is the smallest of three axes, as slices that are repeated are equal along one axis only.
    """
    equal, pairs = np.zeros(3), np.zeros(3)
    for index in slices:
        plane = data[:, :, index]
        neighbors = ((plane[1:], plane[:-1]), (plane[:, 1:], plane[:, :-1]))
        for axis, (a, b) in enumerate((*neighbors, (plane, data[:, :, index + 1]))):
            foreground = a != darkest
            if background != darkest:
                foreground &= a != background
            pairs[axis] += np.count_nonzero(foreground)
            equal[axis] += np.count_nonzero(foreground & (a == b))
    return float((equal / np.maximum(pairs, 1)).min())
