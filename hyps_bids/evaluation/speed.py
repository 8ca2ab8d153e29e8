"""Seconds that each step takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from hyps_bids.evaluation.tables import head_name
from hyps_bids.imaging.conform import conform
from hyps_bids.segmentation.pipeline import Pipeline


def evaluate_speed(pipeline: Pipeline, paths: Sequence[Path], *, repeats: int = 3) -> pd.DataFrame:
    """Time the steps from bias correction to restoring, without start and reading.

    Returns
    -------
    pandas.DataFrame
        One row per image and repeat, in seconds; an earlier first run of each image is left out.
    """
    rows = []
    for path in paths:
        image = conform(path)
        pipeline.run(image)
        for repeat in range(repeats):
            seconds = pipeline.run(image).seconds
            row = {"id": head_name(path), "repeat": repeat}
            rows.append(row | seconds | {"total": sum(seconds.values())})
    return pd.DataFrame(rows)
