"""Which T1w images a dataset has, and which of them were asked for."""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bids.layout import BIDSLayout, BIDSLayoutIndexer, Query
from sqlalchemy.exc import SQLAlchemyError

from hyps_bids.errors import (
    BadData,
    CannotCreateOutput,
    InvalidBids,
    MissingInput,
    NothingMatches,
    UsageError,
)
from hyps_bids.settings import Settings

__all__ = ["Scan", "find_scans"]

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


@dataclass(frozen=True, order=True)
class Scan:
    """One T1w image.

    Attributes
    ----------
    path : Path
        The file as it is in the dataset, never resolved through links.
    entities : tuple of (str, str)
        Short BIDS entities and their values, as written in the file name.

    Examples
    --------
    >>> scan = Scan.from_path(Path("raw/sub-01/ses-M00/anat/sub-01_ses-M00_run-02_T1w.nii.gz"))
    >>> scan.stem, str(scan.folder), scan.workflow_name
    ('sub-01_ses-M00_run-02', 'sub-01/ses-M00/anat', 'sub_01_ses_M00_run_02')
    """

    path: Path
    entities: tuple[tuple[str, str], ...]

    @classmethod
    def from_path(cls, path: Path) -> Scan:
        """Read the entities from a file name."""
        parts = path.name.split(".")[0].split("_")[:-1]
        pairs = [part.partition("-")[::2] for part in parts]
        return cls(path, tuple((key, value) for key, value in pairs))

    @property
    def stem(self) -> str:
        """File name without suffix and extension."""
        return "_".join(f"{key}-{value}" for key, value in self.entities)

    @property
    def subject(self) -> str:
        """Participant label."""
        return dict(self.entities)["sub"]

    @property
    def session(self) -> str | None:
        """Session label."""
        return dict(self.entities).get("ses")

    @property
    def folder(self) -> Path:
        """Folder relative to the dataset."""
        session = [f"ses-{self.session}"] if self.session else []
        return Path(f"sub-{self.subject}", *session, "anat")

    @property
    def workflow_name(self) -> str:
        """Name for nipype: letters, digits and underscores."""
        return re.sub(r"\W", "_", self.stem)


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
        If the folder is not a BIDS dataset, or holds the same image twice.
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
    _check_dataset(root, settings.skip_bids_validation)
    available = sorted(p.name[4:] for p in root.glob("sub-*") if p.is_dir())
    asked = _select(settings, available)
    filters = _read_filters(settings.bids_filter_file)
    layout = _layout(settings, asked)
    # labels are compared here, not queried: with regex_search, 01 would be that of 101 as well
    candidates = [
        scan
        for scan in (Scan.from_path(root / file.relpath) for file in layout.get(**_FIXED))
        if scan.subject in asked
        and (not settings.session_label or scan.session in settings.session_label)
    ]
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
        "%d T1w images of %d participants selected from %s%s",
        len(scans),
        len({scan.subject for scan in scans}),
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


def _check_dataset(root: Path, skip: bool) -> None:
    if not root.exists():
        raise MissingInput(f"{root}: no such folder")
    if not root.is_dir():
        raise InvalidBids(f"{root}: not a folder, but BIDS_DIR must be a dataset")
    if skip:
        return
    path = root / "dataset_description.json"
    hint = "add one with Name and BIDSVersion, or use --skip-bids-validation"
    try:
        description = json.loads(path.read_text())
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
        some = ", ".join(available[:10]) + (" …" if len(available) > 10 else "")
        raise NothingMatches(
            f"{settings.bids_dir}: no participant {', '.join(unknown)}; there are {some}"
        )
    asked = set(settings.participant_label or available) - set(settings.exclude_participant_label)
    if not asked:
        raise NothingMatches("--exclude-participant-label leaves no participant")
    return asked


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


def _layout(settings: Settings, asked: set[str]) -> BIDSLayout:
    database = settings.bids_database_dir
    subjects = r"[^/]+" if database else "(?:" + "|".join(map(re.escape, sorted(asked))) + ")"
    wanted = rf"/sub-{subjects}(?:/ses-[^/]+)?(?:/anat(?:/[^/]+_T1w\.nii(?:\.gz)?)?)?"
    indexer = BIDSLayoutIndexer(
        validate=False, index_metadata=False, ignore=[re.compile(rf"^(?!{wanted}$).+")]
    )
    if database is None:
        return BIDSLayout(settings.bids_dir, validate=False, indexer=indexer)
    kept = database / "layout_index.sqlite"
    try:
        if not kept.exists():
            database.mkdir(parents=True, exist_ok=True)
            # made elsewhere and renamed: other jobs never see half an index
            with tempfile.TemporaryDirectory(dir=database) as folder:
                BIDSLayout(settings.bids_dir, validate=False, indexer=indexer, database_path=folder)
                (Path(folder) / kept.name).replace(kept)
        layout = BIDSLayout(settings.bids_dir, validate=False, database_path=database)
        indexed = Path(str(layout.connection_manager.layout_info.root))
    except OSError as error:
        raise CannotCreateOutput(f"{database}: cannot be written ({error.strerror})") from error
    except SQLAlchemyError as error:
        raise BadData(f"{kept}: not an index of pybids; remove it") from error
    if indexed != settings.bids_dir.absolute():
        raise UsageError(f"{database}: is an index of {indexed}; choose another folder")
    return layout


def _nothing(settings: Settings, asked: set[str], candidates: int) -> str:
    if candidates:
        return f"{settings.bids_filter_file}: passes none of {candidates} T1w images"
    sessions = f", session {', '.join(settings.session_label)}" if settings.session_label else ""
    people = ", ".join(sorted(asked)[:10]) + (" …" if len(asked) > 10 else "")
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
        raise MissingInput(
            f"{absent[0]}: its content is not here ({len(absent)} such images); "
            f"run 'datalad get {absent[0]}' or exclude the participant"
        )
