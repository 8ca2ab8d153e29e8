"""Agreement of segmentations over all orders and directions of the axes."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from hyps_bids.imaging.agreement import dice
from hyps_bids.imaging.conform import conform
from hyps_bids.outputs.labels import HEMISPHERES
from hyps_bids.segmentation.pipeline import Pipeline


def evaluate_orientation(
    pipeline: Pipeline, path: Path, folder: Path, *, every: int = 1
) -> pd.DataFrame:
    """Store one head in all 48 axis orders and flips, and compare the segmentations in the world.

    Parameters
    ----------
    pipeline : Pipeline
        The networks.
    path : Path
        The head.
    folder : Path
        Folder for temporary files.
    every : int
        Take only one of so many orientations.

    Returns
    -------
    pandas.DataFrame
        One row per orientation: axes, dice_L and dice_R with the first orientation.
    """
    canonical = nib.as_closest_canonical(nib.load(path))
    ras = nib.orientations.axcodes2ornt("RAS")
    first: np.ndarray | None = None
    rows = []
    for axes in orientations()[::every]:
        turn = nib.orientations.ornt_transform(ras, nib.orientations.axcodes2ornt(axes))
        turned_path = folder / f"{axes}_T1w.nii"
        nib.save(canonical.as_reoriented(turn), turned_path)
        labels = pipeline.segment(conform(turned_path))
        turned_path.unlink()
        first = labels if first is None else first
        scores = {f"dice_{h}": dice(first == i, labels == i) for i, h in enumerate(HEMISPHERES, 1)}
        rows.append({"axes": axes} | scores)
    return pd.DataFrame(rows)


def orientations() -> list[str]:
    """List the 48 axis codes.

    Examples
    --------
    >>> len(orientations()), orientations()[0]
    (48, 'RAS')
    """
    return [
        "".join(ends)
        for axes in itertools.permutations(("RL", "AP", "SI"))
        for ends in itertools.product(*axes)
    ]
