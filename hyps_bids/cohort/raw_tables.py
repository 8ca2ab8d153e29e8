"""Read the tables and JSON sidecars of a raw dataset, as people write them."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, cast

import pandas as pd

from hyps_bids.messages import join_names
from hyps_bids.outputs.columns import ColumnDescription

__all__ = ["PREFIXES", "TableReader"]

_LOG = logging.getLogger("hyps_bids")
#: key column → prefix of its values
PREFIXES = {"participant_id": "sub-", "session_id": "ses-"}
_READERS = 8

Row = dict[str, str | None]


class TableReader:
    """Reads tables as text and remembers what is wrong with each file.

    Files that are not quite right (another encoding, commas, a missing prefix, a participant
    twice) are read as far as they can be.
    """

    def __init__(self) -> None:
        self._problems: dict[str, list[Path]] = {}

    def note(self, path: Path, problem: str) -> None:
        """Remember a problem of a file."""
        self._problems.setdefault(problem, []).append(path)

    def warn(self) -> None:
        """Log one warning for each kind of problem, however many files have it."""
        for problem, paths in self._problems.items():
            more = f" and {len(paths) - 1} more such files" if len(paths) > 1 else ""
            _LOG.warning("%s%s: %s. Please correct the file.", paths[0], more, problem)

    def read(self, paths: Mapping[Path, str | None], keys: Sequence[str]) -> pd.DataFrame:
        """Stack the tables of all files that exist.

        A path may come with the participant_id of all its rows. Values of the `keys` are given the
        prefix that BIDS wants, and rows without these values are left out.
        """
        present = [path for path in paths if path.is_file()]
        with ThreadPoolExecutor(_READERS) as pool:
            tables = list(pool.map(_rows, present))
        rows: list[Row] = []
        for path, (lines, problems) in zip(present, tables, strict=True):
            for problem in problems:
                self.note(path, problem)
            participant = paths[path]
            common: Row = {"participant_id": participant} if participant else {}
            rows += [common | line for line in lines]
        frame = pd.DataFrame(rows, dtype="str")
        lacking = [key for key in keys if key not in frame]
        if lacking:
            if rows:
                self.note(present[0], f"it is not used, as it has no column {', '.join(lacking)}")
            return pd.DataFrame(columns=list(keys), dtype="str")
        for key in keys:
            bare = frame[key].notna() & ~frame[key].str.startswith(PREFIXES[key], na=False)
            if bare.any():
                self.note(present[0], f"{PREFIXES[key]} was added to values of {key} without it")
                frame[key] = frame[key].mask(bare, PREFIXES[key] + frame[key])
        return frame.dropna(subset=list(keys)).reset_index(drop=True)

    def merge_repeated(self, frame: pd.DataFrame, path: Path) -> pd.DataFrame:
        """Keep one row per key; values on which the rows of a key disagree become missing."""
        keys = [key for key in PREFIXES if key in frame]
        repeated = frame.duplicated(keys, keep=False)
        if not repeated.any():
            return frame
        groups = frame[repeated].groupby(keys, sort=False)
        differs = groups.nunique() > 1
        names = frame.loc[repeated, keys].agg(" ".join, axis=1).unique()
        problem = f"there is more than one row of {join_names(names)}"
        if differs.any(axis=None):
            columns = join_names(differs.columns[differs.any()])
            problem += f"; values that differ between them are taken as missing, in {columns}"
        self.note(path, problem)
        values = groups.first().where(~differs)
        return pd.concat([frame[~repeated], values.reset_index()], ignore_index=True)

    def sidecar(self, path: Path) -> dict[str, ColumnDescription]:
        """Read the descriptions of columns; none if there is no usable file."""
        if not path.is_file():
            return {}
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8-sig"))
            found = {name: value for name, value in content.items() if isinstance(value, dict)}
            return cast("dict[str, ColumnDescription]", found)
        except (OSError, ValueError, AttributeError) as error:
            self.note(path, f"the file is no JSON object and is not used ({error})")
            return {}


def _rows(path: Path) -> tuple[list[Row], list[str]]:
    """Read a table as text, and say what is wrong with it."""
    try:
        text, problems = _decode(path.read_bytes())
    except OSError as error:
        return [], [f"the file cannot be read and is not used ({error.strerror})"]
    lines = _cells(text, problems)
    if not lines:
        return [], [*problems, "the file is empty"]
    names = lines[0]
    repeated = sorted({name for name in names if names.count(name) > 1 and name})
    if repeated:
        problems.append(
            f"the column {join_names(repeated)} occurs more than once; the first is used"
        )
    rows: list[Row] = []
    for number, line in enumerate(lines[1:], start=2):
        if any(line[len(names) :]):
            problems.append(f"row {number} has more fields than the header and is left out")
            continue
        row: Row = {}
        padded = line + [""] * (len(names) - len(line))
        for name, value in zip(names, padded, strict=False):
            if name:
                row.setdefault(name, None if value in ("n/a", "") else value)
        rows.append(row)
    return rows, problems


def _decode(content: bytes) -> tuple[str, list[str]]:
    try:
        return content.decode("utf-8-sig"), []
    except UnicodeDecodeError:
        is_utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        encoding, name = ("utf-16", "UTF-16") if is_utf16 else ("cp1252", "Windows-1252")
        text = content.decode(encoding, errors="replace")
        return text, [f"the file is not UTF-8 and was read as {name}"]


def _cells(text: str, problems: list[str]) -> list[list[str]]:
    """Split a table into the cells of its lines, without empty lines."""
    header = text.partition("\n")[0]
    delimiter = "\t"
    if "\t" not in header:
        for other, name in ((",", "commas"), (";", "semicolons")):
            if other in header:
                delimiter = other
                problems.append(f"the columns are separated by {name} instead of tabs")
                break
    # Quotes are ordinary characters in a TSV; _unquoted() removes them around a whole cell.
    quoting: Literal[0, 3] = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting)
    lines = [[_unquoted(cell.strip()) for cell in line] for line in reader]
    return [line for line in lines if any(line)]


def _unquoted(text: str) -> str:
    return text[1:-1].strip() if len(text) > 1 and text[0] == text[-1] == '"' else text
