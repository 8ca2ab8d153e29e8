"""Which T1w images have manual labels, and what the labels mean.

Labels are those of derivatives datasets: one ``_dseg`` image of a scan, or one ``_mask`` image per
hippocampus or part of it. They belong to the scan whose name has all the source's entities of
theirs, in the world of that scan: template spaces are left out.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import pandas as pd

from hyps_bids.bids.index import check_dataset, find_scans, index_files, not_here
from hyps_bids.errors import BadData, InvalidBids, MissingInput, NothingMatches, UsageError
from hyps_bids.outputs.scan import Scan
from hyps_bids.settings import Settings

__all__ = [
    "LABEL_MAPS",
    "WHOLE",
    "LabelImage",
    "LabeledScan",
    "Structure",
    "find_labeled",
    "read_label_map",
    "recognize",
]

_LOG = logging.getLogger("hyps_bids")
#: presets of ``--label-map``; True if no other value may occur in a file
LABEL_MAPS = {"aseg": False, "whole": True, "anteriorposterior": True}
#: the part that is a whole hippocampus
WHOLE = "hippocampus"
#: spaces that share the scan's world coordinates
_SPACES = {"T1w", "orig", "scanner"}
#: entities that derivatives add to those of their source
_ADDED = {"atlas", "cohort", "den", "desc", "hemi", "label", "res", "roi", "seg", "space"}
_SIDES = {"l": "L", "lh": "L", "left": "L", "r": "R", "rh": "R", "right": "R"}
_PARTS = {
    "anterior": "anterior",
    "ant": "anterior",
    "posterior": "posterior",
    "post": "posterior",
    "head": "head",
    "body": "body",
    "tail": "tail",
}
_FILLERS = {"whole", "formation", "of", "the"}
_REMEDY = (
    f"say what the values mean with --label-map {', '.join(LABEL_MAPS)} or a TSV file with the "
    "columns index, hemi (L or R) and part"
)


@dataclass(frozen=True, order=True)
class Structure:
    """What one value of a label image means.

    Attributes
    ----------
    index : int
        The value, above 0.
    hemi : {"L", "R"}
        Side.
    part : str
        Part of the hippocampus; ``hippocampus`` if it is the whole.
    """

    index: int
    hemi: str
    part: str


@dataclass(frozen=True)
class LabelImage:
    """An image of labels.

    Attributes
    ----------
    path : Path
        The file, never resolved through links.
    structures : tuple of Structure
        What its values mean; several values may mean the same. In a mask all values above 0 are
        one structure, whose index is 1.
    listed : frozenset of int or None
        All values that may occur, others than hippocampi too: another one shows that the meaning
        is wrong. Any value may occur if None.
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
    """A T1w image and its labels.

    Attributes
    ----------
    scan : Scan
        The image.
    labels : tuple of LabelImage
        One dseg, or masks of different structures.
    dataset : Path
        The derivatives dataset that holds the labels.
    """

    scan: Scan
    labels: tuple[LabelImage, ...]
    dataset: Path

    @property
    def structures(self) -> tuple[Structure, ...]:
        """The structures of all files."""
        return tuple(structure for image in self.labels for structure in image.structures)


def find_labeled(settings: Settings) -> list[LabeledScan]:
    """Find the selected T1w images that have labels.

    Parameters
    ----------
    settings : Settings
        Dataset and selection, ``labels`` and ``label_map``.

    Returns
    -------
    list of LabeledScan
        Sorted by path of the image.

    Raises
    ------
    UsageError
        If no labels dataset or no such label map was given, if labels fit several images, several
        label images fit one, or a participant has labels in two datasets.
    NothingMatches
        If no selected image has labels.
    MissingInput
        If a dataset is not there, or an image or a label image is a dangling link.
    InvalidBids
        If a labels folder is not a BIDS dataset.
    BadData
        If nothing says what the labels of an image mean, or a table that does is not valid.
    """
    if not settings.labels:
        raise UsageError("--labels is needed: the derivatives datasets that hold manual labels")
    preset = read_label_map(settings.label_map) if settings.label_map else None
    scans = find_scans(settings, need_content=False)
    datasets = list({folder.resolve(): folder for folder in settings.labels}.values())
    found: list[LabeledScan] = []
    for root in datasets:
        check_dataset(root, "--labels", skip=settings.skip_bids_validation)
        labeled = _labeled_in(root, scans, settings.label_map, preset)
        _refuse_shared_subjects(found, labeled)
        found += labeled
    if not found:
        raise NothingMatches(
            f"no labels in {', '.join(map(str, datasets))} belong to any of the {len(scans)} T1w "
            "images selected; expected are files such as sub-01/anat/sub-01_dseg.nii.gz or "
            "sub-01/anat/sub-01_label-Lhippocampus_mask.nii.gz with the names of the images"
        )
    images = [item.scan.path for item in found]
    images += [image.path for item in found for image in item.labels]
    absent = [path for path in images if not path.exists()]
    if absent:
        raise MissingInput(not_here(absent))
    return sorted(found, key=lambda item: item.scan)


def read_label_map(name: str) -> tuple[Structure, ...]:
    """Read a preset of label meanings, or a TSV file.

    Parameters
    ----------
    name : str
        One of :data:`LABEL_MAPS`, or the path of a table with the columns ``index`` and either
        ``hemi`` (and ``part``; the whole hippocampus if left out) or ``name``.

    Raises
    ------
    UsageError
        If it is neither a preset nor a file.
    BadData
        If the table is not valid or names no hippocampus.

    Examples
    --------
    >>> read_label_map("aseg")[1]
    Structure(index=53, hemi='R', part='hippocampus')
    """
    if name in LABEL_MAPS:
        shipped = files("hyps_bids") / "data" / "label_maps" / f"{name}.tsv"
        return _read_table(Path(str(shipped))).structures
    path = Path(name)
    if not path.is_file():
        raise UsageError(
            f"--label-map {name}: neither a file nor one of {', '.join(sorted(LABEL_MAPS))}"
        )
    structures = _read_table(path).structures
    if not structures:
        raise BadData(f"{path}: names no left or right hippocampus; {_REMEDY}")
    return structures


def recognize(name: str) -> tuple[bool, str | None, str | None]:
    """Find side and part of the hippocampus in a name.

    Parameters
    ----------
    name : str
        As in tables of labels and in BIDS entities: words in any order, run together as
        ``LeftHippocampus`` or separated by anything.

    Returns
    -------
    mentioned : bool
        Whether the name speaks of a hippocampus.
    hemi : {"L", "R"} or None
        Side, if the name has one.
    part : str or None
        ``hippocampus``, ``anterior``, ``posterior``, ``head``, ``body`` or ``tail``; None if the
        name has other words too, as "left hippocampal fissure" has.

    Examples
    --------
    >>> recognize("Left-Hippocampus")
    (True, 'L', 'hippocampus')
    >>> recognize("R hippocampus anterior")
    (True, 'R', 'anterior')
    >>> recognize("Lhippocampus")
    (True, 'L', 'hippocampus')
    >>> recognize("ctx-lh-parahippocampal")
    (False, 'L', None)
    """
    words: list[str] = []
    for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name):
        together = re.fullmatch(
            r"(l|r|lh|rh|left|right)(hip.*|ant.*|post.*|head|body|tail)", word, re.I
        )
        words += together.groups() if together else [word]
    words = [word.lower() for word in words]
    about = [word for word in words if word in ("hip", "hipp") or word.startswith("hippoc")]
    sides = {_SIDES[word] for word in words if word in _SIDES}
    parts = {_PARTS[word] for word in words if word in _PARTS}
    rest = set(words) - {*about, *_SIDES, *_PARTS, *_FILLERS}
    clear = not rest and len(parts) < 2 and len(sides) < 2
    part = (parts or {WHOLE}).pop() if clear else None
    return bool(about), sides.pop() if len(sides) == 1 else None, part


def _labeled_in(
    root: Path, scans: Sequence[Scan], label_map: str | None, preset: tuple[Structure, ...] | None
) -> list[LabeledScan]:
    """Pair one dataset's label images with scans."""
    paths, tables = _index(root, {scan.subject for scan in scans})
    by_subject = defaultdict(list)
    for scan in scans:
        by_subject[scan.subject].append(scan)
    per_scan: dict[Scan, list[Path]] = defaultdict(list)
    elsewhere, alone = [], []
    for path in paths:
        entities = _entities(path)
        if entities.get("space", "T1w") not in _SPACES:
            elsewhere.append(path)
        elif owner := _scan_of(path, entities, by_subject[entities["sub"]]):
            per_scan[owner].append(path)
        else:
            alone.append(path)
    meanings = {table: _read_table(table) for table in tables} if preset is None else {}
    found = []
    for image, candidates in sorted(per_scan.items()):
        labels = _choose(image, candidates, meanings, label_map, preset)
        if labels:
            found.append(LabeledScan(image, labels, root))
    _LOG.warning(
        "%d of %d T1w images have labels in %s%s%s",
        len(found),
        len(scans),
        root,
        _left_out("in a template's space", elsewhere),
        _left_out("of no selected T1w image", alone),
    )
    for item in found:
        _LOG.info("labels of %s: %s", item.scan.path, ", ".join(str(i.path) for i in item.labels))
    return found


def _index(root: Path, subjects: Iterable[str]) -> tuple[list[Path], list[Path]]:
    """List label images and tables of labels, under `root`."""
    folder = rf"/sub-(?:{'|'.join(map(re.escape, sorted(subjects)))})(?:/ses-[^/]+)?(?:/anat)?"
    table = r"/(?:[^/]*_)?dseg\.tsv"
    image = r"/[^/]+_(?:dseg|mask)\.nii(?:\.gz)?"
    layout = index_files(
        root, rf"(?:{folder})?{table}|{folder}(?:{image})?", config=("bids", "derivatives")
    )
    images = layout.get(datatype="anat", suffix=["dseg", "mask"], extension=[".nii", ".nii.gz"])
    tables = layout.get(suffix="dseg", extension=".tsv")
    for file in images:
        named = Scan.from_path(Path(file.relpath))
        if "sub" not in dict(named.entities) or named.folder != named.path.parent:
            raise InvalidBids(
                f"{root / file.relpath}: its name and its folder are not those of one participant "
                "and session; rename it"
            )
    return [root / file.relpath for file in images], [root / file.relpath for file in tables]


def _scan_of(path: Path, entities: dict[str, str], scans: Sequence[Scan]) -> Scan | None:
    """Find the scan that has all the source's entities of a label image; the closest, if several.

    Entities that only the scan has are allowed, those that only the label image has are not: the
    labels of ``acq-x`` are not those of an image without ``acq``.
    """
    source = {key: value for key, value in entities.items() if key not in _ADDED}
    fitting = [scan for scan in scans if source.items() <= _comparable(scan.entities).items()]
    least = min((len(scan.entities) for scan in fitting), default=0)
    closest = [scan for scan in fitting if len(scan.entities) == least]
    if len(closest) > 1:
        names = ", ".join(scan.path.name for scan in closest)
        raise UsageError(
            f"{path}: could be the labels of {names}; give it the entities of its image, or select "
            "one image with --session-label or --bids-filter-file"
        )
    return closest[0] if closest else None


def _choose(
    scan: Scan,
    candidates: Sequence[Path],
    tables: dict[Path, _Table],
    label_map: str | None,
    preset: tuple[Structure, ...] | None,
) -> tuple[LabelImage, ...]:
    """Take the label images of one scan that show a hippocampus; exactly one way to do so."""
    segmentations = [path for path in candidates if _suffix(path) == "dseg"]
    # FreeSurfer's aseg is often there twice, as desc-aseg and within desc-aparcaseg
    named = [
        p for p in segmentations if label_map in (_entities(p).get(k) for k in ("seg", "desc"))
    ]
    segmentations = named if label_map and named else segmentations
    meanings: dict[Path, tuple[Structure, ...]] = {}
    listed: dict[Path, frozenset[int]] = {}
    reasons: list[str] = []
    for path in segmentations:
        table = _table_of(path, tables)
        if preset is not None:
            meanings[path] = preset
            if LABEL_MAPS.get(str(label_map), False):
                listed[path] = frozenset(structure.index for structure in preset)
        elif table is not None and tables[table].structures:
            meanings[path], listed[path] = tables[table].structures, tables[table].indices
        elif table is not None:
            reasons.append(f"{path}: {table} names no left or right hippocampus")
        else:
            reasons.append(f"{path}: no dseg.tsv applies to it")
    masks: dict[Path, tuple[Structure, ...]] = {}
    for path in candidates:
        structure = _mask_meaning(path) if _suffix(path) == "mask" else None
        if structure is not None:
            masks[path] = (structure,)
    if not meanings and not masks:
        if reasons:
            raise BadData(f"{reasons[0]}; {_REMEDY}")
        return ()
    if meanings and (masks or len(meanings) > 1):
        names = ", ".join(path.name for path in (*meanings, *masks))
        raise UsageError(
            f"{scan.path}: several label images fit, {names}; keep one in the dataset of --labels, "
            "or name the one to use: --label-map aseg takes seg-aseg or desc-aseg"
        )
    chosen = meanings or masks
    _refuse_overlap(scan, chosen)
    return tuple(LabelImage(path, chosen[path], listed.get(path)) for path in sorted(chosen))


def _mask_meaning(path: Path) -> Structure | None:
    """Read side and part from ``hemi`` and ``label`` (or ``seg``); None if not a hippocampus."""
    entities = _entities(path)
    mentioned, side, part = recognize(entities.get("label") or entities.get("seg") or "")
    hemi = _SIDES.get(entities.get("hemi", "").lower(), side)
    if part is None or not (mentioned or hemi):
        return None
    if hemi is None or (side is not None and hemi != side):
        raise BadData(
            f"{path}: does not say clearly which side it shows; name it label-Lhippocampus, "
            "label-Rhippocampus or, for a part, label-LhippocampusAnterior"
        )
    return Structure(1, hemi, part)


def _refuse_overlap(scan: Scan, chosen: dict[Path, tuple[Structure, ...]]) -> None:
    """Refuse a whole beside its parts, and two masks of one structure."""
    parts: dict[str, dict[str, Path]] = {"L": {}, "R": {}}
    for path, structures in chosen.items():
        for structure in structures:
            other = parts[structure.hemi].setdefault(structure.part, path)
            if other != path:
                raise UsageError(
                    f"{scan.path}: {other.name} and {path.name} both show the same structure "
                    f"({structure.hemi} {structure.part}); keep one"
                )
    for hemi, found in parts.items():
        if WHOLE in found and len(found) > 1:
            names = ", ".join(sorted({path.name for path in found.values()}))
            raise UsageError(
                f"{scan.path}: {names} have labels of the whole {hemi} hippocampus and of its "
                f"parts ({', '.join(sorted(set(found) - {WHOLE}))}); {_REMEDY}"
            )


def _refuse_shared_subjects(found: Sequence[LabeledScan], more: Sequence[LabeledScan]) -> None:
    where = {item.scan.subject: item.dataset for item in found}
    for item in more:
        if item.scan.subject in where:
            raise UsageError(
                f"sub-{item.scan.subject} has labels in {where[item.scan.subject]} and in "
                f"{item.dataset}; a participant's labels must be of one protocol: give one of them"
            )


def _table_of(path: Path, tables: Iterable[Path]) -> Path | None:
    """Find the table of a label image: BIDS inheritance, the nearest and then most specific."""
    have = set(_entities(path).items())
    fitting = [
        table
        for table in tables
        if table.parent in path.parents and set(_entities(table).items()) <= have
    ]
    return max(fitting, key=lambda t: (len(t.parts), len(_entities(t)), t.name), default=None)


@dataclass(frozen=True)
class _Table:
    """A table of labels: its hippocampal rows, and the values of all rows."""

    structures: tuple[Structure, ...]
    indices: frozenset[int]


def _read_table(path: Path) -> _Table:
    """Read a table of labels."""
    try:
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise BadData(f"{path}: cannot be read as a tab-separated table ({error})") from error
    if "index" not in table or not {"name", "hemi"} & set(table):
        raise BadData(f"{path}: needs the columns index and name, or index and hemi")
    structures, sideless, indices = [], [], set()
    for row in table.to_dict("records"):
        value = row["index"].strip()
        if not re.fullmatch(r"\d+(\.0*)?", value):
            raise BadData(f"{path}: index '{value}' is not a whole number")
        index = int(float(value))
        indices.add(index)
        meaning = _row_meaning(row) if index else None
        if meaning and meaning[0]:
            structures.append(Structure(index, meaning[0], meaning[1]))
        elif meaning:
            sideless.append(index)
    if sideless and not structures:
        raise BadData(f"{path}: index {sideless[0]} is a hippocampus without a side; {_REMEDY}")
    repeated = {s.index for s in structures if [t.index for t in structures].count(s.index) > 1}
    if repeated:
        raise BadData(f"{path}: index {sorted(repeated)[0]} is there more than once")
    return _Table(tuple(structures), frozenset(indices))


def _row_meaning(row: dict[str, str]) -> tuple[str | None, str] | None:
    """Side and part that a row of a table gives, if it is of a hippocampus."""
    given = {key: row.get(key, "").strip() for key in ("name", "hemi", "part", "abbreviation")}
    given = {key: "" if value == "n/a" else value for key, value in given.items()}
    mentioned, side, part = recognize(given["name"])
    if given["name"] and not (mentioned and (part or given["part"])):
        return None
    hemi = _SIDES.get(given["hemi"].lower(), side) or recognize(given["abbreviation"])[1]
    return hemi, given["part"] or part or WHOLE


def _entities(path: Path) -> dict[str, str]:
    return _comparable(Scan.from_path(path).entities)


def _comparable(entities: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Make runs comparable: however they are padded, they are numbers."""
    return {
        key: value.lstrip("0") or "0" if key == "run" else value for key, value in entities if key
    }


def _suffix(path: Path) -> str:
    return path.name.split(".")[0].rpartition("_")[2]


def _left_out(why: str, paths: Sequence[Path]) -> str:
    if not paths:
        return ""
    more = ", …" if len(paths) > 1 else ""
    return f"; left out {len(paths)} label images {why} ({paths[0].name}{more})"
