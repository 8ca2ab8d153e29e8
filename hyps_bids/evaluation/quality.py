"""How well the expected Dice holds on labeled images that it was not fitted to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from hyps_bids.errors import UsageError
from hyps_bids.evaluation.calibration import UNSPOILED, Subject, collect, networks_of
from hyps_bids.evaluation.expected_dice import apply, figures
from hyps_bids.segmentation.expected import load_model, shipped_model
from hyps_bids.segmentation.pipeline import Pipeline


def evaluate_quality(
    pipeline: Pipeline,
    subjects: Sequence[Subject],
    *,
    model: Path | None = None,
    processes: int = 1,
) -> pd.DataFrame:
    """Compare the expected Dice with the Dice that labels give.

    Labels of another protocol agree with every segmentation less. On heads with manual labels,
    the Dice is therefore scaled such that the mean over unspoiled heads is the mean expected Dice;
    ``dice`` is as measured, ``true`` is scaled.

    Parameters
    ----------
    pipeline : Pipeline
        The networks.
    subjects : sequence of Subject
        Test crops, and heads with manual labels.
    model : Path, optional
        Model of the expected Dice; by default, the shipped one.
    processes : int
        Number of processes.

    Returns
    -------
    pandas.DataFrame
        One row per hippocampus that was found: its names, ``dice``, ``true``, ``expected``,
        ``low``, ``error``, ``covered`` and the flags of the scan.

    Raises
    ------
    UsageError
        If the model was not calibrated for the networks.
    """
    path = model or shipped_model()
    known = load_model(path)
    if networks_of(pipeline) not in known.networks:
        raise UsageError(
            f"{path}: was calibrated for other networks; calibrate it with 'hyps-tools calibrate'",
            code="quality-other-networks",
        )
    with TemporaryDirectory() as folder:
        table = collect(pipeline, subjects, Path(folder), processes)
    rows = apply(known, table)
    manual = rows["source"] == "manual"
    good = rows[manual & (rows["kind"] == UNSPOILED)]
    # Without this factor, nobody could tell how much of an optimism the scaling hides.
    factor = good["expected"].mean() / good["dice"].mean() if len(good) else 1.0
    rows["true"] = rows["dice"].where(~manual, factor * rows["dice"])
    print(json.dumps(figures(rows, table) | {"manual_scaled_by": float(factor)}, indent=2))
    rows["error"] = (rows["expected"] - rows["true"]).abs()
    rows["covered"] = (rows["true"] >= rows["low"]).astype(float)
    names = ["subject", "source", "kind", "strength", "hemi", "dice", "true", "expected", "low"]
    return rows[[*names, "error", "covered", "flags"]].rename(columns={"subject": "id"})
