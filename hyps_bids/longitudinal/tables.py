"""The tables of volumes over time and of change per year."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from hyps_bids.longitudinal.change import (
    BSI,
    SHORTEST_SPAN,
    SHORTEST_SPAN_OF_WHOLE_AGES,
    VOLUME,
    WHOLE_AGES,
    ErrorModel,
    Estimate,
    difference,
    fit_line,
    relative_difference,
)
from hyps_bids.longitudinal.pipeline import Followed
from hyps_bids.outputs.columns import ANNUAL_CHANGE_COLUMNS, LONGITUDINAL_COLUMNS
from hyps_bids.outputs.labels import HEMISPHERES, SIDE_NAMES, WHOLE, label_table
from hyps_bids.outputs.scan import Scan

#: Sources of times, others tell the order alone.
_TIMED = ("acq_time", "age")
_FEW = "found at fewer than two scans"
_UNLIKE = "the shapes differ so much that each scan was segmented by itself, with an unknown error"
_REFUSALS = {
    "contrast": "the border of the hippocampus does not have the contrast of T1w images",
    "thick-slices": "slices are thicker than 2 mm",
    "no-boundary": "the hippocampus has no boundary in all scans",
}


@dataclass(frozen=True)
class Course:
    """The scans of a series in the order of time.

    Attributes
    ----------
    scans : sequence of Scan
        All of them, refused ones as well.
    years : numpy.ndarray
        Since the first scan, shape ``(scans,)``; NaN if neither dates nor ages are known.
    source : str
        Origin of the order, as the column ``time_source``.
    whole_ages : bool
        Whether the times are differences of ages in whole years.
    failed : mapping of Scan to str
        Scans without results of their own, which have no place in the order, and why.
    """

    scans: Sequence[Scan]
    years: np.ndarray
    source: str
    whole_ages: bool = False
    failed: Mapping[Scan, str] = field(default_factory=dict)


def volume_table(course: Course, followed: Followed, model: ErrorModel) -> pd.DataFrame:
    """Write the volumes and changes of each scan that was used.

    Returns
    -------
    pandas.DataFrame
        One row per scan, side and part, with the columns
        :data:`~hyps_bids.outputs.columns.LONGITUDINAL_COLUMNS`.
    """
    used = used_scans(followed)
    since = course.years - (course.years[used[0]] if used else 0)
    rows = []
    for visit, i in enumerate(used, start=1):
        scan = course.scans[i]
        session = f"ses-{scan.session}" if scan.session else None
        keys = [scan.suffix, scan.stem, session, visit, since[i]]
        for structure in _structures(followed):
            volumes, comparable, shifts = structure.values(followed)
            found = np.flatnonzero(np.isfinite(comparable))
            first = comparable[found[0]] if len(found) else math.nan
            own_model = _model_of(structure.hemi, followed, model)
            error = _sd(own_model, VOLUME, structure.part, comparable)
            changes = [comparable[i] - first, shifts[i]]
            in_percent = [100 * change / first for change in changes]
            own = [structure.index, structure.name, structure.hemi, structure.part]
            volume = [volumes[i], error if np.isfinite(comparable[i]) else math.nan]
            change = [changes[0], in_percent[0], changes[1], in_percent[1]]
            rows.append([*keys, *own, *volume, *change])
    return pd.DataFrame(rows, columns=list(LONGITUDINAL_COLUMNS)).astype({"index": "Int64"})


def change_table(
    course: Course, followed: Followed, model: ErrorModel, flags: Iterable[str] = ()
) -> pd.DataFrame:
    """Estimate the change per year, and from the first to the last scan.

    Parameters
    ----------
    course : Course
        The scans and their times.
    followed : Followed
        What was measured.
    model : ErrorModel
        The stated error of a scan.
    flags : iterable of str
        Flags of any of the scans; a remark repeats those that concern a row.

    Returns
    -------
    pandas.DataFrame
        One row per side, part and method, with the columns
        :data:`~hyps_bids.outputs.columns.ANNUAL_CHANGE_COLUMNS`.
    """
    rows = []
    for structure in _structures(followed):
        _, volumes, shifts = structure.values(followed)
        own = _model_of(structure.hemi, followed, model)
        for method, values in ((VOLUME, volumes), (BSI, shifts)):
            sd = _sd(own, method, structure.part, volumes)
            row = _change(course, values, volumes, method, sd, own)
            if method == BSI and structure.hemi in followed.sides:
                refusal = followed.sides[structure.hemi].boundary_refusal
                if refusal is not None:
                    row["remarks"] = f"refused: {_REFUSALS.get(refusal, refusal)}"
            parts = [row["remarks"], *_left_out(course, followed, structure.hemi)]
            concerned = [f for f in flags if f.partition("_")[2] in ("", structure.hemi)]
            if concerned:
                parts.append(f"to review: {', '.join(concerned)}")
            row["remarks"] = "; ".join(str(part) for part in parts if part) or None
            keys = {"suffix": course.scans[0].suffix, "time_source": course.source}
            keys |= {"hemi": structure.hemi, "part": structure.part, "method": method}
            rows.append(keys | row)
    return pd.DataFrame(rows, columns=list(ANNUAL_CHANGE_COLUMNS))


def used_scans(followed: Followed) -> list[int]:
    """Return the positions of the scans that were not refused."""
    return [i for i, move in enumerate(followed.to_midway) if move is not None]


@dataclass(frozen=True)
class _Structure:
    """One row of the table of labels, or a whole hippocampus."""

    index: int | None
    name: str
    hemi: str
    part: str
    column: int

    def values(self, followed: Followed) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return volumes, those that can be compared, and boundary shifts of all scans."""
        side = followed.sides.get(self.hemi)
        if side is None:
            nothing = np.full(len(followed.to_midway), math.nan)
            return nothing, nothing, nothing
        found = side.volumes, side.comparable, side.boundary_shift
        return found[0][:, self.column], found[1][:, self.column], found[2][:, self.column]


def _structures(followed: Followed) -> Iterator[_Structure]:
    table = label_table(followed.parts)
    for hemi in HEMISPHERES:
        parts = table[table["hemi"] == hemi][["index", "name", "part"]]
        for column, (index, name, part) in enumerate(parts.itertuples(index=False, name=None)):
            yield _Structure(index, name, hemi, part, column)
        name = f"{SIDE_NAMES[hemi].capitalize()} hippocampus"
        yield _Structure(None, name, hemi, WHOLE, len(parts))


def _model_of(hemi: str, followed: Followed, model: ErrorModel) -> ErrorModel:
    """Return the error model of a side: what was measured holds only where scans are alike."""
    side = followed.sides.get(hemi)
    return ErrorModel({}, 0.0, _UNLIKE) if side is not None and side.all_unlike else model


def _left_out(course: Course, followed: Followed, hemi: str) -> list[str]:
    """Name the scans that were measured by themselves, which are on no line with the others."""
    side = followed.sides.get(hemi)
    alone = np.isfinite(side.volumes[:, -1]) & np.isnan(side.comparable[:, -1]) if side else []
    names = [course.scans[i].stem for i in np.flatnonzero(alone).tolist()]
    return [f"without {', '.join(names)}, whose shape is too different"] if names else []


def _sd(model: ErrorModel, method: str, part: str, volumes: np.ndarray) -> float:
    """Return the stated standard deviation of one scan, mm³."""
    known = volumes[np.isfinite(volumes)]
    return model.sd(method, part) / 100 * float(known.mean()) if len(known) else math.nan


def _change(
    course: Course,
    values: np.ndarray,
    volumes: np.ndarray,
    method: str,
    sd: float,
    model: ErrorModel,
) -> dict[str, object]:
    known = np.flatnonzero(np.isfinite(values))
    row: dict[str, object] = {"n_scans": len(known)}
    if len(known) < 2:
        return row | {"remarks": _FEW}
    freedom = model.freedom
    first, last = values[known[0]], values[known[-1]]
    reference = float(volumes[known[0]]) if method == BSI else None
    row["baseline_mm3"] = volumes[known[0]]
    row |= _named("change_mm3", difference(first, last, sd, freedom), bounds=False)
    percent = relative_difference(first, last, sd, freedom, reference)
    row |= {"change_percent": percent.value}
    row |= {"change_percent_low": percent.low, "change_percent_high": percent.high}
    years = course.years[known]
    span = float(years.max() - years.min())
    row["span_years"] = span
    remarks = _remarks(course, span)
    if not remarks:
        line = fit_line(years, values[known], sd, freedom, reference)
        if method == VOLUME:
            row["baseline_mm3"] = line.baseline
        row |= _named("mm3_per_year", line.slope, bounds=False)
        row |= _named("percent_per_year", line.percent)
        if course.whole_ages:
            remarks.append(WHOLE_AGES)
    if math.isnan(sd):
        remarks.append(model.problem)
    return row | {"remarks": "; ".join(remarks) or None}


def _remarks(course: Course, span: float) -> list[str]:
    """Say why there is no change per year."""
    if course.source not in _TIMED and math.isnan(span):
        return ["the date or age of a scan is unknown"]
    if span == 0:
        return ["scans of one time"]
    if course.whole_ages and span < SHORTEST_SPAN_OF_WHOLE_AGES:
        return [WHOLE_AGES]
    return ["times less than three months apart"] if span < SHORTEST_SPAN else []


def _named(name: str, estimate: Estimate, *, bounds: bool = True) -> dict[str, object]:
    ends = {f"{name}_low": estimate.low, f"{name}_high": estimate.high} if bounds else {}
    return {name: estimate.value, f"{name}_se": estimate.se, **ends}
