"""Change of the volumes of each subject over time."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pandas as pd
from scipy import stats

from hyps_bids.cohort.derived import CROSS_SECTIONAL, volume_columns
from hyps_bids.cohort.image_contrasts import CONTRAST, contrasts_of, series_of
from hyps_bids.cohort.visits import ages_in_years, scan_order
from hyps_bids.longitudinal.change import (
    SHORTEST_SPAN,
    SHORTEST_SPAN_OF_WHOLE_AGES,
    WHOLE_AGES,
)
from hyps_bids.outputs.columns import CHANGE_COLUMNS

#: Method of the longitudinal results → what their measures begin with
_MEASURED = {"volume": "volume_longitudinal_mm3", "bsi": "bsi_mm3"}


def annual_change(
    frame: pd.DataFrame, series: pd.DataFrame | None = None, strangers: Collection[str] = ()
) -> pd.DataFrame:
    """Tell the change per year of each subject who was scanned at several times.

    The change of the longitudinal results is taken as it is. Beside it, a line is fitted through
    the volumes of scans that were segmented each by itself, which is the only change of subjects
    without longitudinal results, and the same for all subjects. The two have different measures
    and methods.

    The wide table of the scans that are done becomes a table with one row per subject and volume
    (:data:`~hyps_bids.outputs.columns.CHANGE_COLUMNS`), empty if no subject has two times. Scans of
    different contrasts are never on one line. Subjects
    whose scans were processed with different models, or span less than three months (three years
    if their times are ages in whole years), have a remark instead of a slope.

    Parameters
    ----------
    frame : pandas.DataFrame
        The wide table of the scans that are done.
    series : pandas.DataFrame, optional
        :attr:`~hyps_bids.cohort.gather_series.GatheredSeries.change`.
    strangers : collection of str
        Names of scans that seem to be of another head, side or contrast than the others of the
        participant, or copies of them.
    """
    order = scan_order(frame)
    years, ages = order["years_since_first_scan"], ages_in_years(frame)
    since_first = ages - ages.groupby(series_of(frame)).transform("min")
    # Ages in months are other numbers than the years between the scans.
    whole = (order["order_source"] == "age") & (ages == ages.round())
    whole &= (since_first - years).abs() < 1e-6
    # Times and provenance stay apart from the wide table, which may have any column of the user.
    times = pd.DataFrame(
        {
            "series": series_of(frame),
            "participant_id": frame["participant_id"],
            CONTRAST: contrasts_of(frame),
            "session": frame["session_id"].fillna(""),
            "years": years,
            "whole_ages": whole,
            "source": order["order_source"],
            "stranger": frame["scan"].isin(strangers) if "scan" in frame else False,
            "made_by": frame["software_version"].fillna("n/a")
            + " "
            + frame["models"].fillna("n/a"),
        }
    )
    of_series = times["years"].groupby(times["series"])
    times = times[of_series.transform("max") > of_series.transform("min")]
    measures = [name for kind in CROSS_SECTIONAL for name in volume_columns(frame, kind)]
    tables = [_slopes(times, frame.loc[times.index, name]) for name in measures if len(times)]
    if series is not None and len(series):
        tables.append(_of_series(series))
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
    whole_ages = subject["whole_ages"].all()
    remarks[whole_ages & (table["span_years"] < SHORTEST_SPAN_OF_WHOLE_AGES)] = WHOLE_AGES
    remarks[table["span_years"] < SHORTEST_SPAN] = "times less than three months apart"
    mixed = subject["made_by"].nunique() > 1
    remarks[mixed] = "scans made by different models or versions"
    remarks[subject["stranger"].any()] = (
        "scans that seem to be of different heads, sides or contrasts, or copies of each other"
    )
    slope = (sums["xy"] / sums["xx"].where(sums["xx"] > 0)).where(remarks.isna())
    first = subject["years"].min() - subject["years"].mean()
    freedom = table["n_scans"] - 2
    residual = (sums["yy"] - slope * sums["xy"]).clip(lower=0)
    table["baseline_mm3"] = subject["volume"].mean() + slope * first
    table["mm3_per_year"] = slope
    table["mm3_per_year_se"] = np.sqrt(residual / freedom.where(freedom > 0) / sums["xx"])
    table["percent_per_year"] = percent = 100 * slope / table["baseline_mm3"]
    table["percent_per_year_se"] = 100 * table["mm3_per_year_se"] / table["baseline_mm3"]
    half = table["percent_per_year_se"] * stats.t.ppf(0.975, freedom.where(freedom > 0))
    table["percent_per_year_low"], table["percent_per_year_high"] = percent - half, percent + half
    table["remarks"] = remarks.mask(remarks.isna() & whole_ages, WHOLE_AGES)
    return table.assign(measure=volume.name, method="cross-sectional")


def _of_series(change: pd.DataFrame) -> pd.DataFrame:
    """Bring the change of the longitudinal results into the form of the group's table."""
    table = change[change["method"].isin(_MEASURED)]
    names = table["method"].map(_MEASURED) + "_" + table["hemi"] + "_" + table["part"]
    return table.assign(measure=names)
