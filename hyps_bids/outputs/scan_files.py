"""The files of one scan: its derivatives, or the record of why there are none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

from hyps_bids.errors import BadData
from hyps_bids.outputs.columns import MORPH_COLUMNS, described, qc_columns
from hyps_bids.outputs.completion import content_of, fingerprint_of, recorded_fingerprint
from hyps_bids.outputs.flags import reasons
from hyps_bids.outputs.labels import HEMISPHERES, SIDE_NAMES, WHOLE, label_table
from hyps_bids.outputs.names import bids_uri, norms_path, scan_paths, sidecar_path, surface_path
from hyps_bids.outputs.provenance import Provenance
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.spaces import remove_spaces, space_files, spaces_of
from hyps_bids.outputs.writing import (
    remove_file,
    remove_files,
    remove_stale,
    write_json,
    write_table,
    write_volumes,
)

if TYPE_CHECKING:
    # Imported where tables are made: reports need only the names here.
    import pandas as pd

#: Mm along each axis around a hippocampus that the segmentation network sees in its two views; the
#: QC sidecar records the centers of these boxes.
BOX = (39, 55, 39)
#: Slope of probabilities stored in 8 bits, rounded down so that 255 is never read as more than 1.
_SLOPE = float(np.nextafter(np.float32(1 / 255), np.float32(0)))


@dataclass(frozen=True)
class ScanImages:
    """The images of one scan, on the grid and in the axis order of its own file.

    Attributes
    ----------
    labels : numpy.ndarray
        Labels as in :func:`hyps_bids.outputs.labels.label_table`, uint8, shape ``(x, y, z)``.
    probabilities : iterable of numpy.ndarray
        Probability of each label in turn times 255, uint8, shape ``(x, y, z)``. They may be made
        one at a time, as many parts at high resolution would need much memory.
    intracranial : numpy.ndarray
        1 inside the skull, else 0, uint8, shape ``(x, y, z)``.
    """

    labels: np.ndarray
    probabilities: Iterable[np.ndarray]
    intracranial: np.ndarray


@dataclass(frozen=True)
class ScanMeasures:
    """The numbers of one scan.

    Attributes
    ----------
    parts : tuple of str
        The adapter's classes in order, background left out.
    volumes : dict of str to list of (int, float, float)
        Hemisphere → voxels, volume and soft volume (mm³) of each part and, last, of the whole.
        A hemisphere without a hippocampus in the field of view has no entry.
    figures : dict of str to float
        Quality measures, named as in the QC table.
    flags, remarks : tuple of str
        Reasons to look at the scan, and what is unusual about its file.
    box_centers : dict of str to (float, float, float)
        Hemisphere → world coordinates of the center of the network's box, mm.
    devices : dict of str to str
        Step → device that computed it.
    expected_dice : str
        For which networks the expected Dice was calibrated, or why there is none.
    edited : bool
        Whether the labels are not those of the networks.
    """

    parts: tuple[str, ...]
    volumes: dict[str, list[tuple[int, float, float]]]
    figures: dict[str, float]
    flags: tuple[str, ...]
    remarks: tuple[str, ...]
    box_centers: dict[str, tuple[float, float, float]]
    devices: dict[str, str]
    expected_dice: str = ""
    edited: bool = False


def write_result(
    scan: Scan,
    output_dir: Path,
    images: ScanImages,
    measures: ScanMeasures,
    provenance: Provenance,
    content: str,
) -> Path:
    """Write the derivatives of a scan.

    The QC sidecar marks the scan as done, so it is written last. Several jobs may write the same
    scan from the same content: they write the same files.

    Parameters
    ----------
    scan : Scan
        The scan.
    output_dir : Path
        The derivatives dataset.
    images, measures : ScanImages, ScanMeasures
        What to write.
    provenance : Provenance
        Facts for the sidecars.
    content : str
        What :func:`hyps_bids.outputs.completion.content_of` said before the image was read.

    Returns
    -------
    Path
        The QC sidecar.

    Raises
    ------
    BadData
        If the file has changed since.
    CannotCreateOutput
        If a file cannot be written.
    """
    if content_of(scan) != content:
        raise BadData(
            f"{scan.path}: the file has changed while it was processed. Run the command again "
            "when it is complete.",
            code="image-changed",
        )
    paths = scan_paths(scan, output_dir)
    digest = fingerprint_of(content, provenance)
    if recorded_fingerprint(scan, output_dir) != digest:
        # If this process is killed half-way, old and new files are mixed and the scan must not
        # look done. The mark of another job that has just made the same outputs stays.
        remove_file(sidecar_path(paths["qc"]))
        remove_extras(scan, output_dir)
        remove_spaces(scan, output_dir)
    remove_stale(paths["qc"].parent)
    source = nib.load(scan.path)
    table = label_table(measures.parts)
    uri = bids_uri("raw", Path(scan.folder) / scan.path.name)
    common: dict[str, Any] = {
        "Sources": [uri],
        **grid_metadata(scan, uri),
        **provenance,
        "Devices": measures.devices,
    }

    headers = image_headers(source, len(table))
    write_volumes(paths["dseg"], headers["dseg"], [images.labels])
    write_volumes(paths["probseg"], headers["probseg"], images.probabilities)
    write_volumes(paths["mask"], headers["mask"], [images.intracranial])
    for name, facts in {
        "dseg": {
            "Description": "Hippocampus, one label per part and side"
            + (", edited after the networks" if measures.edited else ""),
            "Manual": measures.edited,
        },
        "probseg": {
            "Description": "Probability of each part of the hippocampus",
            "LabelMap": table["name"].tolist(),
        },
        "mask": {
            "Description": "Intracranial volume, from the localizer network",
            "Type": "Brain",
        },
        "morph": described(MORPH_COLUMNS),
    }.items():
        write_json(sidecar_path(paths[name]), common | facts)
    write_table(paths["morph"], morph_table(scan.suffix, measures))
    write_table(paths["qc"], qc_table(scan.suffix, measures))
    boxes: dict[str, Any] = {
        "Description": "Where the localizer found each hippocampus: center of the network's box, "
        "world coordinates (RAS).",
        "Units": "mm",
    }
    for hemi, center in measures.box_centers.items():
        boxes[hemi] = [round(float(value), 2) for value in center]
    mark = sidecar_path(paths["qc"])
    facts = {"ExpectedDice": measures.expected_dice, "BoxCentres": boxes, "Fingerprint": digest}
    write_json(mark, common | described(qc_columns()) | facts)
    return mark


def remove_norms(scan: Scan, output_dir: Path) -> None:
    """Remove the centiles of a scan, if there are any.

    Raises
    ------
    CannotCreateOutput
        If a file cannot be removed.
    """
    path = norms_path(scan, output_dir)
    remove_files([sidecar_path(path), path])


def remove_extras(scan: Scan, output_dir: Path) -> None:
    """Remove what was made from an earlier result of a scan: centiles and surfaces.

    Raises
    ------
    CannotCreateOutput
        If a file cannot be removed.
    """
    for path in _extra_paths(scan, output_dir):
        remove_files([sidecar_path(path), path])


def _extra_paths(scan: Scan, output_dir: Path) -> list[Path]:
    surfaces = [surface_path(scan, output_dir, hemi) for hemi in HEMISPHERES]
    return [norms_path(scan, output_dir), *surfaces]


def grid_metadata(scan: Scan, uri: str) -> dict[str, str]:
    """Return the keys that BIDS requires where the names of outputs have ``space`` or ``res``."""
    has_space = any(entity.startswith("space-") for entity in scan.source_entities)
    metadata = {"SpatialReference": uri} if has_space else {}
    has_resolution = "res" in scan.derived_entities
    return metadata | ({"Resolution": f"The grid of {uri}"} if has_resolution else {})


def write_failure(scan: Scan, output_dir: Path, reason: str) -> None:
    """Record why a scan failed, and remove what an earlier content of the scan gave.

    Raises
    ------
    CannotCreateOutput
        If a file cannot be written or removed.
    """
    paths = scan_paths(scan, output_dir)
    # In this order, a scan that another job finishes meanwhile is either done or done again later.
    remove_file(sidecar_path(paths["qc"]))
    row = {"suffix": scan.suffix, "status": "failed", "reason": " ".join(reason.split())}
    write_table(paths["qc"], _qc_table(row))
    old = [path for name, path in paths.items() if name != "qc"]
    old += _extra_paths(scan, output_dir)
    spaces = spaces_of(scan, output_dir)
    there = [path for space in spaces for path in space_files(scan, space, output_dir)]
    try:
        remove_files([*old, *map(sidecar_path, old), *there])
    finally:
        remove_stale(paths["qc"].parent)


def image_headers(source: nib.Nifti1Image, labels: int) -> dict[str, nib.Nifti1Header]:
    """Make the headers of the images of a scan, on the grid of its file.

    Parameters
    ----------
    source : nibabel.Nifti1Image
        The image that was segmented.
    labels : int
        Number of labels, which have a volume of probabilities each.

    Returns
    -------
    dict of str to nibabel.Nifti1Header
        Keys are ``dseg``, ``probseg`` and ``mask``.
    """
    shape = tuple(int(side) for side in source.shape[:3])
    probseg = grid_of(source, (*shape, labels))
    probseg.set_slope_inter(_SLOPE, 0)
    return {"dseg": grid_of(source, shape), "probseg": probseg, "mask": grid_of(source, shape)}


def grid_of(source: nib.Nifti1Image, shape: tuple[int, ...]) -> nib.Nifti1Header:
    """Make a header for 8-bit data on the grid of a file, with both its transforms."""
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(np.uint8)
    header.set_xyzt_units("mm")
    zooms = [float(zoom) for zoom in source.header.get_zooms()[:3]]
    header.set_zooms(zooms + [1.0] * (len(shape) - 3))
    header.set_slope_inter(1, 0)
    for kind in ("qform", "sform"):
        _, code = getattr(source.header, f"get_{kind}")(coded=True)
        _copy_transform(source.header, header, kind, int(code))
    return header


def _copy_transform(source: Any, target: Any, kind: str, code: int) -> None:
    # The fields are copied one by one: a round trip through a matrix changes the last digits of
    # the qform.
    target[f"{kind}_code"] = code
    names = {
        "qform": ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
        "sform": ("srow_x", "srow_y", "srow_z"),
    }
    for name in names[kind]:
        target[name] = source[name]
    if kind == "qform":
        target["pixdim"][0] = source["pixdim"][0]


def morph_table(suffix: str, measures: ScanMeasures) -> pd.DataFrame:
    """Make the table of volumes of a scan.

    Parameters
    ----------
    suffix : str
        BIDS suffix of the image.
    measures : ScanMeasures
        The numbers of the scan.

    Returns
    -------
    pandas.DataFrame
        A row for each part and, last on each side, the whole hippocampus; columns as in
        :data:`hyps_bids.outputs.columns.MORPH_COLUMNS`.
    """
    import pandas as pd

    table, rows = label_table(measures.parts), []
    for hemi in HEMISPHERES:
        parts = table[table["hemi"] == hemi]
        names = [*parts[["index", "name", "part"]].itertuples(index=False, name=None)]
        names.append((None, f"{SIDE_NAMES[hemi].capitalize()} hippocampus", WHOLE))
        volumes = measures.volumes.get(hemi, [(None, None, None)] * len(names))
        for (index, name, part), values in zip(names, volumes, strict=True):
            numbers = [*values, measures.figures["icv_mm3"]]
            rows.append([suffix, index, name, hemi, part, *numbers])
    frame = pd.DataFrame(rows, columns=list(MORPH_COLUMNS))
    return frame.astype({"index": "Int64", "voxels": "Int64"})


def qc_table(suffix: str, measures: ScanMeasures) -> pd.DataFrame:
    """Make the QC table of a scan, one row; the parameters are those of :func:`morph_table`."""
    row = {
        "suffix": suffix,
        "status": "done",
        "review": "yes" if measures.flags else "no",
        "reasons": " ".join(reasons(measures.flags, measures.figures)) or None,
        "flags": " ".join(measures.flags) or None,
        "remarks": "; ".join(measures.remarks) or None,
        "edited": "yes" if measures.edited else "no",
        **measures.figures,
    }
    return _qc_table(row)


def _qc_table(row: Mapping[str, Any]) -> pd.DataFrame:
    import pandas as pd

    frame = pd.DataFrame([row], columns=list(qc_columns()))
    counts = [f"border_voxels_{hemi}" for hemi in HEMISPHERES]
    return frame.astype(dict.fromkeys(counts, "Int64"))
