"""What a dataset's own tables say of its participants and sessions."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from hyps_bids.errors import UsageError
from hyps_bids.messages import listed

__all__ = ["Metadata", "join", "not_numbers", "read_metadata", "typed"]

_LOG = logging.getLogger("hyps_bids")
#: what people write for n/a
_MISSING = {"N/A", "NA", "NaN", "nan", "NULL", "null", "None", "none"}
_NUMBER = r"[+-]?(?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
_PREFIXES = {"participant_id": "sub-", "session_id": "ses-"}
_READERS = 8

Notes = list[tuple[Path, str]]


@dataclass(frozen=True)
class Metadata:
    """Tables of a dataset as text; missing values are missing.

    Attributes
    ----------
    participants : pandas.DataFrame
        participant_id and the columns of participants.tsv, one row per participant.
    sessions : pandas.DataFrame
        participant_id, session_id and the columns of the sessions.tsv files.
    scans : pandas.DataFrame
        scan and acq_time of the scans.tsv files.
    phenotype : tuple of pandas.DataFrame
        The columns that were asked for, one table per file.
    columns : dict
        What the JSON sidecars say of each column.
    has_participants : bool
        Whether participants.tsv could be read.
    """

    participants: pd.DataFrame
    sessions: pd.DataFrame
    scans: pd.DataFrame
    phenotype: tuple[pd.DataFrame, ...]
    columns: dict[str, dict[str, Any]]
    has_participants: bool


def read_metadata(root: Path, participants: Sequence[str], wanted: Iterable[str] = ()) -> Metadata:
    """Read participants.tsv and all sessions.tsv and scans.tsv, and columns of phenotype/.

    Files that are not quite right (another encoding, commas, a missing prefix, a participant
    twice) are read as far as they can be, and each kind of trouble gives one warning.

    Parameters
    ----------
    root : Path
        The raw dataset.
    participants : sequence of str
        Whose sessions.tsv and scans.tsv to read, with ``sub-``.
    wanted : iterable of str
        Columns to look for in phenotype/, unless other tables have them.

    Returns
    -------
    Metadata
        Empty tables with their key columns where there are no files.

    Raises
    ------
    UsageError
        If a wanted column is in several phenotype files.
    """
    notes: Notes = []
    people = _read(root / "participants.tsv", ("participant_id",), notes)
    folders = [root / name for name in participants]
    sessions = _read_all(
        [(folder / f"{folder.name}_sessions.tsv", folder.name) for folder in folders],
        ("participant_id", "session_id"),
        notes,
    )
    columns = (
        _sidecar(root / "participants.json", notes)
        | _sidecar(root / "scans.json", notes)
        | _sessions_sidecar(root, folders, notes)
    )
    known = {*people.columns, *sessions.columns}
    phenotype, described = _phenotype(root, [n for n in wanted if n not in known], notes)
    scans = _scan_times(folders, notes)
    metadata = Metadata(
        participants=_unique(people, root / "participants.tsv", notes),
        sessions=_unique(sessions, root / "sub-*_sessions.tsv", notes),
        scans=scans.drop_duplicates("scan"),
        phenotype=phenotype,
        columns=described | columns,
        has_participants=not people.empty,
    )
    _report(notes)
    return metadata


def join(frame: pd.DataFrame, metadata: Metadata) -> pd.DataFrame:
    """Add what is known of each scan's participant and session.

    A session's value wins over the participant's, a scan's acq_time over the session's. A column
    with the name of one that the frame has is added as ``participants_NAME``, ``sessions_NAME``
    or ``phenotype_NAME``.

    Parameters
    ----------
    frame : pandas.DataFrame
        With participant_id, session_id and scan.
    metadata : Metadata
        The tables.

    Returns
    -------
    pandas.DataFrame
        The same rows with more columns, as text.
    """
    ours = set(frame.columns)
    added = pd.DataFrame(index=frame.index)
    sources = [("participants", metadata.participants), ("sessions", metadata.sessions)]
    sources += [("phenotype", table) for table in metadata.phenotype]
    for source, table in sources:
        keys = [key for key in _PREFIXES if key in table.columns]
        new = table.rename(
            columns={n: f"{source}_{n}" for n in table.columns if n in ours and n not in keys}
        )
        values = frame[keys].merge(new, on=keys, how="left").drop(columns=keys)
        added = _overlay(added, values.set_axis(frame.index))
    times = frame[["scan"]].merge(metadata.scans, on="scan", how="left").drop(columns="scan")
    if times["acq_time"].notna().any():
        added = _overlay(added, times.set_axis(frame.index))
    return pd.concat([frame, added], axis=1)


def not_numbers(column: pd.Series) -> list[str]:
    """List what is no number in a column of text that holds numbers otherwise.

    One mistyped value makes text of such a column, and categories of its numbers.

    Parameters
    ----------
    column : pandas.Series
        A result of :func:`typed`.

    Returns
    -------
    list of str
        Empty if most values are no numbers, if all are, or if the column is categorical.

    Examples
    --------
    >>> not_numbers(pd.Series(["70", "71,5", "68", None])), not_numbers(pd.Series(["F", "M", "1"]))
    (['71,5'], [])
    """
    if pd.api.types.is_numeric_dtype(column) or isinstance(column.dtype, pd.CategoricalDtype):
        return []
    values = column.dropna().astype("str")
    number = values.str.fullmatch(_NUMBER)
    return sorted(set(values[~number])) if number.sum() > len(values) / 2 else []


def typed(
    frame: pd.DataFrame, columns: Mapping[str, Mapping[str, Any]], source: str
) -> pd.DataFrame:
    """Turn columns of text into numbers and categories.

    Parameters
    ----------
    frame : pandas.DataFrame
        Text, missing values missing.
    columns : mapping
        Sidecar: ``Levels`` makes a column categorical in their order, values that are not listed
        last; ``Format`` ``string`` keeps it text.
    source : str
        Where the columns are from, for warnings.

    Returns
    -------
    pandas.DataFrame
        Numbers as float, categories, or text. Other spellings of n/a are missing unless they are
        levels.

    Examples
    --------
    >>> frame = pd.DataFrame({"age": ["70", "89+", "NA"], "sex": ["2", "1", "2.0"],
    ...     "site": ["01", "02", None]})
    >>> typed(frame, {"sex": {"Levels": {"1": "male", "2": "female"}}}, "x.tsv").to_dict("list")
    {'age': [70.0, 89.0, nan], 'sex': ['2', '1', '2'], 'site': ['01', '02', nan]}
    """
    result, spelled, unlisted, mistyped = {}, [], {}, {}
    for name, column in frame.items():
        described = columns.get(str(name), {})
        given = described.get("Levels")
        levels = [str(level) for level in given] if isinstance(given, dict | list) else []
        values = column.astype("str")
        other = values.isin(_MISSING - set(levels))
        if other.any():
            spelled.append(str(name))
            values = values.mask(other)
        if name == "age":
            # how BIDS hides that someone is older
            values = values.str.removesuffix("+")
        # pandas writes the integers of a column with missing values as 1.0
        plain = values.str.removesuffix(".0")
        values = values.mask(plain.isin(levels), plain)
        numeric = bool(values.dropna().str.fullmatch(_NUMBER).all())
        extra = sorted(set(values.dropna()) - set(levels))
        if levels and not (numeric and extra):
            # Levels of some numbers only explain special values of a scale
            if extra:
                unlisted[str(name)] = extra
            result[name] = values.astype(pd.CategoricalDtype([*levels, *extra]))
        elif numeric and described.get("Format") != "string" and values.notna().any():
            result[name] = values.astype("float64")
        else:
            result[name] = values
            if described.get("Format") != "string" and (wrong := not_numbers(values)):
                mistyped[str(name)] = wrong
    if spelled:
        _LOG.warning(
            "%s: spelled other than n/a, but taken as missing: in %s", source, listed(spelled)
        )
    for name, wrong in mistyped.items():
        _LOG.warning(
            "%s: %s is taken as text, as these values are no numbers: %s",
            source,
            name,
            listed(map(repr, wrong)),
        )
    for name, extra in unlisted.items():
        _LOG.warning(
            "%s: %s has values that its JSON does not list: %s", source, name, listed(extra)
        )
    return pd.DataFrame(result, index=frame.index)


def _overlay(below: pd.DataFrame, above: pd.DataFrame) -> pd.DataFrame:
    columns = {name: below[name] for name in below}
    for name in above:
        columns[name] = above[name].fillna(below[name]) if name in below else above[name]
    return pd.DataFrame(columns, index=below.index)


def _read_all(
    paths: Iterable[tuple[Path, str]], keys: tuple[str, ...], notes: Notes
) -> pd.DataFrame:
    """Stack one table per participant."""
    present = [(path, name) for path, name in paths if path.is_file()]
    with ThreadPoolExecutor(_READERS) as pool:
        tables = list(pool.map(lambda item: _rows(item[0]), present))
    rows: list[dict[str, str | None]] = []
    for (path, name), (lines, problems) in zip(present, tables, strict=True):
        notes += [(path, problem) for problem in problems]
        rows += [{"participant_id": name, **line} for line in lines]
    return _keyed(rows, keys, present[0][0] if present else Path(), notes)


def _read(path: Path, keys: tuple[str, ...], notes: Notes) -> pd.DataFrame:
    if not path.is_file():
        return pd.DataFrame(columns=list(keys), dtype="str")
    rows, problems = _rows(path)
    notes += [(path, problem) for problem in problems]
    return _keyed(rows, keys, path, notes)


def _keyed(
    rows: Sequence[Mapping[str, str | None]], keys: tuple[str, ...], path: Path, notes: Notes
) -> pd.DataFrame:
    """Make a frame of rows that all have their keys, spelled as BIDS wants."""
    frame = pd.DataFrame(rows, dtype="str")
    lacking = [key for key in keys if key not in frame]
    if lacking:
        if rows:
            notes.append((path, f"no column {', '.join(lacking)}: not used"))
        return pd.DataFrame(columns=list(keys), dtype="str")
    for key in keys:
        prefix = _PREFIXES[key]
        bare = frame[key].notna() & ~frame[key].str.startswith(prefix, na=False)
        if bare.any():
            notes.append((path, f"{key} without {prefix}, which was added"))
            frame[key] = frame[key].mask(bare, prefix + frame[key])
    return frame.dropna(subset=list(keys)).reset_index(drop=True)


def _unique(frame: pd.DataFrame, path: Path, notes: Notes) -> pd.DataFrame:
    """Keep one row per key; values that its rows disagree on are missing."""
    keys = [key for key in _PREFIXES if key in frame]
    twice = frame.duplicated(keys, keep=False)
    if not twice.any():
        return frame
    groups = frame[twice].groupby(keys, sort=False)
    values = groups.first().where(groups.nunique() <= 1)
    names = frame.loc[twice, keys].agg(" ".join, axis=1).unique()
    differing = groups.nunique().gt(1).any()
    text = f"more than one row of {listed(names)}"
    if differing.any():
        columns = listed(differing.index[differing])
        text += f"; values that differ are taken as missing, in {columns}"
    notes.append((path, text))
    return pd.concat([frame[~twice], values.reset_index()], ignore_index=True)


def _rows(path: Path) -> tuple[list[dict[str, str | None]], list[str]]:
    """Read a table as text, and say what is wrong with it."""
    problems = []
    try:
        content = path.read_bytes()
    except OSError as error:
        return [], [f"cannot be read ({error.strerror}): not used"]
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        encoding, name = ("utf-16", "UTF-16") if wide else ("cp1252", "Windows-1252")
        text = content.decode(encoding, errors="replace")
        problems.append(f"not UTF-8, read as {name}")
    header = text.partition("\n")[0]
    delimiter = "\t"
    if "\t" not in header:
        for other, name in ((",", "commas"), (";", "semicolons")):
            if other in header:
                delimiter = other
                problems.append(f"separated by {name} instead of tabs")
                break
    stream = io.StringIO(text, newline="")
    reader = (
        # in a TSV, quotes are ordinary; some programs put them around everything all the same
        csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        if delimiter == "\t"
        else csv.reader(stream, delimiter=delimiter)
    )
    lines = [[_cell(cell) for cell in line] for line in reader]
    lines = [line for line in lines if any(line)]
    if not lines:
        return [], [*problems, "empty"]
    names = lines[0]
    twice = sorted({name for name in names if names.count(name) > 1 and name})
    if twice:
        problems.append(f"column {listed(twice)} more than once, the first is used")
    rows: list[dict[str, str | None]] = []
    for number, line in enumerate(lines[1:], start=2):
        if any(line[len(names) :]):
            problems.append(f"row {number} has more fields than the header: left out")
            continue
        padded = line + ["n/a"] * (len(names) - len(line))
        # from the end, so that the first of two columns stays
        pairs = list(zip(names, padded, strict=False))[::-1]
        row = {name: None if value in ("n/a", "") else value for name, value in pairs if name}
        rows.append(dict(reversed(row.items())))
    return rows, problems


def _cell(text: str) -> str:
    text = text.strip()
    return text[1:-1].strip() if len(text) > 1 and text[0] == text[-1] == '"' else text


def _sidecar(path: Path, notes: Notes) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        return {name: value for name, value in content.items() if isinstance(value, dict)}
    except (OSError, ValueError, AttributeError) as error:
        notes.append((path, f"not used ({error})"))
        return {}


def _sessions_sidecar(
    root: Path, folders: Sequence[Path], notes: Notes
) -> dict[str, dict[str, Any]]:
    """Read the description that all sessions.tsv share, or that of the first that has one."""
    own = (folder / f"{folder.name}_sessions.json" for folder in folders)
    path = next((p for p in (root / "sessions.json", *own) if p.is_file()), None)
    return _sidecar(path, notes) if path else {}


def _scan_times(folders: Sequence[Path], notes: Notes) -> pd.DataFrame:
    paths = []
    for folder in folders:
        paths.append(folder / f"{folder.name}_scans.tsv")
        paths += sorted(folder.glob("ses-*/*_scans.tsv"))
    table = _read_all(((path, path.name.split("_")[0]) for path in paths), (), notes)
    if not {"filename", "acq_time"} <= set(table):
        return pd.DataFrame(columns=["scan", "acq_time"], dtype="str")
    names = table["filename"].str.rpartition("/")[2]
    stems = names.str.extract(r"^(.*)_T1w\.nii(?:\.gz)?$")[0]
    return table.assign(scan=stems)[["scan", "acq_time"]].dropna()


def _phenotype(
    root: Path, wanted: Sequence[str], notes: Notes
) -> tuple[tuple[pd.DataFrame, ...], dict[str, dict[str, Any]]]:
    """Find columns in the tables of phenotype/."""
    tables: list[pd.DataFrame] = []
    columns: dict[str, dict[str, Any]] = {}
    found: dict[str, Path] = {}
    for path in sorted((root / "phenotype").glob("*.tsv")) if wanted else ():
        table = _read(path, ("participant_id",), notes)
        hits = [name for name in dict.fromkeys(wanted) if name in table]
        for name in hits:
            if name in found:
                raise UsageError(
                    f"{name} is in {found[name]} and in {path}; copy the one you mean to "
                    "participants.tsv under a name of its own"
                )
            found[name] = path
        if hits:
            keys = [key for key in _PREFIXES if key in table]
            tables.append(_unique(table[[*keys, *hits]], path, notes))
            sidecar = _sidecar(path.with_suffix(".json"), notes)
            columns |= {name: sidecar[name] for name in hits if name in sidecar}
    return tuple(tables), columns


def _report(notes: Notes) -> None:
    """Warn once per kind of trouble."""
    kinds: dict[str, list[Path]] = {}
    for path, text in notes:
        kinds.setdefault(text, []).append(path)
    for text, paths in kinds.items():
        more = f" and {len(paths) - 1} more such files" if len(paths) > 1 else ""
        _LOG.warning("%s%s: %s", paths[0], more, text)
