"""All facts about the scans of one person over time, read from the outputs of their series.

As in :mod:`hyps_bids.reports.scan_facts`, nothing is computed here, and a file that is missing or
damaged becomes a problem that the report names.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hyps_bids.outputs.columns import SERIES_QC_COLUMNS
from hyps_bids.outputs.labels import HEMISPHERES, SIDE_NAMES, WHOLE
from hyps_bids.outputs.names import sidecar_path
from hyps_bids.outputs.reading import load_json
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.series import Series
from hyps_bids.outputs.series_state import is_series_current, read_series_record
from hyps_bids.reports.scan_facts import color_of, read_colors, read_number, read_rows

_AGAIN = "run the participant level again"
#: Normal quantile of a 95 % interval.
_TWO_SIDED = 1.959964
#: Columns of the QC table that are no figures, or whose flags say what matters.
_STATE = (
    "suffix",
    "scan",
    "session_id",
    "status",
    "reason",
    "review",
    "reasons",
    "flags",
    "agreement_L",
    "agreement_R",
)
#: Figure of a scan → title and decimals
_TITLES = {
    "mask_overlap": ("Overlap of heads", 3),
    "similarity": ("Similarity", 3),
    "residual": ("Residual", 2),
    "rotation_deg": ("Rotation, °", 1),
    "translation_mm": ("Shift, mm", 1),
    "voxel_mm": ("Voxel, mm", 1),
}


@dataclass(frozen=True)
class Volume:
    """The volume of one structure at one time point, with its 95 % interval, NaN if unknown."""

    value: float
    low: float
    high: float
    bsi_mm3: float | None


@dataclass(frozen=True)
class TimePoint:
    """One scan of a series.

    The status is ``used``, ``refused`` or ``failed``, for the reason given in words. The years are
    those since the first scan that was used.
    """

    scan: Scan
    status: str
    visit: int | None = None
    years: float | None = None
    reason: str = ""
    reasons: str = ""
    flags: tuple[str, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    volumes: Mapping[tuple[str, str], Volume] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The entities of the scan that tell it from the others of its person."""
        names = [f"{key}-{value}" for key, value in self.scan.entities if key != "sub"]
        return ", ".join(names) or self.scan.suffix


@dataclass(frozen=True)
class Interval:
    """A change in percent and its 95 % interval."""

    value: float
    low: float | None
    high: float | None

    @property
    def words(self) -> str:
        """The change and its interval as they are read.

        Examples
        --------
        >>> Interval(-2.14, -3.0, -1.2).words
        '−2.1 % (95 % interval −3.0 to −1.2)'
        >>> Interval(-1.8, -3.6, -0.0018).words
        '−1.8 % (95 % interval −3.6 to −0.002)'
        """
        text = f"{signed(self.value)} %"
        if self.low is None or self.high is None:
            return text
        # Whether 0 is inside must be seen also where an end is close to it.
        low, high = (
            signed(end, max(1, math.ceil(-math.log10(abs(end)))) if end else 1)
            for end in (self.low, self.high)
        )
        return f"{text} (95 % interval {low} to {high})"

    @property
    def meaning(self) -> str:
        """What the interval says about the direction of the change."""
        if self.low is None or self.high is None:
            return "of unknown error"
        if self.low > 0:
            return "larger over time"
        return "smaller over time" if self.high < 0 else "no clear change"


@dataclass(frozen=True)
class Change:
    """One row of the table of annual change: a structure and a method, ``volume`` or ``bsi``."""

    hemi: str
    part: str
    method: str
    n_scans: int
    span_years: float | None
    time_source: str
    baseline_mm3: float | None
    mm3_per_year: float | None
    per_year: Interval | None
    total: Interval | None
    remarks: str

    def fitted(self, years: float) -> float:
        """Return the line some years after the first value, mm³; NaN if there is none."""
        if self.baseline_mm3 is None or self.mm3_per_year is None:
            return float("nan")
        return self.baseline_mm3 + self.mm3_per_year * years


@dataclass(frozen=True)
class SeriesFacts:
    """Everything that is known about a series without its images.

    `figures` are titles, names and descriptions of the figures in the QC table. `colors` are those
    of the labels of each hemisphere, ``#rrggbb``.
    """

    series: Series
    points: tuple[TimePoint, ...] = ()
    changes: tuple[Change, ...] = ()
    figures: tuple[tuple[str, str, str], ...] = ()
    colors: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def used(self) -> tuple[TimePoint, ...]:
        """The time points that were used, in their order."""
        return tuple(point for point in self.points if point.status == "used")

    @property
    def left_out(self) -> tuple[TimePoint, ...]:
        """The time points that were refused or have failed."""
        return tuple(point for point in self.points if point.status != "used")

    @property
    def structures(self) -> tuple[tuple[str, str], ...]:
        """Hemisphere and part of all structures, left before right, and the whole first."""
        found = dict.fromkeys(
            (*(key for point in self.used for key in point.volumes), *map(_key, self.changes))
        )
        parts = list(dict.fromkeys(part for _, part in found))
        return tuple(
            sorted(found, key=lambda k: (HEMISPHERES.index(k[0]), k[1] != WHOLE, parts.index(k[1])))
        )

    @property
    def timed(self) -> bool:
        """Whether the years between all used scans are known, and are not all the same."""
        years = [point.years for point in self.used]
        return None not in years and len(set(years)) > 1

    def change(self, hemi: str, part: str, method: str = "volume") -> Change | None:
        """Return the change of a structure by a method."""
        found = (c for c in self.changes if (c.hemi, c.part, c.method) == (hemi, part, method))
        return next(found, None)


def structure_name(hemi: str, part: str) -> str:
    """Name a structure in words.

    Examples
    --------
    >>> structure_name("L", "whole"), structure_name("R", "anterior")
    ('left hippocampus', 'right anterior hippocampus')
    """
    words = [SIDE_NAMES[hemi], *([] if part == WHOLE or "hippocampus" in part else [part])]
    return " ".join([*words, part if "hippocampus" in part else "hippocampus"])


def signed(value: float, decimals: int = 1) -> str:
    """Write a number with its sign.

    Examples
    --------
    >>> signed(0.04), signed(-2.16), signed(3)
    ('0.0', '−2.2', '+3.0')
    """
    text = f"{value:+.{decimals}f}".replace("-", "−")
    return text[1:] if float(text[1:]) == 0 else text


def series_files(output_dir: Path, series: Series) -> list[Path]:
    """Name the files that the facts of a series come from; its pictures change with its sidecar."""
    paths = series.paths(output_dir)
    return [*paths.values(), sidecar_path(paths["qc"])]


def read_series(output_dir: Path, series: Series) -> SeriesFacts:
    """Read the tables of a series; ``problems`` names missing and damaged files."""
    paths = series.paths(output_dir)
    problems: list[str] = []
    states = read_rows(paths["qc"], ("scan", "status"), problems)
    measured, annual = [], []
    # Where scans were refused, there may be no change to write down.
    if sum(row["status"] == "used" for row in states) > 1:
        needed = ("scan", "index", "hemi", "part", "volume_mm3")
        measured = read_rows(paths["morph"], needed, problems)
        annual = read_rows(paths["annual"], ("hemi", "part", "method", "n_scans"), problems)
    failed = all(row["status"] == "failed" for row in states)
    if not failed and not sidecar_path(paths["qc"]).is_file():
        problems.append(
            f"{sidecar_path(paths['qc']).name} is not there: the series was interrupted; {_AGAIN}"
        )
    if read_series_record(series, output_dir) and not is_series_current(series, output_dir):
        problems.append(f"its scans were processed again or removed since; {_AGAIN}")
    colors = read_colors(output_dir, problems) if measured else {}
    points = [_point(row, measured) for row in states]
    # Scans without a place among the others come last.
    points.sort(key=lambda point: (point.visit is None, point.visit or 0))
    return SeriesFacts(
        series=series,
        points=tuple(points),
        changes=tuple(_change(row) for row in annual if row["hemi"] in HEMISPHERES),
        figures=tuple(_figures(paths["qc"], states)),
        colors={
            hemi: {
                int(row["index"]): color_of(row["index"], colors)
                for row in measured
                if row["hemi"] == hemi and row["index"].isdecimal()
            }
            for hemi in HEMISPHERES
        },
        problems=tuple(problems),
    )


def _key(change: Change) -> tuple[str, str]:
    return change.hemi, change.part


def _point(row: Mapping[str, str], measured: list[dict[str, str]]) -> TimePoint:
    own = [each for each in measured if each["scan"] == row["scan"]]
    first = own[0] if own else {}
    visit = read_number(first.get("visit"))
    values = {name: read_number(text) for name, text in row.items() if name not in _STATE}
    return TimePoint(
        scan=Scan.from_stem(row["scan"]),
        status=row["status"],
        visit=None if visit is None else int(visit),
        years=read_number(first.get("years")),
        reason=row.get("reason", ""),
        reasons=row.get("reasons", ""),
        flags=tuple(row.get("flags", "").split()),
        figures={name: value for name, value in values.items() if value is not None},
        volumes={
            (each["hemi"], each["part"]): volume
            for each in own
            if each["hemi"] in HEMISPHERES and (volume := _volume(each))
        },
    )


def _volume(row: Mapping[str, str]) -> Volume | None:
    value, error = read_number(row["volume_mm3"]), read_number(row.get("volume_mm3_se"))
    if value is None:
        return None
    margin = float("nan") if error is None else _TWO_SIDED * error
    return Volume(value, value - margin, value + margin, read_number(row.get("bsi_mm3")))


def _change(row: Mapping[str, str]) -> Change:
    def interval(name: str) -> Interval | None:
        value = read_number(row.get(name))
        if value is None:
            return None
        low, high = (read_number(row.get(f"{name}_{end}")) for end in ("low", "high"))
        return Interval(value, low, high)

    return Change(
        hemi=row["hemi"],
        part=row["part"],
        method=row["method"],
        n_scans=int(read_number(row["n_scans"]) or 0),
        span_years=read_number(row.get("span_years")),
        time_source=row.get("time_source", ""),
        baseline_mm3=read_number(row.get("baseline_mm3")),
        mm3_per_year=read_number(row.get("mm3_per_year")),
        per_year=interval("percent_per_year"),
        total=interval("change_percent"),
        remarks=row.get("remarks", ""),
    )


def _figures(path: Path, rows: list[dict[str, str]]) -> Iterator[tuple[str, str, str]]:
    """Find the figures that a QC table has: title, name, description."""
    try:
        described = load_json(sidecar_path(path))
    except (OSError, ValueError):
        described = {}
    known = dict.fromkeys(name for row in rows for name in row if name not in _STATE)
    for name in known:
        if not any(read_number(row.get(name)) is not None for row in rows):
            continue
        column = described.get(name) if isinstance(described, dict) else None
        words = column.get("Description", "") if isinstance(column, dict) else ""
        title = _TITLES.get(name, (name.replace("_", " ").capitalize(), 3))[0]
        yield title, name, str(words) or SERIES_QC_COLUMNS.get(name, "")


def format_figure(name: str, value: float) -> str:
    """Write a figure of the registration with as many decimals as matter."""
    return f"{value:.{_TITLES.get(name, ('', 3))[1]}f}".replace("-", "−")
