"""What one scan leaves behind: its derivatives, or the reason why there are none."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from hyps_bids.bids.derivatives import (
    bids_uri,
    output_path,
    remove_stale,
    write_json,
    write_nifti,
    write_table,
)
from hyps_bids.bids.index import Scan
from hyps_bids.imaging.conform import restore_orientation
from hyps_bids.imaging.quality import thresholds
from hyps_bids.imaging.resample import resample
from hyps_bids.imaging.volumes import RestoredSide
from hyps_bids.networks.checkpoints import sha256
from hyps_bids.segmentation.labels import label_table
from hyps_bids.segmentation.localise import HEMISPHERES

__all__ = [
    "MORPH_COLUMNS",
    "ScanResult",
    "fingerprint",
    "is_done",
    "qc_columns",
    "write_failure",
    "write_result",
]

#: column of the volume table → description
MORPH_COLUMNS = {
    "index": "Label in the segmentation; n/a for the whole hippocampus.",
    "name": "Name of the structure.",
    "hemi": "Hemisphere: L left, R right.",
    "part": "Part of the hippocampus; 'whole' for all of it.",
    "voxels": "Number of voxels with the label. n/a: not in the field of view, not zero.",
    "volume_mm3": "voxels times the volume of a voxel, mm3.",
    "volume_soft_mm3": "Sum of the structure's probability over the voxels within 2 mm (or one "
    "voxel, if that is more) of the segmented hippocampus, times the volume of a voxel, mm3.",
    "icv_mm3": "Intracranial volume, mm3: sum of the localiser network's intracranial probability "
    "at 2.5 mm. Includes cerebrospinal fluid; too small if the field of view cuts the head.",
}
_SIDE_FIGURES = (
    "confidence",
    "entropy",
    "component_fraction",
    "border_voxels",
    "agreement",
    "volume_mm3",
    "localiser_confidence",
)
_SCAN_FIGURES = ("asymmetry", "icv_mm3")
_SEG = "hippocampus"
#: of probabilities in 8 bits; rounded down, so that 255 does not come back as more than 1
_SLOPE = float(np.nextafter(np.float32(1 / 255), np.float32(0)))


@dataclass(frozen=True)
class ScanResult:
    """All that was computed of a scan.

    Attributes
    ----------
    orientation : numpy.ndarray
        From the file's axes to the canonical ones.
    affine, shape : numpy.ndarray, tuple of int
        The canonical grid.
    native_shape : tuple of int
        The file's spatial shape.
    restored : dict of str to RestoredSide
        By hemisphere, on the canonical grid.
    intracranial, intracranial_affine : numpy.ndarray
        Intracranial probability on the localiser's grid.
    measures : dict
        Volumes, figures, flags, remarks, labels, centres of the boxes and devices.
    """

    orientation: np.ndarray
    affine: np.ndarray
    shape: tuple[int, ...]
    native_shape: tuple[int, ...]
    restored: dict[str, RestoredSide]
    intracranial: np.ndarray
    intracranial_affine: np.ndarray
    measures: dict[str, Any]


def qc_columns() -> dict[str, str]:
    """Columns of the QC table and their descriptions, bounds included."""
    columns = {
        "status": "done, or failed: then there are no other outputs of this scan.",
        "reason": "Why the scan failed.",
        "flags": "Figures outside their bounds (low_NAME, high_NAME) and hippocampi that were "
        "not found in the field of view (missing_L, missing_R), separated by spaces. "
        "A flagged scan should be looked at.",
        "remarks": "What is unusual about the input file.",
    }
    figures = [f"{name}_{hemi}" for name in _SIDE_FIGURES for hemi in HEMISPHERES]
    for figure in [*figures, *_SCAN_FIGURES]:
        known = thresholds()[figure.removesuffix("_L").removesuffix("_R")]
        bounds = [
            f"{end} if {sign} {known[end]:g}"
            for end, sign in (("low", "<"), ("high", ">"))
            if end in known
        ]
        columns[figure] = f"{known['description']} Flagged {' or '.join(bounds)}."
    return columns


def fingerprint(scan: Scan, provenance: Mapping[str, Any]) -> str:
    """Digest of a scan's content and of all that decides its result."""
    try:
        image = sha256(scan.path)
    except OSError:
        # one file that cannot be read fails by itself later, it does not end the run here
        image = "unreadable"
    content = json.dumps([image, dict(provenance)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def is_done(scan: Scan, output_dir: Path, digest: str) -> bool:
    """Tell whether the outputs of a scan are all there and made from the same content."""
    paths = _paths(scan, output_dir)
    return _recorded(paths) == digest and _all_there(paths)


def is_complete(scan: Scan, output_dir: Path) -> bool:
    """Tell whether the outputs of a scan are all there, whatever they were made from."""
    paths = _paths(scan, output_dir)
    return _recorded(paths) is not None and _all_there(paths)


def write_result(
    scan: Scan, output_dir: Path, result: ScanResult, provenance: dict[str, Any]
) -> Path:
    """Write a scan's derivatives, the QC sidecar that marks it as done last.

    Several jobs may write the same scan from the same content: they write the same files.

    Parameters
    ----------
    scan : Scan
        The scan.
    output_dir : Path
        The derivatives dataset.
    result : ScanResult
        What to write.
    provenance : dict
        Facts for the sidecars.

    Returns
    -------
    Path
        The QC sidecar.
    """
    paths = _paths(scan, output_dir)
    digest = fingerprint(scan, provenance)
    if _recorded(paths) != digest:
        # killed half-way, a scan whose old outputs are partly replaced must not look done; the mark
        # of another job that has just made the same outputs stays
        _sidecar(paths["qc"]).unlink(missing_ok=True)
    remove_stale(paths["qc"].parent)
    header = nib.load(scan.path)
    table = label_table(result.measures["labels"])
    labels = np.zeros(result.shape, dtype=np.uint8)
    probabilities = np.zeros((*result.shape, len(table)), dtype=np.uint8)
    for hemi, side in result.restored.items():
        first = int(table.index[table["hemi"] == hemi][0])
        region = labels[side.region]
        region[side.labels > 0] = side.labels[side.labels > 0] + first
        last = first + len(side.probabilities)
        probabilities[(*side.region, slice(first, last))] = np.round(
            255 * np.moveaxis(side.probabilities, 0, -1)
        )
    inside = resample(result.intracranial, result.intracranial_affine, result.shape, result.affine)
    sources = {"Sources": [bids_uri("raw", Path(scan.folder) / scan.path.name)]}
    made = provenance | {"Devices": result.measures["devices"]}

    write_nifti(paths["dseg"], _native(labels, result, header))
    write_json(
        _sidecar(paths["dseg"]),
        sources
        | {"Description": "Hippocampus, one label per part and side", "Manual": False}
        | made,
    )
    write_nifti(paths["probseg"], _native(probabilities, result, header, slope=_SLOPE))
    write_json(
        _sidecar(paths["probseg"]),
        sources
        | {
            "Description": "Probability of each part of the hippocampus",
            "LabelMap": table["name"].tolist(),
        }
        | made,
    )
    write_nifti(paths["mask"], _native((inside > 0.5).astype(np.uint8), result, header))
    write_json(
        _sidecar(paths["mask"]),
        sources
        | {"Description": "Intracranial volume, from the localiser network", "Type": "Brain"}
        | made,
    )
    write_table(paths["morph"], _morph(table, result.measures))
    write_json(_sidecar(paths["morph"]), sources | _described(MORPH_COLUMNS) | made)
    row = {
        "status": "done",
        "flags": " ".join(result.measures["flags"]) or None,
        "remarks": "; ".join(result.measures["remarks"]) or None,
    }
    write_table(paths["qc"], _qc(row | result.measures["figures"]))
    boxes: dict[str, Any] = {
        "Description": "Where the localiser found each hippocampus: centre of the network's box, "
        "world coordinates (RAS).",
        "Units": "mm",
    }
    for hemi, centre in result.measures["box_centres"].items():
        boxes[hemi] = [round(float(value), 2) for value in centre]
    sidecar = _sidecar(paths["qc"])
    write_json(
        sidecar,
        sources | _described(qc_columns()) | made | {"BoxCentres": boxes, "Fingerprint": digest},
    )
    return sidecar


def write_failure(scan: Scan, output_dir: Path, reason: str) -> None:
    """Record why a scan failed; what an earlier content of the scan gave is removed."""
    paths = _paths(scan, output_dir)
    # in this order, another job that succeeds at the same time is either done or to be done again
    _sidecar(paths["qc"]).unlink(missing_ok=True)
    write_table(paths["qc"], _qc({"status": "failed", "reason": " ".join(reason.split())}))
    for name, path in paths.items():
        _sidecar(path).unlink(missing_ok=True)
        if name != "qc":
            path.unlink(missing_ok=True)
    remove_stale(paths["qc"].parent)


def _paths(scan: Scan, output_dir: Path) -> dict[str, Path]:
    kinds = {
        "dseg": {"seg": _SEG, "suffix": "dseg", "extension": ".nii.gz"},
        "probseg": {"seg": _SEG, "suffix": "probseg", "extension": ".nii.gz"},
        "mask": {"label": "ICV", "suffix": "mask", "extension": ".nii.gz"},
        "morph": {"seg": _SEG, "suffix": "morph", "extension": ".tsv"},
        "qc": {"seg": _SEG, "suffix": "qc", "extension": ".tsv"},
    }
    return {name: output_path(output_dir, scan, **kind) for name, kind in kinds.items()}


def _all_there(paths: Mapping[str, Path]) -> bool:
    return all(path.is_file() and _sidecar(path).is_file() for path in paths.values())


def _recorded(paths: Mapping[str, Path]) -> str | None:
    """Read from which content the outputs were made; None unless they are complete."""
    try:
        recorded: dict[str, Any] = json.loads(_sidecar(paths["qc"]).read_text())
    except (OSError, ValueError):
        return None
    return recorded.get("Fingerprint")


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name.split(".")[0] + ".json")


def _native(
    data: np.ndarray, result: ScanResult, source: nib.Nifti1Image, slope: float | None = None
) -> nib.Nifti1Image:
    """Put canonical data on the file's own grid, with both its transforms."""
    native = restore_orientation(data, result.orientation)
    header = nib.Nifti1Header()
    header.set_data_shape(native.shape)
    header.set_data_dtype(np.uint8)
    header.set_xyzt_units("mm")
    image = nib.Nifti1Image(native, None, header)
    zooms = [float(z) for z in source.header.get_zooms()[:3]]
    image.header.set_zooms(zooms + [1.0] * (native.ndim - 3))
    for kind in ("qform", "sform"):
        _, code = getattr(source.header, f"get_{kind}")(coded=True)
        _copy_transform(source.header, image.header, kind, int(code))
    if slope is not None:
        image.header.set_slope_inter(slope, 0)
    return image


def _copy_transform(source: Any, target: Any, kind: str, code: int) -> None:
    # field by field: a round trip through a matrix would move the qform's last digits
    target[f"{kind}_code"] = code
    names = {
        "qform": ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
        "sform": ("srow_x", "srow_y", "srow_z"),
    }
    for name in names[kind]:
        target[name] = source[name]
    if kind == "qform":
        target["pixdim"][0] = source["pixdim"][0]


def _morph(table: pd.DataFrame, measures: Mapping[str, Any]) -> pd.DataFrame:
    rows = []
    for hemi in HEMISPHERES:
        volumes = measures["volumes"].get(hemi)
        parts = table[table["hemi"] == hemi]
        side = {"L": "Left", "R": "Right"}[hemi]
        names = [*parts[["index", "name", "part"]].itertuples(index=False, name=None)]
        names.append((None, f"{side} hippocampus", "whole"))
        for i, (index, name, part) in enumerate(names):
            values = volumes[i] if volumes else [None, None, None]
            rows.append([index, name, hemi, part, *values, measures["figures"]["icv_mm3"]])
    frame = pd.DataFrame(rows, columns=list(MORPH_COLUMNS))
    return frame.astype({"index": "Int64", "voxels": "Int64"})


def _qc(row: Mapping[str, Any]) -> pd.DataFrame:
    frame = pd.DataFrame([row], columns=list(qc_columns()))
    borders = [f"border_voxels_{hemi}" for hemi in HEMISPHERES]
    return frame.astype(dict.fromkeys(borders, "Int64"))


def _described(columns: Mapping[str, str]) -> dict[str, dict[str, str]]:
    return {name: {"Description": text} for name, text in columns.items()}
