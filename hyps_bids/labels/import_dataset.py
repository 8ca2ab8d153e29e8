"""Write imported images and labels as a BIDS dataset with a derivatives dataset inside."""

from __future__ import annotations

import logging
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.affines import apply_affine

from hyps_bids.errors import BadData, CannotCreateOutput, MissingInput
from hyps_bids.labels.import_descriptions import LABELS, ImportedDataset, read_earlier
from hyps_bids.labels.import_images import (
    SourceImage,
    crop_affine,
    new_nifti,
    on_grid_of,
    read_image,
    to_nifti,
)
from hyps_bids.labels.import_table import Row
from hyps_bids.labels.presets import Preset
from hyps_bids.labels.voxels import find_structures
from hyps_bids.outputs.digests import sha256
from hyps_bids.outputs.labels import label_table
from hyps_bids.outputs.names import SEG, bids_uri, output_path, sidecar_path
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.writing import write_json, write_nifti, write_with
from hyps_bids.progress import track

_LOG = logging.getLogger("hyps_bids")


@dataclass(frozen=True)
class Outcome:
    """The result of an import: numbers of images, and a message for each that failed."""

    written: int
    unchanged: int
    problems: tuple[str, ...]


@dataclass(frozen=True)
class _Source:
    """An image with its labels, headers read, and the sidecars of the files to write."""

    row: Row
    image: SourceImage
    labels: tuple[SourceImage, ...]
    #: The image file can be copied as it is.
    copied: bool
    image_path: Path
    image_sidecar: dict[str, Any]
    label_path: Path
    label_sidecar: dict[str, Any]


def import_rows(
    rows: Sequence[Row], source: Path, output: Path, about: Preset, *, orientation: str
) -> Outcome:
    """Import images with their labels.

    The images go to `output`, one label image for each to ``derivatives/manual`` below, on the
    grid of the image. ``seg-hippocampus_dseg.tsv`` there gives the meaning of the labels 1, 2, …
    in the form of the app's own outputs. 3-D NIfTI images with a transform are copied as they are;
    others are converted, with data type, values and grid kept. An image that cannot be imported
    does not stop the others.

    Parameters
    ----------
    rows, source : sequence of Row, Path
        What to import, with paths relative to the folder `source`.
    output, about : Path, Preset
        BIDS dataset to write, and what it is. If it exists it must be of the same description;
        images in it that were imported from the same files are left alone.
    orientation : str
        Axes of images that do not state theirs, such as ``LAS``.
    """
    maps = [label_map for row in rows for _, label_map in row.labels]
    parts = list(dict.fromkeys(s.part for label_map in maps for s in label_map.structures))
    table = label_table(parts)
    dataset = ImportedDataset(output, about, table, crops=any(row.crop for row in rows))
    dataset.check()
    problems = _colliding(rows)
    done: list[Row] = []
    written = assumed = 0
    for row in track(rows, len(rows), "images", "import"):
        if row.stem in problems:
            continue
        try:
            found = _open(row, source, output, orientation)
            if not _is_there(found):
                image, labels = _convert(found, table)
                if not done:
                    dataset.write()
                _write_scan(found, image, labels)
                written += 1
        except (BadData, MissingInput) as error:
            problems[row.stem] = str(error)
            continue
        done.append(row)
        assumed += found.image.assumed and not row.crop
    if done:
        dataset.write_participants(done)
    if assumed:
        _LOG.warning(
            "%d of %d images do not state their orientation; their axes were taken as %s. Look "
            "at some of them: --orientation sets it.", assumed, len(done), orientation,
        )  # fmt: skip
    return Outcome(written, len(done) - written, tuple(problems.values()))


def _colliding(rows: Sequence[Row]) -> dict[str, str]:
    """Find different participants that would get the same BIDS label."""
    names = defaultdict(set)
    for row in rows:
        names[row.subject.casefold()].add(row.participant)
    return {
        row.stem: f"participants {', '.join(sorted(same))} would all be {row.subject}"
        for row in rows
        if len(same := names[row.subject.casefold()]) > 1
    }


def _open(row: Row, source: Path, output: Path, orientation: str) -> _Source:
    image = read_image(source / row.image, orientation)
    labels = tuple(read_image(source / path, orientation) for path, _ in row.labels)
    single = isinstance(image.image, nib.Nifti1Image) and len(image.image.shape) == 3
    copied = single and not image.assumed and not row.crop
    notes: dict[str, Any] = {}
    if row.crop:
        affine = crop_affine(image.shape, image.image.header.get_zooms()[:3], row.crop)
        # The labels keep their place relative to the image.
        move = affine @ np.linalg.inv(image.affine)
        image = replace(image, affine=affine)
        labels = tuple(replace(label, affine=move @ label.affine) for label in labels)
        notes = {"CropAroundHippocampus": True, "CropHemisphere": row.crop}
    elif image.assumed:
        notes = {"AssumedOrientation": orientation}
    scan = Scan.from_path(Path(f"{row.stem}_T1w"))
    extension = ".nii" if copied and image.path.suffix == ".nii" else ".nii.gz"
    relative = scan.folder / f"{row.stem}_T1w{extension}"
    label_files = [
        {**file, "LabelMap": label_map.line}
        for label, (_, label_map) in zip(labels, row.labels, strict=True)
        for file in _files(label, source)
    ]
    label_sidecar = {"Manual": True, "Sources": [bids_uri("raw", relative)]}
    return _Source(
        row,
        image,
        labels,
        copied,
        output / relative,
        {"SourceFiles": _files(image, source)} | notes,
        output_path(output / LABELS, scan, suffix="dseg", extension=".nii.gz", seg=SEG),
        label_sidecar | {"SourceFiles": label_files} | notes,
    )


def _files(image: SourceImage, source: Path) -> list[dict[str, str]]:
    """Name the files of an image; a pair has two."""
    paths = {Path(holder.filename) for holder in image.image.file_map.values() if holder.filename}
    return [
        {"File": path.relative_to(source).as_posix(), "SHA256": sha256(path)}
        for path in sorted(paths)
        if path.is_file()
    ]


def _convert(found: _Source, table: pd.DataFrame) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """Read image and labels, and check them together."""
    # Also read an image that is only copied, to find truncated files.
    image = to_nifti(found.image, found.image.affine)
    structures: dict[tuple[str, str], np.ndarray] = {}
    for label, (_, label_map) in zip(found.labels, found.row.labels, strict=True):
        data = on_grid_of(label, found.image)
        try:
            there = find_structures(label_map, data, found.image.affine)
        except BadData as error:
            raise BadData(f"{label.path}: {error}", code=error.code) from error
        for structure, voxels in there.items():
            structures[structure] = structures.get(structure, False) | voxels
    _check_sides(found, structures)
    index = {(row.hemi, row.part): row.index for row in table.itertuples(index=False)}
    merged = np.zeros(found.image.shape, dtype=np.uint8)
    for structure, voxels in structures.items():
        if merged[voxels].any():
            raise BadData(
                f"{found.image.path}: the label images claim some voxels twice",
                code="labels-overlap",
            )
        merged[voxels] = index[structure]
    return image, new_nifti(merged, found.image.affine)


def _check_sides(found: _Source, structures: Mapping[tuple[str, str], np.ndarray]) -> None:
    """Refuse labels with left and right swapped; warn if a side has none."""
    x: dict[str, float] = {}
    for side in "LR":
        voxels = [there for (hemi, _), there in structures.items() if hemi == side]
        if voxels:
            where = np.argwhere(np.any(voxels, axis=0))
            x[side] = float(apply_affine(found.image.affine, where)[:, 0].mean())
    row, path = found.row, found.image.path
    if row.crop:
        if set(x) != {row.crop}:
            raise BadData(
                f"{path}: this is a crop of side {row.crop}, but the labels are of {'+'.join(x)}",
                code="crop-side-differs",
            )
        return
    if len(x) == 1:
        _LOG.warning("%s: has labels of side %s only", path, *x)
    elif x["L"] >= x["R"]:
        if row.check_sides:
            raise BadData(
                f"{path}: the labels called left lie {x['L'] - x['R']:.0f} mm to the right of "
                "the labels called right; the label map or the orientation is wrong "
                "(--label-map, --orientation)",
                code="sides-swapped",
            )
        _LOG.warning("%s: left and right labels are swapped; kept as they are", path)


def _is_there(found: _Source) -> bool:
    """Tell whether the same files were imported before; refuse if other files were."""
    for path, sidecar in (
        (sidecar_path(found.image_path), found.image_sidecar),
        (sidecar_path(found.label_path), found.label_sidecar),
    ):
        before = read_earlier(path)
        if before is None:
            return False
        if before != sidecar:
            raise CannotCreateOutput(
                f"{path}: the image was imported from other files or with other settings. Remove "
                "the dataset, or import into another folder.",
                code="imported-differently",
            )
    return found.image_path.is_file() and found.label_path.is_file()


def _write_scan(found: _Source, image: nib.Nifti1Image, labels: nib.Nifti1Image) -> None:
    """Write image and labels. Sidecars are written last: they mark the rest as complete."""
    if found.copied:
        write_with(found.image_path, lambda partial: shutil.copyfile(found.image.path, partial))
    else:
        write_nifti(found.image_path, image)
    write_nifti(found.label_path, labels)
    write_json(sidecar_path(found.image_path), found.image_sidecar)
    write_json(sidecar_path(found.label_path), found.label_sidecar)
