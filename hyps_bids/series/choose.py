"""Which series a run brings up to date, and what became of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hyps_bids.messages import format_count, join_names
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.series import Series, find_series_of, group_scans
from hyps_bids.outputs.series_state import (
    are_several,
    is_series_current,
    is_series_done,
    read_states,
)
from hyps_bids.resources import read_many
from hyps_bids.settings import Settings

if TYPE_CHECKING:
    from hyps_bids.segmentation.setup import Setup
    from hyps_bids.series.follow import SeriesPlan

_LOG = logging.getLogger("hyps_bids")
#: Flags that say nothing about the change itself.
_NOT_OF_SERIES = {"n/a", "scan-flagged"}


def plan_series(
    settings: Settings, setup: Setup, scans: Sequence[Scan], known: Sequence[Scan]
) -> dict[Series, SeriesPlan]:
    """Find the series of the selected participants that have several scans, or had them once.

    All scans count that have outputs or are selected now, whatever selected them before. The
    dataset's tables are read only if there is a series.

    Parameters
    ----------
    settings : Settings
        What the user asked for.
    setup : Setup
        The networks.
    scans : sequence of Scan
        The selected scans.
    known : sequence of Scan
        The scans of the same participants that have outputs; of their paths, only names count.
    """
    if settings.longitudinal is False:
        return {}
    output = settings.output_dir
    found = {scan.stem: scan for scan in (*known, *scans) if scan.suffix in settings.suffix}
    subjects = sorted({scan.subject for scan in found.values()})
    made = {each for of in read_many(lambda s: find_series_of(output, s), subjects) for each in of}
    chosen = {
        series: own
        for series, own in group_scans(found.values()).items()
        if series in made or are_several(own, settings.longitudinal)
    }
    if not chosen:
        return {}
    from hyps_bids.cohort.scan_times import read_times
    from hyps_bids.segmentation.pipeline import Pipeline
    from hyps_bids.series.follow import SeriesPlan

    stems = [scan.stem for own in chosen.values() for scan in own]
    times = read_times(settings.bids_dir, stems)
    plan = SeriesPlan(
        bids_dir=settings.bids_dir.absolute(),
        output_dir=output.absolute(),
        pipeline=Pipeline(setup.localizer, setup.base, setup.adapter, "cpu", setup.n4),
        provenance=setup.provenance,
        longitudinal=settings.longitudinal,
        times={},
    )
    return {
        series: replace(plan, times={scan.stem: times[scan.stem] for scan in own})
        for series, own in chosen.items()
    }


def find_outdated(plans: Mapping[Series, SeriesPlan]) -> list[Series]:
    """Return the series of which a run would give other results than those that are there."""
    if not plans:
        return []
    from hyps_bids.series.follow import look_at_series

    every = {stem: time for plan in plans.values() for stem, time in plan.times.items()}
    plan = replace(next(iter(plans.values())), times=every)
    states = look_at_series(list(plans), plan)
    return [
        series
        for series, state in states.items()
        if not is_series_done(series, plan.output_dir, state.fingerprint)
        and (state.members or series in find_series_of(plan.output_dir, series.subject))
    ]


def series_title(series: Series) -> str:
    """Name a series in the log.

    Examples
    --------
    >>> series_title(Series("01", "T1w")), series_title(Series("01", "ce-gd_T1w"))
    ('sub-01 over time', 'sub-01 ce-gd_T1w over time')
    """
    contrast = "" if series.contrast == "T1w" else f" {series.contrast}"
    return f"sub-{series.subject}{contrast} over time"


def warn_of_refusals(wanted: Iterable[Series], output_dir: Path) -> None:
    """Name the scans that were left out of the series of this run, and say what to do."""
    for series in wanted:
        refused = [row for row in read_states(series, output_dir) if row.get("status") == "refused"]
        by_reason: dict[str, list[str]] = {}
        for row in refused:
            by_reason.setdefault(row.get("flags", "").split(" ")[0], []).append(row["scan"])
        for code, stems in by_reason.items():
            text = next(row["reason"] for row in refused if row["scan"] == stems[0])
            _LOG.warning(
                "%s: %s left out (%s). Of %s: %s",
                *(series_title(series), join_names(stems), code, stems[0], text),
            )


def warn_of_reviews(wanted: Iterable[Series], output_dir: Path) -> None:
    """Name the scans whose change should be looked at for other reasons than the scan's own."""
    stems = [
        row["scan"]
        for series in wanted
        for row in read_states(series, output_dir)
        if row.get("status") == "used" and set(row.get("flags", "").split()) - _NOT_OF_SERIES
    ]
    if stems:
        _LOG.warning(
            "Change over time: look at %s before you use the change (the reports say why): %s",
            *(format_count(len(stems), "scan"), join_names(stems)),
        )


def warn_of_stale(scans: Iterable[Scan], output_dir: Path) -> None:
    """Name the participants whose results over time a run with --no-longitudinal leaves behind."""
    subjects = sorted({scan.subject for scan in scans})
    stale = [
        series_title(series)
        for subject in subjects
        for series in find_series_of(output_dir, subject)
        if not is_series_current(series, output_dir)
    ]
    if stale:
        _LOG.warning(
            "These results are out of date, because scans were processed again or removed: %s. Run "
            "the participant level without --no-longitudinal.",
            join_names(stale),
        )
