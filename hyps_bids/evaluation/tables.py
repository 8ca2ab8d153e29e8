"""Names in the tables of measurements, and their summaries."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd


def summarize(table: pd.DataFrame) -> dict[str, float]:
    """Summarize each column of numbers, and the agreement of volumes if there is a reference.

    A table whose ``attrs`` hold a ``summary`` has been summarized already.
    """
    if "summary" in table.attrs:
        return dict(table.attrs["summary"])
    out = {}
    for column in table.select_dtypes("float"):
        values = table[column]
        for name, value in {
            "mean": values.mean(),
            "sd": values.std(),
            "min": values.min(),
            "max": values.max(),
            "median": values.median(),
        }.items():
            out[f"{column}_{name}"] = round(float(value), 4)
    if "volume_change" in table:
        out["volume_change_mean_absolute"] = round(float(table["volume_change"].abs().mean()), 4)
    if "reference_mm3" in table and len(table) > 2:
        out["volume_correlation"] = _correlation(table)
        for hemi, side in table.groupby("hemi"):
            out[f"volume_correlation_{hemi}"] = _correlation(side)
        out["volume_ratio"] = round(float((table["volume_mm3"] / table["reference_mm3"]).mean()), 4)
    return out


def report(table: pd.DataFrame, output: Path | None) -> None:
    """Print the summary, for each contrast if there are several, and write the table if asked."""
    if output is not None:
        table.to_csv(output, sep="\t", index=False, float_format="%.4f")
    if "contrast" in table:
        summary: dict = {name: summarize(rows) for name, rows in table.groupby("contrast")}
    else:
        summary = summarize(table)
    print(json.dumps(summary, indent=2))


def head_name(path: Path) -> str:
    """Return the name of an image without its suffix and extension.

    Examples
    --------
    >>> head_name(Path("sub-01/anat/sub-01_ses-1_T1w.nii.gz"))
    'sub-01_ses-1'
    """
    return re.sub(r"_[A-Z][A-Za-z0-9]*$", "", path.name.split(".")[0])


def _correlation(table: pd.DataFrame) -> float:
    return round(float(table["volume_mm3"].corr(table["reference_mm3"])), 4)
