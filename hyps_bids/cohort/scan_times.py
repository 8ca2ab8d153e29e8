"""When each scan of a dataset was taken, at the participant level."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from hyps_bids.cohort.column_types import infer_types
from hyps_bids.cohort.gather import scan_keys
from hyps_bids.cohort.image_contrasts import CONTRAST
from hyps_bids.cohort.metadata import join, read_metadata, rows_of_sessions
from hyps_bids.cohort.visits import order_scans
from hyps_bids.outputs.columns import KEYS, VISIT_COLUMNS
from hyps_bids.outputs.scan import Scan


class ScanTime(NamedTuple):
    """What a dataset's tables say about the time of a scan.

    Attributes
    ----------
    acq_time : str or None
        Date, as it is written.
    age : float
        Age of the participant, NaN if unknown.
    age_unit : str
        Its unit, empty for years.
    rows : dict of str to float
        Name of a table → position of the session's row in it.
    """

    acq_time: str | None
    age: float
    age_unit: str
    rows: Mapping[str, float]


class Visit(NamedTuple):
    """Place of a scan among those of its series.

    Attributes
    ----------
    number : int
        1 is the first.
    source : str
        Origin of the order, as in the column ``order_source`` of the wide table.
    years : float
        Since the first scan; NaN if neither dates nor ages are known.
    """

    number: int
    source: str
    years: float


def read_times(bids_dir: Path, stems: Iterable[str]) -> dict[str, ScanTime]:
    """Read when scans were taken; the names of scans are those of their outputs.

    Tables that are not quite right are read as far as they can be, with a warning.
    """
    scans = pd.DataFrame([scan_keys(stem) for stem in stems], columns=[*KEYS], dtype="object")
    metadata = read_metadata(bids_dir, scans)
    added, origins = join(scans, metadata)
    wanted = [name for name in added if str(name).casefold() in ("acq_time", "age")]
    raw = {name: metadata.columns.get(origins[name], {}) for name in wanted}
    typed = infer_types(added[wanted], raw, str(bids_dir))
    name, ages = _ages(typed)
    unit = str(raw[name].get("Units", "")) if name else ""
    dates = typed["acq_time"] if "acq_time" in typed else pd.Series(None, scans.index, dtype=object)
    listed = rows_of_sessions(scans, metadata)
    return {
        stem: ScanTime(
            acq_time=None if pd.isna(dates[row]) else str(dates[row]),
            age=float(ages[row]),
            age_unit=unit,
            rows={table: float(places[row]) for table, places in listed.items()},
        )
        for row, stem in scans["scan"].items()
    }


def order_visits(times: Mapping[str, ScanTime]) -> dict[str, Visit]:
    """Put the scans of one series in order; see :func:`~hyps_bids.cohort.visits.order_scans`.

    Examples
    --------
    >>> times = {f"sub-1_ses-{i}": ScanTime(f"200{5 - i}-01-01", math.nan, "", {}) for i in (1, 2)}
    >>> {stem: (visit.number, round(visit.years, 2)) for stem, visit in order_visits(times).items()}
    {'sub-1_ses-1': (2, 1.0), 'sub-1_ses-2': (1, 0.0)}
    """
    rows = [[*scan_keys(stem), Scan.from_stem(stem).contrast] for stem in times]
    frame = pd.DataFrame(rows, columns=[*KEYS, CONTRAST])
    known = list(times.values())
    frame = frame.assign(
        acq_time=pd.Series([each.acq_time for each in known], dtype="str"),
        age=pd.Series([each.age for each in known], dtype="float64"),
    )
    tables = {name: None for each in known for name in each.rows}
    listed = {name: pd.Series([each.rows.get(name, math.nan) for each in known]) for name in tables}
    order = order_scans(frame, listed, known[0].age_unit)
    found = order[[*VISIT_COLUMNS]].itertuples(index=False, name=None)
    return {
        stem: Visit(int(number), str(source), float(years))
        for stem, (number, source, years) in zip(times, found, strict=True)
    }


def _ages(typed: pd.DataFrame) -> tuple[str, pd.Series]:
    """Choose the column of ages as the group level does; its name is empty if there is none."""
    names = [str(name) for name in typed if str(name).casefold() == "age"]
    name = "age" if "age" in names else names[0] if len(names) == 1 else ""
    if name and pd.api.types.is_numeric_dtype(typed[name]):
        return name, typed[name].astype("float64")
    return "", pd.Series(math.nan, typed.index)
