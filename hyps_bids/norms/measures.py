"""Which measures of the wide table have norms, and what they are called."""

from __future__ import annotations

import numpy as np
import pandas as pd

from hyps_bids.cohort.derived import split_column
from hyps_bids.outputs.labels import SIDE_NAMES, WHOLE

#: Measure → whether head size explains it (volumes are not adjusted for it before), and whether
#: it is positive by its nature.
_KINDS = {
    "volume_mm3": (True, True),
    "asymmetry": (False, False),
    "anterior_posterior_ratio": (False, True),
    "percent_per_year_longitudinal": (False, False),
    "percent_per_year_bsi": (False, False),
}
_PLACES = {side: f"{name} hippocampus" for side, name in SIDE_NAMES.items()} | {
    "bilateral": "both hippocampi"
}


def norm_measures(frame: pd.DataFrame) -> list[str]:
    """Name the columns that have norms, in the order of the table: those with any value.

    Examples
    --------
    >>> columns = ["icv_mm3", "volume_mm3_L_whole", "volume_soft_mm3_L_whole", "asymmetry_whole"]
    >>> norm_measures(pd.DataFrame(1.0, index=[0], columns=columns))
    ['volume_mm3_L_whole', 'asymmetry_whole']
    """
    return [str(n) for n in frame if kind_of(str(n)) in _KINDS and frame[n].notna().any()]


def kind_of(name: str) -> str:
    """Return the measure of a column, without side and part; empty if it is no measure."""
    try:
        return split_column(name)[0]
    except ValueError:
        return ""


def needs_icv(name: str) -> bool:
    """Tell whether head size explains a measure."""
    return _KINDS[kind_of(name)][0]


def is_positive(name: str) -> bool:
    """Tell whether a measure is positive by its nature, as asymmetry and change are not."""
    return _KINDS[kind_of(name)][1]


def is_change(name: str) -> bool:
    """Tell whether a measure is one value per participant and contrast, the same for all scans."""
    return kind_of(name).startswith("percent_per_year")


def is_shown(name: str) -> bool:
    """Tell whether reports have a chart of a measure: volumes and changes of whole hippocampi."""
    return (
        kind_of(name) in _KINDS
        and not name.startswith(("asymmetry", "anterior_"))
        and (name.endswith(f"_{WHOLE}"))
    )


def scored_rows(frame: pd.DataFrame, name: str) -> np.ndarray:
    """Tell which scans a measure is about: all, or the first one that has the change."""
    if not is_change(name):
        return np.ones(len(frame), dtype=bool)
    known = frame[frame[name].notna()]
    order = [c for c in ("participant_id", "image_contrast", "scan_number") if c in known]
    first = known.sort_values(order, kind="stable").drop_duplicates(order[:-1])
    return np.asarray(frame.index.isin(first.index), dtype=bool)


def flagged_rows(frame: pd.DataFrame, name: str) -> np.ndarray:
    """Tell for which scans a measure is flagged: by the scan, or by any scan of a change.

    Those are the scans that the series uses; each may be flagged by itself or in the series.
    """
    flagged = frame["flags"].notna()
    if not is_change(name):
        return flagged.to_numpy(dtype=bool)
    if "longitudinal_flags" in frame:
        used = frame["longitudinal_status"].eq("used").fillna(False).astype(bool)
        flagged = used & (flagged | frame["longitudinal_flags"].notna())
    series = [frame[c] for c in ("participant_id", "image_contrast") if c in frame]
    return flagged.groupby(series).transform("any").to_numpy(dtype=bool)


def title(name: str) -> str:
    """Name a measure in words.

    Examples
    --------
    >>> title("volume_mm3_L_whole"), title("volume_mm3_bilateral_anterior")
    ('left hippocampus', 'both hippocampi, anterior')
    >>> title("asymmetry_whole"), title("anterior_posterior_ratio_R")
    ('asymmetry', 'right hippocampus, anterior / posterior')
    """
    measure, side, part = split_column(name)
    of = "" if part in ("", WHOLE) else f", {part}"
    if measure == "asymmetry":
        return f"asymmetry{of}"
    if measure == "anterior_posterior_ratio":
        return f"{_PLACES[side]}, anterior / posterior"
    if is_change(name):
        method = "boundary shift" if measure.endswith("bsi") else "volumes"
        return f"annual change, {_PLACES[side]}{of}, from {method}"
    return f"{_PLACES[side]}{of}"
