"""A head of simple shapes, with known intensities."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from hyps_bids.evaluation.heads import Head

AIR, CSF, GRAY, WHITE, SCALP, NOISE = 2.0, 30.0, 90.0, 140.0, 180.0, 3.0
SHAPE, SPACING = (80, 96, 76), 2.0


def phantom(seed: int = 0) -> Head:
    """Make a head at 2 mm: scalp, fluid, gray and white matter, ventricles and hippocampi."""
    rng = np.random.default_rng(seed)
    affine = np.diag([SPACING, SPACING, SPACING, 1.0])
    affine[:3, 3] = -(np.array(SHAPE) - 1) / 2 * SPACING
    x, y, z = (
        affine[i, i] * places + affine[i, 3]
        for i, places in enumerate(np.ogrid[tuple(map(slice, SHAPE))])
    )
    radius = np.sqrt((x / 70) ** 2 + (y / 86) ** 2 + (z / 68) ** 2)
    data = np.full(SHAPE, AIR)
    for limit, value in ((1, SCALP), (0.94, CSF), (0.9, GRAY), (0.8, WHITE)):
        data[radius < limit] = value
    data[((np.abs(x) - 9) / 6) ** 2 + (y / 26) ** 2 + ((z - 8) / 9) ** 2 < 1] = CSF
    along = ((y + 14) + 0.6 * (z + 20)) / 1.17
    across = ((z + 20) - 0.6 * (y + 14)) / 1.17
    sides = {}
    for hemi, sign in (("L", -1), ("R", 1)):
        body = ((x - sign * 27) / 7) ** 2 + (along / 21) ** 2 + (across / 6) ** 2 < 1
        # The temporal horn lies beside the hippocampus.
        horn = ((x - sign * 33) / 3) ** 2 + (along / 16) ** 2 + ((across - 4) / 4) ** 2 < 1
        data[horn] = CSF
        data[body] = GRAY
        sides[hemi] = body
    data = ndimage.gaussian_filter(data, 0.4) + NOISE * rng.standard_normal(SHAPE)
    brain = (radius < 0.94).astype(np.float32)
    return Head(np.abs(data).astype(np.float32), affine, sides, brain, affine)
