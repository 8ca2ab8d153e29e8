"""Which scans are done: their outputs are there, and were made from the present content."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from hyps_bids.outputs.digests import Digests, sha256
from hyps_bids.outputs.names import scan_names, sidecar_name
from hyps_bids.outputs.provenance import Provenance
from hyps_bids.outputs.reading import load_json
from hyps_bids.outputs.scan import Scan
from hyps_bids.resources import read_many

#: Stands for the sum of an image that cannot be read.
_UNREADABLE = "unreadable"
#: Keys of a sidecar that decided the results of a scan.
_PROVENANCE = ("SoftwareVersion", "Models", "BiasFieldCorrection")


def find_undone(
    scans: Sequence[Scan],
    output_dir: Path,
    provenance: Callable[[Scan], Provenance],
    digests: Digests,
) -> list[Scan]:
    """Return the scans that are to be done, in their order.

    Only images that have outputs are read, and of these only those that `digests` does not know.

    Parameters
    ----------
    scans : sequence of Scan
        Scans of the dataset.
    output_dir : Path
        The derivatives dataset.
    provenance : callable
        Returns what decides the result of a scan, beside its image.
    digests : Digests
        Sums of images; new ones are kept.
    """

    def done(scan: Scan) -> bool:
        return is_done(scan, output_dir, provenance(scan), digests)

    try:
        return [
            scan for scan, is_so in zip(scans, read_many(done, scans), strict=True) if not is_so
        ]
    finally:
        digests.save()


def is_done(
    scan: Scan, output_dir: Path, provenance: Provenance, digests: Digests | None = None
) -> bool:
    """Tell whether all outputs of a scan are there and were made from the same content."""
    recorded = recorded_fingerprint(scan, output_dir)
    return (
        recorded is not None
        and all_there(scan, output_dir)
        and recorded == fingerprint(scan, provenance, digests)
    )


def is_complete(scan: Scan, output_dir: Path) -> bool:
    """Tell whether all outputs of a scan are there, whatever content they were made from."""
    return recorded_fingerprint(scan, output_dir) is not None and all_there(scan, output_dir)


def is_readable(scan: Scan) -> bool:
    """Tell whether the image of a scan can be read."""
    return content_of(scan) != _UNREADABLE


def content_of(scan: Scan, digests: Digests | None = None) -> str:
    """Return the SHA-256 sum of a scan's image, or a word if it cannot be read."""
    try:
        return sha256(scan.path) if digests is None else digests.sha256(scan.path)
    except OSError:
        # The image fails later, as one scan; it must not end the run here.
        return _UNREADABLE


def fingerprint(scan: Scan, provenance: Provenance, digests: Digests | None = None) -> str:
    """Return a digest of a scan's content and of everything else that decides its result."""
    return fingerprint_of(content_of(scan, digests), provenance)


def fingerprint_of(content: str, provenance: Provenance) -> str:
    """Return the :func:`fingerprint` of a scan from the :func:`content_of` its image."""
    text = json.dumps([content, provenance], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def is_of_present_image(scan: Scan, output_dir: Path) -> bool:
    """Tell whether the outputs of a scan are complete and from its image as it is now.

    Networks and options may be others than those of this run.
    """
    try:
        record = load_json(output_dir / scan.folder / sidecar_name(scan_names(scan)["qc"]))
        mark, made_by = record["Fingerprint"], provenance_of(record)
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return all_there(scan, output_dir) and fingerprint_of(content_of(scan), made_by) == mark


def provenance_of(record: Mapping[str, Any]) -> Provenance:
    """Take from the sidecar of a QC table what decided the results, beside the image.

    Raises
    ------
    KeyError
        If something is not there.
    """
    made_by = cast(Provenance, {key: record[key] for key in _PROVENANCE})
    if "EditedLabels" in record:
        made_by["EditedLabels"] = record["EditedLabels"]
    return made_by


def recorded_fingerprint(scan: Scan, output_dir: Path) -> str | None:
    """Read from which content the outputs were made; None unless they are complete."""
    qc = sidecar_name(scan_names(scan)["qc"])
    try:
        recorded = load_json(output_dir / scan.folder / qc)
    except (OSError, ValueError):
        return None
    return recorded.get("Fingerprint") if isinstance(recorded, dict) else None


def all_there(scan: Scan, output_dir: Path) -> bool:
    """Tell whether all files of a scan exist, whatever they hold."""
    names = scan_names(scan).values()
    try:
        with os.scandir(output_dir / scan.folder) as entries:
            there = {entry.name for entry in entries if entry.is_file()}
    except OSError:
        return False
    return there.issuperset(names) and there.issuperset(map(sidecar_name, names))
