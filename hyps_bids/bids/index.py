"""Which images a dataset has, and which of them were asked for."""

from __future__ import annotations

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bids.layout import BIDSLayout

from hyps_bids.bids.absence import (
    Found,
    LeftOut,
    explain_labels,
    name_absent,
    refuse_nothing,
    sorted_suffixes,
)
from hyps_bids.bids.filters import Filters, filtered_paths, read_filters
from hyps_bids.bids.folders import Participant, find_participants, in_sessions, list_images
from hyps_bids.bids.layouts import StoredIndex, image_query, index_images, query_images
from hyps_bids.errors import HypsError, InvalidBids, MissingInput, NothingMatches, UsageError
from hyps_bids.messages import format_count, is_unicode, join_names, printable
from hyps_bids.outputs.reading import read_json_object
from hyps_bids.outputs.scan import OWN_SPACES, Scan
from hyps_bids.settings import SUFFIXES, Settings

_LOG = logging.getLogger("hyps_bids")
#: Spaces in which the head has its own size, in lower case.
_HEAD_SPACES = {space.casefold() for space in (*OWN_SPACES, *SUFFIXES)}
#: Entities by which derivatives name what is no image of a whole head.
_NO_HEAD = ("atlas", "cohort", "den", "hemi", "label", "roi", "scale", "seg", "tpl")


@dataclass(frozen=True)
class FoundImages:
    """The images that were asked for.

    Attributes
    ----------
    scans : list of Scan
        Sorted by path; every session, contrast, acquisition, reconstruction and run by
        itself.
    unreadable : list of Path
        Folders of the selected participants that this user may not read.
    """

    scans: list[Scan]
    unreadable: list[Path]


def find_scans(settings: Settings, *, need_content: bool = True) -> list[Scan]:
    """Find the images that were asked for; see :func:`find_images`."""
    return find_images(settings, need_content=need_content).scans


def find_images(settings: Settings, *, need_content: bool = True) -> FoundImages:
    """Find the images that were asked for; only their folders are listed.

    Participants without an image of a wanted contrast are named, with what is in their folders
    instead.

    Parameters
    ----------
    settings : Settings
        Dataset, contrasts, labels and filters.
    need_content : bool
        Name dangling links, and refuse if there is nothing else; the group level needs only the
        names.

    Raises
    ------
    MissingInput
        If there is no dataset, all images that were asked for are dangling links, or nothing that
        was asked for may be read.
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
        If there is no index yet and none can be written.
    """
    root, filter_file = settings.bids_dir, settings.bids_filter_file
    check_dataset(root, "BIDS_DIR", skip=settings.skip_bids_validation)
    _say_derivative(root)
    available, nearly = find_participants(root)
    asked = _select(settings, available, nearly)
    suffixes = sorted_suffixes(settings)
    filters = read_filters(filter_file, suffixes) if filter_file else {}
    participants = list_images(root, asked)
    layout = _index(settings, available, participants)
    # Labels are compared here instead of queried: with regex_search, 01 would also match 101.
    subjects = set(asked)
    candidates = [
        Scan.from_path(Path(image))
        for image in query_images(layout, image_query(suffixes))
        if _is_asked(image, subjects, settings.session_label)
    ]
    _refuse_unknown_sessions(settings, available, candidates)
    scans = _well_named(root, candidates, leave_out=settings.skip_bids_validation)
    left_out: LeftOut = defaultdict(list)
    scans = sorted(_with_own_meaning(root, scans, filters, left_out))
    passed = scans
    if filter_file and any(filters.values()):
        # The filters narrow the selection by labels, also where they name subject or session.
        paths = filtered_paths(layout, suffixes, filters, filter_file)
        passed = [scan for scan in scans if scan.path.relative_to(root) in paths]
    unreadable = _name_unreadable(root, participants, none_left=not passed)
    found = Found(settings, participants, nearly, scans, passed, left_out)
    refuse_nothing(found)
    name_absent(found)
    _refuse_duplicates(passed)
    if need_content:
        _name_dangling(passed)
    counted = f"{len(passed)} of {len(scans)}" if any(filters.values()) else ""
    _log_selection(settings, passed, counted)
    return FoundImages(passed, unreadable)


def _log_selection(settings: Settings, scans: Sequence[Scan], passed: str) -> None:
    subjects = {scan.subject for scan in scans}
    counts = Counter(scan.suffix for scan in scans)
    _LOG.info(
        "%s of %s selected from %s%s",
        join_names(format_count(counts[s], f"{s} image") for s in SUFFIXES if s in settings.suffix),
        format_count(len(subjects), "participant"),
        settings.bids_dir,
        f"; {settings.bids_filter_file} passed {passed}" if passed else "",
    )
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
    UsageError
        If its path is not UTF-8.
    """
    if not is_unicode(str(root.absolute())):
        raise UsageError(
            f"{printable(str(root))}: the path of {name} has bytes that are not UTF-8, which BIDS "
            "does not allow. Rename the folder, or reach it by a link with another name.",
            code="path-not-utf8",
        )
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


def _say_derivative(root: Path) -> None:
    """Say that a dataset is a derivative: its images are seldom those of the scanner."""
    try:
        kind = read_json_object(root / "dataset_description.json").get("DatasetType")
    except HypsError:
        # With --skip-bids-validation, the description may be missing or wrong.
        return
    if kind not in (None, "raw"):
        _LOG.warning(
            "%s is a dataset of the type '%s', not 'raw'. Its images may have been processed by "
            "another program; images in a template's space are left out.",
            root,
            kind,
        )


def _select(settings: Settings, available: Sequence[str], nearly: Sequence[str]) -> list[str]:
    """Apply the participant labels."""
    root = settings.bids_dir
    if not available:
        hint = (
            f" There are {join_names(nearly)}; folders must be called sub-LABEL." if nearly else ""
        )
        raise NothingMatches(
            f"{root}: there are no sub-* folders, so there are no images.{hint}",
            code="no-participants",
        )
    unknown = sorted(set(settings.participant_label) - set(available))
    if unknown:
        raise NothingMatches(
            f"{root}: there is no participant {join_names(unknown)}; there are "
            f"{join_names(available)}." + explain_labels(unknown, available, nearly),
            code="participant-unknown",
        )
    asked = set(settings.participant_label or available) - set(settings.exclude_participant_label)
    if not asked:
        raise NothingMatches(
            "--exclude-participant-label leaves no participant.", code="all-excluded"
        )
    return sorted(asked)


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
            f"sessions are {there}." + explain_labels(sorted(unknown - known), sorted(known)),
            code="session-unknown",
        )


def _is_asked(image: str, subjects: Collection[str], sessions: Sequence[str]) -> bool:
    """Judge by the folders, because it is folders that labels select."""
    return image.partition("/")[0][4:] in subjects and in_sessions(image, sessions)


def _index(
    settings: Settings, available: Sequence[str], participants: Sequence[Participant]
) -> BIDSLayout:
    """Index the images with pybids, or load its index from the database if that is up to date.

    Only the folders of `participants` are compared with the index, so that the jobs of a cluster
    need not list the whole dataset each.
    """
    root = settings.bids_dir
    if settings.bids_database_dir is None:
        return index_images(root, _images(participants, settings.suffix))
    # A stored index serves any later selection, so it has all contrasts.
    images = _images(participants, SUFFIXES)
    stored = StoredIndex.open(settings.bids_database_dir, root)
    known = set(available)
    listed_now = {each.label for each in participants if not each.unreadable}

    def is_listed(image: str) -> bool:
        label = image.partition("/")[0][4:]
        return label in listed_now or label not in known

    difference = stored.differs(images, is_listed)
    if not difference:
        return stored.load()
    if len(participants) < len(available):
        images = _images(list_images(root, available), SUFFIXES)
    return stored.renew(images, difference)


def _images(participants: Iterable[Participant], suffixes: Collection[str]) -> list[str]:
    return sorted(image for each in participants for image in each.images_of(suffixes))


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


def _with_own_meaning(
    root: Path, scans: Iterable[Scan], filters: Filters, left_out: LeftOut
) -> list[Scan]:
    """Leave out images that entities mark as something else than a scan of the head.

    What the filter file names is left to the filter file. `left_out` receives the other images.
    """
    kept = []
    reasons: dict[str, list[Scan]] = defaultdict(list)
    for scan in scans:
        if why := _other_meaning(scan, filters.get(scan.suffix, ())):
            reasons[why].append(scan)
            left_out[scan.subject].append((scan.path.relative_to(root).as_posix(), why))
        else:
            kept.append(scan)
    for why, others in reasons.items():
        _LOG.warning(
            "%s left out, such as %s, because %s",
            format_count(len(others), "image"),
            others[0].path,
            why,
        )
    return kept


def _other_meaning(scan: Scan, filters: Collection[str]) -> str:
    """Say why an image does not show a head at its own size; nothing if it does."""
    entities = dict(scan.entities)
    space, part = entities.get("space", "T1w"), entities.get("part", "mag")
    if space.casefold() not in _HEAD_SPACES and "space" not in filters:
        return (
            f"space-{space} is the space of a template, in which volumes are not those of the "
            "participant; a filter file that names 'space' selects it all the same"
        )
    if part.casefold() in ("phase", "real", "imag") and "part" not in filters:
        return (
            f"part-{part} does not show magnitudes; a filter file that names 'part' selects it all "
            "the same"
        )
    found = [key for key in _NO_HEAD if key in entities and key not in filters]
    return f"an image of a head has no entity {found[0]}" if found else ""


def _name_unreadable(
    root: Path, participants: Iterable[Participant], *, none_left: bool
) -> list[Path]:
    """Name the folders that cannot be listed, and refuse if there is nothing else."""
    reasons = {
        root / folder: why for each in participants for folder, why in each.unreadable.items()
    }
    if not reasons:
        return []
    names = join_names(f"{folder} ({why})" for folder, why in reasons.items())
    text = f"These folders cannot be read, so their images are left out: {names}. Change their "
    text += "permissions, or exclude the participants."
    if none_left:
        raise MissingInput(text, code="folder-locked")
    _LOG.error("%s", text)
    return list(reasons)


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


def _name_dangling(scans: Sequence[Scan]) -> None:
    """Name the images without content; they will fail, while the others are done."""
    absent = _dangling(scan.path for scan in scans)
    if len(absent) == len(scans):
        refuse_dangling(absent)
    if absent:
        _LOG.warning(
            "The content of %s is not here, so they will fail. Run 'datalad get' for: %s",
            format_count(len(absent), "image"),
            join_names(map(str, absent)),
        )


def refuse_dangling(paths: Iterable[Path]) -> None:
    """Refuse links to nowhere, as annexed files are until they are fetched.

    Raises
    ------
    MissingInput
        If the content of a file is not here.
    """
    absent = _dangling(paths)
    if absent:
        raise MissingInput(
            f"{absent[0]}: its content is not here ({format_count(len(absent), 'such image')}). "
            f"Run 'datalad get {absent[0]}' or exclude the participant.",
            code="content-not-fetched",
        )


def _dangling(paths: Iterable[Path]) -> list[Path]:
    return [path for path in paths if os.path.islink(path) and not os.path.exists(path)]
