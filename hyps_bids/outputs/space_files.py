"""The files of a scan in the space of a template: images, transforms, and the table of quality."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from hyps_bids.errors import BadData
from hyps_bids.outputs.columns import SPACE_QC_COLUMNS, described
from hyps_bids.outputs.completion import content_of, recorded_fingerprint
from hyps_bids.outputs.labels import label_table
from hyps_bids.outputs.names import bids_uri, scan_paths, sidecar_path
from hyps_bids.outputs.reading import load_json
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.scan_files import image_headers
from hyps_bids.outputs.space_flags import describe_space_flag
from hyps_bids.outputs.spaces import Space, remove_space, space_files, space_paths, spaces_of
from hyps_bids.outputs.transforms import itk_transform
from hyps_bids.outputs.writing import (
    remove_file,
    remove_stale,
    write_json,
    write_table,
    write_text,
    write_volumes,
)

#: What the sidecars say about the use of these images.
LIMITATIONS = (
    "An affine transform brings the scan to the template: size, position and tilt of the head are "
    "matched, its shape is not. Good for showing where hippocampi lie, and for masks that are "
    "generous. Not for volumes (use those of the scan's own grid) nor for voxel-wise statistics "
    "of the shape of the hippocampus, which need a nonlinear registration."
)


@dataclass(frozen=True)
class TemplateRecord:
    """What is known about the image of a template: its space, file, source and SHA-256 sum."""

    space: Space
    path: Path
    url: str
    digest: str


@dataclass(frozen=True)
class SpaceImages:
    """A scan in the space of a template.

    Attributes
    ----------
    labels : numpy.ndarray
        Labels as in :func:`hyps_bids.outputs.labels.label_table`, on the grid and in the axis order
        of the template's file, uint8.
    probabilities : sequence of numpy.ndarray
        Probability of each label times 255, uint8.
    to_template : numpy.ndarray
        From the world of the scan to that of the template (RAS, mm), shape (4, 4).
    picture : str
        SVG of the outlines on the template.
    """

    labels: np.ndarray
    probabilities: Sequence[np.ndarray]
    to_template: np.ndarray
    picture: str


def space_fingerprint(scan_fingerprint: str, template: TemplateRecord, version: str) -> str:
    """Digest what decides the results of a scan in the space of a template."""
    text = json.dumps([scan_fingerprint, template.space.label, template.digest, version])
    return hashlib.sha256(text.encode()).hexdigest()


def recorded_space(scan: Scan, space: Space, output_dir: Path) -> dict[str, Any]:
    """Read the sidecar that marks the results as done; empty unless they are complete."""
    files = space_files(scan, space, output_dir)
    try:
        content: dict[str, Any] = load_json(files[0])
        needed = files if content["Status"] == "done" else [files[-1]]
        # A full disk or a copy that was cut short leaves empty files.
        return content if all(path.stat().st_size for path in needed) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def write_space(
    scan: Scan,
    output_dir: Path,
    template: TemplateRecord,
    images: SpaceImages | None,
    row: Mapping[str, Any],
    facts: Mapping[str, Any],
    content: str,
) -> None:
    """Write the results of a scan in the space of a template, or that there are none.

    The sidecar of the QC table marks them as done, so it is written last.

    Parameters
    ----------
    scan : Scan
        The scan.
    output_dir : Path
        The derivatives dataset.
    template : TemplateRecord
        The template.
    images : SpaceImages or None
        What to write; None if the registration was refused.
    row : mapping
        Figures, ``refusal`` (code or nothing) and ``flags`` (codes) of the registration.
    facts : mapping
        Facts for all sidecars; the fingerprints are in the last one only.
    content : str
        What :func:`hyps_bids.outputs.completion.content_of` said before the image was read.

    Raises
    ------
    BadData
        If the image or the results of the scan have changed since.
    CannotCreateOutput
        If a file cannot be written or removed.
    """
    _check_unchanged(scan, output_dir, facts["ScanFingerprint"], content)
    paths = space_paths(scan, template.space, output_dir)
    files = space_files(scan, template.space, output_dir)
    for other in spaces_of(scan, output_dir):
        if other.template == template.space.template and other != template.space:
            # Both resolutions would have the same transform.
            remove_space(scan, other, output_dir)
    remove_file(files[0])
    remove_stale(paths["qc"].parent)
    if images is None:
        for path in files[1:-1]:
            remove_file(path)
    else:
        _write_images(scan, paths, template, images, facts)
    write_table(paths["qc"], _table(scan, template.space, row))
    mark = {
        "Status": "refused" if images is None else "done",
        "Limitations": LIMITATIONS,
        **facts,
        **described(SPACE_QC_COLUMNS),
    }
    # Another job may have segmented the scan again meanwhile.
    _check_unchanged(scan, output_dir, facts["ScanFingerprint"], content)
    write_json(files[0], mark)


def _check_unchanged(scan: Scan, output_dir: Path, fingerprint: str, content: str) -> None:
    if content_of(scan) != content or recorded_fingerprint(scan, output_dir) != fingerprint:
        raise BadData(
            f"{scan.path}: the image or its results have changed while it was brought to the space "
            "of a template. Run the command again when nothing else works on it.",
            code="image-changed",
        )


def _write_images(
    scan: Scan,
    paths: Mapping[str, Path],
    template: TemplateRecord,
    images: SpaceImages,
    facts: Mapping[str, Any],
) -> None:
    common = {k: v for k, v in facts.items() if "Fingerprint" not in k} | {
        "Limitations": LIMITATIONS
    }
    there = {"SpatialReference": template.url}
    if template.space.resolution:
        there["Resolution"] = f"The grid of {template.path.name}"
    headers = image_headers(nib.load(template.path), len(images.probabilities))
    write_volumes(paths["dseg"], headers["dseg"], [images.labels])
    write_volumes(paths["probseg"], headers["probseg"], images.probabilities)
    table = label_table(tuple(facts["Parts"]))
    for kind, about in {
        "dseg": {
            "Description": "Hippocampus in the space of the template, one label per part and "
            "side. Each label was resampled linearly, and the largest share decides",
            "Manual": bool(facts.get("EditedLabels")),
        },
        "probseg": {
            "Description": "Probability of each part of the hippocampus in the space of the "
            "template, resampled linearly",
            "LabelMap": table["name"].tolist(),
        },
    }.items():
        write_json(sidecar_path(paths[kind]), common | there | about)
    for kind, matrix, words in (
        ("to", images.to_template, "of images of the scan to the template"),
        ("back", np.linalg.inv(images.to_template), "of images of the template to the scan"),
    ):
        write_text(paths[kind], itk_transform(matrix))
        text = f"Affine transform {words}, for antsApplyTransforms or SimpleITK"
        write_json(sidecar_path(paths[kind]), common | {"Description": text})
    write_text(paths["picture"], images.picture)


def _table(scan: Scan, space: Space, row: Mapping[str, Any]) -> Any:
    import pandas as pd

    codes = [row["refusal"]] if row["refusal"] else list(row["flags"])
    texts = [describe_space_flag(code, space.label).text for code in codes]
    values = {
        "suffix": scan.suffix,
        "scan": scan.stem,
        "session_id": f"ses-{scan.session}" if scan.session else None,
        "space": space.label,
        "status": "refused" if row["refusal"] else "done",
        "reason": texts[0] if row["refusal"] else None,
        "review": "yes" if codes else "no",
        "reasons": " ".join(texts) or None,
        "flags": " ".join(codes) or None,
        **row["figures"],
    }
    return pd.DataFrame([values], columns=list(SPACE_QC_COLUMNS))


def scan_record(scan: Scan, output_dir: Path) -> dict[str, Any]:
    """Read the QC sidecar of a scan, which names what decided its results."""
    content: dict[str, Any] = load_json(sidecar_path(scan_paths(scan, output_dir)["qc"]))
    return content


def scan_uri(scan: Scan) -> str:
    """Name the image of a scan in the raw dataset."""
    return bids_uri("raw", scan.folder / scan.path.name)
