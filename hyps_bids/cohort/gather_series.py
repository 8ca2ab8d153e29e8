"""Collect the longitudinal results of all participants, and tell which of them are up to date."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hyps_bids.cohort.derived import CHANGES
from hyps_bids.cohort.gather import FoundOutputs, Gathered, name_models
from hyps_bids.cohort.stacking import READERS, RUN_AGAIN, TableKind, stack_tables
from hyps_bids.messages import format_count, join_names
from hyps_bids.outputs.columns import (
    ANNUAL_CHANGE_COLUMNS,
    LONGITUDINAL_COLUMNS,
    SERIES_QC_COLUMNS,
)
from hyps_bids.outputs.labels import HEMISPHERES
from hyps_bids.outputs.names import sidecar_path
from hyps_bids.outputs.reading import load_json
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.series import Series

_LOG = logging.getLogger("hyps_bids")
#: Number of series of which a warning gives the reasons.
_SHOWN = 10
#: Years by which the time of a scan may differ from that in an earlier table.
_TOLERANCE = 0.01
_OTHER_TIMES = "dates or ages have changed since"
_OTHER_SCANS = "the sides were found at different scans"
#: Kind of table of a series → its columns, and those without which it is useless
_KINDS = {
    "qc": (SERIES_QC_COLUMNS, ("scan", "status")),
    "morph": (LONGITUDINAL_COLUMNS, ("scan", "hemi", "part", "volume_mm3", "bsi_mm3", "years")),
    "annual": (ANNUAL_CHANGE_COLUMNS, ("hemi", "part", "method", "mm3_per_year_se")),
}


@dataclass(frozen=True)
class GatheredSeries:
    """The longitudinal results of all participants.

    Attributes
    ----------
    volumes : pandas.DataFrame
        One row per scan that was used, hemisphere and part, with scan, hemi, part,
        volume_longitudinal_mm3, bsi_mm3 and icv_longitudinal_mm3, the mean over the scans.
    change : pandas.DataFrame
        One row per participant, contrast, side, part and method: participant_id, image_contrast,
        hemi (``bilateral`` too), n_sessions, and the columns of the tables of annual change.
    qc : pandas.DataFrame
        One row per scan of a series: participant_id, image_contrast, and the columns of the QC
        tables. The status is ``stale`` where the results cannot be used, and the reason says why.
    years : pandas.Series
        By scan: years since the first one when the change was computed.
    """

    volumes: pd.DataFrame
    change: pd.DataFrame
    qc: pd.DataFrame
    years: pd.Series


def gather_series(
    found: FoundOutputs, scans: Gathered, output: Path, is_gone: Callable[[str], bool]
) -> GatheredSeries | None:
    """Read the tables of all series of the scans that are done; None if there are none.

    Results are used if they were made from the present volumes: by the same weights, from the same
    images, and from all scans of the participant and contrast that are done. Whatever else there
    is has the status ``stale`` and is named in a warning.

    Parameters
    ----------
    found : FoundOutputs
        All tables.
    scans : Gathered
        The results of the scans that were selected.
    output : Path
        The derivatives dataset.
    is_gone : callable
        Tells whether the scan with this name must not be used, because its image is gone.
    """
    done = scans.qc.loc[scans.qc["status"] == "done", "scan"]
    of = {stem: Series.of(Scan.from_stem(stem)) for stem in done}
    wanted = sorted(found.series & set(of.values()))
    if not wanted:
        return None
    by_stem = {series.stem: series for series in wanted}
    names = {series: stem for stem, series in by_stem.items()}
    members: dict[str, list[str]] = {stem: [] for stem in by_stem}
    for scan, series in of.items():
        if series in names:
            members[names[series]].append(scan)
    paths = {stem: series.paths(output) for stem, series in by_stem.items()}
    qc, problems = _stack("qc", paths)
    sidecars = _read_sidecars(paths)
    rows_of = dict(list(qc.groupby("series", sort=False)))
    made_by = scans.provenance.set_index("scan")["models"].to_dict()
    for stem in [stem for stem in by_stem if stem not in problems]:
        current = _Current(members[stem], scans.fingerprints, made_by, is_gone)
        if reason := _stale(rows_of[stem], sidecars[stem], current):
            problems[stem] = reason
    # Without any scan that was used, there are no volumes.
    usable = [stem for stem, sidecar in sidecars.items() if sidecar and sidecar.get("Used")]
    tables = {}
    for kind in ("morph", "annual"):
        own = {stem: paths[stem] for stem in usable if stem not in problems}
        tables[kind], wrong = _stack(kind, own)
        problems |= wrong
    _warn_of_stale(qc, problems)
    sound = {kind: table[~table["series"].isin(problems)] for kind, table in tables.items()}
    qc = _with_problems(qc, problems, by_stem, members)
    change = _with_both_sides(_with_keys(sound["annual"], by_stem))
    return GatheredSeries(
        volumes=_volumes(sound["morph"], scans.morph),
        change=_whole_series_only(change, sound["morph"], set(done)),
        qc=qc,
        years=sound["morph"].drop_duplicates("scan").set_index("scan")["years"],
    )


@dataclass(frozen=True)
class _Current:
    """The present state of the scans of one series."""

    stems: Sequence[str]
    fingerprints: Mapping[str, str]
    models: Mapping[str, Any]
    is_gone: Callable[[str], bool]


def _stale(rows: pd.DataFrame, sidecar: Mapping[str, Any] | None, now: _Current) -> str | None:
    """Say why the results of a series are not those of the present scans."""
    if (rows["status"] == "failed").all():
        reasons = rows["reason"].dropna()
        return f"failed: {reasons.iloc[0]}" if len(reasons) else "failed"
    if sidecar is None:
        # The sidecar is written last: without it, the tables may be from different runs.
        return f"no sidecar of the QC table, interrupted; {RUN_AGAIN}"
    named = rows["scan"].tolist()
    if gone := [stem for stem in named if stem not in now.stems and now.is_gone(stem)]:
        return f"the images of these scans are gone: {join_names(gone)}; {RUN_AGAIN}"
    if added := [stem for stem in now.stems if stem not in named]:
        return f"made before these scans were: {join_names(added)}; {RUN_AGAIN}"
    try:
        then, made_by = sidecar["Scans"], name_models(sidecar)
        changed = [s for s in named if s in now.stems and then.get(s) != now.fingerprints.get(s)]
    except (KeyError, TypeError, AttributeError):
        return f"the sidecar of the QC table is damaged; {RUN_AGAIN}"
    if other := [s for s in named if s in now.stems and now.models.get(s) != made_by]:
        return f"made with other weights than these scans: {join_names(other)}; {RUN_AGAIN}"
    if changed:
        return f"made from earlier results of these scans: {join_names(changed)}; {RUN_AGAIN}"
    return None


def _stack(
    kind: str, paths: Mapping[str, Mapping[str, Path]]
) -> tuple[pd.DataFrame, dict[str, str]]:
    columns, required = _KINDS[kind]
    about = TableKind(columns, required, ("series",), lambda stem: [stem], "series")
    # A table that cannot be read is a problem of its series, which the warning names.
    return stack_tables(about, {stem: one[kind] for stem, one in paths.items()}, {})


def _read_sidecars(
    paths: Mapping[str, Mapping[str, Path]],
) -> dict[str, Mapping[str, Any] | None]:
    """Read the sidecars of the QC tables; one that is damaged is empty."""

    def read(files: Mapping[str, Path]) -> Mapping[str, Any] | None:
        try:
            content = load_json(sidecar_path(files["qc"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(paths, pool.map(read, paths.values()), strict=True))


def _warn_of_stale(qc: pd.DataFrame, problems: Mapping[str, str]) -> None:
    if problems:
        _LOG.warning(
            "The longitudinal results of %s are not used: %s",
            format_count(len(problems), "participant"),
            "; ".join(f"{stem} ({reason})" for stem, reason in list(problems.items())[:_SHOWN])
            + (f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""),
        )
    refused = qc[(qc["status"] == "refused") & ~qc["series"].isin(problems)]
    if len(refused):
        _LOG.warning(
            "%s without longitudinal results, because they do not fit the other scans of their "
            "participants (longitudinal_reason in the wide table says why): %s",
            *(format_count(len(refused), "scan"), join_names(refused["scan"])),
        )


def _with_keys(table: pd.DataFrame, by_stem: Mapping[str, Series]) -> pd.DataFrame:
    """Replace the name of the series by participant and contrast."""
    series = table["series"].map(by_stem)
    keys = pd.DataFrame(
        {
            "participant_id": [f"sub-{one.subject}" for one in series],
            "image_contrast": [one.contrast for one in series],
        },
        index=table.index,
        dtype="str",
    )
    return pd.concat([keys, table], axis=1)


def _with_problems(
    qc: pd.DataFrame,
    problems: Mapping[str, str],
    by_stem: Mapping[str, Series],
    members: Mapping[str, Sequence[str]],
) -> pd.DataFrame:
    """Say that results are stale in the rows of all scans of the series, which may have none."""
    sound = qc[~qc["series"].isin(problems)]
    rows = [
        {"series": stem, "scan": scan, "status": "stale", "reason": reason}
        for stem, reason in problems.items()
        for scan in members[stem]
    ]
    stale = pd.DataFrame(rows, columns=sound.columns).astype(sound.dtypes, errors="ignore")
    table = pd.concat([part for part in (sound, stale) if len(part)], ignore_index=True)
    scans = table["scan"].map(Scan.from_stem)
    table["suffix"] = [scan.suffix for scan in scans]
    table["session_id"] = [f"ses-{scan.session}" if scan.session else None for scan in scans]
    table = _with_keys(table, by_stem).drop(columns="series")
    return table.sort_values(["participant_id", "scan"], kind="stable", ignore_index=True)


def _volumes(morph: pd.DataFrame, of_scans: pd.DataFrame) -> pd.DataFrame:
    """Return the volumes under the names of the group tables, with the head size of the series."""
    icv = of_scans.groupby("scan")["icv_mm3"].first()
    used = morph[["series", "scan"]].drop_duplicates()
    means = used["scan"].map(icv).groupby(used["series"]).mean()
    names = {"volume_mm3": "volume_longitudinal_mm3"}
    table = morph[["scan", "hemi", "part", "volume_mm3", "bsi_mm3"]].rename(columns=names)
    return table.assign(icv_longitudinal_mm3=morph["series"].map(means))


def with_present_times(found: GatheredSeries, wide: pd.DataFrame) -> GatheredSeries:
    """Take away the change per year of participants whose dates or ages have changed since.

    Parameters
    ----------
    found : GatheredSeries
        As :func:`gather_series` returns it.
    wide : pandas.DataFrame
        The wide table with the order of the scans.
    """
    keys = ["participant_id", "image_contrast"]
    rows = wide[wide["scan"].isin(found.years.index)]
    years = pd.DataFrame(
        {"now": rows["years_since_first_scan"], "then": rows["scan"].map(found.years)}
    )
    by = [rows[name] for name in keys]
    passed = years - years.groupby(by).transform("min")
    same = (passed["now"] - passed["then"]).abs() < _TOLERANCE
    same |= years["now"].isna() & years["then"].isna()
    wrong = rows.loc[~same, keys].drop_duplicates()
    if wrong.empty:
        return found
    _LOG.warning(
        "The dates or ages of these participants are not those from which their change per year "
        "was computed, so it is left out; run the participant level again for: %s",
        join_names(wrong["participant_id"].unique()),
    )
    index = pd.MultiIndex.from_frame(found.change[keys])
    outdated = index.isin(pd.MultiIndex.from_frame(wrong))
    return replace(found, change=_without_figures(found.change, outdated, _OTHER_TIMES))


#: Refusals of scans that are of another person, side or contrast, or are copies of another scan.
_STRANGE = {"different-head", "sides-swapped", "different-contrast", "same-image"}


def find_strangers(found: GatheredSeries) -> list[str]:
    """Name the scans whose own volumes cannot belong to the others of their participant."""
    flags = found.qc["flags"].fillna("").str.split()
    return [
        str(scan)
        for scan, codes in zip(found.qc["scan"], flags, strict=True)
        if _STRANGE & set(codes)
    ]


def _without_figures(change: pd.DataFrame, rows: Any, remark: str) -> pd.DataFrame:
    """Take the numbers of some rows away, and say why."""
    change = change.copy()
    figures = [name for name in change if name.startswith(("mm3_", "percent_", "baseline_"))]
    change.loc[rows, figures] = float("nan")
    change.loc[rows, "remarks"] = remark
    return change


def _with_both_sides(change: pd.DataFrame) -> pd.DataFrame:
    """Add the change of both sides together where both are known.

    The errors of the sides are taken as independent, because noise, partial volumes and the
    networks' boxes are their own.
    """
    keys = ["participant_id", "image_contrast", "series", "part", "method"]
    sides = [
        change[change["hemi"] == hemi].drop_duplicates(keys).set_index(keys) for hemi in HEMISPHERES
    ]
    index = sides[0].index.intersection(sides[1].index, sort=False)
    left, right = pair = [side.loc[index] for side in sides]
    both = pd.DataFrame({"hemi": "bilateral", "suffix": left["suffix"]}, index=index)
    for name in ("n_scans", "span_years"):
        both[name] = np.minimum(left[name], right[name])
    both["time_source"] = left["time_source"]
    for name in ("baseline_mm3", "mm3_per_year"):
        both[name] = left[name] + right[name]
    both["mm3_per_year_se"] = np.hypot(left["mm3_per_year_se"], right["mm3_per_year_se"])
    # In percent, errors are those of percentages, which may know more than those in mm3.
    shares = [side["percent_per_year_se"] * side["baseline_mm3"] for side in pair]
    error = np.hypot(*shares) / both["baseline_mm3"]
    percent = 100 * both["mm3_per_year"] / both["baseline_mm3"]
    # A side with fewer scans has fewer degrees of freedom, and so a wider interval.
    reach = error * np.maximum(*(_half_width(side) / side["percent_per_year_se"] for side in pair))
    both["percent_per_year"], both["percent_per_year_se"] = percent, error
    both["percent_per_year_low"], both["percent_per_year_high"] = percent - reach, percent + reach
    both["remarks"] = _remarks_of_both(left, right)
    tables = [part for part in (change, both.reset_index()) if len(part)]
    return pd.concat(tables or [change], ignore_index=True)


def _half_width(side: pd.DataFrame) -> pd.Series:
    return (side["percent_per_year_high"] - side["percent_per_year_low"]) / 2


def _remarks_of_both(left: pd.DataFrame, right: pd.DataFrame) -> list[str | None]:
    """Join the remarks about both sides, each once."""
    found = []
    alike = left["n_scans"] == right["n_scans"]
    for one, other, same in zip(left["remarks"], right["remarks"], alike, strict=True):
        known = [text for text in (one, other) if isinstance(text, str)]
        texts = "; ".join([*known, *([] if same else [_OTHER_SCANS])]).split("; ")
        found.append("; ".join(dict.fromkeys(texts)) or None)
    return found


def _whole_series_only(change: pd.DataFrame, morph: pd.DataFrame, done: set[str]) -> pd.DataFrame:
    """Leave out the change of series of which not all scans were selected; count the sessions."""
    used = morph[["series", "scan"]].drop_duplicates()
    sessions = used["scan"].map(lambda stem: Scan.from_stem(stem).session or "")
    n_sessions = sessions.groupby(used["series"]).nunique()
    partial = set(used.loc[~used["scan"].isin(done), "series"])
    change = change.assign(n_sessions=change["series"].map(n_sessions))
    remark = "not all scans of the participant were selected"
    change = _without_figures(change, change["series"].isin(partial), remark)
    return change.drop(columns="series")


def measured_change(change: pd.DataFrame) -> Iterator[tuple[str, pd.Series, pd.Series]]:
    """Yield the columns of change per year: name, values and errors by participant and contrast."""
    keys = ["participant_id", "image_contrast"]
    for (method, hemi, part), rows in change.groupby(["method", "hemi", "part"], sort=False):
        if method in CHANGES:
            one = rows.drop_duplicates(keys).set_index(keys)
            name = f"{CHANGES[str(method)]}_{hemi}_{part}"
            yield name, one["percent_per_year"], one["percent_per_year_se"]
