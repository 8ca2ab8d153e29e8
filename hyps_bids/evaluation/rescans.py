"""Agreement of the volumes of people who were scanned more than once."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from hyps_bids.errors import BadData, MissingInput
from hyps_bids.evaluation.longitudinal import time_point
from hyps_bids.imaging.conform import ConformedImage, conform
from hyps_bids.longitudinal.pipeline import follow
from hyps_bids.outputs.labels import HEMISPHERES
from hyps_bids.outputs.reading import read_text_table
from hyps_bids.segmentation.inference import cached_adapted
from hyps_bids.segmentation.pipeline import Pipeline

#: Hemisphere → volume, mm³; sides that were not found are left out.
_Volumes = Mapping[str, float]


def evaluate_rescans(
    pipeline: Pipeline, table: Path, *, longitudinal: bool = False
) -> pd.DataFrame:
    """Compare the volumes of the scans of each person.

    Parameters
    ----------
    pipeline : Pipeline
        The networks.
    table : Path
        A table with the columns ``id`` and ``subject``; the images ``ID_T1w.nii.gz`` lie beside it.
    longitudinal : bool
        Process the scans of a person together, instead of each on its own.

    Returns
    -------
    pandas.DataFrame
        One row per pair of scans of one person: subject, first, second, and the absolute difference
        of the volumes as a share of their mean: difference_L, difference_R, difference (of the sum
        of both sides); with `longitudinal`, also shift_L, shift_R and shift, the boundary shift
        integral as a share of the mean. It is not a number where a hippocampus was not found.

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
    people = {subject: list(ids) for subject, ids in scans.groupby("subject", sort=False)["id"]}
    people = {subject: ids for subject, ids in people.items() if len(ids) > 1}
    if not people:
        raise BadData(f"{table}: nobody was scanned more than once", code="no-rescan")
    images = {scan: _image(table.parent, scan) for ids in people.values() for scan in ids}
    compare = _together if longitudinal else _alone
    rows = []
    for subject, ids in people.items():
        differences = compare(pipeline, [conform(images[scan]) for scan in ids])
        for pair, found in zip(itertools.combinations(ids, 2), differences, strict=True):
            rows.append({"subject": subject, "first": pair[0], "second": pair[1]} | found)
    return pd.DataFrame(rows)


def _image(folder: Path, scan: str) -> Path:
    found = sorted(folder.glob(f"{scan}_T1w.nii*"))
    if not found:
        raise MissingInput(f"{folder}: there is no image {scan}_T1w.nii.gz", code="image-missing")
    return found[0]


def _alone(pipeline: Pipeline, images: Sequence[ConformedImage]) -> list[dict[str, float]]:
    """Compare the volumes of each pair of scans that are processed on their own."""
    volumes = []
    for image in images:
        voxel = float(abs(np.linalg.det(image.affine[:3, :3])))
        counts = np.bincount(pipeline.segment(image).ravel(), minlength=len(HEMISPHERES) + 1)
        volumes.append(dict(zip(HEMISPHERES, voxel * counts[1:], strict=True)))
    return [_differences(*pair) for pair in itertools.combinations(volumes, 2)]


def _together(pipeline: Pipeline, images: Sequence[ConformedImage]) -> list[dict[str, float]]:
    """Compare the volumes of each pair of scans that are processed together."""
    network = cached_adapted(pipeline.adapter, pipeline.base, pipeline.device)
    points = [time_point(pipeline.run(image)) for image in images]
    sides = follow(points, network).sides
    every = range(len(images))
    volumes = [{h: side.volumes[k, -1] for h, side in sides.items()} for k in every]
    shifts = [{h: side.boundary_shift[k, -1] for h, side in sides.items()} for k in every]
    return [
        _differences(volumes[i], volumes[j])
        | _differences(
            {h: volume + (shifts[j][h] - shifts[i][h]) / 2 for h, volume in middle.items()},
            {h: volume - (shifts[j][h] - shifts[i][h]) / 2 for h, volume in middle.items()},
            "shift",
        )
        for i, j in itertools.combinations(every, 2)
        for middle in [{h: (volumes[i][h] + volumes[j][h]) / 2 for h in sides}]
    ]


def _differences(one: _Volumes, other: _Volumes, name: str = "difference") -> dict[str, float]:
    """Return the absolute difference of each side, and of the sum, as a share of the mean."""
    pairs = {f"_{h}": (one.get(h, 0.0), other.get(h, 0.0)) for h in HEMISPHERES}
    pairs[""] = (sum(one.values()), sum(other.values()))
    complete = all(a > 0 and b > 0 for a, b in pairs.values())
    return {
        f"{name}{side}": abs(a - b) / (a + b) * 2 if complete else float("nan")
        for side, (a, b) in pairs.items()
    }
