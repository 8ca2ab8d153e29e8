"""How well two segmentations agree: overlap, and distances between their surfaces."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TypedDict

import numpy as np


class Agreement(TypedDict):
    """Comparison of a mask with a reference; distances are NaN if one of them is empty."""

    dice: float
    hd95_mm: float
    asd_mm: float
    volume_mm3: float
    reference_mm3: float


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Dice coefficient of two boolean masks, 1 if both are empty.

    MONAI computes it in single precision; the counts here are exact.

    Examples
    --------
    >>> dice(np.array([True, True]), np.array([True, False]))
    0.6666666666666666
    """
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0


def agreement(predicted: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> Agreement:
    """Compare a mask with a reference.

    Parameters
    ----------
    predicted, reference : numpy.ndarray
        Boolean masks of the same shape.
    spacing : sequence of float
        Voxel sizes, mm.

    Returns
    -------
    Agreement
        Dice coefficient, 95th percentile of the Hausdorff distance, average symmetric surface
        distance, and the volumes of both.

    Examples
    --------
    >>> a = np.zeros((8, 8, 8), bool)
    >>> a[2:6, 2:6, 2:6] = True
    >>> agreement(a, np.roll(a, 1, axis=0), (2, 1, 1))
    {'dice': 0.75, 'hd95_mm': 2.0, 'asd_mm': ..., 'volume_mm3': 128.0, 'reference_mm3': 128.0}
    """
    voxel = float(np.prod(spacing))
    hausdorff, surface = math.nan, math.nan
    if predicted.any() and reference.any():
        # These take seconds to import, and the segmentation of scans does not need them.
        import torch
        from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

        a, b = (torch.from_numpy(mask)[None, None] for mask in _crop(predicted, reference))
        sizes = [float(size) for size in spacing]
        with warnings.catch_warnings():
            # MONAI calls one of its own functions in a way that it has deprecated.
            warnings.simplefilter("ignore", FutureWarning)
            hausdorff = float(
                compute_hausdorff_distance(
                    a, b, include_background=True, percentile=95, spacing=sizes
                )
            )
            surface = float(
                compute_average_surface_distance(
                    a, b, include_background=True, symmetric=True, spacing=sizes
                )
            )
    return {
        "dice": dice(predicted, reference),
        "hd95_mm": hausdorff,
        "asd_mm": surface,
        "volume_mm3": float(predicted.sum()) * voxel,
        "reference_mm3": float(reference.sum()) * voxel,
    }


def _crop(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Crop two masks to the box that holds both, plus one voxel: distances are costly."""
    index = np.argwhere(a | b)
    region = tuple(
        slice(int(low), int(high) + 1)
        for low, high in zip(index.min(axis=0), index.max(axis=0), strict=True)
    )
    return np.pad(a[region], 1), np.pad(b[region], 1)
