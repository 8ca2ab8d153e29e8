"""Whose files are in a folder that we are about to write to.

We never write over files that another program or a person has made. Everything that we write is
recognized by its content: descriptions, reports and texts of any version name HyPS-BIDS.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from hyps_bids.errors import BadData, UsageError
from hyps_bids.outputs.names import SEG_PREFIX
from hyps_bids.outputs.reading import read_json_object
from hyps_bids.outputs.series import MIDWAY
from hyps_bids.outputs.writing import is_partial

#: Our name in ``GeneratedBy``
PIPELINE = "hyps-bids"
_DESCRIPTION = "dataset_description.json"
#: Texts that each of our files has near its beginning, by patterns of names.
_MARKS = {
    "README.md": (b"HyPS-BIDS",),
    ".bidsignore": (b"_morph", b"group_*"),
    "sub-*.html": (b"HyPS-BIDS",),
    "group*_report.html": (b"HyPS-BIDS",),
    "logs/CITATION*": (b"HyPS", b"hyps"),
}
_HEAD = 65536
#: Parts of names that only our outputs of a scan have.
_OF_SCANS = (f"_{SEG_PREFIX}_", "_label-ICV_mask", f"_space-{MIDWAY}", f"_to-{MIDWAY}")


def find_foreign(output: Path) -> str | None:
    """Say whose files an output folder holds, unless it is ours, new or empty.

    Our own folders are recognized by their description, whatever version has written it. A run
    that was killed early leaves a folder without description, which is recognized by its files.
    Files of other names are left alone by our runs, and so they do not matter.

    Parameters
    ----------
    output : Path
        The derivatives dataset; it need not exist.

    Returns
    -------
    str or None
        The owner and the file that shows it, for a message.
    """
    if not output.is_dir():
        return None
    described = _read_description(output)
    found = _owner(described) if described is not None else _foreign_files(output)
    if found is not None and described is None:
        # Another job may have begun to write to this folder meanwhile.
        described = _read_description(output)
        return _owner(described) if described is not None else found
    return found


def refuse_foreign_file(path: Path, *marks: bytes) -> None:
    """Refuse to write over a file that has none of our marks near its beginning.

    Raises
    ------
    UsageError
        If it exists and is not ours.
    """
    if path.exists() and not _has_mark(path, marks):
        raise UsageError(
            f"{path}: this file exists, and HyPS-BIDS did not make it. Choose another name, or "
            "remove the file first.",
            code="file-not-ours",
        )


def unknown_entries(folder: Path, known: Collection[str]) -> list[str]:
    """List the entries of a folder whose names match none of the regular expressions `known`."""
    if not folder.is_dir():
        return []
    names = sorted(path.name for path in folder.iterdir())
    return [n for n in names if not is_partial(n) and not any(re.fullmatch(k, n) for k in known)]


def _read_description(folder: Path) -> dict[str, Any] | None:
    """Read the description; an empty one if it cannot be read, and None if there is none."""
    path = folder / _DESCRIPTION
    try:
        return read_json_object(path)
    except BadData:
        return {} if path.exists() or path.is_symlink() else None


def _owner(description: dict[str, Any]) -> str | None:
    """Name the owner that a description states; None if we are."""
    steps = description.get("GeneratedBy")
    steps = steps if isinstance(steps, list) else [description.get("PipelineDescription")]
    names = [str(step["Name"]) for step in steps if isinstance(step, dict) and step.get("Name")]
    if any(name.casefold() == PIPELINE for name in names):
        return None
    if not description:
        return f"a dataset of unknown origin (its {_DESCRIPTION} cannot be read)"
    title = description.get("Name")
    if description.get("DatasetType") == "derivative" or "PipelineDescription" in description:
        return f"derivatives of {' and '.join(names) or title or 'another program'}"
    return f"a raw dataset (see its {_DESCRIPTION}" + (f": {title})" if title else ")")


def _foreign_files(output: Path) -> str | None:
    """Name a file that we would write over, or raw data, in a folder without description."""
    for pattern, marks in _MARKS.items():
        for path in sorted(output.glob(pattern)):
            if not path.is_dir() and not _has_mark(path, marks):
                return f"files of another origin (such as {path.relative_to(output)})"
    for folder in sorted(output.glob("sub-*")):
        if folder.is_dir() and (data := _foreign_scan_file(folder)) is not None:
            return f"data of another origin (such as {data.relative_to(output)})"
    return None


def _foreign_scan_file(folder: Path) -> Path | None:
    """Return a file of a participant's folder if there are files, but none of ours."""
    first: Path | None = None
    for path in folder.rglob("*"):
        if any(part in path.name for part in _OF_SCANS):
            return None
        # A file without extension is no data; it may stand where a folder should be.
        if first is None and path.suffix and not path.is_dir() and not is_partial(path.name):
            first = path
    return first


def _has_mark(path: Path, marks: Collection[bytes]) -> bool:
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEAD)
    except FileNotFoundError:
        # Another job has just replaced or removed it.
        return not path.is_symlink()
    except OSError:
        return False
    return any(mark in head for mark in marks)
