"""Whole images against reference segmentations, end to end."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from hyps_bids.errors import MissingInput
from hyps_bids.evaluation.tables import head_name
from hyps_bids.imaging.agreement import dice
from hyps_bids.imaging.conform import conform, restore_orientation
from hyps_bids.outputs.labels import HEMISPHERES
from hyps_bids.segmentation.pipeline import Pipeline


def evaluate_images(
    pipeline: Pipeline, pairs: Iterable[tuple[Path, Path]], values: tuple[int, int]
) -> pd.DataFrame:
    """Compare whole hippocampi with reference segmentations on the same grid, end to end.

    Parameters
    ----------
    pipeline : Pipeline
        The networks.
    pairs : iterable of (Path, Path)
        T1w image and label image.
    values : tuple of int
        Labels of the left and the right hippocampus in the references.

    Returns
    -------
    pandas.DataFrame
        One row per side: id, hemi, dice, volume_mm3, reference_mm3.
    """
    rows = []
    for path, reference in pairs:
        image = conform(path)
        ours = restore_orientation(pipeline.segment(image), image.orientation)
        theirs = np.asarray(nib.load(reference).dataobj).reshape(ours.shape)
        voxel = float(abs(np.linalg.det(image.affine[:3, :3])))
        for i, hemi in enumerate(HEMISPHERES):
            a, b = ours == i + 1, theirs == values[i]
            row = {"id": head_name(path), "hemi": hemi, "dice": dice(a, b)}
            rows.append(row | {"volume_mm3": a.sum() * voxel, "reference_mm3": b.sum() * voxel})
    return pd.DataFrame(rows)


def pairs_in(folder: Path) -> list[tuple[Path, Path]]:
    """Find the pairs ``X_T1w.nii.gz`` and ``X_dseg.nii.gz`` in a folder.

    Raises
    ------
    MissingInput
        If there is no pair.
    """
    found = [
        (path, path.with_name(path.name.replace("_T1w", "_dseg")))
        for path in sorted(folder.glob("*_T1w.nii*"))
    ]
    pairs = [(path, labels) for path, labels in found if labels.is_file()]
    if not pairs:
        raise MissingInput(
            f"{folder}: there is no pair of *_T1w.nii.gz and *_dseg.nii.gz", code="no-image-pair"
        )
    return pairs
