"""Agreement of the volumes of people who were scanned more than once."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd

from hyps_bids.errors import BadData, MissingInput
from hyps_bids.imaging.conform import conform
from hyps_bids.outputs.labels import HEMISPHERES
from hyps_bids.outputs.reading import read_text_table
from hyps_bids.segmentation.pipeline import Pipeline


def evaluate_rescans(pipeline: Pipeline, table: Path) -> pd.DataFrame:
    """Compare the volumes of the scans of each person.

    Parameters
    ----------
    pipeline : Pipeline
        The networks.
    table : Path
        A table with the columns ``id`` and ``subject``; the images ``ID_T1w.nii.gz`` lie beside it.

    Returns
    -------
    pandas.DataFrame
        One row per pair of scans of one person: subject, first, second, and the absolute difference
        of the volumes as a share of their mean: difference_L, difference_R, difference (of the sum
        of both sides). It is not a number where a hippocampus was not found.

    Raises
    ------
    BadData, MissingInput
        If the table lacks a column, nobody was scanned twice, or an image is missing.
    """
    scans = read_text_table(table)
    if not {"id", "subject"} <= set(scans):
        raise BadData(
            f"{table}: a table with the columns id and subject is needed",
            code="rescans-table-columns",
        )
    pairs = [
        (subject, first, second)
        for subject, rows in scans.groupby("subject", sort=False)
        for first, second in itertools.combinations(rows["id"], 2)
    ]
    if not pairs:
        raise BadData(f"{table}: nobody was scanned more than once", code="no-rescan")
    ids = dict.fromkeys(scan for _, *both in pairs for scan in both)
    volumes = {scan: _volumes(pipeline, _image(table.parent, scan)) for scan in ids}
    rows = []
    for subject, first, second in pairs:
        differences = _relative(volumes[first], volumes[second])
        rows.append({"subject": subject, "first": first, "second": second} | differences)
    return pd.DataFrame(rows)


def _image(folder: Path, scan: str) -> Path:
    found = sorted(folder.glob(f"{scan}_T1w.nii*"))
    if not found:
        raise MissingInput(f"{folder}: there is no image {scan}_T1w.nii.gz", code="image-missing")
    return found[0]


def _volumes(pipeline: Pipeline, path: Path) -> np.ndarray:
    """Measure the volume of the left and the right hippocampus, mm³."""
    image = conform(path)
    labels = pipeline.segment(image)
    voxel = float(abs(np.linalg.det(image.affine[:3, :3])))
    return voxel * np.bincount(labels.ravel(), minlength=len(HEMISPHERES) + 1)[1:]


def _relative(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Return the absolute difference of each side, and of the sum, as a share of the mean."""
    pairs = dict(zip((f"_{h}" for h in HEMISPHERES), zip(one, other, strict=True), strict=True))
    pairs[""] = (one.sum(), other.sum())
    complete = bool((one > 0).all() and (other > 0).all())
    return {
        f"difference{side}": float(abs(a - b) / (a + b) * 2) if complete else float("nan")
        for side, (a, b) in pairs.items()
    }
