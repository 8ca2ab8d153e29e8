"""Which images have manual labels, and what the labels mean.

Labels are those of derivatives datasets: one ``_dseg`` image per scan, or one ``_mask`` image per
hippocampus or part of it. Label images belong to the scan that has all entities of their source.
They share its world coordinates, so images in template spaces are left out, and ``space-T2w`` names
the labels of a T2w image.
"""

from __future__ import annotations

import json
import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hyps_bids.bids.folders import list_images
from hyps_bids.bids.index import check_dataset, find_scans, refuse_dangling
from hyps_bids.errors import BadData, InvalidBids, MissingInput, NothingMatches, UsageError
from hyps_bids.labels.meanings import (
    LABEL_MAPS,
    SIDES,
    WHOLE_HIPPOCAMPUS,
    LabelMap,
    Structure,
    parse_label_map,
    read_label_table,
    recognize,
)
from hyps_bids.messages import format_count, join_names
from hyps_bids.outputs.names import sidecar_path
from hyps_bids.outputs.reading import load_json
from hyps_bids.outputs.scan import DEFAULT_SUFFIX, OWN_SPACES, Scan
from hyps_bids.settings import SUFFIXES, Settings

_LOG = logging.getLogger("hyps_bids")
#: Values of ``space`` that mean the image's own coordinates, whichever contrast it has.
_UNNAMED_SPACES = OWN_SPACES - {*SUFFIXES}
#: Entities that derivatives add to those of their source.
_ADDED = {"atlas", "cohort", "den", "desc", "hemi", "label", "res", "roi", "seg", "space"}
_LABEL_IMAGE = re.compile(r"[^.]+_(?:dseg|mask)\.nii(?:\.gz)?")
#: Label images but for upper and lower case, or a dot within the name.
_NEARLY = re.compile(r"[^.].*(?:dseg|mask)\.nii(?:\.gz)?\s*", re.IGNORECASE)
_TABLE = re.compile(r"(?:[^.]*_)?dseg\.tsv")
_REMEDY = (
    f"Say what the values mean with --label-map: {', '.join(LABEL_MAPS)}, a line such as 1:L,2:R "
    "or a TSV file with the columns index, hemi (L or R) and part."
)


@dataclass(frozen=True)
class LabelImage:
    """An image of labels, and what its values mean as in :class:`LabelMap`.

    The path is never resolved through links. In a mask all values above 0 are one structure,
    whose index is 1.
    """

    path: Path
    structures: tuple[Structure, ...]
    listed: frozenset[int] | None = None

    @property
    def is_mask(self) -> bool:
        """Whether the file is a ``_mask``."""
        return _suffix(self.path) == "mask"


@dataclass(frozen=True)
class LabeledScan:
    """An image and its labels: one dseg, or masks of different structures, in one dataset."""

    scan: Scan
    labels: tuple[LabelImage, ...]
    dataset: Path

    @property
    def structures(self) -> tuple[Structure, ...]:
        """The structures of all files."""
        return tuple(structure for image in self.labels for structure in image.structures)


def find_labeled(settings: Settings) -> list[LabeledScan]:
    """Find the selected images that have labels.

    They are sorted by the path of the image.

    Raises
    ------
    UsageError
        If the labels dataset or the label map cannot be used, labels fit several images, several
        label images fit one, or a participant has labels in two datasets.
    NothingMatches
        If no selected image has labels.
    MissingInput
        If a dataset is not there, or an image or a label image is a dangling link.
    InvalidBids
        If a labels folder is not a BIDS dataset.
    BadData
        If the meaning of the labels of an image is not given, or a table that gives it is invalid.
    """
    if not settings.labels:
        raise UsageError(
            "--labels is needed: the derivatives datasets that hold manual labels.",
            code="labels-not-given",
        )
    given = parse_label_map(settings.label_map) if settings.label_map else None
    if given and (given.is_mask or any(structure.hemi == "LR" for structure in given.structures)):
        raise UsageError(
            f"--label-map {settings.label_map}: 'mask' and 'LR' are understood only by "
            "'hyps-tools import'. Give a value for each side, or import the dataset first.",
            code="label-map-needs-voxels",
        )
    scans = find_scans(settings, need_content=False)
    datasets = list({folder.resolve(): folder for folder in settings.labels}.values())
    found: list[LabeledScan] = []
    for root in datasets:
        check_dataset(root, "--labels", skip=settings.skip_bids_validation)
        labeled = _labeled_in(root, scans, given, settings.label_map)
        _refuse_shared_subjects(found, labeled)
        found += labeled
    if not found:
        contrasts = " and ".join(dict.fromkeys(settings.suffix))
        raise NothingMatches(
            f"no labels in {', '.join(map(str, datasets))} belong to any of the {len(scans)} "
            f"{contrasts} images selected. Files are expected to have names such as sub-01/anat/"
            "sub-01_dseg.nii.gz or sub-01/anat/sub-01_label-Lhippocampus_mask.nii.gz, with the "
            "entities of the images; space-T2w means a T2w image.",
            code="no-labels-found",
        )
    images = [item.scan.path for item in found]
    images += [image.path for item in found for image in item.labels]
    refuse_dangling(images)
    return sorted(found, key=lambda item: item.scan)


def _labeled_in(
    root: Path, scans: Sequence[Scan], given: LabelMap | None, name: str | None
) -> list[LabeledScan]:
    """Pair one dataset's label images with scans; `given` is the label map called `name`."""
    paths, tables, nearly = _list(root, {scan.subject for scan in scans})
    if nearly:
        names = join_names(str(path.relative_to(root)) for path in nearly)
        _LOG.warning("%s: these files are not taken because of their names: %s", root, names)
    by_subject = defaultdict(list)
    for scan in scans:
        by_subject[scan.subject].append(scan)
    per_scan: dict[Scan, list[Path]] = defaultdict(list)
    left_out = defaultdict(list)
    for path in paths:
        entities = _entities(path)
        if owner := _scan_of(path, entities, by_subject[entities["sub"]]):
            per_scan[owner].append(path)
        elif entities.get("space", DEFAULT_SUFFIX) not in OWN_SPACES:
            left_out["are in a template's space"].append(path)
        else:
            left_out["belong to no selected image"].append(path)
    maps = {table: read_label_table(table) for table in tables} if given is None else {}
    found = []
    for scan, candidates in sorted(per_scan.items()):
        labels = _choose(scan, _prefer_named(candidates, name), given, maps)
        if labels:
            found.append(LabeledScan(scan, labels, root))
    _LOG.info("%d of %s have labels in %s", len(found), format_count(len(scans), "image"), root)
    for why, images in left_out.items():
        count = format_count(len(images), "label image")
        _LOG.info("%s left out, such as %s: they %s", count, images[0].name, why)
    for item in found:
        _LOG.debug("labels of %s: %s", item.scan.path, ", ".join(str(i.path) for i in item.labels))
    return found


def _list(root: Path, subjects: Iterable[str]) -> tuple[list[Path], list[Path], list[Path]]:
    """List label images, tables of labels, and files that look like label images, in `root`."""
    participants = list_images(root, sorted(subjects))
    locked = [folder for participant in participants for folder in participant.unreadable]
    if locked:
        raise MissingInput(
            f"{root / locked[0]}: this user may not read it "
            f"({format_count(len(locked), 'such folder')}). Change its permissions, or exclude the "
            "participant.",
            code="folder-locked",
        )
    files = [root / path for participant in participants for path in participant.others]
    images = sorted(path for path in files if _LABEL_IMAGE.fullmatch(path.name))
    nearly = [path for path in files if _NEARLY.fullmatch(path.name) and path not in set(images)]
    for path in images:
        named = Scan.from_path(path)
        if "sub" not in dict(named.entities) or root / named.folder != path.parent:
            raise InvalidBids(
                f"{path}: the name and the folder state different participants or sessions. "
                "Rename it.",
                code="name-contradicts-folder",
            )
    # By the inheritance of BIDS, tables may be in all folders above the images.
    folders = {folder for path in images for folder in path.parents if folder.is_relative_to(root)}
    tables = sorted(path for folder in folders for path in folder.glob("*dseg.tsv"))
    return images, [path for path in tables if _TABLE.fullmatch(path.name)], nearly


def _scan_of(path: Path, entities: dict[str, str], scans: Sequence[Scan]) -> Scan | None:
    """Find the scan to which a label image belongs.

    The scan has all entities that the label image has from its source, and as few others as
    possible: labels with ``acq-x`` never belong to an image without ``acq``. Labels whose name and
    sidecar do not state a contrast are those of the only contrast that was selected.
    """
    source = {key: value for key, value in entities.items() if key not in _ADDED}
    fitting = [scan for scan in scans if source.items() <= _comparable(scan.entities).items()]
    space = entities.get("space")
    if space in (None, *_UNNAMED_SPACES):
        stated = _sources(path) if fitting else set()
        fitting = [scan for scan in fitting if not stated or scan.suffix in stated]
    else:
        fitting = [scan for scan in fitting if _has_space(scan, str(space))]
    least = min((len(scan.entities) for scan in fitting), default=0)
    closest = [scan for scan in fitting if len(scan.entities) == least]
    if len({scan.suffix for scan in fitting}) > 1 and space in (None, *_UNNAMED_SPACES):
        closest = fitting
    if len(closest) > 1:
        names = ", ".join(scan.path.name for scan in closest)
        raise UsageError(
            f"{path}: could be the labels of {names}. Give it the entities of its image, and its "
            f"contrast as in space-{closest[-1].suffix}, or select one image with --suffix, "
            "--session-label or --bids-filter-file.",
            code="label-image-ambiguous",
        )
    return closest[0] if closest else None


def _has_space(scan: Scan, space: str) -> bool:
    """Tell whether ``space`` of a label image names the world coordinates of a scan."""
    own = dict(scan.entities).get("space")
    # Our outputs join the space that an image has in its name and its contrast.
    joined = f"space-{space}" in scan.source_entities
    return joined or space == (own if own in SUFFIXES else scan.suffix)


def _sources(path: Path) -> set[str]:
    """Return the suffixes of the images that the sidecar of a label image names."""
    try:
        content = load_json(sidecar_path(path))
        found = [content.get("Sources", []), content.get("SpatialReference", "")]
    except (OSError, ValueError, AttributeError):
        return set()
    names = re.findall(r"_([A-Za-z0-9]+)\.nii\b", json.dumps(found))
    return {name for name in names if name in SUFFIXES}


def _prefer_named(paths: Sequence[Path], name: str | None) -> list[Path]:
    """Leave out other dseg images if one is named like the label map.

    FreeSurfer's aseg is often there twice, as desc-aseg and within desc-aparcaseg.
    """
    dsegs = [path for path in paths if _suffix(path) == "dseg"]
    named = [p for p in dsegs if name and name in map(_entities(p).get, ("seg", "desc"))]
    return [path for path in paths if not named or path in named or path not in dsegs]


def _choose(
    scan: Scan, paths: Sequence[Path], given: LabelMap | None, maps: Mapping[Path, LabelMap]
) -> tuple[LabelImage, ...]:
    """Take the label images of one scan that show a hippocampus; there must be one way to do so.

    `maps` are the tables of labels in the dataset, which count if no map is given.
    """
    segmentations, masks, unclear = [], [], []
    for path in paths:
        if _suffix(path) == "mask":
            structure = _mask_structure(path)
            masks += [LabelImage(path, (structure,))] if structure else []
            continue
        table = _table_of(path, maps)
        label_map = given or (maps[table] if table else None)
        if label_map and label_map.structures:
            segmentations.append(LabelImage(path, label_map.structures, label_map.listed))
        else:
            why = f"{table} names no left or right hippocampus" if table else "it has no dseg.tsv"
            unclear.append(f"{path}: {why}")
    if unclear and not segmentations and not masks:
        raise BadData(f"{unclear[0]}. {_REMEDY}", code="label-meaning-unknown")
    if segmentations and (masks or len(segmentations) > 1):
        names = ", ".join(image.path.name for image in (*segmentations, *masks))
        raise UsageError(
            f"{scan.path}: several label images fit, {names}. Keep one in the dataset of --labels, "
            "or name the one to use: --label-map aseg takes seg-aseg or desc-aseg.",
            code="several-label-images",
        )
    chosen = sorted(segmentations or masks, key=lambda image: image.path)
    _refuse_overlap(scan, chosen)
    return tuple(chosen)


def _mask_structure(path: Path) -> Structure | None:
    """Read side and part from ``hemi`` and ``label`` (or ``seg``); None if not a hippocampus."""
    entities = _entities(path)
    mentioned, side, part = recognize(entities.get("label") or entities.get("seg") or "")
    hemi = SIDES.get(entities.get("hemi", "").lower(), side)
    if part is None or not (mentioned or hemi):
        return None
    if hemi is None or (side is not None and hemi != side):
        raise BadData(
            f"{path}: the name does not say clearly which side the mask shows. Name it "
            "label-Lhippocampus, label-Rhippocampus or, for a part, label-LhippocampusAnterior.",
            code="mask-side-unclear",
        )
    return Structure(1, hemi, part)


def _table_of(path: Path, tables: Iterable[Path]) -> Path | None:
    """Find the table of a label image: BIDS inheritance, the nearest and then most specific."""
    have = set(_entities(path).items())
    fitting = [
        table
        for table in tables
        if table.parent in path.parents and set(_entities(table).items()) <= have
    ]
    return max(fitting, key=lambda t: (len(t.parts), len(_entities(t)), t.name), default=None)


def _refuse_overlap(scan: Scan, chosen: Sequence[LabelImage]) -> None:
    """Refuse a whole beside its parts, and two masks of one structure."""
    parts: dict[str, dict[str, Path]] = {"L": {}, "R": {}}
    for image in chosen:
        for structure in image.structures:
            other = parts[structure.hemi].setdefault(structure.part, image.path)
            if other != image.path:
                raise UsageError(
                    f"{scan.path}: {other.name} and {image.path.name} both show the same structure "
                    f"({structure.hemi} {structure.part}). Keep one.",
                    code="structure-labeled-twice",
                )
    for hemi, found in parts.items():
        if WHOLE_HIPPOCAMPUS in found and len(found) > 1:
            names = ", ".join(sorted({path.name for path in found.values()}))
            raise UsageError(
                f"{scan.path}: {names} label the whole {hemi} hippocampus and its parts "
                f"({', '.join(sorted(set(found) - {WHOLE_HIPPOCAMPUS}))}). {_REMEDY}",
                code="whole-beside-parts",
            )


def _refuse_shared_subjects(found: Sequence[LabeledScan], more: Sequence[LabeledScan]) -> None:
    where = {item.scan.subject: item.dataset for item in found}
    for item in more:
        if item.scan.subject in where:
            raise UsageError(
                f"sub-{item.scan.subject} has labels in {where[item.scan.subject]} and in "
                f"{item.dataset}. The labels of a participant must follow one protocol: give one "
                "of the datasets only.",
                code="labels-in-two-datasets",
            )


def _entities(path: Path) -> dict[str, str]:
    return _comparable(Scan.from_path(path).entities)


def _comparable(entities: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Make runs comparable: they are numbers, however they are padded."""
    return {
        key: value.lstrip("0") or "0" if key == "run" else value for key, value in entities if key
    }


def _suffix(path: Path) -> str:
    return path.name.split(".")[0].rpartition("_")[2]
