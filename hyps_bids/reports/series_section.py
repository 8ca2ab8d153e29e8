"""The part of a subject report that shows the scans of one contrast over time."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from markupsafe import Markup

from hyps_bids.errors import BadData, MissingInput
from hyps_bids.messages import format_count
from hyps_bids.outputs.flags import describe_series_flag
from hyps_bids.outputs.labels import HEMISPHERES, SIDE_NAMES, WHOLE
from hyps_bids.outputs.series import Series
from hyps_bids.reports.page import anchor, sentence
from hyps_bids.reports.pictures import Picture
from hyps_bids.reports.plots import Axis, Line, Mark, Points, plot, symbol
from hyps_bids.reports.scan_facts import ScanFacts
from hyps_bids.reports.section import Shown, State, compressed
from hyps_bids.reports.series_facts import (
    Change,
    Interval,
    SeriesFacts,
    TimePoint,
    format_figure,
    read_series,
    signed,
    structure_name,
)
from hyps_bids.reports.series_images import draw_side, read_midway

_LOG = logging.getLogger("hyps_bids")
#: Most time points of which there are pictures.
MOST_PICTURES = 12
#: Bytes for each picture below which there is none, and bytes of charts and tables.
_SMALLEST, _TABLES = 6_000, 40_000
#: What comes before the flags in a remark; other remarks come before it.
_REVIEW = "to review: "
#: Colors of longitudinal volumes, of the boundary shift, and of each scan alone.
_VOLUME, _SHIFT, _ALONE = "var(--link)", "var(--warn)", "var(--muted)"


@dataclass
class SideOverTime:
    """Pictures of one hippocampus at all time points, and what differs from the first."""

    hemi: str
    images: list[Shown]
    differences: list[Shown]

    @property
    def title(self) -> str:
        """The side in words."""
        return f"{SIDE_NAMES[self.hemi].capitalize()} hippocampus at all time points"


@dataclass(frozen=True)
class ChangeRow:
    """The change of one structure, from its volumes and by the boundary shift integral."""

    name: str
    is_whole: bool
    volume: Change | None
    shift: Change | None
    per_year: bool

    def of(self, change: Change | None) -> Interval | None:
        """Return a change per year, or from the first to the last scan where times are unknown."""
        if change is None:
            return None
        return change.per_year if self.per_year else change.total

    @property
    def headline(self) -> str:
        """Both changes in a sentence."""
        volume, shift = self.of(self.volume), self.of(self.shift)
        if volume is None:
            return "n/a."
        since = " per year" if self.per_year else " from the first to the last scan"
        words = f"{volume.words}{since}, {volume.meaning}"
        if self.per_year and self.volume and self.volume.total and self.volume.span_years:
            span, count = self.volume.span_years, self.volume.n_scans
            words += f"; {signed(self.volume.total.value)} % in {span:.1f} years, {count} scans"
        return f"{words}. By the boundary shift {shift.words}." if shift else f"{words}."

    @property
    def mm3_per_year(self) -> str:
        """The change of volume per year, mm³."""
        slope = None if self.volume is None else self.volume.mm3_per_year
        return "n/a" if slope is None else signed(slope)

    @property
    def remarks(self) -> str:
        """What is remarkable about both changes, each once."""
        both = (("Volumes", self.volume), ("Boundary shift", self.shift))
        found = {name: change.remarks for name, change in both if change and change.remarks}
        found = {name: _flags_in_words(text) for name, text in found.items()}
        alike = len(found) == 2 and len(set(found.values())) == 1
        texts = [next(iter(found.values()))] if alike else [f"{n}: {t}" for n, t in found.items()]
        return " ".join(sentence(text[0].upper() + text[1:]) for text in texts)


def _flags_in_words(remarks: str) -> str:
    """Write the flags in remarks about a change in words.

    Examples
    --------
    >>> _flags_in_words("times less than three months apart; to review: other-voxels, unlike_L")
    'times less than three months apart; to review: other voxel size, other shape, left'
    """
    start, mark, flags = remarks.rpartition(_REVIEW)
    if not mark:
        return remarks
    notes = [describe_series_flag(flag, "").short for flag in flags.split(", ")]
    return f"{start}{mark}{', '.join(notes)}"


@dataclass
class SeriesSection:
    """What the page shows of a series; see :class:`~hyps_bids.reports.section.Section`.

    The messages are about faults, and the limits about what is left out on purpose.
    """

    facts: SeriesFacts
    anchor: str
    title: str
    charts: list[tuple[str, Markup]] = field(default_factory=list)
    legend: list[tuple[Markup, str]] = field(default_factory=list)
    sides: list[SideOverTime] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    limits: list[str] = field(default_factory=list)
    unseen: bool = False

    @property
    def state(self) -> State:
        """State of the series."""
        points = self.facts.points
        if self.facts.problems or len(self.facts.used) < 2:
            return State("bad", "✗", "could not be measured")
        left_out, odd = len(self.facts.left_out), sum(bool(p.reasons) for p in self.facts.used)
        if left_out:
            of = format_count(len(points), "scan")
            return State("warn", "!", f"{left_out} of {of} left out")
        if odd:
            return State("warn", "!", f"{format_count(odd, 'scan')} to review")
        if self.unseen:
            return State("warn", "!", "no flags, but pictures are missing")
        return State("good", "✓", "no flags")

    @property
    def notes(self) -> list[str]:
        """Reasons to look at the series, in sentences, each once."""
        return list(
            dict.fromkeys(
                f"{point.title}: {sentence(text)}"
                for point in self.facts.points
                for text in (point.reason, point.reasons)
                if text
            )
        )

    @property
    def errors(self) -> list[str]:
        """Everything that went wrong, in sentences."""
        return [sentence(text) for text in (*self.facts.problems, *self.messages)]

    @property
    def changes(self) -> list[ChangeRow]:
        """The change of each structure."""
        return [
            ChangeRow(
                structure_name(hemi, part).capitalize(),
                part == WHOLE,
                self.facts.change(hemi, part),
                self.facts.change(hemi, part, "bsi"),
                self.per_year,
            )
            for hemi, part in self.facts.structures
        ]

    @property
    def per_year(self) -> bool:
        """Whether there is a change per year, rather than from the first to the last scan."""
        return any(change.per_year is not None for change in self.facts.changes)

    def figures_of(self, point: TimePoint) -> list[str]:
        """Return the figures of a time point in the order of the facts."""
        return [
            format_figure(name, point.figures[name]) if name in point.figures else "n/a"
            for _, name, _ in self.facts.figures
        ]


def build_series_section(
    output_dir: Path, series: Series, scans: Mapping[str, ScanFacts], limit: int
) -> SeriesSection:
    """Build the section of a series in at most `limit` bytes.

    Parameters
    ----------
    output_dir : Path
        The derivatives dataset.
    series : Series
        The series.
    scans : mapping of str to ScanFacts
        Stem → facts of all scans of the subject, each on its own.
    limit : int
        Bytes.

    Returns
    -------
    SeriesSection
        What is missing or damaged is logged and said in it.
    """
    facts = read_series(output_dir, series)
    plain = series.contrast == "T1w"
    title = "Change over time" if plain else f"Change over time, {series.contrast}"
    section = SeriesSection(facts, anchor(series.stem, "series"), title)
    for problem in facts.problems:
        _LOG.warning("Report of sub-%s, %s: %s", series.subject, title, problem)
    section.charts, section.legend = _charts(facts, scans)
    if facts.problems or len(facts.used) < 2:
        return section
    try:
        _draw(section, output_dir, limit - _TABLES)
    except (BadData, MissingInput) as error:
        section.messages.append(f"Pictures over time are missing: {error}")
        section.unseen = True
        _LOG.warning("Report of sub-%s, %s: %s", series.subject, title, error)
    return section


# ---- charts


def _charts(
    facts: SeriesFacts, scans: Mapping[str, ScanFacts]
) -> tuple[list[tuple[str, Markup]], list[tuple[Markup, str]]]:
    """Draw the volumes of each structure over time; both sides of a part have the same axis."""
    by_structure = {key: list(_marks(facts, scans, *key)) for key in facts.structures}
    charts = []
    for (hemi, part), marks in by_structure.items():
        name = structure_name(hemi, part).capitalize()
        pair = [m for (_, other), own in by_structure.items() if other == part for m in own]
        low, high = _extremes(pair)
        margin = 0.06 * (high - low) or 0.02 * high
        y_axis = Axis("mm³", (low - margin, high + margin))
        charts.append((name, plot(marks, _time_axis(facts), y_axis, _in_words(facts, hemi, part))))
    shown = {
        type(mark).__name__ + mark.color: mark for own in by_structure.values() for mark in own
    }
    words = {
        f"Points{_ALONE}": "each scan on its own",
        f"Points{_VOLUME}": "volume from all scans together, with its 95 % interval",
        f"Line{_VOLUME}": "line of the annual change",
        f"Points{_SHIFT}": "first volume plus the boundary shift",
    }
    legend = [(symbol(shown[key]), text) for key, text in words.items() if key in shown]
    return charts, legend


def _time_axis(facts: SeriesFacts) -> Axis:
    if facts.timed:
        return Axis("years since the first scan")
    numbers = [point.visit for point in facts.used if point.visit is not None]
    ticks = {float(n): str(n) for n in numbers[:: max(1, len(numbers) // 10)]}
    last = max(numbers, default=1)
    return Axis("scan, in order (times are unknown)", (0.7, last + 0.3), ticks)


def _at(facts: SeriesFacts, point: TimePoint) -> float:
    place = point.years if facts.timed else point.visit
    return float("nan") if place is None else float(place)


def _marks(
    facts: SeriesFacts, scans: Mapping[str, ScanFacts], hemi: str, part: str
) -> Iterator[Mark]:
    """Make the marks of one structure: those in front come last."""
    points = facts.used
    places = [_at(facts, point) for point in points]
    alone = [_volume_alone(scans.get(point.scan.stem), hemi, part) for point in points]
    if np.isfinite(alone).any():
        tips = [f"{p.title} on its own: {v:,.0f} mm³" for p, v in zip(points, alone, strict=True)]
        yield Points(places, alone, _ALONE, "faint", tips=tips)
    volumes = [point.volumes.get((hemi, part)) for point in points]
    known = [(at, p, v) for at, p, v in zip(places, points, volumes, strict=True) if v is not None]
    if not known:
        return
    change = facts.change(hemi, part)
    if facts.timed and change:
        # The line begins at the first scan that shows this structure.
        ends = [known[0][0], known[-1][0]]
        yield Line(ends, [change.fitted(at - ends[0]) for at in ends], _VOLUME, "thin")
    yield Points(
        [at for at, _, _ in known],
        [v.value for _, _, v in known],
        _VOLUME,
        low=[v.low for _, _, v in known],
        high=[v.high for _, _, v in known],
        tips=[f"{p.title}: {v.value:,.0f} mm³" for _, p, v in known],
    )
    moved = [(at, p, v.bsi_mm3) for at, p, v in known[1:] if v.bsi_mm3 is not None]
    if moved:
        yield Points(
            [at for at, _, _ in moved],
            [known[0][2].value + shift for _, _, shift in moved],
            _SHIFT,
            "diamond",
            tips=[f"{p.title}: boundary shift {shift:+,.0f} mm³" for _, p, shift in moved],
        )


def _volume_alone(scan: ScanFacts | None, hemi: str, part: str) -> float:
    found = () if scan is None else scan.structures
    volumes = [s.volume_mm3 for s in found if (s.hemi, s.part) == (hemi, part)]
    return volumes[0] if volumes and volumes[0] is not None else float("nan")


def _extremes(marks: Sequence[Mark]) -> tuple[float, float]:
    values = [np.asarray(getattr(m, n, ()), float) for m in marks for n in ("y", "low", "high")]
    found = np.concatenate([np.zeros(0), *values])
    found = found[np.isfinite(found)]
    return (float(found.min()), float(found.max())) if found.size else (0.0, 1.0)


def _in_words(facts: SeriesFacts, hemi: str, part: str) -> str:
    """Describe a chart for those who cannot see it."""
    unit = "years" if facts.timed else "scan"
    texts = [
        f"{point.volumes[hemi, part].value:,.0f} mm³ at {unit} {_at(facts, point):g}"
        for point in facts.used
        if (hemi, part) in point.volumes
    ]
    return (
        f"{structure_name(hemi, part).capitalize()} over time: {'; '.join(texts) or 'no values'}."
    )


# ---- pictures


def choose_shown(count: int, most: int = MOST_PICTURES) -> list[int]:
    """Choose time points to show: all of them, or the first, the last and evenly between.

    Examples
    --------
    >>> choose_shown(3), choose_shown(20, 5)
    ([0, 1, 2], [0, 5, 10, 14, 19])
    """
    if count <= most:
        return list(range(count))
    return [round(place) for place in np.linspace(0, count - 1, most)]


def _draw(section: SeriesSection, output_dir: Path, limit: int) -> None:
    """Draw all pictures of a series."""
    used = section.facts.used
    shown = [used[i] for i in choose_shown(len(used))]
    if len(shown) < len(used):
        section.limits.append(
            f"There are pictures of {len(shown)} of the {len(used)} scans, the first and the last "
            "among them, so that the page does not become too large. Charts and tables have all."
        )
    images = read_midway(output_dir, [point.scan for point in shown])
    for hemi in HEMISPHERES:
        colors = section.facts.colors.get(hemi)
        drawn = draw_side(images, colors) if colors else None
        if drawn is not None:
            section.sides.append(
                SideOverTime(
                    hemi,
                    [_image(point, hemi, p) for point, p in zip(shown, drawn.images, strict=True)],
                    [
                        _difference(shown[0], point, hemi, p)
                        for point, p in zip(shown[1:], drawn.differences, strict=True)
                    ],
                )
            )
    _compress(section, limit)


def _when(point: TimePoint) -> str:
    when = "" if point.years is None else f", {point.years:.1f} years"
    return f"{point.visit}: {point.title}{when}"


def _image(point: TimePoint, hemi: str, picture: Picture) -> Shown:
    alt = (
        f"{SIDE_NAMES[hemi].capitalize()} hippocampus at {point.title} in three coronal, two "
        "sagittal and three axial slices of the midway space, with contours of its parts."
    )
    return Shown(_when(point), "", alt, picture)


def _difference(first: TimePoint, point: TimePoint, hemi: str, picture: Picture) -> Shown:
    alt = (
        f"Where {point.title} is darker (blue) or brighter (orange) than {first.title} around the "
        f"{SIDE_NAMES[hemi]} hippocampus, in the same slices, with its outline at {first.title}."
    )
    return Shown(f"{_when(point)} minus {first.visit}", "", alt, picture)


def _compress(section: SeriesSection, limit: int) -> None:
    """Compress all pictures, or leave all of them out if there is no room."""
    everything = [s for side in section.sides for s in (*side.images, *side.differences)]
    vectors = sum(len(s.picture.outline) + len(s.picture.marks) for s in everything)
    left = limit - vectors
    if everything and left < _SMALLEST * len(everything):
        section.sides.clear()
        section.messages.append(
            "There are no pictures over time, because this subject has too many scans for one "
            "report of 6 MB."
        )
        return
    small = iter(compressed(everything, left))
    for side in section.sides:
        side.images = [next(small) for _ in side.images]
        side.differences = [next(small) for _ in side.differences]
