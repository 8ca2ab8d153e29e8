"""Which T1w images a dataset has, and which of them were asked for."""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bids.config import get_option
from bids.layout import BIDSLayout, BIDSLayoutIndexer, Query
from sqlalchemy.exc import SQLAlchemyError

from hyps_bids.errors import (
    BadData,
    InvalidBids,
    MissingInput,
    NothingMatches,
    UsageError,
    cannot_write,
)
from hyps_bids.messages import counted, listed
from hyps_bids.outputs.scan import Scan
from hyps_bids.settings import Settings

__all__ = ["check_dataset", "find_scans", "index_files", "not_here"]

_LOG = logging.getLogger("hyps_bids")
_QUERY = "t1w"
#: what makes an image one of ours; not to be filtered on
_FIXED = {"datatype": "anat", "suffix": "T1w", "extension": [".nii", ".nii.gz"]}
#: arguments of pybids' query that are no entities and would change what it returns
_ARGUMENTS = {"absolute_paths", "invalid_filters", "return_type", "scope", "target"}
_WORDS = {
    None: Query.NONE,
    "*": Query.ANY,
    "Query.NONE": Query.NONE,
    "Query.ANY": Query.ANY,
    "Query.OPTIONAL": Query.OPTIONAL,
    "Query.REQUIRED": Query.REQUIRED,
}


def find_scans(settings: Settings, *, need_content: bool = True) -> list[Scan]:
    """Find the T1w images that were asked for.

    Only their folders are indexed, without metadata. With ``bids_database_dir`` the index holds
    the T1w images of the whole dataset, so that it serves any later selection.

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
    root = settings.bids_dir
    check_dataset(root, "BIDS_DIR", skip=settings.skip_bids_validation)
    available = sorted(p.name[4:] for p in root.glob("sub-*") if p.is_dir())
    asked = _select(settings, available)
    filters = _read_filters(settings.bids_filter_file)
    layout = _layout(settings, asked)
    # labels are compared here, not queried: with regex_search, 01 would be that of 101 as well
    candidates = [
        Scan.from_path(path)
        for path in (Path(file.relpath) for file in layout.get(**_FIXED))
        if _is_asked(path, asked, settings.session_label)
    ]
    _refuse_unknown_sessions(settings, available, candidates)
    candidates = _well_named(root, candidates, leave_out=settings.skip_bids_validation)
    scans = sorted(candidates)
    if filters:
        # the filters narrow what the labels selected, whatever they say of subject and session
        passed = _filtered(layout, filters, settings)
        scans = [scan for scan in scans if scan.path in passed]
    if not scans:
        raise NothingMatches(_nothing(settings, asked, len(candidates)))
    _refuse_duplicates(scans)
    if need_content:
        _refuse_dangling(scans)
    _LOG.warning(
        "%s of %s selected from %s%s",
        counted(len(scans), "T1w image"),
        counted(len({scan.subject for scan in scans}), "participant"),
        root,
        f"; {settings.bids_filter_file} passed {len(scans)} of {len(candidates)}"
        if filters
        else "",
    )
    without = sorted(set(settings.participant_label) & asked - {scan.subject for scan in scans})
    if without:
        _LOG.warning("no T1w image selected of participants asked for: %s", ", ".join(without))
    for scan in scans:
        _LOG.info("selected %s", scan.path)
    return scans


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
        raise MissingInput(f"{root}: no such folder")
    if not root.is_dir():
        raise InvalidBids(f"{root}: not a folder, but {name} must be a dataset")
    if not os.access(root, os.R_OK | os.X_OK):
        raise MissingInput(f"{root}: this user may not read it")
    if skip:
        return
    path = root / "dataset_description.json"
    hint = "add one with Name and BIDSVersion, or use --skip-bids-validation"
    try:
        description = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InvalidBids(f"{path}: cannot be read ({error.strerror}); {hint}") from error
    except ValueError as error:
        raise InvalidBids(f"{path}: not valid JSON ({error}); {hint}") from error
    if not isinstance(description, dict):
        raise InvalidBids(f"{path}: not a JSON object; {hint}")
    missing = [key for key in ("Name", "BIDSVersion") if key not in description]
    if missing:
        raise InvalidBids(f"{path}: lacks {' and '.join(missing)}; {hint}")


def _select(settings: Settings, available: Sequence[str]) -> set[str]:
    """Apply the participant labels."""
    if not available:
        raise NothingMatches(f"{settings.bids_dir}: no sub-* folders, so no T1w images")
    unknown = sorted(set(settings.participant_label) - set(available))
    if unknown:
        raise NothingMatches(
            f"{settings.bids_dir}: no participant {listed(unknown)}; there are {listed(available)}"
        )
    asked = set(settings.participant_label or available) - set(settings.exclude_participant_label)
    if not asked:
        raise NothingMatches("--exclude-participant-label leaves no participant")
    folders = [settings.bids_dir / f"sub-{label}" for label in sorted(asked)]
    locked = [folder for folder in folders if not os.access(folder, os.R_OK | os.X_OK)]
    if locked:
        raise MissingInput(
            f"{locked[0]}: this user may not read it ({len(locked)} such participants); change "
            "its permissions or exclude the participant"
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
        there = listed(sorted(known)) or "none"
        raise NothingMatches(
            f"{settings.bids_dir}: no session {listed(sorted(unknown - known))}; there are {there}"
        )


def _read_filters(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise MissingInput(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UsageError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get(_QUERY), dict):
        raise UsageError(f"{path}: must hold a query '{_QUERY}': {{entity: value, …}}")
    ignored = sorted(set(content) - {_QUERY})
    if ignored:
        _LOG.warning("%s: queries %s are not used here, only '%s' is", path, ignored, _QUERY)
    fixed = sorted(set(content[_QUERY]) & set(_FIXED))
    if fixed:
        raise UsageError(f"{path}: {', '.join(fixed)} cannot be set: only T1w images are processed")
    arguments = sorted(set(content[_QUERY]) & _ARGUMENTS)
    if arguments:
        raise UsageError(f"{path}: {', '.join(arguments)} are not entities")
    nested = sorted(key for key, value in content[_QUERY].items() if isinstance(value, dict))
    if nested:
        raise UsageError(f"{path}: {', '.join(nested)}: must be a value or a list of values")
    return {key: _translate(value) for key, value in content[_QUERY].items()}


def _translate(value: Any) -> Any:
    """Turn null, "*" and "Query.…" into what pybids wants."""
    if isinstance(value, list):
        return [_translate(item) for item in value]
    return _WORDS.get(value, value)


def _filtered(layout: BIDSLayout, filters: dict[str, Any], settings: Settings) -> set[Path]:
    """Query with the filters alone."""
    try:
        files = layout.get(**_FIXED | filters, invalid_filters="error")
    except (ValueError, AttributeError, TypeError, SQLAlchemyError) as error:
        raise UsageError(f"{settings.bids_filter_file}: {error}") from error
    return {settings.bids_dir / file.relpath for file in files}


def index_files(
    root: Path, wanted: str, *, config: Sequence[str] = ("bids",), database: Path | None = None
) -> BIDSLayout:
    """Index some files of a dataset, without metadata.

    Parameters
    ----------
    root : Path
        The dataset.
    wanted : str
        Regular expression of the files to index and of the folders on the way to them, as paths
        below `root` that begin with a slash.
    config : sequence of str
        pybids' lists of entities.
    database : Path, optional
        Folder to write the index to; in memory if None.

    Returns
    -------
    BIDSLayout
        The index. Entities are those of the path below `root`.
    """
    indexer = BIDSLayoutIndexer(
        validate=False, index_metadata=False, ignore=[re.compile(rf"^(?!(?:{wanted})$).+")]
    )
    return BIDSLayout(
        root,
        validate=False,
        config=[_entities(root, name) for name in config],
        indexer=indexer,
        database_path=database,
    )


def _entities(root: Path, name: str) -> dict[str, Any]:
    """Take pybids' entities, each to be looked for below the dataset only.

    pybids searches the whole path: a dataset in ``func/`` would have no anatomical image, and one
    in ``run-03/`` nothing but third runs.
    """
    content = json.loads(Path(get_option("config_paths")[name]).read_text())
    below = f"^{re.escape(str(root.absolute()))}(?=/).*?"
    entities = [e | {"pattern": f"{below}(?:{e['pattern']})"} for e in content["entities"]]
    return {"name": name, "entities": entities}


def _layout(settings: Settings, asked: set[str]) -> BIDSLayout:
    root, database = settings.bids_dir, settings.bids_database_dir
    subjects = r"[^/]+" if database else "(?:" + "|".join(map(re.escape, sorted(asked))) + ")"
    wanted = rf"/sub-{subjects}(?:/ses-[^/]+)?(?:/anat(?:/[^/]+_T1w\.nii(?:\.gz)?)?)?"
    if database is None:
        return index_files(root, wanted)
    kept = database / "layout_index.sqlite"
    try:
        if not kept.exists():
            database.mkdir(parents=True, exist_ok=True)
            # made elsewhere and renamed: other jobs never see half an index
            with tempfile.TemporaryDirectory(dir=database) as folder:
                index_files(root, wanted, database=Path(folder))
                (Path(folder) / kept.name).replace(kept)
        layout = BIDSLayout(root, validate=False, database_path=database)
        made = layout.connection_manager.layout_info
    except OSError as error:
        raise cannot_write(database, error) from error
    except SQLAlchemyError as error:
        raise BadData(f"{kept}: not an index of pybids; remove it") from error
    if Path(made.root) != root.absolute():
        raise UsageError(f"{database}: is an index of {made.root}; choose another folder")
    if made.config != [_entities(root, "bids")]:
        raise UsageError(f"{kept}: was not made by this version of HyPS-BIDS; remove it")
    return layout


def _is_asked(path: Path, subjects: set[str], sessions: Sequence[str]) -> bool:
    """Judge by the folders: it is they that are selected."""
    subject, session = path.parts[0], path.parts[1]
    return subject[4:] in subjects and (
        not sessions or (session.startswith("ses-") and session[4:] in sessions)
    )


def _well_named(root: Path, scans: Iterable[Scan], *, leave_out: bool) -> list[Scan]:
    """Put scans under their dataset; one whose name contradicts its folder is nobody's."""
    good: list[Scan] = []
    bad: list[Scan] = []
    for scan in scans:
        fits = "sub" in dict(scan.entities) and scan.folder == scan.path.parent
        (good if fits else bad).append(Scan(root / scan.path, scan.entities))
    if bad and not leave_out:
        raise InvalidBids(
            f"{bad[0].path}: its name and its folder are not those of one participant and session"
            f" ({len(bad)} such images); rename it, or leave it out with --skip-bids-validation"
        )
    for scan in bad:
        _LOG.warning(
            "%s: left out, its name and its folder are not those of one participant and session",
            scan.path,
        )
    return good


def _nothing(settings: Settings, asked: set[str], candidates: int) -> str:
    if candidates:
        return f"{settings.bids_filter_file}: passes none of {candidates} T1w images"
    sessions = f", session {', '.join(settings.session_label)}" if settings.session_label else ""
    people = listed(sorted(asked))
    return f"{settings.bids_dir}: no T1w image of participant {people}{sessions}"


def _refuse_duplicates(scans: Iterable[Scan]) -> None:
    seen: dict[str, Scan] = {}
    for scan in scans:
        if scan.stem in seen:
            raise InvalidBids(
                f"{scan.path} and {seen[scan.stem].path.name} are the same image by name; keep one"
            )
        seen[scan.stem] = scan


def _refuse_dangling(scans: Iterable[Scan]) -> None:
    absent = [scan.path for scan in scans if not scan.path.exists()]
    gone = [path for path in absent if not path.is_symlink()]
    if gone:
        raise MissingInput(f"{gone[0]}: is in the index but not there; remove the index")
    if absent:
        raise MissingInput(not_here(absent))


def not_here(paths: Sequence[Path]) -> str:
    """Say that the content of annexed files must be fetched first.

    Examples
    --------
    >>> not_here([Path("sub-01_T1w.nii.gz")])
    "sub-01_T1w.nii.gz: its content is not here (1 such images); run 'datalad get
    sub-01_T1w.nii.gz' or exclude the participant"
    """
    return (
        f"{paths[0]}: its content is not here ({len(paths)} such images); "
        f"run 'datalad get {paths[0]}' or exclude the participant"
    )
