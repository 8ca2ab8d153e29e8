"""Labels that somebody has corrected: find them, check them, and measure them.

An edit is a ``_dseg`` image in a dataset of its own (``--edits``), on the grid of its scan and with
our values. It replaces the networks' labels. Probabilities stay those of the networks, and so do
the soft volumes that follow from them.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from nibabel.affines import apply_affine

from hyps_bids.bids.folders import list_images
from hyps_bids.errors import BadData, MissingInput, UsageError
from hyps_bids.imaging.agreement import dice
from hyps_bids.imaging.conform import ConformedImage, conform
from hyps_bids.imaging.roi import bounding_box
from hyps_bids.imaging.volumes import RestoredSide, largest_component
from hyps_bids.labels.meanings import read_label_table
from hyps_bids.messages import format_count, join_names, suggest_names
from hyps_bids.outputs.edits import Edit, make_edit
from hyps_bids.outputs.labels import HEMISPHERES, SIDE_NAMES, label_rows
from hyps_bids.outputs.quality import EXPECTED, EXPECTED_LOW, flags
from hyps_bids.outputs.scan import OWN_SPACES, Scan
from hyps_bids.outputs.scan_files import ScanMeasures
from hyps_bids.segmentation.features import count_on_image_edge
from hyps_bids.segmentation.measures import asymmetry
from hyps_bids.settings import Settings

_LOG = logging.getLogger("hyps_bids")
#: Entities that tell versions of labels apart, but not scans.
_VERSION = {"seg", "atlas", "res", "den", "label", "desc"}
#: Largest distance between the same corner of two grids that are one, voxels.
_SAME_GRID = 0.05
#: Largest share of the labels of one side where the networks found the other one.
_STRAY = 0.1
#: Measures of the networks' labels, which raise no flag where others have replaced them.
_OF_NETWORKS = (
    EXPECTED,
    EXPECTED_LOW,
    "confidence",
    "entropy",
    "agreement",
    "disagreement",
    "localiser_confidence",
    "brightness_difference",
)


def find_edits(settings: Settings, scans: Sequence[Scan]) -> dict[str, Edit]:
    """Find the edited labels of scans, by the stem of the scan.

    Those of the folder of ``--edits`` count, and no others.

    Raises
    ------
    MissingInput
        If the folder does not exist.
    UsageError
        If it is the output folder.
    """
    root = settings.edits
    assert root is not None
    if not root.is_dir():
        raise MissingInput(f"{root}: the folder of --edits does not exist.", code="edits-missing")
    if root.resolve() == settings.output_dir.resolve():
        raise UsageError(
            f"{root}: --edits is the output folder, whose labels are written anew. Copy the labels "
            "that you edit to a folder of their own.",
            code="edits-are-outputs",
        )
    found = _match(root, settings.bids_dir, scans)
    _LOG.info("%s with edited labels in %s", format_count(len(found), "scan"), root)
    return found


def _match(root: Path, bids_dir: Path, scans: Sequence[Scan]) -> dict[str, Edit]:
    """Give each label image of a folder to its scan, and warn of those that have none."""
    by_subject = defaultdict(list)
    for scan in scans:
        by_subject[scan.subject].append(scan)
    others = {path.name.removeprefix("sub-") for path in root.glob("sub-*") if path.is_dir()}
    # Participants that were not selected are no mistake.
    wanted = {s for s in others if s in by_subject or not (bids_dir / f"sub-{s}").is_dir()}
    files: dict[str, list[Path]] = defaultdict(list)
    strange = []
    for participant in list_images(root, sorted(wanted)):
        for folder, why in participant.unreadable.items():
            _LOG.warning("%s: cannot be read (%s)", root / folder, why)
        for name in sorted(participant.others):
            path = root / name
            if not path.name.endswith(("_dseg.nii.gz", "_dseg.nii")) or path.name[0] == ".":
                continue
            owner = _scan_of(path, root, by_subject[participant.label])
            if owner is None:
                strange.append(path)
            else:
                files[owner.stem].append(path)
    stems = [scan.stem for scan in scans]
    for path in strange:
        near = suggest_names([path.name.removesuffix(".gz").removesuffix("_dseg.nii")], stems)
        _LOG.warning(
            "%s: these edited labels belong to none of the selected scans (%s), and are not used.",
            *(path, near),
        )
    return {stem: make_edit(paths, root) for stem, paths in files.items()}


def _scan_of(path: Path, root: Path, scans: Sequence[Scan]) -> Scan | None:
    """Find the scan of which a label image has all entities that tell scans apart."""
    named = Scan.from_path(path)
    if path.parent != root / named.folder:
        return None
    entities = {key: value for key, value in named.entities if key}
    own = _telling(entities)
    fitting = [s for s in scans if own == _telling(_named_entities(s))]
    if len(fitting) < 2:
        return fitting[0] if fitting else None
    # Scans that differ by entities of derivatives, such as desc-preproc, are told apart by them.
    exact = [s for s in fitting if s.derived_entities.items() <= entities.items()]
    return max(exact, key=lambda s: len(s.derived_entities), default=None)


def _named_entities(scan: Scan) -> dict[str, str]:
    """Return the entities of a scan as they stand in the names of its derivatives."""
    return dict(entity.split("-", 1) for entity in scan.source_entities)


def _telling(entities: Mapping[str, str]) -> dict[str, str]:
    """Return the entities that tell scans apart, in a form that can be compared."""
    return {
        key: value.lstrip("0") or "0" if key == "run" else value
        for key, value in entities.items()
        if key not in _VERSION and not (key == "space" and value in OWN_SPACES)
    }


def apply_edit(
    edit: Edit, image: ConformedImage, restored: Mapping[str, RestoredSide], parts: Sequence[str]
) -> dict[str, RestoredSide]:
    """Replace the networks' labels by edited ones.

    Parameters
    ----------
    edit : Edit
        The edit.
    image : ConformedImage
        The image that was segmented.
    restored : mapping of str to RestoredSide
        Hemisphere → what the networks found, on the image's grid.
    parts : sequence of str
        The adapter's classes in order, background left out.

    Returns
    -------
    dict of str to RestoredSide
        Hemisphere → edited labels, with probabilities of zero; only those with a voxel.

    Raises
    ------
    BadData
        If the edit is on another grid, has other values than ours, or is not of this scan.
    MissingInput
        If it cannot be read.
    """
    if edit.problem:
        raise BadData(edit.problem, code="several-edits")
    path = edit.path
    labels = _read_labels(path, image)
    values = _whole_values(path, labels, len(parts))
    _check_table(path, values, parts)
    labels = labels.astype(np.uint8)
    sides = np.where(labels > 0, (labels - 1) // len(parts) + 1, 0).astype(np.uint8)
    _check_place(path, sides, _sides_of(restored, labels.shape))
    found = {}
    for number, hemi in enumerate(HEMISPHERES):
        region = bounding_box(sides == number + 1, margin=1)
        if region is None:
            continue
        here = np.where(sides[region] == number + 1, labels[region] - number * len(parts), 0)
        _, fraction = largest_component(here > 0)
        nothing = np.zeros((len(parts), *here.shape), dtype=np.float32)
        x, y, z = region
        found[hemi] = RestoredSide((x, y, z), nothing, here.astype(np.uint8), fraction)
    return found


def _read_labels(path: Path, image: ConformedImage) -> np.ndarray:
    """Read labels on the canonical grid of an image; axes may be in another order in the file."""
    edited = conform(path, is_label=True)
    corners = np.array(np.meshgrid(*([0, n - 1] for n in image.data.shape))).reshape(3, -1).T
    same = edited.data.shape == image.data.shape
    gap = 0.0
    if same:
        into = np.linalg.inv(image.affine) @ edited.affine
        gap = float(np.abs(apply_affine(into, corners) - corners).max())
    if not same or gap > _SAME_GRID:
        how = (
            f"its voxels lie up to {gap:.2g} voxels beside those of the scan"
            if same
            else f"it has {_shape(edited)} voxels and the scan {_shape(image)}"
        )
        raise BadData(
            f"{path}: these edited labels are on another grid than the scan: {how}. Edit the "
            "labels that HyPS-BIDS has written, and save them without resampling.",
            code="edit-other-grid",
        )
    return edited.data


def _shape(image: ConformedImage) -> str:
    return " × ".join(map(str, image.data.shape))


def _whole_values(path: Path, labels: np.ndarray, parts: int) -> list[int]:
    """Return the labels that are there, or refuse values that are none of ours."""
    values = np.unique(labels)
    if (values != np.rint(values)).any():
        odd = ", ".join(f"{v:g}" for v in values[values != np.rint(values)][:5])
        raise BadData(
            f"{path}: edited labels must be whole numbers, but there are {odd}. They may have been "
            "interpolated: save them without resampling.",
            code="edit-not-whole",
        )
    unknown = [int(v) for v in values if not 0 <= v <= 2 * parts]
    if unknown:
        raise BadData(
            f"{path}: the labels {join_names(map(str, unknown))} are unknown; this adapter has 1 "
            f"to {2 * parts}. Labels of another protocol need another --adapter.",
            code="edit-label-unknown",
        )
    return [int(v) for v in values if v]


def _check_table(path: Path, values: Sequence[int], parts: Sequence[str]) -> None:
    """Refuse labels that a table beside them, or at the top of the dataset, calls otherwise."""
    stem = path.name.split(".")[0]
    root = next((p.parent for p in path.parents if p.name.startswith("sub-")), path.parent)
    while root.name.startswith("sub-"):
        root = root.parent
    tables = [path.with_name(f"{stem}.tsv"), root / "dseg.tsv", root / "seg-hippocampus_dseg.tsv"]
    table = next((t for t in tables if t.is_file()), None)
    if table is None:
        return
    stated = {s.index: (s.hemi, s.part) for s in read_label_table(table).structures}
    ours = {index: (hemi, part) for index, _, hemi, part, _ in label_rows(parts)}
    for value in values:
        if value in stated and stated[value] != ours[value]:
            theirs, known = ("-".join(each) for each in (stated[value], ours[value]))
            raise BadData(
                f"{path}: label {value} is {theirs} in {table}, but {known} with this adapter. "
                "Labels of another protocol need another --adapter.",
                code="edit-other-protocol",
            )


def _sides_of(restored: Mapping[str, RestoredSide], shape: Sequence[int]) -> np.ndarray:
    """Return 1 and 2 where the left and the right hippocampus are."""
    sides = np.zeros(shape, dtype=np.uint8)
    for hemi, side in restored.items():
        sides[side.region][side.labels > 0] = HEMISPHERES.index(hemi) + 1
    return sides


def _check_place(path: Path, edited: np.ndarray, found: np.ndarray) -> None:
    """Refuse labels that cannot be of this scan, or whose sides are not those of the networks."""
    if not found.any():
        return
    if not ((edited > 0) & (found > 0)).any():
        raise BadData(
            f"{path}: no voxel of these edited labels is where the networks found the hippocampi. "
            "They seem to be those of another scan.",
            code="edit-other-scan",
        )
    for number, hemi in enumerate(HEMISPHERES, start=1):
        own = found[edited == number]
        if (own == 3 - number).sum() > _STRAY * (own > 0).sum():
            raise BadData(
                f"{path}: the labels of the {SIDE_NAMES[hemi]} hippocampus are where the networks "
                "found the other one. The sides were exchanged, or the labels follow another "
                "protocol.",
                code="edit-sides-exchanged",
            )


def measure_edit(
    measures: ScanMeasures,
    image: ConformedImage,
    edit: Edit,
    edited: Mapping[str, RestoredSide],
    restored: Mapping[str, RestoredSide],
) -> ScanMeasures:
    """Measure edited labels and compare them with the networks'.

    Voxels, volumes in mm³, asymmetry and the measures of the shape are those of the edited labels.
    Soft volumes and the measures of certainty stay those of the networks; the latter raise no flag,
    and there is no expected Dice.
    """
    voxel = float(abs(np.linalg.det(image.affine[:3, :3])))
    shape = image.data.shape
    ours, theirs = _sides_of(restored, shape), _sides_of(edited, shape)
    figures = {n: v for n, v in measures.figures.items() if not n.startswith(EXPECTED)}
    volumes: dict[str, list[tuple[int, float, float]]] = {}
    words = []
    for number, hemi in enumerate(HEMISPHERES, start=1):
        before, after = ours == number, theirs == number
        figures[f"edit_dice_{hemi}"] = dice(before, after)
        change = (float(after.sum()) - float(before.sum())) * voxel
        figures[f"edit_difference_mm3_{hemi}"] = change
        words.append(
            f"{SIDE_NAMES[hemi]} Dice {figures[f'edit_dice_{hemi}']:.3f}, {change:+.0f} mm³"
        )
        figures.pop(f"volume_mm3_{hemi}", None)
        if (side := edited.get(hemi)) is None:
            continue
        count = [int((side.labels == i + 1).sum()) for i in range(len(measures.parts))]
        soft = [row[2] for row in measures.volumes.get(hemi, [])] or [math.nan] * (len(count) + 1)
        counts = [*count, sum(count)]
        volumes[hemi] = [(n, n * voxel, s) for n, s in zip(counts, soft, strict=True)]
        figures[f"volume_mm3_{hemi}"] = volumes[hemi][-1][1]
        figures[f"component_fraction_{hemi}"] = side.component_fraction
        figures[f"border_voxels_{hemi}"] = float(count_on_image_edge(side, shape))
    figures["asymmetry"] = asymmetry({hemi: rows[-1][1] for hemi, rows in volumes.items()})
    judged = {
        name: value
        for name, value in figures.items()
        if not name.startswith(("edit_", *_OF_NETWORKS))
    }
    missing = [f"missing_{hemi}" for hemi in HEMISPHERES if hemi not in volumes]
    remark = (
        f"the labels were edited ({edit.record['File']}); in comparison with the networks' labels: "
        f"{', '.join(words)}"
    )
    return replace(
        measures,
        volumes=volumes,
        figures=figures,
        flags=(*image.flags, *missing, *flags(judged)),
        remarks=(*measures.remarks, remark),
        expected_dice="There is none, because the labels were edited.",
        edited=True,
    )
