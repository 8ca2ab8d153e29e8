"""What a dataset's own tables say about its participants, sessions and scans."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from hyps_bids.cohort.raw_tables import PREFIXES, TableReader
from hyps_bids.errors import UsageError
from hyps_bids.outputs.columns import ColumnDescription

__all__ = ["Metadata", "join", "read_metadata"]


@dataclass(frozen=True)
class Metadata:
    """Tables of a raw dataset as text.

    Attributes
    ----------
    participants, sessions : pandas.DataFrame
        The tables with one row per participant_id, or per participant_id and session_id.
    scans : pandas.DataFrame
        scan and acq_time of the scans.tsv files.
    phenotype : tuple of pandas.DataFrame
        The columns that were asked for, one table per file.
    columns : dict
        What the JSON sidecars say about each column.
    """

    participants: pd.DataFrame
    sessions: pd.DataFrame
    scans: pd.DataFrame
    phenotype: tuple[pd.DataFrame, ...]
    columns: dict[str, ColumnDescription]


def read_metadata(root: Path, participants: Sequence[str], wanted: Iterable[str] = ()) -> Metadata:
    """Read participants.tsv, all sessions.tsv and scans.tsv, and columns of phenotype/.

    Files that are not quite right are read as far as they can be, and each kind of problem gives
    one warning. Without files, the tables have only their key columns.

    Parameters
    ----------
    root : Path
        The raw dataset.
    participants : sequence of str
        Participants whose sessions.tsv and scans.tsv are read, with ``sub-``.
    wanted : iterable of str
        Columns to look for in phenotype/, unless other tables have them.

    Raises
    ------
    UsageError
        If a wanted column is in several phenotype files.
    """
    reader = TableReader()
    participants_table = reader.read({root / "participants.tsv": None}, ("participant_id",))
    folders = [root / name for name in participants]
    sessions = reader.read(
        {folder / f"{folder.name}_sessions.tsv": folder.name for folder in folders},
        ("participant_id", "session_id"),
    )
    known = {*participants_table.columns, *sessions.columns}
    # One sidecar describes all sessions: that of the dataset, or of the first participant with one.
    candidates = [root / "sessions.json", *(f / f"{f.name}_sessions.json" for f in folders)]
    sessions_json = next((path for path in candidates if path.is_file()), candidates[0])
    phenotype, described = _phenotype(root, [n for n in wanted if n not in known], reader)
    for path in (root / "participants.json", root / "scans.json", sessions_json):
        described |= reader.sidecar(path)
    metadata = Metadata(
        participants=reader.merge_repeated(participants_table, root / "participants.tsv"),
        sessions=reader.merge_repeated(sessions, root / "sub-*_sessions.tsv"),
        scans=_scan_times(folders, reader).drop_duplicates("scan"),
        phenotype=phenotype,
        columns=described,
    )
    reader.warn()
    return metadata


def join(frame: pd.DataFrame, metadata: Metadata) -> pd.DataFrame:
    """Add the columns of a scan's participant and session to its row, as text.

    A session's value wins over the participant's, and a scan's acq_time over the session's. A
    column whose name the frame has already is added as ``participants_NAME``, ``sessions_NAME``
    or ``phenotype_NAME``.
    """
    added = pd.DataFrame(index=frame.index)
    sources = [("participants", metadata.participants), ("sessions", metadata.sessions)]
    sources += [("phenotype", table) for table in metadata.phenotype]
    for source, table in sources:
        keys = [key for key in PREFIXES if key in table.columns]
        taken = (set(frame.columns) & set(table.columns)) - set(keys)
        new = table.rename(columns={name: f"{source}_{name}" for name in taken})
        added = _overlay(added, _look_up(frame, new, keys))
    times = _look_up(frame, metadata.scans, ["scan"])
    if times["acq_time"].notna().any():
        added = _overlay(added, times)
    return pd.concat([frame, added], axis=1)


def _look_up(frame: pd.DataFrame, table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    values = frame[keys].merge(table, on=keys, how="left").drop(columns=keys)
    return values.set_axis(frame.index)


def _overlay(below: pd.DataFrame, above: pd.DataFrame) -> pd.DataFrame:
    columns = {name: below[name] for name in below}
    for name in above:
        columns[name] = above[name].fillna(below[name]) if name in below else above[name]
    return pd.DataFrame(columns, index=below.index)


def _scan_times(folders: Sequence[Path], reader: TableReader) -> pd.DataFrame:
    paths: dict[Path, str | None] = {}
    for folder in folders:
        found = [folder / f"{folder.name}_scans.tsv", *sorted(folder.glob("ses-*/*_scans.tsv"))]
        paths |= {path: path.name.split("_")[0] for path in found}
    table = reader.read(paths, ())
    if not {"filename", "acq_time"} <= set(table):
        return pd.DataFrame(columns=["scan", "acq_time"], dtype="str")
    names = table["filename"].str.rpartition("/")[2]
    stems = names.str.extract(r"^(.*)_T1w\.nii(?:\.gz)?$")[0]
    return table.assign(scan=stems)[["scan", "acq_time"]].dropna()


def _phenotype(
    root: Path, wanted: Sequence[str], reader: TableReader
) -> tuple[tuple[pd.DataFrame, ...], dict[str, ColumnDescription]]:
    """Find columns in the tables of phenotype/."""
    tables: list[pd.DataFrame] = []
    columns: dict[str, ColumnDescription] = {}
    found: dict[str, Path] = {}
    for path in sorted((root / "phenotype").glob("*.tsv")) if wanted else ():
        table = reader.read({path: None}, ("participant_id",))
        hits = [name for name in dict.fromkeys(wanted) if name in table]
        for name in hits:
            if name in found:
                raise UsageError(
                    f"The column {name} is both in {found[name]} and in {path}. Copy the one that "
                    "you mean to participants.tsv under another name, and use that name.",
                    code="phenotype-column-ambiguous",
                )
            found[name] = path
        if hits:
            keys = [key for key in PREFIXES if key in table]
            tables.append(reader.merge_repeated(table[[*keys, *hits]], path))
            sidecar = reader.sidecar(path.with_suffix(".json"))
            columns |= {name: sidecar[name] for name in hits if name in sidecar}
    return tuple(tables), columns
