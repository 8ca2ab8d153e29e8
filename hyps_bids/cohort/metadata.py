"""What a dataset's own tables say about its participants, sessions and scans."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from hyps_bids.cohort.keys import PREFIXES, KeyMatcher, match_labels, report_unmatched
from hyps_bids.cohort.raw_tables import TableReader
from hyps_bids.errors import UsageError
from hyps_bids.outputs.columns import ColumnDescription
from hyps_bids.outputs.scan import Scan, image_names


@dataclass(frozen=True)
class Metadata:
    """Tables of a raw dataset as text.

    Attributes
    ----------
    participants, sessions : pandas.DataFrame
        The tables with one row per participant_id, or per participant_id and session_id.
    scans : pandas.DataFrame
        scan and acq_time of the scans.tsv files.
    dates : pandas.DataFrame
        participant_id, session_id and acq_time of all files in scans.tsv, whatever they are.
    phenotype : tuple of pandas.DataFrame
        The columns that were asked for, one table per file.
    columns : dict
        What the JSON sidecars say about each column.
    """

    participants: pd.DataFrame
    sessions: pd.DataFrame
    scans: pd.DataFrame
    dates: pd.DataFrame
    phenotype: tuple[pd.DataFrame, ...]
    columns: dict[str, ColumnDescription]


def read_metadata(root: Path, scans: pd.DataFrame, wanted: Iterable[str] = ()) -> Metadata:
    """Read participants.tsv, all sessions.tsv and scans.tsv, and columns of phenotype/.

    Files that are not quite right are read as far as they can be, and each kind of problem gives
    one warning. Keys are brought in line with those of the scans and of the dataset's folders.
    Without files, the tables have only their key columns.

    Parameters
    ----------
    root : Path
        The raw dataset.
    scans : pandas.DataFrame
        participant_id, session_id and scan of the scans to describe.
    wanted : iterable of str
        Columns to look for in phenotype/, unless other tables have them.

    Raises
    ------
    UsageError
        If a wanted column is in several phenotype files.
    """
    reader, matcher = TableReader(), KeyMatcher(root, scans)
    table_path = root / "participants.tsv"
    participants = reader.read({table_path: None}, ("participant_id",))
    participants = matcher.match(participants, table_path, name_participants=False)
    folders = [root / name for name in sorted(scans["participant_id"].unique())]
    sessions = reader.read(
        {folder / f"{folder.name}_sessions.tsv": folder.name for folder in folders},
        ("participant_id", "session_id"),
    )
    sessions = matcher.match(sessions, root / "sub-*_sessions.tsv")
    known = {*participants.columns, *sessions.columns}
    # One sidecar describes all sessions: that of the dataset, or of the first participant with one.
    candidates = [root / "sessions.json", *(f / f"{f.name}_sessions.json" for f in folders)]
    sessions_json = next((path for path in candidates if path.is_file()), candidates[0])
    phenotype, described = _phenotype(root, [n for n in wanted if n not in known], reader, matcher)
    for path in (root / "participants.json", root / "scans.json", sessions_json):
        described |= reader.sidecar(path)
    times, dates = _scan_times(root, folders, scans["scan"], reader)
    metadata = Metadata(
        participants=reader.merge_repeated(participants, table_path),
        sessions=reader.merge_repeated(sessions, root / "sub-*_sessions.tsv"),
        scans=times.drop_duplicates("scan"),
        dates=dates,
        phenotype=phenotype,
        columns=described,
    )
    reader.warn()
    return metadata


def join(
    frame: pd.DataFrame, metadata: Metadata, reserved: Collection[str] = ()
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Find the values of each scan's participant and session, as text.

    A session's value wins over the participant's, and a scan's acq_time over the session's. A
    column whose name the frame has already, or is reserved, is named ``participants_NAME``,
    ``sessions_NAME`` or ``phenotype_NAME``, with more underscores if that is taken too.

    Returns
    -------
    pandas.DataFrame
        With the index of the frame: the columns to add to it.
    dict of str to str
        Name of each of these columns → its name in the dataset.
    """
    added = pd.DataFrame(index=frame.index)
    origins: dict[str, str] = {}
    sources = [("participants", metadata.participants), ("sessions", metadata.sessions)]
    sources += [("phenotype", table) for table in metadata.phenotype]
    taken = {*frame.columns, *reserved}
    used = taken | {name for _, table in sources for name in table.columns}
    for source, table in sources:
        keys = [key for key in PREFIXES if key in table.columns]
        names = {name: name for name in table.columns if name not in keys}
        for name in names.keys() & taken:
            names[name] = _free_name(f"{source}_{name}", used)
        origins |= {new: name for name, new in names.items()}
        new = table.rename(columns=names)
        if "session_id" in keys:
            # A row without a session is about all sessions of its participant.
            whole = new[new["session_id"].isna()].drop(columns="session_id")
            added = _overlay(added, _look_up(frame, whole, ["participant_id"]))
        added = _overlay(added, _look_up(frame, new, keys))
    times = _look_up(frame, metadata.scans, ["scan"])
    if times["acq_time"].notna().any():
        added = _overlay(added, times)
        origins["acq_time"] = "acq_time"
    return added, origins


def rows_of_sessions(frame: pd.DataFrame, metadata: Metadata) -> dict[str, pd.Series]:
    """Return the position of each scan's session among the rows of each table about sessions."""
    found = {}
    tables = {"sessions.tsv": metadata.sessions, "participants.tsv": metadata.participants}
    for name, table in tables.items():
        if {*PREFIXES} <= set(table.columns):
            rows = table[[*PREFIXES]].assign(row=np.arange(len(table), dtype=float)).dropna()
            found[name] = _look_up(frame, rows, [*PREFIXES])["row"]
    return found


def _free_name(name: str, used: Collection[str]) -> str:
    while name in used:
        name += "_"
    return name


def _look_up(frame: pd.DataFrame, table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    values = frame[keys].merge(table, on=keys, how="left").drop(columns=keys)
    return values.set_axis(frame.index)


def _overlay(below: pd.DataFrame, above: pd.DataFrame) -> pd.DataFrame:
    columns = {name: below[name] for name in below}
    for name in above:
        columns[name] = above[name].fillna(below[name]) if name in below else above[name]
    return pd.DataFrame(columns, index=below.index)


def _scan_times(
    root: Path, folders: Sequence[Path], scans: Iterable[str], reader: TableReader
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the times of scans, and the dates of all files with their participant and session."""
    paths: dict[Path, str | None] = {}
    for folder in folders:
        found = [folder / f"{folder.name}_scans.tsv", *sorted(folder.glob("ses-*/*_scans.tsv"))]
        paths |= {path: path.name.split("_")[0] for path in found}
    table = reader.read(paths, ())
    if "filename" not in table and len(table):
        reader.note(root / "sub-*_scans.tsv", "they are not used without a column filename")
    if not {"filename", "acq_time"} <= set(table):
        columns = ["scan", *PREFIXES, "acq_time"]
        empty = pd.DataFrame(columns=columns, dtype="str")
        return empty[["scan", "acq_time"]], empty[columns[1:]]
    table = table.dropna(subset="acq_time")
    names = table["filename"].str.extract(r"([^/\\]*)$")[0]
    known = set(scans)
    suffixes = "|".join(sorted({Scan.from_stem(scan).suffix for scan in known}))
    images = names.str.extract(rf"^(.*_(?:{suffixes}))(?:\.nii(?:\.gz)?)?$")[0]
    stems = images.map(lambda name: Scan.from_path(Path(name)).stem, na_action="ignore")
    written = set(stems.dropna())
    if not written <= known:
        matched = match_labels(written, known)
        stems = stems.map(lambda stem: matched.get(stem, stem))
        # Scans that are there but not selected are described on purpose.
        odd = {
            s for s in written - matched.keys() if not any(map(os.path.lexists, _images(root, s)))
        }
        subjects = {stem.partition("_")[0] for stem in odd}
        without = {s for s in known - set(stems) if s.partition("_")[0] in subjects}
        report_unmatched(odd, without, root / "sub-*_scans.tsv")
    keys = {
        key: stems.fillna(names).str.extract(rf"(?:^|_)({prefix}[^_]+)")[0]
        for key, prefix in PREFIXES.items()
    }
    dates = table.assign(**keys)[[*PREFIXES, "acq_time"]].dropna(subset="participant_id")
    return table.assign(scan=stems)[["scan", "acq_time"]].dropna(), dates.drop_duplicates()


def _images(root: Path, stem: str) -> list[Path]:
    """Return the paths at which the image of a scan may be."""
    found = re.match(r"(sub-[^_]+)(?:_(ses-[^_]+))?", stem)
    folder = root.joinpath(*filter(None, found.groups()), "anat") if found else root
    return [folder / name for name in image_names(stem)]


def _phenotype(
    root: Path, wanted: Sequence[str], reader: TableReader, matcher: KeyMatcher
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
            table = matcher.match(table[[*keys, *hits]], path)
            tables.append(reader.merge_repeated(table, path))
            sidecar = reader.sidecar(path.with_suffix(".json"))
            columns |= {name: sidecar[name] for name in hits if name in sidecar}
    return tuple(tables), columns
