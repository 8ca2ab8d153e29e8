"""What a norm has to know of the person in each scan: age, sex, head size and site."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from hyps_bids.cohort.all_sessions import all_sessions
from hyps_bids.cohort.column_types import infer_types
from hyps_bids.cohort.level_spellings import sex_of_level
from hyps_bids.cohort.metadata import join, read_metadata
from hyps_bids.cohort.own_columns import users_first
from hyps_bids.cohort.visits import age_column, ages_in_years, dates_in_years
from hyps_bids.errors import UsageError
from hyps_bids.messages import join_names, suggest_names
from hyps_bids.outputs.columns import ColumnDescription
from hyps_bids.outputs.quality import GEOMETRY
from hyps_bids.outputs.scan import Scan

_LOG = logging.getLogger("hyps_bids")
#: Flags of scans whose intracranial volume is doubtful.
_ICV_FLAGS = rf"_icv_(?:mm3|cut)\b|\b{GEOMETRY}\b"
_KEYS = ["participant_id", "session_id"]
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
    frame: pd.DataFrame,
    columns: Mapping[str, ColumnDescription],
    site: str | None = None,
    sessions: pd.DataFrame | None = None,
) -> People:
    """Find age, sex, intracranial volume and site of each scan.

    Ages are converted to years, whatever unit the sidecar states. Where a participant has several
    sessions with the same age, which is the age at the first of them in many datasets, the years
    since the first session are added if dates tell them.

    Parameters
    ----------
    frame : pandas.DataFrame
        Wide table, or the part of it that the participant level makes.
    columns : mapping
        What sidecars say about its columns.
    site : str, optional
        Column of the sites; there are none without it.
    sessions : pandas.DataFrame, optional
        All sessions of these participants, as :func:`hyps_bids.cohort.all_sessions.all_sessions`
        returns them. Without it, they are those of the frame.
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
        table["age"], table["doubt"] = _ages(
            frame, ages_in_years(frame, unit), frame if sessions is None else sessions
        )
    names = {str(name).casefold(): str(name) for name in reversed(list(frame.columns))}
    if name := next((names[n] for n in _SEX_NAMES if n in names), None):
        found["sex"] = name
        table["sex"] = _sexes(frame[name], columns.get(name, {}))
    if site is not None and site in frame:
        found["site"] = site
        table["site"] = _texts(frame[site]).fillna("")
    return People(table, found)


def read_people(root: Path, scans: Sequence[Scan]) -> pd.DataFrame:
    """Read what a dataset says now about the people in scans.

    Parameters
    ----------
    root : Path
        The raw dataset.
    scans : sequence of Scan
        Scans, of which only the names count.

    Returns
    -------
    pandas.DataFrame
        By name of the scan: age (years; missing if it is not known) and sex (F, M or empty).
    """
    rows = [(f"sub-{s.subject}", f"ses-{s.session}" if s.session else None, s.stem) for s in scans]
    frame = pd.DataFrame(rows, columns=[*_KEYS, "scan"], dtype="str")
    metadata = read_metadata(root, frame)
    added, origins = join(frame, metadata)
    columns = {str(name): metadata.columns.get(origins[name], {}) for name in added}
    added = infer_types(added, columns, str(root))
    frame = pd.concat([frame.assign(flags=None, icv_mm3=np.nan), added], axis=1)
    people = describe_people(frame, columns, None, all_sessions(root, metadata, frame))
    return people.table[["age", "sex"]].set_index(frame["scan"])


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


def _ages(
    frame: pd.DataFrame, ages: pd.Series, sessions: pd.DataFrame
) -> tuple[pd.Series, pd.Series]:
    """Return ages at the scans, and what is doubtful about them."""
    years, certain = _years_since_first(sessions)
    keys = pd.MultiIndex.from_frame(_session_keys(frame))
    same = keys.isin(years.index) & ages.notna()
    passed = pd.Series(years.reindex(keys).to_numpy(dtype=float), index=frame.index)
    doubtful = same & ~pd.Series(certain.reindex(keys).eq(True).to_numpy(), index=frame.index)
    person = frame["participant_id"].astype(str)
    added = same & (passed > 0)
    if added.any():
        _LOG.info(
            "The age is the same at all sessions of %s: it is taken for the age at the first one, "
            "and the time since then is added.",
            join_names(person[added].unique()),
        )
    if doubtful.any():
        _LOG.warning(
            "The age is the same at all sessions of these participants, and not all sessions have "
            "dates, so it is not known how old they were at the later ones: %s",
            join_names(person[doubtful].unique()),
        )
    doubt = pd.Series(None, index=frame.index, dtype="object")
    doubt[doubtful] = "the age is the same at all sessions, and not all of them have dates"
    return ages + passed.where(added, 0.0), doubt


def _years_since_first(sessions: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Find the sessions of participants with one age at several sessions.

    Returns
    -------
    years : pandas.Series
        By participant_id and session_id: years since the first session; missing without a date.
    certain : pandas.Series of bool
        Whether all sessions of the participant have dates, which are not all the same.
    """
    name = age_column(sessions)
    if name is None:
        sessions, name = sessions.assign(age=None), "age"
    numbers = pd.to_numeric(sessions[name], errors="coerce")
    # Ages such as 089Y are compared as they are written.
    age = sessions[name].astype("object").where(numbers.isna(), numbers)
    rows = _session_keys(sessions).assign(age=age, date=dates_in_years(sessions))
    one = rows.groupby(_KEYS, sort=False).agg({"age": "first", "date": "min"})
    person = one.groupby("participant_id")
    # An age that is known at one session only is the age at that session.
    several = (person["age"].transform("count") > 1) & (person["age"].transform("nunique") == 1)
    dated = person["date"].transform("nunique") > 1
    years = (one["date"] - person["date"].transform("min")).where(dated)
    certain = dated & (person["date"].transform("count") == person["date"].transform("size"))
    return years[several], certain[several]


def _session_keys(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[_KEYS].astype("object").fillna("").astype(str)


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
