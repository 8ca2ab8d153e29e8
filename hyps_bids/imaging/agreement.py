"""How well two masks agree: overlap and distances between surfaces."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch

__all__ = ["agreement", "dice"]


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Dice overlap of two boolean masks; 1 if both are empty.

    Examples
    --------
    >>> dice(np.array([True, True]), np.array([True, False]))
    0.6666666666666666
    """
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0


def agreement(
    predicted: np.ndarray, reference: np.ndarray, spacing: Sequence[float]
) -> dict[str, float]:
    """Compare two masks.

    Parameters
    ----------
    predicted, reference : numpy.ndarray
        Boolean, same shape.
    spacing : sequence of float
        Voxel sides, mm.

    Returns
    -------
    dict of str to float
        dice, hd95_mm, asd_mm, volume_mm3, reference_mm3; distances are nan if a mask is empty.

    Examples
    --------
    >>> a = np.zeros((8, 8, 8), bool)
    >>> a[2:6, 2:6, 2:6] = True
    >>> agreement(a, np.roll(a, 1, axis=0), (2, 1, 1))
    {'dice': 0.75, 'hd95_mm': 2.0, 'asd_mm': ..., 'volume_mm3': 128.0, 'reference_mm3': 128.0}
    """
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

    voxel = float(np.prod(spacing))
    figures = {"dice": dice(predicted, reference), "hd95_mm": math.nan, "asd_mm": math.nan}
    if predicted.any() and reference.any():
        ours, theirs = (torch.from_numpy(m)[None, None] for m in _cut(predicted, reference))
        sides = [float(side) for side in spacing]
        with warnings.catch_warnings():
            # MONAI calls itself in a way that it has deprecated
            warnings.simplefilter("ignore", FutureWarning)
            hausdorff = compute_hausdorff_distance(
                ours, theirs, include_background=True, percentile=95, spacing=sides
            )
            surface = compute_average_surface_distance(
                ours, theirs, include_background=True, symmetric=True, spacing=sides
            )
        figures |= {"hd95_mm": float(hausdorff), "asd_mm": float(surface)}
    return figures | {
        "volume_mm3": float(predicted.sum()) * voxel,
        "reference_mm3": float(reference.sum()) * voxel,
    }


def _cut(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut two masks to the box that holds both, with a rim of background: distances are costly."""
    index = np.argwhere(a | b)
    region = tuple(
        slice(int(low), int(high) + 1)
        for low, high in zip(index.min(axis=0), index.max(axis=0), strict=True)
    )
    return np.pad(a[region], 1), np.pad(b[region], 1)
