"""The part of a subject report that compares its scans with controls."""

from __future__ import annotations

import csv
import io
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from hyps_bids.norms.words import centile_sentence, percent
from hyps_bids.outputs.completion import recorded_fingerprint
from hyps_bids.outputs.flags import finite
from hyps_bids.outputs.labels import WHOLE
from hyps_bids.outputs.reading import load_json
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.series import Series
from hyps_bids.outputs.series_state import current_series_fingerprint
from hyps_bids.reports.page import sentence
from hyps_bids.reports.plots import Axis, Band, Line, Points, plot
from hyps_bids.reports.scan_facts import facts_files

_LOG = logging.getLogger("hyps_bids")
_LINE, _DOT = "var(--norm)", "var(--norm-dot)"
#: Measures of the whole hippocampus that have charts, and the side of each.
_CHARTS = (
    *(f"volume_mm3_{side}_{WHOLE}" for side in ("L", "R", "bilateral")),
    *(
        f"percent_per_year_{method}_{side}_{WHOLE}"
        for method in ("longitudinal", "bsi")
        for side in ("L", "R")
    ),
)
_HEAD = ["Measure", "Value", "z", "Centile", "95 % interval", "Remarks"]
#: Years by which an age in a table may differ from the same age, by rounding.
_SAME_AGE = 0.01
_UNITS = {"mm3": "mm³", "1": "ratio", "%/year": "% per year"}


@dataclass(frozen=True)
class NormChart:
    """A chart, with what it says in words: one text per scan."""

    title: str
    svg: Markup
    sentences: list[str]


@dataclass
class NormSection:
    """What the page shows of the scans that were compared with one model of controls.

    `card` is the address of the model's card, if it lies in the folder of outputs. `person` says
    for each scan who was compared, and `cautions` what to know about all its centiles. `rows` have
    one line per scan and measure, under `head`.
    """

    name: str
    about: str
    card: str | None
    head: list[str] = field(default_factory=list)
    person: list[str] = field(default_factory=list)
    cautions: list[str] = field(default_factory=list)
    charts: list[NormChart] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)


@dataclass(frozen=True)
class _OfScan:
    """The table of the norms of a scan, and its sidecar."""

    title: str
    rows: dict[str, dict[str, str]]
    facts: Mapping[str, Any]


def build_norm_sections(
    bids_dir: Path, output_dir: Path, scans: Sequence[tuple[Scan, str]]
) -> list[NormSection]:
    """Build a section for each model of controls with which scans of a subject were compared.

    Parameters
    ----------
    bids_dir, output_dir : Path
        The raw dataset and the derivatives dataset.
    scans : sequence of (Scan, str)
        The scans of the subject, and how the page calls them.

    Returns
    -------
    list of NormSection
        Empty without norms. Tables that are damaged, or that belong to earlier outputs of their
        scan, or to another age or sex than the dataset states now, are left out with a warning in
        the log.
    """
    alike: dict[str, list[_OfScan]] = defaultdict(list)
    tables = [(scan, _read(output_dir, scan, title)) for scan, title in scans]
    known = [(scan, found) for scan, found in tables if found is not None]
    people = _people_now(bids_dir, [scan for scan, _ in known])
    for scan, found in known:
        if _is_of_another(found, *people[scan.stem]):
            _leave_out(scan, "are for another age or sex than the dataset states now")
        else:
            alike[str(found.facts["Norms"]["SHA256"])].append(found)
    return [_build(group) for group in alike.values()]


def _read(output_dir: Path, scan: Scan, title: str) -> _OfScan | None:
    paths = facts_files(output_dir, scan)
    try:
        facts = load_json(paths["curves"])
        text = paths["norms"].read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _leave_out(scan, f"cannot be read ({error})")
        return None
    rows = list(csv.DictReader(io.StringIO(text), delimiter="\t"))
    whole = all(
        None not in row and None not in row.values() and {"measure", "centile"} <= row.keys()
        for row in rows
    )
    known = isinstance(facts, dict) and {"Norms", "Measures", "Curves"} <= facts.keys()
    if not rows or not whole or not known:
        _leave_out(scan, "are damaged")
        return None
    if facts.get("ScanFingerprint") != recorded_fingerprint(scan, output_dir):
        _leave_out(scan, "are of earlier results of the scan")
        return None
    by_measure = {row["measure"]: row for row in rows}
    series = current_series_fingerprint(Series.of(scan), output_dir)
    if facts.get("SeriesFingerprint") != series:
        stale = {name for name in by_measure if facts["Measures"][name]["Change"]}
        if any(by_measure[name]["centile"] not in ("", "n/a") for name in stale):
            _leave_out(scan, "over time are of earlier results of the participant's scans")
        by_measure = {name: row for name, row in by_measure.items() if name not in stale}
        curves = {name: c for name, c in facts["Curves"].items() if name not in stale}
        facts = {**facts, "Curves": curves}
    return _OfScan(title, by_measure, facts) if by_measure else None


def _people_now(bids_dir: Path, scans: Sequence[Scan]) -> dict[str, tuple[float, str]]:
    """Return age and sex by scan; reports without norms need not import pandas for it."""
    if not scans:
        return {}
    from hyps_bids.norms.people import read_people

    table = read_people(bids_dir, scans)
    return dict(zip(table.index, zip(table["age"], table["sex"], strict=True), strict=True))


def _is_of_another(found: _OfScan, age: float, sex: str) -> bool:
    """Tell whether the norms are those of another age or sex than is known now."""
    row = next(iter(found.rows.values()))
    then = _number(row["age"])
    older = np.isfinite(age) and (then is None or abs(age - then) > _SAME_AGE)
    return bool(older or (sex and sex != row["sex"]))


def _leave_out(scan: Scan, why: str) -> None:
    _LOG.warning(
        "Report of sub-%s: the norms of %s %s, so they are not shown. Run the participant level "
        "with --apply-norms again.",
        *(scan.subject, scan.stem, why),
    )


def _build(scans: Sequence[_OfScan]) -> NormSection:
    norms = scans[0].facts["Norms"]
    about = f"{norms['Controls']:,} controls of {norms['Dataset']}"
    section = NormSection(str(norms["Name"]), about, norms.get("Card"))
    section.head = [*(["Scan"] if len(scans) > 1 else []), *_HEAD]
    section.person = [_person(scan, len(scans) > 1) for scan in scans]
    for measure in _CHARTS:
        known = [scan for scan in scans if measure in scan.facts["Curves"]]
        if known:
            section.charts.append(_chart(measure, known, len(scans) > 1))
    for scan in scans:
        common = _common_remarks(scan)
        for text in common:
            shared = all(text in _common_remarks(other) for other in scans)
            start = "" if shared else f"{scan.title}: "
            section.cautions.append(sentence(start + text))
        for row in scan.rows.values():
            section.rows.append(_row(scan, row, common, len(scans) > 1))
    section.cautions = list(dict.fromkeys(section.cautions))
    return section


def _person(scan: _OfScan, several: bool) -> str:
    row = next(iter(scan.rows.values()))
    sex = {"F": "female", "M": "male"}.get(row["sex"], "sex not known")
    age, icv = _number(row["age"]), _number(row["icv_mm3"])
    words = [
        f"{age:.1f} years" if age is not None else "age not known",
        sex,
        f"intracranial volume {icv / 1000:,.0f} ml" if icv is not None else "head size not known",
        f"site {row['site']}" if row["site"] not in ("", "n/a") else "site not known",
    ]
    return (f"{scan.title}: " if several else "") + ", ".join(words) + "."


def _chart(measure: str, scans: Sequence[_OfScan], several: bool) -> NormChart:
    """Draw the curves for the last of the scans, and all scans among them."""
    about, curves = scans[-1].facts["Measures"][measure], scans[-1].facts["Curves"][measure]
    ages = np.array(curves["Age"], dtype=float)
    at = {c: np.array(curves[f"Centile{c}"], dtype=float) for c in (5, 25, 50, 75, 95)}
    rows = [scan.rows[measure] for scan in scans]
    sentences = [_sentence(scan, measure, several) for scan in scans]
    marks: list[Line | Band | Points]
    if len(ages) == 1:
        # All controls have one age: the centiles are marks instead of curves.
        marks = [Points(ages.repeat(5), [v[0] for v in at.values()], _LINE, "diamond")]
    else:
        marks = [
            Band(ages, at[5], at[95], _LINE),
            Band(ages, at[25], at[75], _LINE),
            *(Line(ages, at[c], _LINE, "thin", label=f"{c}") for c in (5, 25, 75, 95)),
            Line(ages, at[50], _LINE, "solid", label="50"),
        ]
    x, y = ([_value(row[name]) for row in rows] for name in ("age", "value"))
    marks.append(Points(x, y, _DOT, "dot", tips=sentences))
    words = f"Centiles 5, 25, 50, 75 and 95 of {about['Title']} by age. {' '.join(sentences)}"
    svg = plot(marks, Axis("age, years"), Axis(_units(about)), words)
    return NormChart(_capital(about["Title"]), svg, sentences)


def _sentence(scan: _OfScan, measure: str, several: bool) -> str:
    row, about = scan.rows[measure], scan.facts["Measures"][measure]
    words = centile_sentence(
        *(_value(row[name]) for name in ("centile", "centile_low", "centile_high")),
        with_icv=about["HeadSize"],
        change=about["Change"],
    )
    start = f"{scan.title}: " if several else ""
    return sentence(f"{start}{_shown(row['value'], about)} {_units(about)}, {words}")


def _common_remarks(scan: _OfScan) -> list[str]:
    """Return the remarks and reasons that all measures of a scan have."""
    each = [_notes(row) for row in scan.rows.values()]
    return [text for text in each[0] if all(text in notes for notes in each)]


def _notes(row: Mapping[str, str]) -> list[str]:
    texts = (text for text in (row["reason"], row["remarks"]) if text not in ("", "n/a"))
    return [note for text in texts for note in text.split("; ")]


def _row(scan: _OfScan, row: Mapping[str, str], common: Sequence[str], several: bool) -> list[str]:
    about = scan.facts["Measures"][row["measure"]]
    centile, low, high = (_number(row[name]) for name in ("centile", "centile_low", "centile_high"))
    z = _number(row["z"])
    shown = ["n/a", "n/a"]
    if centile is not None and low is not None and high is not None:
        shown = [percent(centile), f"{percent(low)}–{percent(high)}"]
    return [
        *([scan.title] if several else []),
        f"{_capital(about['Title'])}, {_units(about)}",
        _shown(row["value"], about),
        "n/a" if z is None else _signed(f"{z:+.2f}"),
        *shown,
        "; ".join(note for note in _notes(row) if note not in common),
    ]


def _units(about: Mapping[str, Any]) -> str:
    return _UNITS.get(about["Units"], str(about["Units"]))


def _shown(text: str, about: Mapping[str, Any]) -> str:
    value = _number(text)
    if value is None:
        return "n/a"
    return _signed(format(value, ",.0f" if about["Units"] == "mm3" else ".3f"))


def _signed(text: str) -> str:
    return text.replace("-", "−")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _number(text: str) -> float | None:
    try:
        return finite(float(text))
    except ValueError:
        return None


def _value(text: str) -> float:
    found = _number(text)
    return np.nan if found is None else found
