"""Read the tables and JSON sidecars of a raw dataset, as people write them."""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, cast

import pandas as pd

from hyps_bids.cohort.keys import PREFIXES
from hyps_bids.messages import join_names
from hyps_bids.outputs.columns import ColumnDescription
from hyps_bids.outputs.reading import load_json

_LOG = logging.getLogger("hyps_bids")
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

        A path may come with the participant_id of all its rows. Keys are given the prefix that
        BIDS wants, and rows without values of `keys` are left out.
        """
        present = [path for path in paths if _is_there(path)]
        with ThreadPoolExecutor(_READERS) as pool:
            tables = list(pool.map(_rows, present))
        rows: list[Row] = []
        used: list[Path] = []
        for path, (lines, problems) in zip(present, tables, strict=True):
            participant = paths[path]
            common: Row = {"participant_id": participant} if participant else {}
            lines = [common | line for line in lines]
            if lacking := [key for key in keys if lines and key not in lines[0]]:
                problems = [*problems, f"it is not used, as it has no column {', '.join(lacking)}"]
            elif count := sum(any(line[key] is None for key in keys) for line in lines):
                problems = [*problems, f"rows without {' or '.join(keys)} are left out ({count})"]
            for problem in problems:
                self.note(path, problem)
            if not lacking and lines:
                rows += lines
                used.append(path)
        if not rows:
            return pd.DataFrame(columns=list(keys), dtype="str")
        frame = pd.DataFrame(rows, dtype="str").dropna(subset=list(keys)).reset_index(drop=True)
        for key, prefix in PREFIXES.items():
            if key not in frame:
                continue
            bare = frame[key].notna() & ~frame[key].str.startswith(prefix, na=False)
            if bare.any():
                self.note(used[0], f"{prefix} was added to values of {key} without it")
                frame[key] = frame[key].mask(bare, prefix + frame[key])
        return frame

    def merge_repeated(self, frame: pd.DataFrame, path: Path) -> pd.DataFrame:
        """Keep one row per key, in the order of the first rows.

        Values on which the rows of a key disagree become missing.
        """
        keys = [key for key in PREFIXES if key in frame]
        repeated = frame.duplicated(keys, keep=False)
        if not repeated.any():
            return frame
        groups = frame[repeated].groupby(keys, sort=False, dropna=False)
        differs = groups.nunique() > 1
        names = frame.loc[repeated, keys].fillna("").agg(" ".join, axis=1).str.strip().unique()
        problem = f"there is more than one row of {join_names(names)}"
        if differs.any(axis=None):
            columns = join_names(differs.columns[differs.any()])
            problem += f"; values that differ between them are taken as missing, in {columns}"
        self.note(path, problem)
        values = groups.first().where(~differs).reset_index()
        values.index = frame.index[repeated & ~frame.duplicated(keys)]
        return pd.concat([frame[~repeated], values]).sort_index(ignore_index=True)

    def sidecar(self, path: Path) -> dict[str, ColumnDescription]:
        """Read the descriptions of columns; none if there is no usable file."""
        try:
            content: dict[str, Any] = load_json(path)
            found = {name: value for name, value in content.items() if isinstance(value, dict)}
            return cast("dict[str, ColumnDescription]", found)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, ValueError, AttributeError) as error:
            self.note(path, f"the file is no JSON object and is not used ({error})")
            return {}


def _is_there(path: Path) -> bool:
    """Tell whether there is a file, or may be one in a folder that cannot be read."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def _rows(path: Path) -> tuple[list[Row], list[str]]:
    """Read a table as text, and say what is wrong with it."""
    try:
        text, problems = _decode(path.read_bytes())
    except OSError as error:
        return [], [f"the file cannot be read and is not used ({error.strerror})"]
    lines = _cells(text, problems)
    if not lines:
        return [], [*problems, "the file is empty"]
    names = [_key_column(name) for name in lines[0]]
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


def _key_column(name: str) -> str:
    """Spell the name of a key column as BIDS does."""
    plain = re.sub(r"[\s_-]+", "_", name).casefold()
    return plain if plain in (*PREFIXES, "filename") else name


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
