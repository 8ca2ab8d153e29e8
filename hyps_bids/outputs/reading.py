"""Readers of the tables that we write."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from hyps_bids.errors import MissingInput
from hyps_bids.outputs.names import group_path

__all__ = ["WIDE", "read_table", "read_wide"]

#: the group table with one row per scan
WIDE = "desc-wide_morph"


def read_table(path: Path) -> pd.DataFrame:
    """Read a TSV file; ``n/a`` is a missing value, and labels such as ``01`` stay text."""
    labels = {name: str for name in ("participant_id", "session_id", "scan", "run")}
    return pd.read_csv(path, sep="\t", na_values=["n/a"], keep_default_na=False, dtype=labels)


def read_wide(output_dir: Path) -> pd.DataFrame:
    """Read the wide table that the group level has written.

    Parameters
    ----------
    output_dir : Path
        The derivatives dataset.

    Returns
    -------
    pandas.DataFrame
        One row per scan. Numbers are float; columns with levels are categorical, in their order;
        all else is text. Missing values are missing.

    Raises
    ------
    MissingInput
        If the table or its sidecar is not there.
    """
    path = group_path(output_dir, WIDE)
    try:
        columns = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        frame = pd.read_csv(path, sep="\t", dtype="str", na_values=["n/a"], keep_default_na=False)
    except OSError as error:
        raise MissingInput(f"{path}: cannot be read; run the group level first") from error
    typed_columns = {}
    for name, values in frame.items():
        described = columns.get(name, {})
        if described.get("Format") == "number":
            typed_columns[name] = values.astype("float64")
        elif described.get("Levels"):
            typed_columns[name] = values.astype(pd.CategoricalDtype(list(described["Levels"])))
        else:
            typed_columns[name] = values
    return pd.DataFrame(typed_columns)
