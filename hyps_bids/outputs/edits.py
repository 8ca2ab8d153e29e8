"""Corrected labels that replace those of the networks, and how they are recorded."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hyps_bids.messages import format_count, join_names
from hyps_bids.outputs.digests import sha256
from hyps_bids.outputs.names import scan_paths, sidecar_path
from hyps_bids.outputs.provenance import EditRecord, Provenance
from hyps_bids.outputs.reading import load_json
from hyps_bids.outputs.scan import Scan
from hyps_bids.resources import read_many

_LOG = logging.getLogger("hyps_bids")


@dataclass(frozen=True)
class Edit:
    """Corrected labels of one scan.

    Attributes
    ----------
    path : Path
        Image of the labels.
    record : EditRecord
        What the sidecars say about it.
    problem : str
        Why it cannot be used, whatever it holds; empty if nothing is known against it.
    """

    path: Path
    record: EditRecord
    problem: str = ""


def make_edit(paths: Sequence[Path], root: Path) -> Edit:
    """Describe the edit of a scan; more than one file is a problem."""
    problem = ""
    if len(paths) > 1:
        names = ", ".join(str(path.relative_to(root)) for path in paths)
        problem = f"{root}: there are several edited labels of this scan ({names}); keep one"
    try:
        digest = " ".join(sha256(path) for path in paths)
    except OSError:
        digest = "unreadable"
    return Edit(
        paths[0].absolute(),
        {"File": paths[0].relative_to(root).as_posix(), "SHA256": digest},
        problem,
    )


def with_edit(provenance: Provenance, edit: Edit | None) -> Provenance:
    """Add the edit of a scan to what decides its result."""
    return provenance if edit is None else {**provenance, "EditedLabels": edit.record}


def recorded_edits(scans: Sequence[Scan], output_dir: Path) -> dict[str, Edit]:
    """Return the edits of earlier runs, by the stem of the scan, and say that they are kept.

    Their labels are in the outputs; scans whose labels are not there are left out.
    """
    found = {}
    for scan, record in zip(scans, read_many(lambda s: _record(s, output_dir), scans), strict=True):
        path = scan_paths(scan, output_dir)["dseg"]
        if record is not None and path.is_file():
            # Nodes run in their own folders, where a relative name leads nowhere.
            found[scan.stem] = Edit(path.absolute(), record)
    if found:
        _LOG.info(
            "%s: labels that were edited before are kept (%s). With --edits, only the edits in its "
            "folder count.",
            *(format_count(len(found), "scan"), join_names(found)),
        )
    return found


def _record(scan: Scan, output_dir: Path) -> EditRecord | None:
    try:
        content = load_json(sidecar_path(scan_paths(scan, output_dir)["qc"]))
        record = content.get("EditedLabels")
        return {"File": str(record["File"]), "SHA256": str(record["SHA256"])} if record else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
