"""Change of the volumes of each subject over time."""

from __future__ import annotations

import numpy as np
import pandas as pd

from hyps_bids.cohort.derived import KINDS, volume_columns
from hyps_bids.cohort.image_contrasts import CONTRAST, contrasts_of, series_of
from hyps_bids.cohort.visits import scan_order
from hyps_bids.outputs.columns import CHANGE_COLUMNS

#: Years; over a shorter span, the error of measurement would be a large change per year.
_SHORTEST = 0.25


def annual_change(frame: pd.DataFrame) -> pd.DataFrame:
    """Fit a line through the volumes of each subject who was scanned at several times.

    The wide table of the scans that are done becomes a table with one row per subject and volume
    (:data:`~hyps_bids.outputs.columns.CHANGE_COLUMNS`), empty if no subject has two times. Scans of
    different contrasts are never on one line. Subjects
    whose scans were processed with different models, or span less than three months, have a remark
    instead of a slope.
    """
    order = scan_order(frame)
    # Times and provenance stay apart from the wide table, which may have any column of the user.
    times = pd.DataFrame(
        {
            "series": series_of(frame),
            "participant_id": frame["participant_id"],
            CONTRAST: contrasts_of(frame),
            "session": frame["session_id"].fillna(""),
            "years": order["years_since_first_scan"],
            "source": order["order_source"],
            "made_by": frame["software_version"].fillna("n/a")
            + " "
            + frame["models"].fillna("n/a"),
        }
    )
    years = times["years"].groupby(times["series"])
    times = times[years.transform("max") > years.transform("min")]
    measures = [name for kind in KINDS for name in volume_columns(frame, kind)]
    tables = [_slopes(times, frame.loc[times.index, name]) for name in measures if len(times)]
    if not tables:
        return pd.DataFrame(columns=list(CHANGE_COLUMNS))
    # Subjects are sorted, and the measures of each stay in the order of the wide table.
    keys = ["participant_id", CONTRAST]
    table = pd.concat(tables).sort_values(keys, kind="stable", ignore_index=True)
    return table[list(CHANGE_COLUMNS)]


def _slopes(times: pd.DataFrame, volume: pd.Series) -> pd.DataFrame:
    known = times.assign(volume=volume).dropna(subset=["years", "volume"])
    subject = known.groupby("series")
    means = subject[["years", "volume"]].transform("mean")
    x, y = known["years"] - means["years"], known["volume"] - means["volume"]
    products = pd.DataFrame({"xx": x * x, "xy": x * y, "yy": y * y})
    sums = products.groupby(known["series"]).sum()
    table = pd.DataFrame(
        {
            "participant_id": subject["participant_id"].first(),
            CONTRAST: subject[CONTRAST].first(),
            "n_scans": subject.size(),
            "n_sessions": subject["session"].nunique(),
            "time_source": subject["source"].first(),
            "span_years": subject["years"].max() - subject["years"].min(),
        }
    )
    remarks = pd.Series(None, index=table.index, dtype="object")
    remarks[table["span_years"] < _SHORTEST] = "times less than three months apart"
    mixed = subject["made_by"].nunique() > 1
    remarks[mixed] = "scans made by different models or versions"
    slope = (sums["xy"] / sums["xx"].where(sums["xx"] > 0)).where(remarks.isna())
    first = subject["years"].min() - subject["years"].mean()
    freedom = table["n_scans"] - 2
    residual = (sums["yy"] - slope * sums["xy"]).clip(lower=0)
    table["baseline_mm3"] = subject["volume"].mean() + slope * first
    table["mm3_per_year"] = slope
    table["mm3_per_year_se"] = np.sqrt(residual / freedom.where(freedom > 0) / sums["xx"])
    table["percent_per_year"] = 100 * slope / table["baseline_mm3"]
    table["remarks"] = remarks
    return table.assign(measure=volume.name)
