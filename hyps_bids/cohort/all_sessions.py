"""The sessions that participants have in a dataset, whether or not their scans are selected."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from hyps_bids.cohort.keys import PREFIXES, label_folders
from hyps_bids.cohort.metadata import Metadata, join

_KEYS = [*PREFIXES]


def all_sessions(root: Path, metadata: Metadata, frame: pd.DataFrame) -> pd.DataFrame:
    """List the sessions of the participants in a frame, with what the tables say about them.

    Parameters
    ----------
    root : Path
        The raw dataset, whose folders are sessions, too.
    metadata : Metadata
        Its tables.
    frame : pandas.DataFrame
        participant_id and session_id of some scans.

    Returns
    -------
    pandas.DataFrame
        One row per participant_id and session_id (empty for scans without sessions), with the
        columns of the tables as text. The ``acq_time`` is the date of one of the session's files
        if scans.tsv knows it, in which case there may be several rows of a session.
    """
    wanted = frame["participant_id"].astype(str).unique()
    folders = [(who, name) for who in wanted for name in sorted(label_folders(root / who, "ses-"))]
    tables = [metadata.sessions, metadata.participants, metadata.dates]
    # A row without a session is about all sessions of its participant.
    keys = [t[_KEYS].dropna() for t in tables if set(_KEYS) <= set(t)]
    keys += [frame[_KEYS], pd.DataFrame(folders, columns=_KEYS, dtype="str")]
    found = pd.concat([each.astype("object") for each in keys])
    found = found[found["participant_id"].isin(wanted)].drop_duplicates().reset_index(drop=True)
    found = found.astype("str").where(found.notna())
    table = found.assign(scan="")
    table = pd.concat([found, join(table, metadata)[0]], axis=1)
    dated = table.merge(metadata.dates.rename(columns={"acq_time": "own"}), on=_KEYS, how="left")
    if "acq_time" in dated:
        dated["own"] = dated["own"].fillna(dated["acq_time"])
    return dated.drop(columns="acq_time", errors="ignore").rename(columns={"own": "acq_time"})
