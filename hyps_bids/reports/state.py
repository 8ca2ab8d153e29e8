"""The state of a subject report: whether it shows the outputs as they are now.

Thousands of reports are checked whenever a run starts, so this module imports and reads little.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from hyps_bids import __version__
from hyps_bids.outputs.series import find_series_of
from hyps_bids.reports.scan_facts import Inventory, facts_files, take_inventory
from hyps_bids.reports.series_facts import series_files

#: Number of bytes at the start of a report within which its state is written.
_HEAD = 2_000


def report_path(output_dir: Path, subject: str) -> Path:
    """Name the report of a subject (label without ``sub-``)."""
    return output_dir / f"sub-{subject}.html"


def is_current(bids_dir: Path, output_dir: Path, subject: str) -> bool:
    """Tell whether a report shows the outputs as they are now, with pictures and settings.

    Parameters
    ----------
    bids_dir, output_dir : Path
        The raw dataset and the derivatives dataset.
    subject : str
        Label, without ``sub-``.

    Returns
    -------
    bool
        Also true if there are no outputs, because then there is nothing to report.
    """
    found = take_inventory(bids_dir, output_dir, subject)
    if not found.scans:
        return True
    try:
        with report_path(output_dir, subject).open("rb") as report:
            head = report.read(_HEAD)
    except OSError:
        return False
    state = _digest(found, output_dir, subject, with_settings=True)
    return f'content="{state}"'.encode() in head


def state_of(bids_dir: Path, output_dir: Path, subject: str, *, with_settings: bool) -> str:
    """Digest what a report shows: it changes when another job finishes a scan.

    The first parameters are those of :func:`is_current`; reports without the settings of the run
    have another state.
    """
    found = take_inventory(bids_dir, output_dir, subject)
    return _digest(found, output_dir, subject, with_settings=with_settings)


def _digest(found: Inventory, output_dir: Path, subject: str, *, with_settings: bool) -> str:
    digest = hashlib.sha256(f"{__version__} {with_settings} ".encode())
    # Names of files need not be valid UTF-8.
    for names in (found.unprocessed, found.without_image):
        digest.update(" ".join(names).encode(errors="surrogateescape"))
    files = [path for scan in found.scans for path in facts_files(output_dir, scan).values()]
    for series in find_series_of(output_dir, subject):
        files += series_files(output_dir, series)
    for path in files:
        try:
            content = path.read_bytes()
        except OSError:
            content = b""
        name = path.name.encode(errors="surrogateescape")
        digest.update(b"%b %d " % (name, len(content)) + content)
    return digest.hexdigest()
