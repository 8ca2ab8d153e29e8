"""Which scans belong to a series, and whether its results were made from their present results."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from hyps_bids.outputs.completion import all_there, recorded_fingerprint
from hyps_bids.outputs.names import scan_paths, sidecar_path
from hyps_bids.outputs.provenance import Provenance
from hyps_bids.outputs.reading import load_json
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.series import Series, time_point_paths


class Member(NamedTuple):
    """A scan of a series: its image in the dataset, and the fingerprint of its own results."""

    scan: Scan
    fingerprint: str


class SeriesRecord(NamedTuple):
    """What the mark of a series says.

    Attributes
    ----------
    fingerprint : str
        Digest of everything that decided its results.
    scans : mapping of str to str
        Stem of each scan → fingerprint of its own results.
    used : tuple of str
        Stems of the scans that have images of their own in the series.
    """

    fingerprint: str
    scans: Mapping[str, str]
    used: tuple[str, ...]


def find_members(scans: Iterable[Scan], bids_dir: Path, output_dir: Path) -> list[Member]:
    """Find the scans that have results of their own, and whose image is still in the dataset.

    Parameters
    ----------
    scans : iterable of Scan
        Scans of one series that have or had outputs; of their paths, only the names count.
    bids_dir, output_dir : Path
        The raw dataset and the derivatives dataset.
    """
    found = []
    for scan in sorted(scans, key=lambda each: each.stem):
        path = _image_of(scan, bids_dir)
        mark = recorded_fingerprint(scan, output_dir)
        if path is not None and mark is not None and all_there(scan, output_dir):
            found.append(Member(replace(scan, path=path), mark))
    return found


def find_failed(scans: Iterable[Scan], bids_dir: Path, output_dir: Path) -> dict[Scan, str]:
    """Find the scans whose QC table says that they failed, and whose image is still there.

    The values are the reasons.

    Parameters
    ----------
    scans, bids_dir, output_dir
        As in :func:`find_members`.
    """
    found = {}
    for scan in sorted(scans, key=lambda each: each.stem):
        rows = _read_text_rows(scan_paths(scan, output_dir)["qc"])
        if rows and rows[0].get("status") == "failed" and _image_of(scan, bids_dir) is not None:
            found[scan] = rows[0].get("reason", "")
    return found


def _image_of(scan: Scan, bids_dir: Path) -> Path | None:
    """Return where the image of a scan is that is known by its names only."""
    paths = [bids_dir / scan.folder / name for name in scan.image_names]
    # A link whose content is not here is an image all the same.
    return next((path for path in paths if os.path.lexists(path)), None)


def are_several(scans: Sequence[Scan], longitudinal: bool | None, *, made: bool = False) -> bool:
    """Tell whether scans of one series are followed over time, by the option ``--longitudinal``.

    Scans of one session are repetitions. They are followed if that is asked for, or was before, so
    that there are results (`made`) to be kept up to date.

    Examples
    --------
    >>> scans = [Scan.from_stem(f"sub-1_ses-1_run-{i}") for i in (1, 2)]
    >>> [are_several(scans, chosen) for chosen in (None, True, False)]
    [False, True, False]
    """
    if longitudinal is None and not made:
        return len({scan.session for scan in scans}) > 1
    return longitudinal is not False and len(scans) > 1


def series_fingerprint(
    members: Iterable[Member],
    visits: Mapping[str, Sequence[object]],
    provenance: Provenance,
    failed: Iterable[Scan] = (),
) -> str:
    """Return a digest of everything that decides the results of a series.

    Parameters
    ----------
    members : iterable of Member
        Its scans.
    visits : mapping of str to sequence
        Stem of each scan → its place in the order of time, as JSON values.
    provenance : Provenance
        Software and networks.
    failed : iterable of Scan
        Scans without results, which the QC table of the series names.
    """
    marks = {member.scan.stem: member.fingerprint for member in members}
    places = {stem: list(place) for stem, place in visits.items()}
    stems = [scan.stem for scan in failed]
    text = json.dumps([marks, places, provenance, stems], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_series_record(series: Series, output_dir: Path) -> SeriesRecord | None:
    """Read the mark of a series; None if it is not done."""
    try:
        content: Any = load_json(sidecar_path(series.paths(output_dir)["qc"]))
        scans, used = dict(content["Scans"]), tuple(content["Used"])
        return SeriesRecord(content["Fingerprint"], scans, used)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_states(series: Series, output_dir: Path) -> list[dict[str, str]]:
    """Return the rows of the QC table of a series as text; none if it cannot be read."""
    return _read_text_rows(series.paths(output_dir)["qc"])


def _read_text_rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            return list(csv.DictReader(stream, delimiter="\t"))
    except (OSError, UnicodeDecodeError):
        return []


def recorded_scans(series: Series, output_dir: Path) -> list[Scan]:
    """Return the scans in the QC table of a series, which outlives its mark; by name only."""
    named = [row.get("scan") or "" for row in read_states(series, output_dir)]
    # A damaged table must not lead to the files of others.
    own = [name for name in named if name.partition("_")[0] == f"sub-{series.subject}"]
    return [scan for scan in map(Scan.from_stem, own) if Series.of(scan) == series]


def is_series_current(series: Series, output_dir: Path) -> bool:
    """Tell whether a series was made from the results that its scans have now.

    A scan that was segmented again, or removed, since then makes the series out of date. New scans
    do not: the participant level adds them.
    """
    record = read_series_record(series, output_dir)
    return record is not None and all(
        recorded_fingerprint(Scan.from_stem(stem), output_dir) == mark
        for stem, mark in record.scans.items()
    )


def current_series_fingerprint(series: Series, output_dir: Path) -> str | None:
    """Return the fingerprint of a series; None if it is not done or not current any more."""
    record = read_series_record(series, output_dir)
    current = record is not None and is_series_current(series, output_dir)
    return record.fingerprint if record is not None and current else None


def is_series_done(series: Series, output_dir: Path, fingerprint: str) -> bool:
    """Tell whether the results of a series are all there, and have this fingerprint."""
    record = read_series_record(series, output_dir)
    if record is None or record.fingerprint != fingerprint:
        return False
    paths = [series.paths(output_dir)["qc"]]
    if record.used:
        paths += series.paths(output_dir).values()
    for stem in record.used:
        paths += time_point_paths(Scan.from_stem(stem), output_dir).values()
    return all(path.is_file() and sidecar_path(path).is_file() for path in paths)


def leftover_files(scans: Iterable[Scan], used: Iterable[Scan], output_dir: Path) -> list[Path]:
    """List the files that a series has of scans which it no longer uses, and their sidecars."""
    stems = {scan.stem for scan in used}
    paths = [
        path
        for scan in scans
        if scan.stem not in stems
        for path in time_point_paths(scan, output_dir).values()
    ]
    return [each for path in paths for each in (path, sidecar_path(path)) if each.is_file()]
