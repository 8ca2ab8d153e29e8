"""Stack many small tables of one kind, and say which of them cannot be used and why."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

#: The files are small and may be on a network: waiting for one must not hold up the others.
READERS = 8
RUN_AGAIN = "run the participant level again"
_TEXT = {
    *("participant_id", "session_id", "scan", "series", "suffix", "name", "hemi", "part"),
    *(
        "status",
        "reason",
        "review",
        "reasons",
        "flags",
        "remarks",
        "edited",
        "method",
        "time_source",
    ),
}

Rows = list[list[str]]


@dataclass(frozen=True)
class TableKind:
    """What is known about the tables of one kind.

    Attributes
    ----------
    columns : mapping of str to str
        Columns that the present version writes → description.
    required : tuple of str
        Columns without which a table is useless.
    key_names : tuple of str
        Columns that follow from the name of the file; the tables' own columns of these names are
        left out.
    keys : callable
        From the name of a scan or series to the values of `key_names`.
    key : str
        The one of `key_names` that has this name.
    one_row : bool
        Whether a table has one row.
    """

    columns: Mapping[str, str]
    required: tuple[str, ...]
    key_names: tuple[str, ...]
    keys: Callable[[str], Sequence[str | None]]
    key: str
    one_row: bool = False


def stack_tables(
    kind: TableKind, paths: Mapping[str, Path], unreadable: dict[Path, str]
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Stack one kind of table; return also why the tables of some names cannot be used.

    Parameters
    ----------
    kind : TableKind
        What is known about the tables.
    paths : mapping of str to Path
        Name of the scan or series → file.
    unreadable : dict of Path to str
        Files that cannot be read are added to it.
    """
    with ThreadPoolExecutor(READERS) as pool:
        contents = list(pool.map(lambda path: _read(path, kind), paths.values()))
    # One frame per distinct header, because one per file would take long.
    rows: dict[tuple[str, ...], list[list[str | None]]] = defaultdict(list)
    problems = {}
    for (name, path), content in zip(paths.items(), contents, strict=True):
        if isinstance(content, OSError):
            unreadable[path] = content.strerror or str(content)
            problems[name] = f"{path.name} cannot be read ({unreadable[path]})"
        elif isinstance(content, str):
            problems[name] = f"{path.name}: {content}; {RUN_AGAIN}"
        else:
            kept = [i for i, column in enumerate(content[0]) if column not in kind.key_names]
            lines = ([line[i] for i in kept] for line in content[1:])
            header = tuple(content[0][i] for i in kept)
            keys = kind.keys(name)
            rows[header].extend([*keys, *line] for line in lines)
    frames = [
        pd.DataFrame(body, columns=[*kind.key_names, *header]) for header, body in rows.items()
    ]
    frame = concat([pd.DataFrame(columns=[*kind.key_names, *kind.columns]), *frames])
    frame = frame.replace({"n/a": None, "": None})
    for column in frame.columns.difference([*kind.key_names, *_TEXT]):
        numbers = pd.to_numeric(frame[column], errors="coerce").astype("float64")
        wrong = numbers.isna() & frame[column].notna()
        if wrong.any() and column not in kind.columns:
            # This is a column of text from another version.
            continue
        for name, value in frame.loc[wrong, [kind.key, column]].itertuples(index=False):
            problems[name] = f"{paths[name].name}: {column} is '{value}', not a number; {RUN_AGAIN}"
        frame[column] = numbers
    frame = frame[~frame[kind.key].isin(problems)]
    return frame.sort_values(kind.key, kind="stable", ignore_index=True), problems


def _read(path: Path, kind: TableKind) -> Rows | str | OSError:
    """Read a table as text, header first, or return why it cannot be used."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        return error
    except UnicodeDecodeError:
        return "not UTF-8 text"
    lines = [line for line in csv.reader(io.StringIO(text), delimiter="\t") if line]
    if len(lines) < 2:
        return "empty"
    lacking = [name for name in kind.required if name not in lines[0]]
    if lacking:
        return f"no column {', '.join(lacking)}"
    if len(set(map(len, lines))) > 1:
        return "rows of different lengths"
    if kind.one_row and len(lines) > 2:
        return "more than one row"
    return lines


def concat(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Stack frames with the columns of the first in front; of empty ones only the columns count."""
    columns = list(dict.fromkeys(name for frame in frames for name in frame.columns))
    filled = [frame for frame in frames if len(frame)]
    if not filled:
        return pd.DataFrame(columns=columns)
    return pd.concat(filled, ignore_index=True).reindex(columns=columns)
