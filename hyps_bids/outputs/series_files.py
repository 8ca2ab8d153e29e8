"""The files of one series: its tables, the images of its scans, or the record of a failure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

from hyps_bids.outputs.columns import (
    ANNUAL_CHANGE_COLUMNS,
    LONGITUDINAL_COLUMNS,
    SERIES_QC_COLUMNS,
    described,
)
from hyps_bids.outputs.names import bids_uri, sidecar_path
from hyps_bids.outputs.provenance import Provenance
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.scan_files import grid_metadata, grid_of
from hyps_bids.outputs.series import Series, time_point_paths
from hyps_bids.outputs.series_state import Member, is_series_done, leftover_files
from hyps_bids.outputs.transforms import itk_transform
from hyps_bids.outputs.writing import (
    remove_file,
    remove_files,
    remove_stale,
    write_json,
    write_table,
    write_text,
    write_volumes,
)

if TYPE_CHECKING:
    # Imported where tables are made: removing files needs only the names here.
    import pandas as pd


@dataclass(frozen=True)
class TimePointImages:
    """The images of one scan of a series.

    Attributes
    ----------
    labels : numpy.ndarray
        Labels on the grid and in the axis order of the scan's file, uint8.
    midway_labels, midway_image : numpy.ndarray
        Labels, uint8, and intensities, float32, on the grid of the midway space.
    to_midway : numpy.ndarray
        From the world of the scan to the midway world (RAS, mm), shape (4, 4).
    """

    labels: np.ndarray
    midway_labels: np.ndarray
    midway_image: np.ndarray
    to_midway: np.ndarray


@dataclass(frozen=True)
class SeriesResult:
    """What was found in a series.

    Attributes
    ----------
    morph, annual, qc : pandas.DataFrame
        Its tables; the first two are empty unless two scans were used.
    grid : numpy.ndarray
        Voxel-to-world transform of the images in the midway space.
    used : sequence of Scan
        The scans that have images: none unless a hippocampus was found in two of them.
    images : iterable of TimePointImages
        Their images; they may be made one at a time.
    """

    morph: pd.DataFrame
    annual: pd.DataFrame
    qc: pd.DataFrame
    grid: np.ndarray
    used: Sequence[Scan]
    images: Iterable[TimePointImages]


def write_series(
    series: Series,
    members: Sequence[Member],
    result: SeriesResult,
    fingerprint: str,
    provenance: Provenance,
    output_dir: Path,
    known: Sequence[Scan] = (),
    is_current: Callable[[], bool] = lambda: True,
) -> bool:
    """Write the results of a series.

    The sidecar of the QC table marks the series as done, so it is written last, and an outdated one
    is removed first. Several jobs may write the same series: from the same scans, they write the
    same files. A job that has not seen the last scan leaves no mark, as it may have written over
    the files of another that has.

    Parameters
    ----------
    series : Series
        The series.
    members : sequence of Member
        Its scans, in the order of time.
    result : SeriesResult
        What was found in them.
    fingerprint : str
        Digest of what decided it.
    provenance : Provenance
        Facts for the sidecars.
    output_dir : Path
        The derivatives dataset.
    known : sequence of Scan
        Further scans that may have been in the series before.
    is_current : function
        Tells, after all else is written, whether its scans are still these.

    Returns
    -------
    bool
        Whether the series is done; otherwise, it has to be done again.

    Raises
    ------
    CannotCreateOutput
        If a file cannot be written.
    """
    paths = series.paths(output_dir)
    mark = sidecar_path(paths["qc"])
    if not is_series_done(series, output_dir, fingerprint):
        remove_file(mark)
    scans = [member.scan for member in members]
    for path in leftover_files([*known, *scans], result.used, output_dir):
        remove_file(path)
    for folder in {series.folder, *(scan.folder for scan in scans)}:
        remove_stale(output_dir / folder)
    uris = [bids_uri("raw", scan.folder / scan.path.name) for scan in scans]
    common: dict[str, Any] = {"Sources": uris, **provenance}
    for scan, images in zip(result.used, result.images, strict=True):
        _write_time_point(scan, images, result, common, output_dir)
    _write_or_remove(paths["morph"], result.morph, LONGITUDINAL_COLUMNS, common)
    _write_or_remove(paths["annual"], result.annual, ANNUAL_CHANGE_COLUMNS, common)
    write_table(paths["qc"], result.qc)
    facts = {
        "Scans": {member.scan.stem: member.fingerprint for member in members},
        "Used": [scan.stem for scan in result.used],
        "Fingerprint": fingerprint,
    }
    if not is_current():
        return False
    write_json(mark, common | described(SERIES_QC_COLUMNS) | facts)
    return True


def _write_or_remove(
    path: Path, table: pd.DataFrame, columns: Mapping[str, str], common: dict[str, Any]
) -> None:
    if table.empty:
        remove_file(sidecar_path(path))
        remove_file(path)
    else:
        write_table(path, table)
        write_json(sidecar_path(path), common | described(columns))


def write_series_failure(
    series: Series, scans: Sequence[Scan], output_dir: Path, reason: str
) -> None:
    """Record why a series failed, and remove what an earlier run found.

    Raises
    ------
    CannotCreateOutput
        If a file cannot be written or removed.
    """
    import pandas as pd

    remove_series(series, scans, output_dir)
    rows = [
        {
            "suffix": scan.suffix,
            "scan": scan.stem,
            "session_id": f"ses-{scan.session}" if scan.session else None,
            "status": "failed",
            "reason": " ".join(reason.split()),
        }
        for scan in scans
    ]
    table = pd.DataFrame(rows, columns=list(SERIES_QC_COLUMNS))
    write_table(series.paths(output_dir)["qc"], table)


def remove_series(series: Series, scans: Sequence[Scan], output_dir: Path) -> None:
    """Remove the files of a series that is no more: its tables, and those of the given scans.

    Raises
    ------
    CannotCreateOutput
        If a file cannot be removed.
    """
    paths = series.paths(output_dir)
    # Without its mark, the series no longer looks done, whatever happens next. Its QC table, which
    # names the scans that have files, is the last.
    tables = [each for k in ("annual", "morph") for each in (sidecar_path(paths[k]), paths[k])]
    files = leftover_files(scans, (), output_dir)
    remove_files([sidecar_path(paths["qc"]), *tables, *files, paths["qc"]])


def _write_time_point(
    scan: Scan,
    images: TimePointImages,
    result: SeriesResult,
    common: dict[str, Any],
    output_dir: Path,
) -> None:
    paths = time_point_paths(scan, output_dir)
    uri = bids_uri("raw", scan.folder / scan.path.name)
    reference = time_point_paths(result.used[0], Path())["midway_image"]
    midway = {"SpatialReference": bids_uri("", reference)}
    if "res" in scan.derived_entities:
        midway["Resolution"] = "1 mm"
    words = "Hippocampus, one label per part and side, from all scans of the series together"
    labels = {"Description": words, "Manual": False}
    write_volumes(paths["dseg"], grid_of(nib.load(scan.path), images.labels.shape), [images.labels])
    write_json(sidecar_path(paths["dseg"]), common | grid_metadata(scan, uri) | labels)
    header = _header(images.midway_labels, result.grid)
    write_volumes(paths["midway_dseg"], header, [images.midway_labels])
    write_json(sidecar_path(paths["midway_dseg"]), common | midway | labels)
    header = _header(images.midway_image, result.grid)
    write_volumes(paths["midway_image"], header, [images.midway_image])
    facts = {
        "Description": "The scan around both hippocampi, with its intensities matched to those of "
        "the other scans; 0 elsewhere",
        "SkullStripped": False,
    }
    write_json(sidecar_path(paths["midway_image"]), common | midway | {"Sources": [uri]} | facts)
    write_text(paths["xfm"], itk_transform(images.to_midway))
    facts = {
        "Description": "Rigid transform of the scan to the space midway between all scans of the "
        "series, for antsApplyTransforms or SimpleITK",
    }
    write_json(sidecar_path(paths["xfm"]), common | {"Sources": [uri]} | facts)


def _header(data: np.ndarray, affine: np.ndarray) -> nib.Nifti1Header:
    header = nib.Nifti1Header()
    header.set_data_shape(data.shape)
    header.set_data_dtype(data.dtype)
    header.set_xyzt_units("mm")
    header.set_slope_inter(1, 0)
    # Aligned with the scans of the series, but with the world of none of them.
    header.set_sform(affine, code="aligned")
    header.set_qform(affine, code="aligned")
    return header
