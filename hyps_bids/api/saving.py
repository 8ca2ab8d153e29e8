"""Write the result of one image as the BIDS App writes that of a scan."""

from __future__ import annotations

import errno
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib

from hyps_bids.errors import BadData, HypsError, UsageError
from hyps_bids.imaging.conform import UNREADABLE
from hyps_bids.imaging.sources import NIFTI_EXTENSIONS, PATH_SUM, Source, read_source, sum_of
from hyps_bids.outputs.completion import content_of, is_done
from hyps_bids.outputs.dataset import BIDS_VERSION, write_dataset_files
from hyps_bids.outputs.digests import sha256
from hyps_bids.outputs.edits import recorded_edits, with_edit
from hyps_bids.outputs.location import find_owner
from hyps_bids.outputs.names import sidecar_path
from hyps_bids.outputs.reading import read_json_object
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.scan_files import ScanImages, ScanMeasures, write_failure, write_result
from hyps_bids.outputs.surface_files import has_surfaces, lacks_surfaces
from hyps_bids.outputs.writing import atomic_path, write_json, write_nifti
from hyps_bids.reports.citation import write_methods
from hyps_bids.reports.state import is_current, report_path
from hyps_bids.reports.subject import write_subject_report
from hyps_bids.segmentation.setup import Setup
from hyps_bids.segmentation.surfaces import add_surfaces
from hyps_bids.settings import SHOWN_SETTINGS, Settings, settings_to_toml

#: Where the images lie in the output folder, as a small raw dataset.
_RAW = Path("sourcedata", "raw")
_DESCRIPTION = "dataset_description.json"


@dataclass(frozen=True)
class Saved:
    """What was segmented, and how.

    Attributes
    ----------
    scan : Scan
        Name of the outputs.
    source : Source
        The image.
    content : str or None
        SHA-256 sum of its file when it was read; None if it was not a NIfTI file.
    settings, setup : Settings, Setup
        Options and networks.
    """

    scan: Scan
    source: Source
    content: str | None
    settings: Settings
    setup: Setup


def check_folder(folder: Path) -> None:
    """Check that results may be saved to a folder; nothing is written.

    Raises
    ------
    UsageError
        If it is a file, holds files of another origin, or the outputs of a BIDS dataset.
    CannotCreateOutput
        If it cannot be read.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(
            f"{folder}: OUT_DIR is a file. Name a folder for the results after the images.",
            code="output-is-file",
        )
    advice = "Choose a new folder."
    if owner := find_owner(folder):
        raise UsageError(f"{folder}: this folder holds {owner}. {advice}", code="output-not-ours")
    if not (folder / _DESCRIPTION).is_file():
        return
    links = read_json_object(folder / _DESCRIPTION).get("DatasetLinks")
    if not isinstance(links, dict) or links.get("raw") != _RAW.as_posix():
        raise UsageError(
            f"{folder}: this folder holds the outputs of a BIDS dataset, and those of single "
            f"images must not be mixed with them. {advice}",
            code="output-of-dataset",
        )


def save_scan(
    folder: Path,
    saved: Saved,
    images: ScanImages,
    measures: ScanMeasures,
    report: bool,
    surfaces: bool,
) -> Path:
    """Write the outputs of an image; see :meth:`hyps_bids.SegmentationResult.save`."""
    check_folder(folder)
    folder = folder.absolute()
    raw = folder / _RAW
    settings = replace(saved.settings, bids_dir=raw, output_dir=folder)
    scan = _place(raw, saved)
    if scan.stem in recorded_edits([scan], folder):
        raise BadData(
            f"{folder}: the labels of {scan.stem} were edited by hand, and would be lost. Save to "
            "another folder; the participant level of hyps-bids keeps edits where it processes "
            "images again.",
            code="labels-were-edited",
        )
    write_dataset_files(settings, labels=saved.setup.labels)
    provenance = saved.setup.provenance
    content = saved.content or content_of(scan)
    # Scans that had surfaces keep having them.
    surfaces = surfaces or has_surfaces(scan, folder)
    write_methods(folder, provenance, (scan.suffix,), surfaces=surfaces)
    write_result(scan, folder, images, measures, provenance, content)
    if surfaces:
        add_surfaces(scan, folder)
    if not report:
        return folder
    return _write_report(folder, scan, settings)


def _write_report(folder: Path, scan: Scan, settings: Settings) -> Path:
    shown = settings_to_toml(settings, SHOWN_SETTINGS) or "# all are the defaults\n"
    return write_subject_report(folder / _RAW, folder, scan.subject, settings_text=shown)


def saved_scan(folder: Path, scan: Scan, image: Path, setup: Setup) -> Scan | None:
    """Return the scan of an image whose results are in the folder and up to date, else None.

    Parameters
    ----------
    folder, scan : Path, Scan
        The output folder, and the name of the outputs.
    image : Path
        The file or the folder of the image; what is not NIfTI is read, to compare it.
    setup : Setup
        Networks and options.
    """
    place = folder.absolute() / _RAW / scan.folder / scan.path.name
    there = [path for end in NIFTI_EXTENSIONS if (path := _with_end(place, end)).exists()]
    if not there or not _is_same_image(there[0], image):
        return None
    found = replace(scan, path=there[0])
    edit = recorded_edits([found], folder).get(found.stem)
    return found if is_done(found, folder, with_edit(setup.provenance, edit)) else None


def _is_same_image(there: Path, image: Path) -> bool:
    """Tell whether an image of an earlier call is the same as one that is given now."""
    try:
        return _same(there, read_source(image))
    except HypsError:
        # The message is given when the image is segmented.
        return False


def complete(folder: Path, scan: Scan, settings: Settings, *, surfaces: bool) -> Path:
    """Make what results of an earlier call lack: surfaces, and a report that is up to date.

    Parameters
    ----------
    folder, scan : Path, Scan
        The output folder, and what :func:`saved_scan` returned.
    settings : Settings
        Options that the report shows.
    surfaces : bool
        Whether there must be surfaces.

    Returns
    -------
    Path
        The report.

    Raises
    ------
    MissingInput, BadData
        If an output is damaged.
    CannotCreateOutput
        If a file cannot be written.
    """
    folder = folder.absolute()
    if surfaces and lacks_surfaces(scan, folder):
        add_surfaces(scan, folder)
    if is_current(folder / _RAW, folder, scan.subject):
        return report_path(folder, scan.subject)
    return _write_report(folder, scan, settings)


def record_failure(folder: Path, scan: Scan, name: Path, reason: str) -> None:
    """Replace the results that an earlier content of an image gave by the reason of its failure.

    Parameters
    ----------
    folder, scan : Path, Scan
        Where its results would be.
    name : Path
        The file or the folder of the image.
    reason : str
        Why there are no results.
    """
    raw = folder.absolute() / _RAW
    try:
        origin = read_json_object(sidecar_path(raw / scan.folder / scan.path.name))
    except BadData:
        return
    if origin.get(PATH_SUM) == sum_of(str(name.absolute())):
        write_failure(scan, folder, reason)
        write_subject_report(raw, folder, scan.subject)


def _place(raw: Path, saved: Saved) -> Scan:
    """Put the image into the raw dataset, as a link if it is a NIfTI file; return its scan."""
    source = saved.source
    end = NIFTI_EXTENSIONS[0]
    if source.path is not None and not source.path.name.casefold().endswith(end):
        end = NIFTI_EXTENSIONS[1]
    place = raw / saved.scan.folder / saved.scan.path.name.replace(NIFTI_EXTENSIONS[0], end)
    known = sidecar_path(place)
    _refuse_other(place, known, source)
    description = {"Name": "single images", "BIDSVersion": BIDS_VERSION, "DatasetType": "raw"}
    write_json(raw / _DESCRIPTION, description)
    write_json(known, dict(source.origin))
    if source.path is None:
        write_nifti(place, source.image)
    else:
        _link(place, source.path)
    return replace(saved.scan, path=place)


def _link(place: Path, path: Path) -> None:
    target = path.absolute()
    if place.is_symlink() and place.readlink() == target:
        return
    with atomic_path(place) as partial:
        try:
            partial.symlink_to(target)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            # Some disks have no links.
            partial.write_bytes(path.read_bytes())


def _refuse_other(place: Path, known: Path, source: Source) -> None:
    """Refuse to replace the results of another image of the same name."""
    ends = [_with_end(place, end) for end in NIFTI_EXTENSIONS]
    there = [path for path in ends if path.exists() or path.is_symlink()]
    if not there:
        return
    try:
        origin = read_json_object(known)
    except BadData:
        origin = {}
    if (origin and origin == dict(source.origin)) or _same(there[0], source):
        for old in there:
            if old != place:
                old.unlink()
        return
    subject = place.name.split("_")[0]
    where = there[0].readlink() if there[0].is_symlink() else "another image"
    raise UsageError(
        f"{source.name}: the folder already has results called {subject}, of {where}. Give this "
        "image another name, or choose another folder.",
        code="name-taken",
    )


def _with_end(place: Path, end: str) -> Path:
    return place.with_name(place.name.split(".")[0] + end)


def _same(there: Path, source: Source) -> bool:
    """Tell whether a file has the same content as an image."""
    try:
        if source.path is not None:
            return sha256(there) == sha256(source.path)
        stored: bytes = nib.load(there).to_bytes()
        return bool(stored == source.image.to_bytes())
    except UNREADABLE:
        return False
