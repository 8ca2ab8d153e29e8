"""Agreement of segmentations after small movements of the head."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from nibabel.eulerangles import euler2mat

from hyps_bids.evaluation.tables import head_name
from hyps_bids.imaging.agreement import dice
from hyps_bids.imaging.conform import ConformedImage, conform
from hyps_bids.imaging.resample import resample
from hyps_bids.outputs.labels import HEMISPHERES
from hyps_bids.segmentation.pipeline import Pipeline


def evaluate_retest(
    pipeline: Pipeline, paths: Sequence[Path], *, moves: int = 4, seed: int = 0
) -> pd.DataFrame:
    """Move heads by up to ±5° and ±5 mm, segment, move back and compare.

    Each head is resampled once per move on its own grid. The reference is the segmentation of the
    image that was not moved.

    Returns
    -------
    pandas.DataFrame
        One row per head, move and side: dice, volume_change (relative, signed).
    """
    rng = np.random.default_rng(seed)
    rows = []
    for path in paths:
        image = conform(path)
        still = pipeline.segment(image)
        shape, center = still.shape, image.affine @ [*(np.array(still.shape) - 1) / 2, 1]
        for move in range(moves):
            # Where the voxels of the moved image lie in the world of the head.
            there = (
                rigid_move(rng.uniform(-5, 5, 3), rng.uniform(-5, 5, 3), center[:3]) @ image.affine
            )
            data = resample(image.data, image.affine, shape, there, outside=float(image.data.min()))
            moved = pipeline.segment(
                ConformedImage(data, image.affine, image.native_shape, image.orientation)
            )
            for i, hemi in enumerate(HEMISPHERES):
                mask = (moved == i + 1).astype(np.float32)
                back = resample(mask, there, shape, image.affine) > 0.5
                before, after = (still == i + 1).sum(), (moved == i + 1).sum()
                change = float(after / before - 1) if before else float("nan")
                row = {"id": head_name(path), "move": move, "hemi": hemi}
                rows.append(row | {"dice": dice(still == i + 1, back), "volume_change": change})
    return pd.DataFrame(rows)


def rigid_move(degrees: np.ndarray, shift: np.ndarray, center: np.ndarray) -> np.ndarray:
    """Return the transform that turns about `center` and then shifts by `shift`; degrees and mm."""
    x, y, z = np.deg2rad(degrees)
    rotation = euler2mat(z, -y, x)
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = center - rotation @ center + shift
    return matrix
