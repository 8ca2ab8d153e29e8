"""Find the structures of a label map in the voxels of a label image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import scipy.ndimage
from nibabel.affines import apply_affine

from hyps_bids.errors import BadData
from hyps_bids.labels.meanings import LabelMap


def find_structures(
    label_map: LabelMap, data: np.ndarray, affine: np.ndarray
) -> dict[tuple[str, str], np.ndarray]:
    """Find the voxels of each structure that has any, by hemisphere and part.

    The affine tells left from right where the map says LR. Messages of errors do not name the file.

    Examples
    --------
    >>> from hyps_bids.labels.meanings import parse_label_map
    >>> data = np.array([[[0, 1, 2, 2]]])
    >>> found = find_structures(parse_label_map("1:L,2:R"), data, np.eye(4))
    >>> {structure: int(voxels.sum()) for structure, voxels in found.items()}
    {('L', 'hippocampus'): 1, ('R', 'hippocampus'): 2}
    """
    present = np.unique(data)
    if not np.isfinite(present).all():
        raise BadData("has values that are not finite", code="label-values-not-finite")
    found: dict[tuple[str, str], np.ndarray] = {}
    for voxels, sides, part in _regions(label_map, data, present):
        by_side = _split_sides(voxels, affine) if sides == "LR" else {sides: voxels}
        for side, there in by_side.items():
            if there.any():
                found[side, part] = found.get((side, part), False) | there
    if not found:
        raise BadData(
            f"has no voxel of a hippocampus under the label map {label_map.line}",
            code="no-hippocampus-labeled",
        )
    return found


def _regions(
    label_map: LabelMap, data: np.ndarray, present: np.ndarray
) -> Iterator[tuple[np.ndarray, str, str]]:
    """Yield voxels, sides and part of every structure of the map."""
    if label_map.is_mask:
        # Some releases store masks with an offset, such as the values 26896.988 and 26897.988.
        if len(present) != 2:
            raise BadData(
                f"has {len(present)} values ({_shown(present)}), which is not a mask",
                code="not-a-mask",
            )
        (structure,) = label_map.structures
        yield data == present[1], structure.hemi, structure.part
        return
    whole = np.rint(present)
    if np.abs(present - whole).max() > 1e-3:
        raise BadData(
            f"has values that are not whole numbers ({_shown(present)})",
            code="label-values-not-whole",
        )
    listed = label_map.listed
    unknown = [] if listed is None else [value for value in whole if value not in {0, *listed}]
    if unknown:
        raise BadData(
            f"has the values {_shown(unknown)}, which the label map {label_map.line} does not "
            "name; add them, or ',*:-' to ignore what is not hippocampus",
            code="label-value-unknown",
        )
    rounded = np.rint(data)
    for structure in label_map.structures:
        yield rounded == structure.index, structure.hemi, structure.part


def _split_sides(voxels: np.ndarray, affine: np.ndarray) -> dict[str, np.ndarray]:
    """Split a mask of both hippocampi into left and right by the world position of its pieces."""
    if not voxels.any():
        return {}
    pieces, count = scipy.ndimage.label(voxels, structure=np.ones((3, 3, 3)))
    x = [apply_affine(affine, np.argwhere(pieces == i + 1))[:, 0] for i in range(count)]
    middle = (min(side.min() for side in x) + max(side.max() for side in x)) / 2
    left = np.isin(pieces, [i + 1 for i in range(count) if x[i].mean() < middle])
    sides = {"L": left, "R": voxels & ~left}
    fewer, more = sorted(int(side.sum()) for side in sides.values())
    if fewer * 4 < more:
        raise BadData(
            f"has {fewer} and {more} voxels left and right of its middle: the two hippocampi "
            "cannot be told apart; use a label image with a value for each",
            code="sides-not-separable",
        )
    return sides


def _shown(values: np.ndarray | Sequence[float]) -> str:
    shown = ", ".join(f"{value:g}" for value in values[:6])
    return shown + (", …" if len(values) > 6 else "")
