"""Change of the volumes of each subject over time."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd

from hyps_bids.cohort.derived import KINDS, volume_columns
from hyps_bids.messages import format_count
from hyps_bids.outputs.columns import CHANGE_COLUMNS

_LOG = logging.getLogger("hyps_bids")

_DAYS_PER_YEAR = 365.25
#: Years; over a shorter span, the error of measurement would be a large change per year.
_SHORTEST = 0.25


def scan_times(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the time of each scan.

    Parameters
    ----------
    frame : pandas.DataFrame
        With participant_id and, if known, acq_time (ISO 8601) and age (years).

    Returns
    -------
    pandas.DataFrame
        With the same index: ``years`` since a date that is the same for all scans of the subject,
        missing if unknown, and ``time_source``.

    Examples
    --------
    >>> frame = pd.DataFrame({"participant_id": ["sub-1", "sub-1", "sub-2"],
    ...     "acq_time": ["1900-01-01T10:00:00", "1901-01-01T10:00:00", None], "age": [1., 1., 50.]})
    >>> scan_times(frame).round(2).values.tolist()
    [[-70.0, 'acq_time'], [-69.0, 'acq_time'], [50.0, 'age']]
    """
    missing = pd.Series(np.nan, index=frame.index)
    dates = missing
    if "acq_time" in frame:
        parsed = pd.to_datetime(frame["acq_time"], format="ISO8601", errors="coerce", utc=True)
        wrong = parsed.isna() & frame["acq_time"].notna()
        if wrong.any():
            _LOG.warning(
                "The column acq_time of %s is not a date, such as '%s', and is not used. Write "
                "dates like 2001-12-31T12:00:00.",
                format_count(int(wrong.sum()), "scan"),
                frame.loc[wrong, "acq_time"].iloc[0],
            )
        dates = (parsed - pd.Timestamp(0, tz="UTC")).dt.total_seconds() / 86400 / _DAYS_PER_YEAR
    ages = frame["age"] if "age" in frame and frame["age"].dtype == float else missing
    dated = dates.notna().groupby(frame["participant_id"]).transform("all")
    return pd.DataFrame(
        {
            "years": dates.where(dated, ages),
            "time_source": np.where(dated, "acq_time", "age"),
        },
        index=frame.index,
    )


def annual_change(frame: pd.DataFrame) -> pd.DataFrame:
    """Fit a line through the volumes of each subject who was scanned at several times.

    The wide table of the scans that are done becomes a table with one row per subject and volume
    (:data:`~hyps_bids.outputs.columns.CHANGE_COLUMNS`), empty if no subject has two times. Subjects
    whose scans were processed with different models, or span less than three months, have a remark
    instead of a slope.
    """
    made_by = frame["software_version"].fillna("n/a") + " " + frame["models"].fillna("n/a")
    frame = frame.join(scan_times(frame)).assign(made_by=made_by)
    subjects = frame.groupby("participant_id")
    spread = subjects["years"].transform("max") - subjects["years"].transform("min")
    frame = frame[spread > 0]
    measures = [name for kind in KINDS for name in volume_columns(frame, kind)]
    tables = [_slopes(frame, measure) for measure in measures] if len(frame) else []
    if not tables:
        return pd.DataFrame(columns=list(CHANGE_COLUMNS))
    table = pd.concat(tables, ignore_index=True)
    order = pd.Categorical(table["measure"], measures)
    table = table.assign(order=order).sort_values(["participant_id", "order"], kind="stable")
    return table[list(CHANGE_COLUMNS)].reset_index(drop=True)


def _slopes(frame: pd.DataFrame, measure: str) -> pd.DataFrame:
    known = frame.dropna(subset=["years", measure])
    subject = known.groupby("participant_id")
    means = subject[["years", measure]].transform("mean")
    x, y = known["years"] - means["years"], known[measure] - means[measure]
    products = pd.DataFrame({"xx": x * x, "xy": x * y, "yy": y * y})
    sums = products.groupby(known["participant_id"]).sum()
    table = pd.DataFrame(
        {
            "n_scans": subject.size(),
            "n_sessions": subject["session_id"].nunique(dropna=False),
            "time_source": subject["time_source"].first(),
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
    table["baseline_mm3"] = subject[measure].mean() + slope * first
    table["mm3_per_year"] = slope
    table["mm3_per_year_se"] = np.sqrt(residual / freedom.where(freedom > 0) / sums["xx"])
    table["percent_per_year"] = 100 * slope / table["baseline_mm3"]
    table["remarks"] = remarks
    return table.reset_index().assign(measure=measure)
