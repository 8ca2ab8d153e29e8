"""What the group report says of the scans: states, reasons in words, outliers, columns to show."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from hyps_bids.cohort.derived import split_column
from hyps_bids.cohort.longitudinal import scan_times
from hyps_bids.outputs.quality import quality_bounds
from hyps_bids.reports.flags import HEMISPHERES, describe_bounds, describe_flag
from hyps_bids.reports.page import anchor

__all__ = ["OUTLIER_Z", "STATES", "Cohort", "describe_cohort", "robust_z"]

#: beyond this robust z a volume is an outlier (Iglewicz and Hoaglin 1993)
OUTLIER_Z = 3.5
#: scans below which nothing is called an outlier
_FEWEST = 10
#: state of a scan → what it means, those to look at first in front
STATES = {
    "failed": "no result; the reason is given",
    "absent": "no outputs of this scan, or no T1w image of this participant",
    "flagged": "a figure of quality is outside its bounds, or a hippocampus was not found",
    "outlier": "no flag, but a volume or asymmetry far from those of the other scans",
    "done": "nothing conspicuous",
}
#: columns of the wide table that are ours
_OWN = {
    *("participant_id", "session_id", "scan", "status", "reason", "flags", "remarks"),
    *("software_version", "adapter", "models", "icv_mm3", "acq_time"),
}
_MEASURES = {
    "volume_mm3": ("volume", "mm³", 1),
    "icv_residual_mm3": ("volume adjusted for ICV", "mm³", 1),
    "icv_fraction": ("share of the ICV", "%", 100),
}
#: categories to compare and to color by, if there are such columns
_GROUP = re.compile(r"(?i)^(diagnos|dx|group|condition|cohort|patient|arm|status)")
_SEX = re.compile(r"(?i)^(sex|gender)")
_AGE = re.compile(r"(?i)^age")
_MOST_LEVELS, _MOST_CODES = 12, 6

#: in short, what was found, what it means
Note = tuple[str, str, str]


@dataclass(frozen=True)
class Cohort:
    """Everything about the scans that the page shows.

    Attributes
    ----------
    counts : dict of str to int
        State → scans.
    conspicuous : list of dict
        Scans to look at, first those without result: scan, href, state, notes.
    versions : list of dict
        What made the volumes: version, models, scans.
    data : dict
        The page's one copy of the data, plain values.
    adjustment : dict or None
        ``FittedOn`` and ``N`` of the adjustment for intracranial volume.
    n_without_side : int
        Scans with a result that lack one or both hippocampi.
    n_outlier_scans : int
        Scans that outliers were searched among; 0 if there are too few.
    not_offered : list of str
        Columns of text whose levels are not compared, with the reason.
    """

    counts: dict[str, int]
    conspicuous: list[dict[str, Any]]
    versions: list[dict[str, Any]]
    data: dict[str, Any]
    adjustment: dict[str, Any] | None
    n_without_side: int
    n_outlier_scans: int
    not_offered: list[str]


def describe_cohort(
    wide: pd.DataFrame,
    qc: pd.DataFrame,
    sidecar: Mapping[str, Any],
    reports: Collection[str],
) -> Cohort:
    """Say what is to be said of every scan.

    Parameters
    ----------
    wide : pandas.DataFrame
        Wide table of the group level, as :func:`hyps_bids.cohort.tables.read_wide` reads it.
    qc : pandas.DataFrame
        QC table of all scans; only those of the wide table count.
    sidecar : mapping
        Sidecar of the wide table.
    reports : collection of str
        Names of the subject reports that exist, such as ``sub-01.html``.
    """
    wide = wide.reset_index(drop=True)
    qc = qc.drop_duplicates("scan").set_index("scan").reindex(wide["scan"]).reset_index(drop=True)
    notes = _flag_notes(wide, qc)
    found, searched = _outlier_notes(wide)
    for row, one in found:
        notes[row].append(one)
    flagged = wide["flags"].notna().to_numpy()
    noted = np.array([len(n) > 0 for n in notes], dtype=bool)
    state = np.select(
        [wide["status"] == "failed", wide["status"] == "missing", flagged, noted],
        ["failed", "absent", "flagged", "outlier"],
        "done",
    ).tolist()
    names = wide["scan"].fillna(wide["participant_id"]).astype(str).tolist()
    hrefs = [
        f"{quote(subject)}.html#{anchor(name)}" if f"{subject}.html" in reports else None
        for subject, name in zip(wide["participant_id"], names, strict=True)
    ]
    reasons = _texts(wide["reason"])
    for row, reason in enumerate(reasons):
        if reason and state[row] in ("failed", "absent"):
            notes[row].insert(0, (reason, "", ""))
    order = {name: rank for rank, name in enumerate(STATES)}
    rows = [row for row in range(len(wide)) if state[row] != "done"]
    rows.sort(key=lambda row: (order[state[row]], -len(notes[row])))
    conspicuous = [
        {"scan": names[r], "href": hrefs[r], "state": state[r], "notes": notes[r]} for r in rows
    ]
    counts = {name: state.count(name) for name in STATES}
    categories, not_offered = _categories(wide)
    adjusted = sidecar.get("icv_residual_mm3_L_whole", {}).get("ICVAdjustment")
    data = {
        "scan": names,
        "subject": _texts(wide["participant_id"]),
        "href": hrefs,
        "state": [list(STATES).index(s) for s in state],
        "notes": [list(map(list, n)) for n in notes],
        "remarks": _texts(wide["remarks"]),
        "icv": _numbers(wide.get("icv_mm3"), 1e-3, len(wide)),
        "asymmetry": _numbers(wide.get("asymmetry_whole"), 100, len(wide)),
        "left": _numbers(wide.get("volume_mm3_L_whole"), 1, len(wide)),
        "right": _numbers(wide.get("volume_mm3_R_whole"), 1, len(wide)),
        "measures": _measures(wide),
        "categories": categories,
        "numbers": _metadata_numbers(wide),
        "quality": _quality(qc),
        "years": _years(wide),
    }
    data["defaults"] = _defaults(data)
    return Cohort(
        counts=counts,
        conspicuous=conspicuous,
        versions=_versions(wide),
        data=data,
        adjustment=adjusted,
        n_without_side=int(wide["flags"].str.contains(r"\bmissing_", na=False).sum()),
        n_outlier_scans=searched,
        not_offered=not_offered,
    )


def robust_z(values: pd.Series) -> pd.Series:
    """Distance from the median in units of the scaled median absolute deviation.

    Parameters
    ----------
    values : pandas.Series
        Numbers; missing ones stay missing.

    Returns
    -------
    pandas.Series
        ``0.6745 (x - median) / MAD``; missing if the MAD is 0.

    Examples
    --------
    >>> robust_z(pd.Series([1.0, 2.0, 3.0, 4.0, 100.0])).round(2).tolist()
    [-1.35, -0.67, 0.0, 0.67, 65.43]
    """
    centerd = values - values.median()
    mad = centerd.abs().median()
    return 0.6745 * centerd / (mad if mad > 0 else np.nan)


def _flag_notes(wide: pd.DataFrame, qc: pd.DataFrame) -> list[list[Note]]:
    """Say each flag in words: short, and with the value and the bounds."""
    notes: list[list[Note]] = [[] for _ in range(len(wide))]
    figures = qc.select_dtypes("number").to_dict("records")
    for row, text in wide["flags"].dropna().items():
        for flag in str(text).split():
            words = describe_flag(flag, figures[row])
            advice = f"{words.advice[0].upper()}{words.advice[1:]}."
            notes[row].append((words.short, f"{words.finding or words.title}.", advice))
    return notes


def _figure_name(name: str) -> str:
    text = name.removesuffix("_mm3").replace("_", " ")
    return text.replace("icv", "intracranial volume")


def _outlier_notes(wide: pd.DataFrame) -> tuple[list[tuple[int, Note]], int]:
    """Find volumes and asymmetries far from the others."""
    done = wide[wide["status"] == "done"]
    if len(done) < _FEWEST:
        return [], 0
    found: list[tuple[int, Note]] = []
    for side, words in HEMISPHERES.items():
        adjusted, raw = f"icv_residual_mm3_{side}_whole", f"volume_mm3_{side}_whole"
        name = adjusted if adjusted in done else raw
        if name in done:
            what = "Volume adjusted for ICV" if name == adjusted else "Volume"
            found += _far(done[name], f"{words} hippocampus", what, "mm³", ("small", "large"))
    if "asymmetry_whole" in done:
        asymmetry = 100 * done["asymmetry_whole"]
        found += _far(
            asymmetry, "asymmetry", "Left minus right", "%", ("to the right", "to the left")
        )
    return found, len(done)


def _far(
    values: pd.Series, title: str, what: str, unit: str, ways: tuple[str, str]
) -> Iterator[tuple[int, Note]]:
    z = robust_z(values)
    for row in z.index[z.abs() > OUTLIER_Z]:
        way = ways[int(z[row] > 0)]
        short = f"{way} {title}" if unit == "mm³" else f"{title} {way}"
        digits = ",.0f" if unit == "mm³" else ".1f"
        got = (
            f"{what} {values[row]:{digits}} {unit}, median {values.median():{digits}} {unit}: "
            f"robust z {z[row]:+.1f}."
        ).replace("-", "−")
        yield int(row), (f"outlier: {short}", got, "")


def _versions(wide: pd.DataFrame) -> list[dict[str, Any]]:
    done = wide[wide["status"] == "done"][["software_version", "models"]].fillna("not known")
    counted = done.value_counts()
    return [
        {"version": version, "models": models, "scans": int(n)}
        for (version, models), n in counted.items()
    ]


def _measures(wide: pd.DataFrame) -> list[dict[str, Any]]:
    found = []
    for name in wide:
        try:
            kind, side, part = split_column(str(name))
        except ValueError:
            continue
        if kind not in _MEASURES or side != "L":
            continue
        words, unit, scale = _MEASURES[kind]
        if f"{kind}_R_{part}" in wide:
            found.append(
                {
                    "kind": kind,
                    "part": part,
                    "label": f"{part} hippocampus, {words}",
                    "unit": unit,
                    "L": _numbers(wide[name], scale, len(wide)),
                    "R": _numbers(wide[f"{kind}_R_{part}"], scale, len(wide)),
                }
            )
    return sorted(found, key=lambda m: (m["part"] != "whole", m["part"]))


def _is_ours(name: str) -> bool:
    try:
        split_column(name)
    except ValueError:
        return name in _OWN
    return True


def _categories(wide: pd.DataFrame) -> tuple[list[dict[str, Any]], list[str]]:
    """Columns with few levels of some scans each; and those of text with too many."""
    found, others = [], []
    for name in filter(lambda n: not _is_ours(str(n)), wide):
        values = wide[name]
        number = pd.api.types.is_numeric_dtype(values)
        kind = values.astype("category") if values.dtype != "category" else values
        present = [level for level in kind.cat.categories if (kind == level).any()]
        most = _MOST_CODES if number else _MOST_LEVELS
        # a level of a group has several members; a code of a group, many
        if not 2 <= len(present) <= min(most, values.notna().sum() // (8 if number else 2)):
            if len(present) > 1 and not number:
                why = "too many" if len(present) > most else "too few scans each"
                others.append(f"{name} ({len(present)} levels: {why})")
            continue
        kind = kind.cat.set_categories(present)
        levels = [f"{level:g}" if number else str(level) for level in present]
        found.append({"label": str(name), "levels": levels, "codes": kind.cat.codes.tolist()})
    return found, others


def _metadata_numbers(wide: pd.DataFrame) -> list[dict[str, Any]]:
    names = [n for n in wide.select_dtypes("number") if not _is_ours(str(n))]
    found = [
        {"label": str(name), "values": _numbers(wide[name], 1, len(wide))}
        for name in names
        if wide[name].notna().any()
    ]
    if "icv_mm3" in wide and wide["icv_mm3"].notna().any():
        icv = _numbers(wide["icv_mm3"], 1e-3, len(wide))
        found.append({"label": "intracranial volume, ml", "values": icv})
    return found


def _quality(qc: pd.DataFrame) -> list[dict[str, Any]]:
    found = []
    for name, bound in quality_bounds().items():
        sides = [f"{name}_L", f"{name}_R"] if f"{name}_L" in qc else [name, name]
        if not set(sides) <= set(qc) or qc[sides].notna().to_numpy().sum() == 0:
            continue
        left, right = (_numbers(qc[side], 1, len(qc)) for side in sides)
        found.append(
            {
                "name": name,
                "label": _figure_name(name) + (", mm³" if name.endswith("_mm3") else ""),
                "description": bound["description"],
                "inconspicuous": describe_bounds(name),
                "bounds": [float(bound[end]) for end in ("low", "high") if end in bound],
                "L": left,
                # one figure for the whole scan is one point
                "R": right if sides[0] != sides[1] else None,
            }
        )
    return found


def _years(wide: pd.DataFrame) -> list[float | None] | None:
    """Years since the subject's first scan, if any subject has two times."""
    done = wide[wide["status"] == "done"]
    years = scan_times(done)["years"]
    years = years - years.groupby(done["participant_id"]).transform("min")
    if not (years > 0).any():
        return None
    return _numbers(years.reindex(wide.index), 1, len(wide))


def _defaults(data: Mapping[str, Any]) -> dict[str, int]:
    """Choose what is compared at first: positions in the lists; -1 for nothing."""
    categories = [c["label"] for c in data["categories"]]
    sex = _first(categories, _SEX)
    group = _first(categories, _GROUP)
    group = group if group >= 0 else sex
    group = group if group >= 0 or not categories else 0
    age = _first([n["label"] for n in data["numbers"]], _AGE)
    return {
        "group": group,
        "color": sex if sex >= 0 else group,
        "age": age,
        "number": age if age >= 0 else len(data["numbers"]) - 1,
    }


def _first(labels: list[str], pattern: re.Pattern[str]) -> int:
    return next((i for i, label in enumerate(labels) if pattern.match(label)), -1)


def _texts(column: pd.Series) -> list[str | None]:
    return column.astype(object).where(column.notna(), None).tolist()


def _numbers(column: pd.Series | None, scale: float, n: int) -> list[float | None]:
    """Plain numbers of seven digits: more is not seen, and costs space."""
    if column is None:
        return [None] * n
    return [float(f"{v * scale:.7g}") if np.isfinite(v) else None for v in column.astype(float)]
