"""Which T1w images a dataset has, and which of them were asked for."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from hyps_bids.bids.filters import filtered_paths, read_filters
from hyps_bids.bids.layouts import T1W, index_t1w
from hyps_bids.errors import InvalidBids, MissingInput, NothingMatches
from hyps_bids.messages import format_count, join_names
from hyps_bids.outputs.reading import read_json_object
from hyps_bids.outputs.scan import Scan
from hyps_bids.settings import Settings

__all__ = ["check_dataset", "find_scans", "refuse_dangling"]

_LOG = logging.getLogger("hyps_bids")


def find_scans(settings: Settings, *, need_content: bool = True) -> list[Scan]:
    """Find the T1w images that were asked for; only their folders are indexed.

    Parameters
    ----------
    settings : Settings
        Dataset, labels and filters.
    need_content : bool
        Refuse dangling links; the group level needs only the names.

    Returns
    -------
    list of Scan
        Sorted by path; every session, acquisition, reconstruction and run by itself.

    Raises
    ------
    MissingInput
        If there is no dataset, or an image that was asked for is a dangling link.
    InvalidBids
        If the folder is not a BIDS dataset, holds the same image twice, or an image whose name
        contradicts its folder; without validation, such an image is left out with a warning.
    NothingMatches
        If labels do not exist or no image passes the filters.
    UsageError
        If the filter file cannot be used, or the index is that of another dataset.
    BadData
        If the index cannot be read.
    CannotCreateOutput
        If the index cannot be written.
    """
    root, filter_file = settings.bids_dir, settings.bids_filter_file
    check_dataset(root, "BIDS_DIR", skip=settings.skip_bids_validation)
    available = sorted(p.name[4:] for p in root.glob("sub-*") if p.is_dir())
    asked = _select(settings, available)
    filters = read_filters(filter_file) if filter_file else {}
    layout = index_t1w(root, asked, settings.bids_database_dir)
    # Labels are compared here instead of queried: with regex_search, 01 would also match 101.
    candidates = [
        Scan.from_path(path)
        for path in (Path(file.relpath) for file in layout.get(**T1W))
        if _is_asked(path, asked, settings.session_label)
    ]
    _refuse_unknown_sessions(settings, available, candidates)
    scans = sorted(_well_named(root, candidates, leave_out=settings.skip_bids_validation))
    of_labels = len(scans)
    if filter_file and filters:
        # The filters narrow the selection by labels, also where they name subject or session.
        passed = filtered_paths(layout, filters, filter_file)
        scans = [scan for scan in scans if scan.path.relative_to(root) in passed]
    if not scans:
        raise NothingMatches(_nothing(settings, asked, of_labels), code="no-images-selected")
    _refuse_duplicates(scans)
    if need_content:
        _refuse_outdated_index(scans)
        refuse_dangling(scan.path for scan in scans)
    _log_selection(settings, asked, scans, f"{len(scans)} of {of_labels}" if filters else "")
    return scans


def _log_selection(
    settings: Settings, asked: Collection[str], scans: Sequence[Scan], passed: str
) -> None:
    subjects = {scan.subject for scan in scans}
    _LOG.info(
        "%s of %s selected from %s%s",
        format_count(len(scans), "T1w image"),
        format_count(len(subjects), "participant"),
        settings.bids_dir,
        f"; {settings.bids_filter_file} passed {passed}" if passed else "",
    )
    without = sorted(set(settings.participant_label) & set(asked) - subjects)
    if without:
        _LOG.warning("these participants have no selected T1w image: %s", ", ".join(without))
    for scan in scans:
        _LOG.debug("selected %s", scan.path)


def check_dataset(root: Path, name: str, *, skip: bool) -> None:
    """Check that a folder is a BIDS dataset.

    Parameters
    ----------
    root : Path
        The folder.
    name : str
        What the user calls it.
    skip : bool
        Do not ask for a description.

    Raises
    ------
    MissingInput
        If there is no such folder.
    InvalidBids
        If it is no folder, or has no valid description.
    """
    if not root.exists():
        raise MissingInput(f"{root}: there is no such folder.", code="folder-missing")
    if not root.is_dir():
        raise InvalidBids(
            f"{root}: this is not a folder, but {name} must be a dataset.", code="not-a-folder"
        )
    if not os.access(root, os.R_OK | os.X_OK):
        raise MissingInput(f"{root}: this user may not read it.", code="folder-locked")
    if skip:
        return
    path = root / "dataset_description.json"
    hint = "add one with Name and BIDSVersion, or use --skip-bids-validation"
    description = read_json_object(path, error=InvalidBids, hint=hint)
    missing = [key for key in ("Name", "BIDSVersion") if key not in description]
    if missing:
        raise InvalidBids(
            f"{path}: lacks {' and '.join(missing)}; {hint}", code="description-incomplete"
        )


def _select(settings: Settings, available: Sequence[str]) -> set[str]:
    """Apply the participant labels."""
    root = settings.bids_dir
    if not available:
        raise NothingMatches(
            f"{root}: there are no sub-* folders, so there are no T1w images.",
            code="no-participants",
        )
    unknown = sorted(set(settings.participant_label) - set(available))
    if unknown:
        raise NothingMatches(
            f"{root}: there is no participant {join_names(unknown)}; there are "
            f"{join_names(available)}.",
            code="participant-unknown",
        )
    asked = set(settings.participant_label or available) - set(settings.exclude_participant_label)
    if not asked:
        raise NothingMatches(
            "--exclude-participant-label leaves no participant.", code="all-excluded"
        )
    folders = [root / f"sub-{label}" for label in sorted(asked)]
    locked = [folder for folder in folders if not os.access(folder, os.R_OK | os.X_OK)]
    if locked:
        raise MissingInput(
            f"{locked[0]}: this user may not read it ({len(locked)} such participants). Change "
            "its permissions or exclude the participant.",
            code="folder-locked",
        )
    return asked


def _refuse_unknown_sessions(
    settings: Settings, available: Sequence[str], found: Iterable[Scan]
) -> None:
    """Refuse labels that no participant has; those asked for need not have all sessions."""
    unknown = set(settings.session_label) - {scan.session for scan in found}
    if not unknown:
        return
    folders = [settings.bids_dir / f"sub-{label}" for label in available]
    known = {path.name[4:] for folder in folders for path in folder.glob("ses-*")}
    if unknown - known:
        there = join_names(sorted(known)) or "none"
        raise NothingMatches(
            f"{settings.bids_dir}: there is no session {join_names(sorted(unknown - known))}; the "
            f"sessions are {there}.",
            code="session-unknown",
        )


def _is_asked(path: Path, subjects: set[str], sessions: Sequence[str]) -> bool:
    """Judge by the folders, because it is folders that labels select."""
    subject, session = path.parts[0], path.parts[1]
    return subject[4:] in subjects and (
        not sessions or (session.startswith("ses-") and session[4:] in sessions)
    )


def _well_named(root: Path, scans: Iterable[Scan], *, leave_out: bool) -> list[Scan]:
    """Put scans under their dataset, without those whose name contradicts their folder."""
    good: list[Scan] = []
    bad: list[Scan] = []
    for scan in scans:
        fits = "sub" in dict(scan.entities) and scan.folder == scan.path.parent
        (good if fits else bad).append(Scan(root / scan.path, scan.entities))
    why = "the name and the folder state different participants or sessions"
    if bad and not leave_out:
        raise InvalidBids(
            f"{bad[0].path}: {why} ({len(bad)} such images). Rename it, or leave it out with "
            "--skip-bids-validation.",
            code="name-contradicts-folder",
        )
    for scan in bad:
        _LOG.warning("%s: left out, because %s", scan.path, why)
    return good


def _nothing(settings: Settings, asked: set[str], candidates: int) -> str:
    if candidates:
        return f"{settings.bids_filter_file}: passes none of {candidates} T1w images."
    sessions = f", session {', '.join(settings.session_label)}" if settings.session_label else ""
    people = join_names(sorted(asked))
    return f"{settings.bids_dir}: there is no T1w image of participant {people}{sessions}."


def _refuse_duplicates(scans: Iterable[Scan]) -> None:
    seen: dict[str, Scan] = {}
    for scan in scans:
        if scan.stem in seen:
            raise InvalidBids(
                f"{scan.path} and {seen[scan.stem].path.name} are the same image by name. Keep "
                "one of them.",
                code="image-twice",
            )
        seen[scan.stem] = scan


def _refuse_outdated_index(scans: Iterable[Scan]) -> None:
    for scan in scans:
        if not os.path.lexists(scan.path):
            raise MissingInput(
                f"{scan.path}: the image is in the index but not in the dataset. Remove the index.",
                code="index-outdated",
            )


def refuse_dangling(paths: Iterable[Path]) -> None:
    """Refuse links to nowhere, as annexed files are until they are fetched.

    Raises
    ------
    MissingInput
        If the content of a file is not here.
    """
    absent = [path for path in paths if not path.exists()]
    if absent:
        raise MissingInput(
            f"{absent[0]}: its content is not here ({format_count(len(absent), 'such image')}). "
            f"Run 'datalad get {absent[0]}' or exclude the participant.",
            code="content-not-fetched",
        )
