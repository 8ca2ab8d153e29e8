"""Agreement of masks with known distances."""

from __future__ import annotations

import math

import numpy as np

from hyps_bids.imaging.agreement import agreement


def test_agreement_of_known_masks() -> None:
    a = np.zeros((20, 20, 20), bool)
    a[5:15, 5:15, 5:15] = True
    same = agreement(a, a, (1, 2, 3))
    assert same == {
        "dice": 1,
        "hd95_mm": 0,
        "asd_mm": 0,
        "volume_mm3": 6000,
        "reference_mm3": 6000,
    }
    moved = agreement(a, np.roll(a, 2, axis=2), (1, 2, 3))
    assert moved["hd95_mm"] == 6
    empty = agreement(a, np.zeros_like(a), (1, 1, 1))
    assert empty["dice"] == 0
    assert math.isnan(empty["hd95_mm"])
    # At the edge of an image as well
    edge = np.zeros((6, 6, 6), bool)
    edge[:3] = True
    assert agreement(edge, edge, (1, 1, 1))["asd_mm"] == 0
