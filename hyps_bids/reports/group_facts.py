"""Facts of the group report about all scans: states, reasons, outliers and columns to show."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict
from urllib.parse import quote

import numpy as np
import pandas as pd

from hyps_bids.cohort.derived import split_column
from hyps_bids.cohort.icv import stored_adjustments
from hyps_bids.cohort.image_contrasts import CONTRAST, contrasts_of, count_contrasts
from hyps_bids.cohort.own_columns import OWN_COLUMNS
from hyps_bids.cohort.visits import scan_order
from hyps_bids.outputs.columns import ColumnDescription, ICVAdjustment
from hyps_bids.outputs.flags import (
    Note,
    describe_bounds,
    describe_flag,
    describe_series_flag,
    short_name,
)
from hyps_bids.outputs.labels import SIDE_NAMES, WHOLE
from hyps_bids.outputs.quality import quality_bounds
from hyps_bids.reports.page import anchor

#: Robust z beyond which a volume is an outlier (Iglewicz and Hoaglin 1993)
OUTLIER_Z = 3.5
#: Number of scans below which none is called an outlier.
_FEWEST = 10
#: State of a scan → its meaning, in the order in which scans should be looked at
STATES = {
    "failed": "The scan has no result; the reason is given.",
    "absent": "There are no outputs of this scan, or this participant has no image to segment.",
    "flagged": "A quality measure is outside its bounds, or a hippocampus was not found.",
    "outlier": "The scan has no flag, but a volume or the asymmetry is far from the other scans.",
    "done": "The scan is inconspicuous.",
}
#: Columns of the wide table by which scans are not compared, besides the measures.
_OWN = {*OWN_COLUMNS, "acq_time"}
#: Measure of the wide table → words, unit, factor to the unit
_MEASURES = {
    "volume_mm3": ("volume", "mm³", 1),
    "icv_residual_mm3": ("volume adjusted for ICV", "mm³", 1),
    "icv_fraction": ("share of the ICV", "%", 100),
    "volume_longitudinal_mm3": ("longitudinal volume", "mm³", 1),
    "icv_residual_longitudinal_mm3": ("longitudinal volume adjusted for ICV", "mm³", 1),
    "icv_fraction_longitudinal": ("longitudinal share of the ICV", "%", 100),
}
#: Method in the table of change → words, and what its measures begin with; the best ones first.
CHANGE_METHODS = {
    "volume": ("longitudinal volumes", "volume_longitudinal_mm3"),
    "bsi": ("boundary shift", "bsi_mm3"),
    "cross-sectional": ("each scan alone", "volume_mm3"),
}
_SHORT_METHODS = {"volume": "volume", "bsi": "boundary", "cross-sectional": "alone"}
#: Largest number of participants for whose mean change a t quantile is stored.
_MOST_T = 200
#: Names of columns by which scans are compared or colored at first.
_GROUP = re.compile(r"(?i)^(diagnos|dx|group|condition|cohort|patient|arm|status)")
_SEX = re.compile(r"(?i)^(sex|gender)")
_AGE = re.compile(r"(?i)^age")
#: Largest number of levels to compare, in columns of text and of numbers.
_MOST_LEVELS, _MOST_CODES = 12, 6


class PageData(TypedDict):
    """The page's single copy of the data, for ``group.js``.

    Most lists have one value per scan. A state is its position in :data:`STATES`. Volumes of the
    whole hippocampus are in mm³, the ICV is in ml and the asymmetry in percent. `measures`,
    `categories`, `numbers` and `quality` are columns to show, to compare by and to plot, and
    `contrasts` are those of the images, which are shown one at a time at first; `defaults`
    are the positions of those that are shown at first, or -1. `years` since the subject's first
    scan are None if no subject has two times. `annual` has the change of the whole hippocampus in
    percent per year: the methods that there are, and for each participant (by the row of the first
    scan) and side the value and the ends of its interval by each method.
    """

    scan: list[str]
    subject: list[str | None]
    href: list[str | None]
    state: list[int]
    notes: list[list[list[str]]]
    remarks: list[str | None]
    icv: list[float | None]
    asymmetry: list[float | None]
    left: list[float | None]
    right: list[float | None]
    measures: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    numbers: list[dict[str, Any]]
    contrasts: dict[str, Any]
    quality: list[dict[str, Any]]
    years: list[float | None] | None
    annual: dict[str, Any] | None
    defaults: dict[str, int]


@dataclass(frozen=True)
class ConspicuousScan:
    """A scan to look at; `href` leads to its report, if there is one."""

    scan: str
    href: str | None
    state: str
    notes: list[Note]


@dataclass(frozen=True)
class FollowedScan:
    """A scan whose longitudinal results are conspicuous or cannot be used."""

    scan: str
    href: str | None
    state: str
    reason: str


@dataclass(frozen=True)
class GroupFacts:
    """Everything about the scans that the page shows.

    `counts` has the number of scans by state, and `versions` has software version, models and
    number of scans of everything that made volumes. `contrasts` has the number of scans by
    contrast, and `adjustments` are by contrast, or by an empty name if there is only one.
    `n_without_side` counts the scans that lack one or both hippocampi; `n_outlier_scans` counts
    those among which outliers were searched, and is 0 if there are too few. `not_offered` names
    columns of text whose levels are not compared, and says why. `followed` has the scans whose
    longitudinal results are to be looked at, and `n_followed` participants have such results.
    """

    counts: dict[str, int]
    conspicuous: list[ConspicuousScan]
    versions: list[tuple[str, str, int]]
    data: PageData
    contrasts: dict[str, int]
    adjustments: dict[str, ICVAdjustment]
    n_without_side: int
    n_outlier_scans: int
    not_offered: list[str]
    followed: list[FollowedScan]
    n_followed: int


def describe_group(
    wide: pd.DataFrame,
    qc: pd.DataFrame,
    sidecar: Mapping[str, ColumnDescription],
    reports: Collection[str],
    change: pd.DataFrame | None = None,
) -> GroupFacts:
    """Collect the facts about all scans of the wide table.

    The sidecar is that of the wide table; `reports` are names of the subject reports that exist,
    such as ``sub-01.html``, and `change` is the table of change per year.
    """
    wide = wide.reset_index(drop=True)
    qc = qc.drop_duplicates("scan").set_index("scan").reindex(wide["scan"]).reset_index(drop=True)
    notes, n_outlier_scans = _all_notes(wide, qc)
    state = _states(wide, notes)
    names = wide["scan"].fillna(wide["participant_id"]).astype(str).tolist()
    hrefs = [
        f"{quote(subject)}.html#{anchor(name)}" if f"{subject}.html" in reports else None
        for subject, name in zip(wide["participant_id"], names, strict=True)
    ]
    ranks = [list(STATES).index(s) for s in state]
    rows = sorted(
        (row for row in range(len(wide)) if state[row] != "done"),
        key=lambda row: (ranks[row], -len(notes[row])),
    )
    categories, not_offered = _categories(wide)
    numbers = _metadata_numbers(wide)
    data: PageData = {
        "scan": names,
        "subject": _texts(wide["participant_id"]),
        "href": hrefs,
        "state": ranks,
        "notes": [[list(note) for note in one] for one in notes],
        "remarks": _texts(wide["remarks"]),
        "icv": _numbers(wide, "icv_mm3", 1e-3),
        "asymmetry": _numbers(wide, f"asymmetry_{WHOLE}", 100),
        "left": _numbers(wide, f"volume_mm3_L_{WHOLE}"),
        "right": _numbers(wide, f"volume_mm3_R_{WHOLE}"),
        "measures": _measures(wide),
        "categories": categories,
        "numbers": numbers,
        "contrasts": _codes(contrasts_of(wide), list(count_contrasts(wide))),
        "quality": _quality(qc),
        "years": _years(wide),
        "annual": None if change is None else _annual(wide, change),
        "defaults": _defaults(categories, numbers),
    }
    return GroupFacts(
        counts={name: state.count(name) for name in STATES},
        conspicuous=[ConspicuousScan(names[r], hrefs[r], state[r], notes[r]) for r in rows],
        versions=_versions(wide),
        data=data,
        contrasts=count_contrasts(wide[wide["status"] == "done"]),
        adjustments=stored_adjustments(sidecar, f"icv_residual_mm3_L_{WHOLE}"),
        n_without_side=int(wide["flags"].str.contains(r"\bmissing_", na=False).sum()),
        n_outlier_scans=n_outlier_scans,
        not_offered=not_offered,
        followed=_followed(wide, names, hrefs),
        n_followed=_count_followed(wide),
    )


def robust_z(values: pd.Series) -> pd.Series:
    """Measure the distance from the median in units of the scaled median absolute deviation (MAD).

    It is ``0.6745 (x - median) / MAD``, and missing everywhere if the MAD is 0.

    Examples
    --------
    >>> robust_z(pd.Series([1.0, 2.0, 3.0, 4.0, 100.0])).round(2).tolist()
    [-1.35, -0.67, 0.0, 0.67, 65.43]
    >>> bool(robust_z(pd.Series([1.0, 1.0, 1.0, 5.0])).isna().all())
    True
    """
    centered = values - values.median()
    mad = centered.abs().median()
    return 0.6745 * centered / (mad if mad > 0 else np.nan)


def _all_notes(wide: pd.DataFrame, qc: pd.DataFrame) -> tuple[list[list[Note]], int]:
    """Put failures, flags and outliers into words; also count the scans searched for outliers."""
    reasons = wide["reason"].where(wide["status"].isin(["failed", "missing"]))
    notes: list[list[Note]] = [[] if pd.isna(reason) else [Note(reason)] for reason in reasons]
    measures = qc.select_dtypes("number").to_dict("records")
    for row, text in wide["flags"].dropna().items():
        for flag in str(text).split():
            notes[row].append(describe_flag(flag, measures[row]))
    done = wide[wide["status"] == "done"]
    searched = 0
    # A volume that is usual in one contrast may be far from those of the others.
    for _, scans in done.groupby(contrasts_of(done)):
        if len(scans) >= _FEWEST:
            searched += len(scans)
            for row, note in _outliers(scans):
                notes[row].append(note)
    return notes, searched


def _outliers(done: pd.DataFrame) -> Iterator[tuple[int, Note]]:
    """Find volumes and asymmetries that are far from those of the other scans."""
    for hemi, side in SIDE_NAMES.items():
        adjusted, raw = f"icv_residual_mm3_{hemi}_{WHOLE}", f"volume_mm3_{hemi}_{WHOLE}"
        name = adjusted if adjusted in done else raw
        if name in done:
            what = "The volume adjusted for ICV" if name == adjusted else "The volume"
            shorts = f"small {side} hippocampus", f"large {side} hippocampus"
            yield from _far(done[name], what, shorts, ",.0f", "mm³")
    if f"asymmetry_{WHOLE}" in done:
        shorts = "asymmetry to the right", "asymmetry to the left"
        percent = 100 * done[f"asymmetry_{WHOLE}"]
        yield from _far(percent, "Left minus right", shorts, ".1f", "%")


def _far(
    values: pd.Series, what: str, shorts: tuple[str, str], digits: str, unit: str
) -> Iterator[tuple[int, Note]]:
    z = robust_z(values)
    for row in z.index[z.abs() > OUTLIER_Z]:
        finding = (
            f"{what} is {values[row]:{digits}} {unit}, the median {values.median():{digits}} "
            f"{unit}: robust z {z[row]:+.1f}."
        )
        yield (int(row), Note(f"outlier: {shorts[int(z[row] > 0)]}", finding.replace("-", "−")))


def _states(wide: pd.DataFrame, notes: list[list[Note]]) -> list[str]:
    """Name the state of each scan."""
    noted = np.array([len(n) > 0 for n in notes], dtype=bool)
    failed, absent = wide["status"] == "failed", wide["status"] == "missing"
    choices = {"failed": failed, "absent": absent, "flagged": wide["flags"].notna()}
    states: list[str] = np.select(
        [*choices.values(), noted], [*choices, "outlier"], "done"
    ).tolist()
    return states


def _versions(wide: pd.DataFrame) -> list[tuple[str, str, int]]:
    done = wide[wide["status"] == "done"][["software_version", "models"]].fillna("not known")
    return [(version, models, int(n)) for (version, models), n in done.value_counts().items()]


def _measures(wide: pd.DataFrame) -> list[dict[str, Any]]:
    """Describe the measures of both sides that can be shown, the whole hippocampus first."""
    found = []
    for name in wide:
        kind, side, part = _split(str(name)) or ("", "", "")
        if kind not in _MEASURES or side != "L" or f"{kind}_R_{part}" not in wide:
            continue
        words, unit, scale = _MEASURES[kind]
        found.append(
            {
                "kind": kind,
                "part": part,
                "label": f"{part} hippocampus, {words}",
                "unit": unit,
                "L": _numbers(wide, str(name), scale),
                "R": _numbers(wide, f"{kind}_R_{part}", scale),
            }
        )
    return sorted(found, key=lambda m: (m["part"] != WHOLE, m["part"]))


def _split(name: str) -> tuple[str, str, str] | None:
    try:
        return split_column(name)
    except ValueError:
        return None


def _codes(values: pd.Series, levels: list[str]) -> dict[str, Any]:
    codes = pd.Categorical(values, levels).codes.tolist()
    return {"label": CONTRAST, "levels": levels, "codes": codes}


def _metadata(wide: pd.DataFrame) -> pd.DataFrame:
    """Return the columns that come from the dataset's own tables."""
    return wide[[name for name in wide if name not in _OWN and _split(str(name)) is None]]


def _categories(wide: pd.DataFrame) -> tuple[list[dict[str, Any]], list[str]]:
    """Find columns with few levels of several scans each, and columns of text with too many."""
    levels = list(count_contrasts(wide))
    found = [_codes(contrasts_of(wide), levels)] if len(levels) > 1 else []
    others = []
    for name, values in _metadata(wide).items():
        number = pd.api.types.is_numeric_dtype(values)
        kind = values.astype("category") if values.dtype != "category" else values
        present = [level for level in kind.cat.categories if (kind == level).any()]
        most = _MOST_CODES if number else _MOST_LEVELS
        # A level of text needs two scans on average. A number that is a code needs eight.
        if 2 <= len(present) <= min(most, values.notna().sum() // (8 if number else 2)):
            kind = kind.cat.set_categories(present)
            levels = [f"{level:g}" if number else str(level) for level in present]
            found.append({"label": str(name), "levels": levels, "codes": kind.cat.codes.tolist()})
        elif len(present) > 1 and not number:
            why = "too many" if len(present) > most else "too few scans each"
            others.append(f"{name} ({len(present)} levels: {why})")
    return found, others


def _metadata_numbers(wide: pd.DataFrame) -> list[dict[str, Any]]:
    names = [n for n, v in _metadata(wide).select_dtypes("number").items() if v.notna().any()]
    found = [{"label": str(name), "values": _numbers(wide, name)} for name in names]
    if "icv_mm3" in wide and wide["icv_mm3"].notna().any():
        icv = _numbers(wide, "icv_mm3", 1e-3)
        found.append({"label": "intracranial volume, ml", "values": icv})
    return found


def _quality(qc: pd.DataFrame) -> list[dict[str, Any]]:
    found = []
    for name, bound in quality_bounds().items():
        sides = [f"{name}_L", f"{name}_R"] if f"{name}_L" in qc else [name, name]
        if not set(sides) <= set(qc) or qc[sides].notna().to_numpy().sum() == 0:
            continue
        found.append(
            {
                "name": name,
                "label": short_name(name) + (", mm³" if name.endswith("_mm3") else ""),
                "description": bound["description"],
                "inconspicuous": describe_bounds(name),
                "bounds": [float(bound[end]) for end in ("low", "high") if end in bound],
                "L": _numbers(qc, sides[0]),
                # A measure of the whole scan is one point.
                "R": _numbers(qc, sides[1]) if sides[0] != sides[1] else None,
            }
        )
    return found


def _years(wide: pd.DataFrame) -> list[float | None] | None:
    """Return the years since the subject's first scan, if any subject has two times."""
    years = scan_order(wide)["years_since_first_scan"].where(wide["status"] == "done")
    return _numbers(years.to_frame("years"), "years") if (years > 0).any() else None


def _annual(wide: pd.DataFrame, change: pd.DataFrame) -> dict[str, Any] | None:
    """Collect the change per year of each participant and contrast by all methods."""
    from scipy import stats

    keys = ["participant_id", CONTRAST]
    order = scan_order(wide)["scan_number"]
    first = wide.assign(**{CONTRAST: contrasts_of(wide)})[order == 1].drop_duplicates(keys)
    rows = pd.Series(first.index, index=pd.MultiIndex.from_frame(first[keys]))
    change = change.assign(**{CONTRAST: contrasts_of(change)})
    found: dict[int, dict[str, Any]] = {}
    present = [m for m in CHANGE_METHODS if (change["method"] == m).any()]
    for m, method in enumerate(present):
        for hemi in SIDE_NAMES:
            of = change[change["measure"] == f"{CHANGE_METHODS[method][1]}_{hemi}_{WHOLE}"]
            of = of[of["percent_per_year"].notna()].drop_duplicates(keys).set_index(keys)
            of = of[of.index.isin(rows.index)]
            names = ("percent_per_year", "percent_per_year_low", "percent_per_year_high")
            values = zip(*(_numbers(of, name) for name in names), strict=True)
            for row, value in zip(rows[of.index], values, strict=True):
                one = found.setdefault(
                    int(row),
                    {"i": int(row), **{side: [None] * len(present) for side in SIDE_NAMES}},
                )
                one[hemi][m] = list(value)
    if not found:
        return None
    return {
        "methods": [CHANGE_METHODS[method][0] for method in present],
        "short": [_SHORT_METHODS[method] for method in present],
        "rows": [found[row] for row in sorted(found)],
        "t": [round(float(t), 4) for t in stats.t.ppf(0.975, np.arange(1, _MOST_T))],
    }


def _followed(wide: pd.DataFrame, names: list[str], hrefs: list[str | None]) -> list[FollowedScan]:
    """List the scans whose longitudinal results are stale, refused or flagged."""
    if "longitudinal_status" not in wide:
        return []
    found = []
    states = list(
        zip(
            wide["longitudinal_status"],
            wide["longitudinal_reason"],
            wide["longitudinal_flags"],
            strict=True,
        )
    )
    for row, (status, reason, flags) in enumerate(states):
        if status in ("stale", "refused"):
            found.append(FollowedScan(names[row], hrefs[row], str(status), str(reason)))
        elif pd.notna(flags):
            others = "the other scans of the participant"
            notes = [describe_series_flag(flag, others) for flag in str(flags).split()]
            words = " ".join(note.finding for note in notes)
            found.append(FollowedScan(names[row], hrefs[row], "flagged", words))
    order = ("stale", "refused", "flagged")
    return sorted(found, key=lambda one: order.index(one.state))


def _count_followed(wide: pd.DataFrame) -> int:
    """Count the participants who have longitudinal results."""
    if "longitudinal_status" not in wide:
        return 0
    used = wide[wide["longitudinal_status"] == "used"]
    return int(used["participant_id"].nunique())


def _defaults(categories: list[dict[str, Any]], numbers: list[dict[str, Any]]) -> dict[str, int]:
    """Choose what is compared at first: positions in the lists; -1 for nothing."""
    sex = _first(categories, _SEX)
    # The columns are compared by a group, else by sex, else by the first category.
    own = [k for k, each in enumerate(categories) if each["label"] != CONTRAST]
    group = next((k for k in (_first(categories, _GROUP), sex, *own) if k >= 0), -1)
    age = _first(numbers, _AGE)
    return {
        "group": group,
        "color": sex if sex >= 0 else group,
        "age": age,
        "number": age if age >= 0 else len(numbers) - 1,
    }


def _first(columns: list[dict[str, Any]], pattern: re.Pattern[str]) -> int:
    return next((i for i, column in enumerate(columns) if pattern.match(column["label"])), -1)


def _texts(column: pd.Series) -> list[str | None]:
    return column.astype(object).where(column.notna(), None).tolist()


def _numbers(frame: pd.DataFrame, name: str, scale: float = 1) -> list[float | None]:
    """Return plain numbers with seven digits: more cannot be seen, and would cost space."""
    if name not in frame:
        return [None] * len(frame)
    values = frame[name].astype(float)
    return [float(f"{v * scale:.7g}") if np.isfinite(v) else None for v in values]
