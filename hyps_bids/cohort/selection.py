"""Which scans and participants belong to the group tables, and which of them are missing."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from hyps_bids.bids.index import find_scans
from hyps_bids.cohort.gather import scan_keys
from hyps_bids.cohort.image_contrasts import CONTRAST
from hyps_bids.cohort.keys import with_nearest
from hyps_bids.cohort.metadata import Metadata
from hyps_bids.errors import HypsError, NothingMatches
from hyps_bids.messages import format_count, join_alternatives, join_names
from hyps_bids.outputs.columns import KEYS
from hyps_bids.outputs.scan import DEFAULT_SUFFIX, Scan
from hyps_bids.settings import Settings

_LOG = logging.getLogger("hyps_bids")
_UNKNOWN = "not in participants.tsv"


@dataclass(frozen=True)
class Selection:
    """Which scans belong to the tables.

    Attributes
    ----------
    scans : tuple of Scan
        The selected images of the dataset.
    is_wanted : callable
        Tells whether a scan is selected, whether its image is there or not.
    is_gone : callable
        Tells whether the dataset no longer has the image of the scan with this name.
    failure : HypsError or None
        Why no image is selected.
    """

    scans: tuple[Scan, ...]
    is_wanted: Callable[[Scan], bool]
    is_gone: Callable[[str], bool]
    failure: HypsError | None = None


def select_scans(settings: Settings) -> Selection:
    """Find the selected images of the dataset.

    A dataset without any image of these contrasts says nothing about single scans: its images were
    removed after processing, and no scan counts as gone.

    Raises
    ------
    HypsError
        Any error of :func:`hyps_bids.bids.index.find_scans`, unless the dataset has no images.
    """
    failure: HypsError | None = None
    try:
        scans = _find_images(settings)
    except NothingMatches as error:
        scans, failure = [], error
    if not scans:
        everything = _all_images(settings)
        if failure and everything and not settings.keep_missing_images:
            raise failure
        is_wanted = scan_filter(settings, ())
        if not everything:
            contrasts = join_alternatives(dict.fromkeys(settings.suffix))
            _LOG.warning(
                "%s has no %s image, so the tables are made from the outputs in %s alone.",
                *(settings.bids_dir, contrasts, settings.output_dir),
            )
            return Selection((), is_wanted, lambda stem: False, failure)
        scans = [scan for scan in everything if is_wanted(scan)]
    stems = {scan.stem for scan in scans}
    return Selection(
        tuple(scans),
        scan_filter(settings, scans),
        lambda stem: stem not in stems and _is_gone(settings, Scan.from_stem(stem)),
        failure,
    )


def _find_images(settings: Settings) -> list[Scan]:
    """Find the selected images; an index may still name images that are gone."""
    scans = find_scans(settings, need_content=False)
    if settings.bids_database_dir is None:
        return scans
    return [scan for scan in scans if os.path.lexists(scan.path)]


def _all_images(settings: Settings) -> list[Scan]:
    """Find the images of the dataset without any selection."""
    everything = replace(
        settings,
        participant_label=(),
        exclude_participant_label=(),
        session_label=(),
        bids_filter_file=None,
    )
    try:
        return _find_images(everything)
    except NothingMatches:
        return []


def _is_gone(settings: Settings, scan: Scan) -> bool:
    """Tell whether an image that was not found is really gone."""
    folder = settings.bids_dir / scan.folder
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        # Nobody knows what is in a folder that cannot be read.
        return False
    # Without a kept index, an image that is there was left out on purpose.
    indexed = settings.bids_database_dir is not None
    return not (indexed and {*scan.image_names} & {*names})


def report_gone(stems: Sequence[str], settings: Settings) -> None:
    """Warn of scans with outputs whose images are gone."""
    if not stems:
        return
    if settings.keep_missing_images:
        consequence = "They are used all the same, because of --keep-missing-images."
    else:
        consequence = (
            "They are left out of the tables. Remove their outputs if the images were renamed or "
            "the participants withdrawn, or use them all the same with --keep-missing-images."
        )
    _LOG.warning(
        "%s with outputs, but the images are no longer in %s or no longer used: %s. %s",
        *(format_count(len(stems), "scan"), settings.bids_dir, join_names(stems), consequence),
    )


def scan_filter(settings: Settings, scans: Sequence[Scan]) -> Callable[[Scan], bool]:
    """Return a function that tells whether the outputs of a scan are wanted.

    A filter file keeps the scans that it finds; labels also keep scans whose images are gone.
    """
    if settings.bids_filter_file:
        stems = {scan.stem for scan in scans}
        return lambda scan: scan.stem in stems
    has_labels = label_filter(settings)
    return lambda scan: scan.suffix in settings.suffix and has_labels(scan)


def label_filter(settings: Settings) -> Callable[[Scan], bool]:
    """Return a function that tells whether a scan has the labels that were asked for."""
    wanted, excluded = set(settings.participant_label), set(settings.exclude_participant_label)
    sessions = set(settings.session_label)
    return lambda scan: (
        (not wanted or scan.subject in wanted)
        and scan.subject not in excluded
        and (not sessions or scan.session in sessions)
    )


def report_others(stems: Iterable[str], settings: Settings) -> str:
    """Say in one line how many outputs of other contrasts there are, and how to use them."""
    counts = Counter(Scan.from_stem(stem).suffix for stem in stems)
    if not counts:
        return ""
    found = ", ".join(f"{suffix} {count:,}" for suffix, count in sorted(counts.items()))
    text = (
        f"{format_count(counts.total(), 'scan')} of other contrasts ({found}) left out of the "
        f"tables, which are of {_both(settings.suffix)} images; --suffix "
        f"{' or --suffix '.join(sorted(counts))} makes tables of them"
    )
    _LOG.info("%s.", text)
    return text


def _both(suffixes: Iterable[str]) -> str:
    return " and ".join(dict.fromkeys(suffixes))


def add_missing_scans(
    qc: pd.DataFrame, scans: Iterable[Scan], output: Path, unreadable: Mapping[Path, str]
) -> pd.DataFrame:
    """Add the scans without outputs to the QC table, and warn of them and of failed scans.

    Scans whose folder below `output` is `unreadable` have failed.
    """
    known = set(qc["scan"])
    rows = []
    for scan in scans:
        if scan.stem in known:
            continue
        state = ["missing", "no outputs yet"]
        for folder in (scan.folder, *scan.folder.parents) if unreadable else ():
            if reason := unreadable.get(output / folder):
                state = ["failed", f"{folder} cannot be read ({reason})"]
        rows.append([*scan_keys(scan.stem), *state])
    if rows:
        added = pd.DataFrame(rows, columns=[*KEYS, "status", "reason"])
        qc = pd.concat([qc, added]).sort_values("scan", kind="stable", ignore_index=True)
    failed = qc.loc[~qc["status"].isin(["done", "missing"]), "scan"]
    if len(failed):
        _LOG.warning(
            "%s failed (the column reason of the group tables says why): %s",
            *(format_count(len(failed), "scan"), join_names(failed)),
        )
    missing = qc.loc[qc["status"] == "missing", "scan"]
    if len(missing):
        _LOG.warning(
            "%s without outputs; run the participant level%s for: %s",
            *(format_count(len(missing), "scan"), _with_suffix(qc, missing), join_names(missing)),
        )
    return qc


def _with_suffix(qc: pd.DataFrame, stems: pd.Series) -> str:
    """Name the option without which the participant level would not find these scans."""
    suffixes = sorted(set(qc.loc[qc["scan"].isin(stems), "suffix"]))
    return "" if suffixes == [DEFAULT_SUFFIX] else f" with --suffix {' '.join(suffixes)}"


def compare_participants(
    table: pd.DataFrame, metadata: Metadata, settings: Settings
) -> pd.DataFrame:
    """Remark on participants who are not in participants.tsv, and add rows for those only there.

    A participant without an image of one of the contrasts has a row for it.
    """
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
    has_labels = label_filter(settings)
    asked = [
        name
        for name in sorted(described)
        if has_labels(Scan(Path(), (("sub", name.removeprefix("sub-")),)))
    ]
    strangers = sorted(table.loc[unknown, "participant_id"].unique())
    rows = [
        _rows_without_image(table, suffix, asked, strangers)
        for suffix in dict.fromkeys(settings.suffix)
    ]
    return pd.concat([table, *rows], ignore_index=True)


def _rows_without_image(
    table: pd.DataFrame, suffix: str, asked: Sequence[str], strangers: Sequence[str]
) -> pd.DataFrame:
    """Make rows for the participants of whom there is no image of a contrast."""
    have = set(table.loc[table["suffix"] == suffix, "participant_id"])
    without = [name for name in asked if name not in have]
    if not have:
        _LOG.warning("There are neither %s images nor outputs of any in these tables.", suffix)
        without = []
    elif without:
        _LOG.warning(
            "These participants are in participants.tsv, but the dataset has no %s image of them, "
            "so they have the status missing: %s",
            *(suffix, with_nearest(without, strangers)),
        )
    facts = {"status": "missing", "reason": f"no {suffix} image in the dataset"}
    row = {"participant_id": without, "suffix": suffix, CONTRAST: suffix, **facts}
    return pd.DataFrame(row, columns=table.columns, dtype="str")
