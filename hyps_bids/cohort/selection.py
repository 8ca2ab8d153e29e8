"""Which scans and participants belong to the group tables, and which of them are missing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pandas as pd

from hyps_bids.cohort.gather import scan_keys
from hyps_bids.cohort.metadata import Metadata
from hyps_bids.messages import format_count, join_names
from hyps_bids.outputs.columns import KEYS
from hyps_bids.outputs.scan import Scan
from hyps_bids.settings import Settings

__all__ = ["add_missing_scans", "compare_participants", "scan_filter", "warn_of_withdrawn"]

_LOG = logging.getLogger("hyps_bids")
_UNKNOWN = "not in participants.tsv"


def scan_filter(settings: Settings, scans: Sequence[Scan]) -> Callable[[Scan], bool]:
    """Return a function that tells whether the outputs of a scan are wanted.

    A filter file keeps the scans that it finds; labels also keep scans whose images are gone.
    """
    if settings.bids_filter_file:
        stems = {scan.stem for scan in scans}
        return lambda scan: scan.stem in stems
    wanted, excluded = set(settings.participant_label), set(settings.exclude_participant_label)
    sessions = set(settings.session_label)
    return lambda scan: (
        (not wanted or scan.subject in wanted)
        and scan.subject not in excluded
        and (not sessions or scan.session in sessions)
    )


def add_missing_scans(qc: pd.DataFrame, scans: Iterable[Scan]) -> pd.DataFrame:
    """Add the scans without outputs to the QC table, and warn of them and of failed scans."""
    failed = qc.loc[qc["status"] != "done", "scan"]
    if len(failed):
        _LOG.warning(
            "%s failed (the column reason of the group tables says why): %s",
            *(format_count(len(failed), "scan"), join_names(failed)),
        )
    known = set(qc["scan"])
    stems = [scan.stem for scan in scans if scan.stem not in known]
    if not stems:
        return qc
    _LOG.warning(
        "%s without outputs; run the participant level for: %s",
        *(format_count(len(stems), "scan"), join_names(stems)),
    )
    rows = [[*scan_keys(stem), "missing", "no outputs yet"] for stem in stems]
    missing = pd.DataFrame(rows, columns=[*KEYS, "status", "reason"])
    return pd.concat([qc, missing]).sort_values("scan", kind="stable", ignore_index=True)


def warn_of_withdrawn(participants: pd.Series, bids_dir: Path) -> None:
    """Name participants with outputs but without data: they may have withdrawn their consent."""
    gone = [name for name in participants.unique() if not (bids_dir / name).is_dir()]
    # If all are gone, the dataset has only tables, which tells nothing about consent.
    if gone and len(gone) < participants.nunique():
        _LOG.warning(
            "These participants have outputs, but are no longer in %s: %s. They are used all the "
            "same. If they have withdrawn, remove their outputs, or leave them out with "
            "--exclude-participant-label.",
            bids_dir,
            join_names(gone),
        )


def compare_participants(
    table: pd.DataFrame, metadata: Metadata, settings: Settings
) -> pd.DataFrame:
    """Remark on participants who are not in participants.tsv, and add rows for those only there."""
    if metadata.participants.empty:
        return table
    described = set(metadata.participants["participant_id"])
    unknown = ~table["participant_id"].isin(described)
    if unknown.any():
        _LOG.warning(
            "These participants are not in participants.tsv, so their metadata are missing; add "
            "them there: %s",
            join_names(table.loc[unknown, "participant_id"].unique()),
        )
        remarks = (table["remarks"] + f"; {_UNKNOWN}").fillna(_UNKNOWN)
        table = table.assign(remarks=table["remarks"].mask(unknown, remarks))
    if settings.session_label or settings.bids_filter_file:
        # The filter excludes participants on purpose, so they are not reported as missing.
        return table
    is_wanted = scan_filter(settings, ())
    without = [
        name
        for name in sorted(described - set(table["participant_id"]))
        if is_wanted(Scan(Path(), (("sub", name.removeprefix("sub-")),)))
    ]
    if not without:
        return table
    _LOG.warning(
        "These participants are in participants.tsv, but the dataset has no T1w image of them, so "
        "they have the status missing: %s",
        join_names(without),
    )
    rows = pd.DataFrame(
        {"participant_id": without, "status": "missing", "reason": "no T1w image in the dataset"},
        columns=table.columns,
    )
    return pd.concat([table, rows], ignore_index=True)
