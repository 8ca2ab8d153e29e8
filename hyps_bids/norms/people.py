"""What a norm has to know of the person in each scan: age, sex, head size and site."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from hyps_bids.cohort.level_spellings import sex_of_level
from hyps_bids.cohort.own_columns import users_first
from hyps_bids.cohort.visits import age_column, ages_in_years, scan_order
from hyps_bids.errors import UsageError
from hyps_bids.messages import join_names, suggest_names
from hyps_bids.outputs.columns import ColumnDescription
from hyps_bids.outputs.quality import GEOMETRY

_LOG = logging.getLogger("hyps_bids")
#: Flags of scans whose intracranial volume is doubtful.
_ICV_FLAGS = rf"_icv_(?:mm3|cut)\b|\b{GEOMETRY}\b"
_SEX_NAMES = ("sex", "gender", "m/f")


@dataclass(frozen=True)
class People:
    """The people in some scans.

    Attributes
    ----------
    table : pandas.DataFrame
        One row per scan, with the index of the scans: participant_id, age (years), sex (F, M or
        empty), icv (mm3; missing where it is not known or flagged), site (empty without sites) and
        ``doubt``, a sentence on what is doubtful about these values, or missing.
    columns : dict of str to str
        ``age``, ``sex`` and ``site`` → the column that it was read from; only what there is.
    """

    table: pd.DataFrame
    columns: dict[str, str]


def describe_people(
    frame: pd.DataFrame, columns: Mapping[str, ColumnDescription], site: str | None = None
) -> People:
    """Find age, sex, intracranial volume and site of each scan.

    Ages are converted to years, whatever unit the sidecar states. Where a participant has several
    sessions with the same age, which is the age at the first of them in many datasets, the years
    since the first scan are added if dates tell them.

    Parameters
    ----------
    frame : pandas.DataFrame
        Wide table, or the part of it that the participant level makes.
    columns : mapping
        What sidecars say about its columns.
    site : str, optional
        Column of the sites; there are none without it.
    """
    found: dict[str, str] = {}
    table = pd.DataFrame(
        {
            "participant_id": frame["participant_id"].astype(str),
            "age": np.nan,
            "sex": "",
            "icv": frame["icv_mm3"].mask(icv_is_flagged(frame)),
            "site": "",
            "doubt": pd.Series(None, index=frame.index, dtype="object"),
        }
    )
    if name := age_column(frame):
        found["age"] = name
        unit = str(columns.get(name, {}).get("Units", ""))
        table["age"], table["doubt"] = _ages(frame, ages_in_years(frame, unit))
    names = {str(name).casefold(): str(name) for name in reversed(list(frame.columns))}
    if name := next((names[n] for n in _SEX_NAMES if n in names), None):
        found["sex"] = name
        table["sex"] = _sexes(frame[name], columns.get(name, {}))
    if site is not None and site in frame:
        found["site"] = site
        table["site"] = _texts(frame[site]).fillna("")
    return People(table, found)


def require_site(frame: pd.DataFrame, site: str | None) -> None:
    """Refuse a column of sites that does not exist.

    Raises
    ------
    UsageError
        With the code ``column-unknown``.
    """
    if site is not None and site not in frame:
        raise UsageError(
            f"--site {site}: there is no such column in the group table, participants.tsv, "
            f"sessions.tsv or phenotype/. Choose one of these: "
            f"{suggest_names([site], users_first(frame))}",
            code="column-unknown",
        )


def icv_is_flagged(frame: pd.DataFrame) -> pd.Series:
    """Tell which scans have a doubtful intracranial volume: flagged, cut, or of doubtful voxels."""
    return frame["flags"].astype("str").str.contains(_ICV_FLAGS, na=False).astype(bool)


def _ages(frame: pd.DataFrame, ages: pd.Series) -> tuple[pd.Series, pd.Series]:
    """Return ages at the scans, and what is doubtful about them."""
    person = frame["participant_id"].astype(str)
    sessions = frame["session_id"].fillna("").groupby(person).transform("nunique")
    same = (sessions > 1) & (ages.groupby(person).transform("nunique") == 1) & ages.notna()
    order = scan_order(frame)
    years = order["years_since_first_scan"].where(order["order_source"] == "acq_time")
    dated = same & years.notna()
    if (dated & (years > 0)).any():
        _LOG.info(
            "The age is the same at all sessions of %s: it is taken for the age at the first one, "
            "and the time since then is added.",
            join_names(person[dated & (years > 0)].unique()),
        )
    undated = same & years.isna()
    if undated.any():
        _LOG.warning(
            "The age is the same at all sessions of these participants, and there are no dates, so "
            "it is not known how old they were at the later ones: %s",
            join_names(person[undated].unique()),
        )
    doubt = pd.Series(None, index=frame.index, dtype="object")
    doubt[undated] = "the age is the same at all sessions, without dates"
    return ages + years.where(dated, 0.0).astype(float), doubt


def _sexes(values: pd.Series, description: ColumnDescription) -> pd.Series:
    """Turn levels into F and M by their names, or by the meanings in the sidecar."""
    listed = description.get("Levels")
    meanings = {str(k): str(v) for k, v in listed.items()} if isinstance(listed, dict) else {}
    texts = _texts(values)
    known = {
        level: sex_of_level(level) or sex_of_level(meanings.get(level, ""))
        for level in texts.dropna().unique()
    }
    unknown = sorted(level for level, sex in known.items() if not sex)
    if unknown:
        _LOG.warning(
            "The column %s has values that are neither F nor M: %s. Scans with them have no "
            "centiles; if these are codes, write their meanings (male, female) as Levels into the "
            "JSON sidecar.",
            *(values.name, join_names(unknown)),
        )
    return texts.map(known).astype("object").fillna("")


def _texts(values: pd.Series) -> pd.Series:
    """Write levels as texts, whole numbers without decimals, whether or not others are missing."""
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        texts = values.map("{:.15g}".format, na_action="ignore")
    else:
        texts = values.astype("str")
    return texts.astype("object").where(values.notna(), None)
