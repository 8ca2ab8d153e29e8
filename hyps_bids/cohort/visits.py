"""The order of each participant's scans of one contrast, and the time since the first of them."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

import numpy as np
import pandas as pd

from hyps_bids.cohort.image_contrasts import series_of
from hyps_bids.messages import format_count, join_names
from hyps_bids.outputs.columns import VISIT_COLUMNS

_LOG = logging.getLogger("hyps_bids")

_DAYS_PER_YEAR = 365.25
#: Beginning of a unit of age → how many of them are a year.
_PER_YEAR = {"mo": 12.0, "w": _DAYS_PER_YEAR / 7, "d": _DAYS_PER_YEAR}
#: Years by which dates and ages may differ: ages are often whole years.
_TOLERANCE = 1.5
_NUMBER, _SOURCE, _YEARS = VISIT_COLUMNS


def order_scans(
    frame: pd.DataFrame,
    listed: Mapping[str, pd.Series] | None = None,
    age_unit: str = "years",
) -> pd.DataFrame:
    """Put the scans of each participant in order, and tell the time since the first of them.

    Scans of each contrast are a series of their own, as if they were another participant's: a T2w
    image is no second point in time beside the T1w image of its session, and the order of T1w
    images does not depend on whether there are others.

    The order of one participant's scans has one source: the dates if all of the scans have one,
    else the ages, else the order of rows in a table, else the names of sessions and scans, in which
    2 comes before 10. A source that is the same for all scans of a participant says nothing about
    their order, and the next one is used. Equal dates or ages are put in order by the rows of the
    tables, then by the names.

    Parameters
    ----------
    frame : pandas.DataFrame
        One row per scan, with participant_id and, if known, session_id, scan, image_contrast,
        acq_time (ISO 8601; dates of a participant may be moved, as BIDS allows) and age.
    listed : mapping of str to pandas.Series, optional
        Name of a table → position of each scan's row in it, missing if it has none.
    age_unit : str
        Unit of the ages: years, months, weeks or days.

    Returns
    -------
    pandas.DataFrame
        With the same index, and the columns :data:`~hyps_bids.outputs.columns.VISIT_COLUMNS`.

    Examples
    --------
    >>> frame = pd.DataFrame({"participant_id": ["sub-1", "sub-1", "sub-2", "sub-2"],
    ...     "session_id": ["ses-post", "ses-pre", "ses-10", "ses-9"],
    ...     "acq_time": ["1901-01-01T10:00:00", "1900-01-01T10:00:00", "1900-01-01", None]})
    >>> order_scans(frame).round(2).values.tolist()
    [[2, 'acq_time', 1.0], [1, 'acq_time', 0.0], [2, 'name', nan], [1, 'name', nan]]
    """
    rows = frame.reset_index(drop=True)
    series = series_of(rows)
    dates, ages = dates_in_years(rows), ages_in_years(rows, age_unit)
    _warn_of_contradictions(rows["participant_id"], series, dates, ages)
    tables = {name: values.reset_index(drop=True) for name, values in (listed or {}).items()}
    source = pd.Series("name", index=rows.index)
    value = pd.Series(np.nan, index=rows.index)
    keys: dict[str, pd.Series] = {"series": series, "value": value}
    for name, values in reversed({"acq_time": dates, "age": ages, **tables}.items()):
        usable = _known(values, series) & (_differs(values, series) | (_size(series) == 1))
        source, keys["value"] = source.mask(usable, name), keys["value"].mask(usable, values)
    for name, values in tables.items():
        keys[f"table {name}"] = values.where(_known(values, series), 0)
    names = {name: rows[name] for name in ("session_id", "scan") if name in rows}
    keys |= {name: _zero_padded(values) for name, values in names.items()}
    order = pd.DataFrame(keys).sort_values(list(keys), kind="stable").index
    number = series.loc[order].groupby(series.loc[order]).cumcount() + 1
    timed = source.isin(["acq_time", "age"])
    years = keys["value"] - keys["value"].groupby(series).transform("min")
    # A single visit is its own beginning, and equal dates are no time apart.
    at_once = _known(dates, series) | (_sessions(rows, series) == 1)
    years = years.where(timed, np.where(at_once, 0.0, np.nan))
    columns = {_NUMBER: number.reindex(rows.index), _SOURCE: source, _YEARS: years}
    return pd.DataFrame(columns).set_axis(frame.index)


def scan_order(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the columns of :func:`order_scans` of a wide table, which has them if it is ours."""
    return frame[list(VISIT_COLUMNS)] if set(VISIT_COLUMNS) <= set(frame) else order_scans(frame)


def first_scans(frame: pd.DataFrame) -> pd.DataFrame:
    """Take the first of the given scans of each participant, indexed by participant_id."""
    order = scan_order(frame)[_NUMBER].sort_values(kind="stable").index
    return frame.loc[order].drop_duplicates("participant_id").set_index("participant_id")


def baseline_ages(frame: pd.DataFrame) -> pd.Series:
    """Return the age at the first scan of each scan's series, in the unit of the column of ages.

    Unlike the age at each scan, it does not tell the time between scans. It is missing for tables
    without order or ages.
    """
    if not set(VISIT_COLUMNS) <= set(frame):
        return pd.Series(np.nan, index=frame.index)
    first = ages_in_years(frame).where(frame[_NUMBER] == 1)
    return first.groupby(series_of(frame)).transform("max")


def count_sources(frame: pd.DataFrame) -> dict[str, int]:
    """Count the participants with several sessions by what their order follows from.

    A participant whose contrasts are ordered by different sources counts for each of them.
    """
    rows = frame[["participant_id"]].assign(source=scan_order(frame)[_SOURCE])
    several = rows[_sessions(frame, series_of(frame)) > 1].drop_duplicates()
    return {str(name): int(n) for name, n in several["source"].value_counts().items()}


def report_order(frame: pd.DataFrame) -> None:
    """Log from what the order of the scans of participants with several sessions follows."""
    if counts := count_sources(frame):
        texts = [f"{name} ({format_count(n, 'participant')})" for name, n in counts.items()]
        _LOG.info(
            "The scans of participants with several sessions were put in order by %s",
            join_names(texts),
        )


def age_column(frame: pd.DataFrame) -> str | None:
    """Name the column of ages, ``age`` or the only one that is written so in another case."""
    names = [str(name) for name in frame if str(name).casefold() == "age"]
    return "age" if "age" in names else names[0] if len(names) == 1 else None


def ages_in_years(frame: pd.DataFrame, unit: str = "years") -> pd.Series:
    """Return the ages at the scans in years; missing without a column of numbers for them.

    Parameters
    ----------
    frame : pandas.DataFrame
        One row per scan.
    unit : str
        Unit of the ages, as the sidecar states it; years unless it is months, weeks or days.
    """
    name = age_column(frame)
    if name is None or not pd.api.types.is_numeric_dtype(frame[name]):
        return pd.Series(np.nan, index=frame.index)
    plain = unit.strip().casefold()
    return frame[name] / next((n for start, n in _PER_YEAR.items() if plain.startswith(start)), 1)


def dates_in_years(rows: pd.DataFrame) -> pd.Series:
    """Return the dates of a column acq_time in years since 1970; missing where there are none."""
    if "acq_time" not in rows:
        return pd.Series(np.nan, index=rows.index)
    texts = rows["acq_time"].astype("str")
    parsed = pd.to_datetime(texts, format="ISO8601", errors="coerce", utc=True)
    wrong = parsed.isna() & rows["acq_time"].notna()
    if wrong.any():
        _LOG.warning(
            "The column acq_time of %s is not a date, such as '%s', and is not used. Write "
            "dates like 2001-12-31T12:00:00.",
            format_count(int(wrong.sum()), "scan"),
            texts[wrong].iloc[0],
        )
    # Nanoseconds cannot tell the dates before 1677 to which some datasets move theirs.
    since = parsed.dt.as_unit("s") - pd.Timestamp(0, tz="UTC").as_unit("s")
    return since.dt.total_seconds() / 86400 / _DAYS_PER_YEAR


def _size(series: pd.Series) -> pd.Series:
    return series.groupby(series).transform("size")


def _known(values: pd.Series, series: pd.Series) -> pd.Series:
    return values.notna().groupby(series).transform("all")


def _differs(values: pd.Series, series: pd.Series) -> pd.Series:
    return values.groupby(series).transform("nunique") > 1


def _sessions(rows: pd.DataFrame, series: pd.Series) -> pd.Series:
    """Count the sessions of each scan's series; scans without sessions are of one visit."""
    if "session_id" not in rows:
        return pd.Series(1, index=rows.index)
    return rows["session_id"].fillna("").groupby(series).transform("nunique")


def _zero_padded(names: pd.Series) -> pd.Series:
    """Pad numbers with zeros, so that ses-2 comes before ses-10."""
    texts = names.astype("str").fillna("")
    return texts.map(lambda name: re.sub(r"\d+", lambda n: n[0].zfill(12), name))


def _warn_of_contradictions(
    participant: pd.Series, series: pd.Series, dates: pd.Series, ages: pd.Series
) -> None:
    """Warn of dates and ages that cannot both be right; the dates of visits are moved wrongly."""
    known = pd.Series(True, index=participant.index)
    for values in (dates, ages):
        known &= _known(values, series) & _differs(values, series)
    both = pd.DataFrame({"dates": dates, "ages": ages})[known]
    if both.empty:
        return
    passed = both - both.groupby(series[known]).transform("first")
    odd = (passed["dates"] - passed["ages"]).abs() > _TOLERANCE
    if odd.any():
        _LOG.warning(
            "The column acq_time and the column age of these participants say different times "
            "between their scans; the dates are used, so please check both: %s",
            join_names(participant[odd.index[odd]].unique()),
        )
