"""Write imported images and labels as a BIDS dataset with a derivatives dataset inside."""

from __future__ import annotations

import json
import logging
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.affines import apply_affine
from tqdm import tqdm

from hyps_bids import __version__
from hyps_bids.errors import BadData, CannotCreateOutput, MissingInput
from hyps_bids.labels.import_images import (
    SourceImage,
    crop_affine,
    on_grid_of,
    read_image,
    to_nifti,
)
from hyps_bids.labels.import_table import Row
from hyps_bids.labels.meanings import Structure
from hyps_bids.labels.presets import Preset
from hyps_bids.outputs.digests import sha256
from hyps_bids.outputs.labels import label_table
from hyps_bids.outputs.names import bids_uri, output_path
from hyps_bids.outputs.reading import read_table
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.writing import write_json, write_nifti, write_table, write_text, write_with

__all__ = ["LABELS", "Outcome", "import_rows"]

_LOG = logging.getLogger("hyps_bids")
#: the derivatives dataset with the labels, below the raw dataset
LABELS = Path("derivatives", "manual")
_BIDS_VERSION = "1.10.0"
#: what differs between versions of this program is no difference between datasets
_NOT_COMPARED = "GeneratedBy"
_COLUMNS = {
    "index": "Label in the segmentation.",
    "name": "Name of the structure.",
    "hemi": "Hemisphere: L left, R right.",
    "part": "Part of the hippocampus.",
    "color": "Color for display, RGB in hexadecimal.",
}
_PARTICIPANT_COLUMNS = {
    "source_id": "Name of the participant in the source.",
    "split": "Part of the dataset that the participant belongs to.",
}
_CROP_NOTE = """
The images are crops around one hippocampus each (`CropAroundHippocampus` in their sidecars), not
heads. The source stores right ones mirrored and gives no position. Here the voxels are as in the
source; the first axis of right crops points to the left instead, so that left and right are as in
the body, left at negative x. The position itself is nominal. No localizer can work on crops:
train around the labels.
"""


@dataclass(frozen=True)
class Outcome:
    """What became of an import.

    Attributes
    ----------
    written, unchanged : int
        Images written now, and those that were there already.
    problems : tuple of str
        A message for each image that could not be imported.
    """

    written: int
    unchanged: int
    problems: tuple[str, ...]


@dataclass(frozen=True)
class _Source:
    """An image with its labels, headers read."""

    row: Row
    image: SourceImage
    labels: tuple[SourceImage, ...]
    raw_sidecar: dict[str, Any]
    label_sidecar: dict[str, Any]


def import_rows(
    rows: Sequence[Row], source: Path, output: Path, about: Preset, *, orientation: str
) -> Outcome:
    """Import images with their labels.

    The images go to `output`, one label image for each to ``derivatives/manual`` below, on the
    grid of the image: labels 1, 2, … as ``seg-hippocampus_dseg.tsv`` there says, which has the
    form of the app's own. Images are copied as they are if they are 3-D NIfTI with a transform,
    else converted with data type, values and grid kept. An image that cannot be imported does not
    stop the others.

    Parameters
    ----------
    rows : sequence of Row
        What to import; paths relative to `source`.
    source : Path
        Folder of the source.
    output : Path
        BIDS dataset to write. If it exists it must be of the same description; images in it that
        were imported from the same files are left alone.
    about : Preset
        What the dataset is, for its descriptions.
    orientation : str
        Axes of images that do not say theirs, such as ``LAS``.

    Returns
    -------
    Outcome
        Counts and problems.

    Raises
    ------
    CannotCreateOutput
        If `output` cannot be written, or holds something else.
    """
    parts = list(dict.fromkeys(part for row in rows for part in _parts(row)))
    table = label_table(parts)
    crops = any(row.crop for row in rows)
    _check_same(output, _descriptions(output, about, crops), table)
    problems = _colliding(rows)
    done: list[Row] = []
    written = 0
    assumed: list[str] = []
    for row in tqdm(rows, desc="import", unit="image", disable=None):
        if row.stem in problems:
            continue
        try:
            found = _open(row, source, orientation)
            if not _is_there(found, output):
                image, labels = _convert(found, table)
                if not done:
                    _write_descriptions(output, about, table, crops)
                _write_scan(found, image, labels, output)
                written += 1
        except (BadData, MissingInput) as error:
            problems[row.stem] = str(error)
            continue
        done.append(row)
        if found.image.assumed and not row.crop:
            assumed.append(row.stem)
    if done:
        _write_participants(output, done)
    if assumed:
        _LOG.warning(
            "%d of %d images do not say how they are oriented; their axes were taken as %s. Look "
            "at some: --orientation sets it.", len(assumed), len(done), orientation,
        )  # fmt: skip
    return Outcome(written, len(done) - written, tuple(problems.values()))


def _parts(row: Row) -> list[str]:
    return [part for _, label_map in row.labels for _, part in label_map.structures]


def _colliding(rows: Sequence[Row]) -> dict[str, str]:
    """Find different participants that would get the same BIDS label."""
    names = defaultdict(set)
    for row in rows:
        names[row.stem.split("_")[0].casefold()].add(row.participant)
    return {
        row.stem: f"participants {', '.join(sorted(same))} would all be {row.stem.split('_')[0]}"
        for row in rows
        if len(same := names[row.stem.split("_")[0].casefold()]) > 1
    }


def _open(row: Row, source: Path, orientation: str) -> _Source:
    image = read_image(source / row.image, orientation)
    labels = tuple(read_image(source / path, orientation) for path, _ in row.labels)
    notes: dict[str, Any] = {}
    if row.crop:
        zooms = image.image.header.get_zooms()[:3]
        same = image.affine
        affine = crop_affine(image.shape, zooms, row.crop)
        # labels keep their place relative to the image
        move = affine @ np.linalg.inv(same)
        image = SourceImage(image.path, image.image, affine, image.assumed)
        labels = tuple(SourceImage(x.path, x.image, move @ x.affine, x.assumed) for x in labels)
        notes = {"CropAroundHippocampus": True, "CropHemisphere": row.crop}
    elif image.assumed:
        notes = {"AssumedOrientation": orientation}
    scan = Scan.from_path(Path(f"{row.stem}_T1w"))
    raw = {"SourceFiles": _files(image, source)} | notes
    label = {
        "Manual": True,
        "Sources": [bids_uri("raw", scan.folder / _image_name(row, image))],
        "SourceFiles": [
            {**file, "LabelMap": label_map.text}
            for one, (_, label_map) in zip(labels, row.labels, strict=True)
            for file in _files(one, source)
        ],
    }
    return _Source(row, image, labels, raw, label | notes)


def _files(image: SourceImage, source: Path) -> list[dict[str, str]]:
    """Name the files of an image; a pair has two."""
    paths = {Path(holder.filename) for holder in image.image.file_map.values() if holder.filename}
    return [
        {"File": path.relative_to(source).as_posix(), "SHA256": sha256(path)}
        for path in sorted(paths)
        if path.is_file()
    ]


def _kept(image: SourceImage, row: Row) -> bool:
    """Tell whether the file can be copied as it is."""
    single = isinstance(image.image, nib.Nifti1Image) and len(image.image.shape) == 3
    return single and not image.assumed and not row.crop


def _image_name(row: Row, image: SourceImage) -> str:
    plain = _kept(image, row) and image.path.name.endswith(".nii")
    return f"{row.stem}_T1w{'.nii' if plain else '.nii.gz'}"


def _convert(found: _Source, table: pd.DataFrame) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """Read image and labels, and check them together."""
    # read also if it is only copied: a truncated file is found here
    image = to_nifti(found.image, found.image.affine)
    structures: dict[Structure, np.ndarray] = {}
    for label, (_, label_map) in zip(found.labels, found.row.labels, strict=True):
        data = on_grid_of(label, found.image)
        try:
            there = label_map.apply(data, found.image.affine)
        except BadData as error:
            raise BadData(f"{label.path}: {error}") from error
        for structure, voxels in there.items():
            structures[structure] = structures.get(structure, False) | voxels
    _check_sides(found, structures)
    index = {(row.hemi, row.part): row.index for row in table.itertuples(index=False)}
    merged = np.zeros(found.image.shape, dtype=np.uint8)
    for structure, voxels in structures.items():
        if merged[voxels].any():
            raise BadData(f"{found.image.path}: its label images claim some voxels twice")
        merged[voxels] = index[structure]
    labels = nib.Nifti1Image(merged, found.image.affine)
    labels.header.set_xyzt_units("mm")
    for kind in (labels.set_sform, labels.set_qform):
        kind(found.image.affine, code="aligned")
    return image, labels


def _check_sides(found: _Source, structures: Mapping[Structure, np.ndarray]) -> None:
    """Refuse labels whose left is right; say if a side has none."""
    x: dict[str, float] = {}
    for side in "LR":
        voxels = [there for (hemi, _), there in structures.items() if hemi == side]
        if voxels:
            where = np.argwhere(np.any(voxels, axis=0))
            x[side] = float(apply_affine(found.image.affine, where)[:, 0].mean())
    row, path = found.row, found.image.path
    if row.crop:
        if set(x) != {row.crop}:
            raise BadData(f"{path}: is a crop of side {row.crop}, its labels are of {'+'.join(x)}")
        return
    if len(x) == 1:
        _LOG.warning("%s: has labels of side %s only", path, *x)
    elif x["L"] >= x["R"]:
        if row.check_sides:
            raise BadData(
                f"{path}: the labels called left lie {x['L'] - x['R']:.0f} mm to the right of "
                "those called right; the label map or the orientation is wrong "
                "(--label-map, --orientation)"
            )
        _LOG.warning("%s: left and right labels are swapped; kept as they are", path)


def _is_there(found: _Source, output: Path) -> bool:
    """Tell whether the same files were imported before; refuse if it were others."""
    image, labels = _paths(found, output)
    for path, sidecar in ((image, found.raw_sidecar), (labels, found.label_sidecar)):
        before = _read_json(_sidecar(path))
        if before is None:
            return False
        if before != sidecar:
            raise CannotCreateOutput(
                f"{_sidecar(path)}: was imported from other files or with other settings; remove "
                "the dataset, or import into another folder"
            )
    return image.is_file() and labels.is_file()


def _paths(found: _Source, output: Path) -> tuple[Path, Path]:
    scan = Scan.from_path(Path(f"{found.row.stem}_T1w"))
    image = output / scan.folder / _image_name(found.row, found.image)
    labels = output_path(
        output / LABELS, scan, suffix="dseg", extension=".nii.gz", seg="hippocampus"
    )
    return image, labels


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name.split(".")[0] + ".json")


def _write_scan(
    found: _Source, image: nib.Nifti1Image, labels: nib.Nifti1Image, output: Path
) -> None:
    """Write image and labels, sidecars last: they say that the rest is complete."""
    image_path, label_path = _paths(found, output)
    if _kept(found.image, found.row):
        write_with(image_path, lambda partial: shutil.copyfile(found.image.path, partial))
    else:
        write_nifti(image_path, image)
    write_nifti(label_path, labels)
    write_json(_sidecar(image_path), found.raw_sidecar)
    write_json(_sidecar(label_path), found.label_sidecar)


def _descriptions(output: Path, about: Preset, crops: bool) -> dict[Path, dict[str, Any]]:
    """Make the JSON files that say what the dataset is."""
    note = {"Description": "Images and labels imported; nothing was resampled."}
    generated = {"Name": "hyps-tools import", "Version": __version__} | note
    raw: dict[str, Any] = {
        "Name": about.name,
        "BIDSVersion": _BIDS_VERSION,
        "DatasetType": "raw",
        "License": about.license,
    }
    if about.authors:
        raw["Authors"] = list(about.authors)
    if about.citation:
        raw["HowToAcknowledge"] = f"Cite {about.citation}"
    if about.links:
        raw["ReferencesAndLinks"] = list(about.links)
        raw["SourceDatasets"] = [{"URL": about.links[0]}]
    labels = raw | {
        "Name": f"Manual hippocampus labels of {about.name}",
        "DatasetType": "derivative",
        "SourceDatasets": [{"URL": "../.."}],
        "DatasetLinks": {"raw": "../.."},
        _NOT_COMPARED: [{"Name": "Manual segmentation"}, generated],
    }
    raw[_NOT_COMPARED] = [generated]
    if crops:
        raw["CropAroundHippocampus"] = labels["CropAroundHippocampus"] = True
    columns = {name: {"Description": text} for name, text in _COLUMNS.items()}
    return {
        output / "dataset_description.json": raw,
        output / LABELS / "dataset_description.json": labels,
        output / LABELS / "seg-hippocampus_dseg.json": columns,
    }


def _check_same(
    output: Path, descriptions: Mapping[Path, Mapping[str, Any]], table: pd.DataFrame
) -> None:
    """Refuse a folder that holds anything but an import of the same dataset."""
    try:
        occupied = output.exists() and any(output.iterdir())
    except OSError as error:
        raise CannotCreateOutput(f"{output}: cannot be used ({error.strerror})") from error
    if not occupied:
        return
    for path, content in descriptions.items():
        before = _read_json(path)
        if before is None and path.parent == output:
            raise CannotCreateOutput(f"{output}: is not empty and not a dataset; choose another")
        if before is not None and _compared(before) != _compared(content):
            raise CannotCreateOutput(f"{path}: describes another dataset; choose another folder")
    names = output / LABELS / "seg-hippocampus_dseg.tsv"
    if names.is_file() and read_table(names)["name"].tolist() != table["name"].tolist():
        raise CannotCreateOutput(f"{names}: names other labels; choose another folder")


def _compared(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key != _NOT_COMPARED}


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CannotCreateOutput(
            f"{path}: cannot be read ({error}); choose another folder"
        ) from error
    return content if isinstance(content, dict) else {}


def _write_descriptions(output: Path, about: Preset, table: pd.DataFrame, crops: bool) -> None:
    for path, content in _descriptions(output, about, crops).items():
        write_json(path, content)
    write_table(output / LABELS / "seg-hippocampus_dseg.tsv", table)
    about_source = "".join(
        f"\n{title}: {text}\n"
        for title, text in (
            ("License", about.license),
            ("Citation", about.citation),
            ("Links", " ".join(about.links)),
        )
        if text
    )
    write_text(
        output / "README.md",
        f"# {about.name}\n\nT1-weighted images, brought into BIDS by `hyps-tools import`. Sidecars "
        f"name the source files. Labels: `{LABELS.as_posix()}`.\n{about_source}"
        + (_CROP_NOTE if crops else ""),
    )
    write_text(
        output / LABELS / "README.md",
        f"# Manual hippocampus labels of {about.name}\n\nOn the grids of the images. "
        f"`seg-hippocampus_dseg.tsv` says what the values mean.\n{about_source}"
        + (_CROP_NOTE if crops else ""),
    )


def _write_participants(output: Path, rows: Sequence[Row]) -> None:
    """Write participants.tsv, with those of earlier imports."""
    path = output / "participants.tsv"
    people: dict[str, dict[str, Any]] = {}
    if path.is_file():
        before = read_table(path)
        people = {person["participant_id"]: person for person in before.to_dict("records")}
    for row in rows:
        name = row.stem.split("_")[0]
        people[name] = {"participant_id": name, "source_id": row.participant, "split": row.split}
    frame = pd.DataFrame([people[name] for name in sorted(people)]).dropna(axis=1, how="all")
    write_table(path, frame)
    columns = {k: {"Description": v} for k, v in _PARTICIPANT_COLUMNS.items() if k in frame}
    write_json(path.with_suffix(".json"), columns)
