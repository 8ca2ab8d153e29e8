"""All facts of a scan, from what the participant level left of it.

Nothing here computes: a report says what the tables, the sidecars and the images say. What is not
there or damaged becomes a problem that the report shows.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import zlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from hyps_bids.errors import BadData, MissingInput
from hyps_bids.imaging.conform import ConformedImage, conform
from hyps_bids.outputs.names import output_path
from hyps_bids.outputs.quality import quality_bounds
from hyps_bids.outputs.scan import Scan
from hyps_bids.reports.flags import (
    FIGURES,
    HEMISPHERES,
    SCAN_FIGURES,
    describe_bounds,
    describe_flag,
    format_figure,
    split_figure,
)

__all__ = [
    "Figure",
    "Flag",
    "Images",
    "ScanFacts",
    "Structure",
    "facts_files",
    "find_scans_of",
    "read_facts",
    "read_images",
    "read_raw",
    "unprocessed",
]

_ENDING = "_seg-hippocampus_qc.tsv"
_SEG = "hippocampus"
_T1W = re.compile(r"(?P<stem>sub-.*)_T1w\.nii(\.gz)?")
_UNREADABLE = (ImageFileError, HeaderDataError, OSError, EOFError, zlib.error, ValueError)


@dataclass(frozen=True)
class Structure:
    """One row of the volume table.

    Attributes
    ----------
    index : int or None
        Label in the segmentation; None for a whole hippocampus.
    name, hemi, part : str
        As in the table; ``part`` is ``whole`` for a whole hippocampus.
    color : str
        ``#rrggbb``.
    voxels, volume_mm3, soft_mm3, icv_percent : float or None
        None where the hippocampus is missing.
    """

    index: int | None
    name: str
    hemi: str
    part: str
    color: str
    voxels: float | None
    volume_mm3: float | None
    soft_mm3: float | None
    icv_percent: float | None


@dataclass(frozen=True)
class Flag:
    """Why a scan should be looked at.

    Attributes
    ----------
    name : str
        As in the QC table: ``low_agreement_L``.
    text : str
        The same in a sentence, with figure and bound.
    """

    name: str
    text: str


@dataclass(frozen=True)
class Figure:
    """One QC figure.

    Attributes
    ----------
    name, title, side, value, bounds, description : str
        Words; `side` is empty for figures of the whole scan.
    flagged : bool
        Whether it is outside its bounds.
    """

    name: str
    title: str
    side: str
    value: str
    bounds: str
    description: str
    flagged: bool


@dataclass(frozen=True)
class ScanFacts:
    """What is known of a scan without its images.

    Attributes
    ----------
    scan : Scan
        The raw image; its path need not exist.
    status : str
        ``done``, ``failed`` or ``incomplete``.
    reason : str
        Why it failed.
    flags, remarks, problems : tuple
        Flags; remarks on the input; what is damaged or not there, in words.
    structures : tuple of Structure
        Rows of the volume table.
    figures : tuple of Figure
        Rows of a table of QC figures.
    icv_mm3, asymmetry : float or None
        Of the scan.
    provenance : dict or None
        Content of the QC sidecar.
    """

    scan: Scan
    status: str
    reason: str
    flags: tuple[Flag, ...]
    remarks: tuple[str, ...]
    problems: tuple[str, ...]
    structures: tuple[Structure, ...]
    figures: tuple[Figure, ...]
    icv_mm3: float | None
    asymmetry: float | None
    provenance: dict[str, Any] | None

    @property
    def box_centers(self) -> dict[str, list[float]]:
        """Centers of the network's boxes by hemisphere, world coordinates, mm."""
        boxes = (self.provenance or {}).get("BoxCentres", {})
        return {hemi: boxes[hemi] for hemi in HEMISPHERES if hemi in boxes}

    @property
    def wholes(self) -> dict[str, Structure]:
        """The whole hippocampi by hemisphere."""
        return {s.hemi: s for s in self.structures if s.part == "whole"}

    @property
    def missing(self) -> tuple[str, ...]:
        """Hemispheres without a segmented hippocampus."""
        return tuple(hemi for hemi, whole in self.wholes.items() if whole.voxels is None)

    @property
    def icv_percent(self) -> float | None:
        """Both hippocampi as a percentage of ICV; None unless both are there."""
        values = [whole.icv_percent for whole in self.wholes.values()]
        known = [value for value in values if value is not None]
        return sum(known) if len(known) == 2 else None


@dataclass(frozen=True)
class Images:
    """The images of a scan, all on the grid and in the axes of the file.

    Attributes
    ----------
    t1w : numpy.ndarray
        Intensities, float32, shape ``(x, y, z)``.
    affine : numpy.ndarray
        Voxel to world (RAS, mm).
    labels, intracranial : numpy.ndarray
        Segmentation and intracranial mask, integers, same shape.
    probseg : nibabel.Nifti1Image
        One volume per label; large, so only what is asked for is read.
    """

    t1w: np.ndarray
    affine: np.ndarray
    labels: np.ndarray
    intracranial: np.ndarray
    probseg: nib.Nifti1Image

    def probabilities(self, region: tuple[slice, slice, slice]) -> np.ndarray:
        """Read the probabilities of all labels in a part of the image.

        Returns
        -------
        numpy.ndarray
            float32 in [0, 1], shape ``(labels, *region)``.

        Raises
        ------
        BadData
            If the file is damaged.
        """
        stored = self.probseg.dataobj
        # without the slope, slicing gives bytes; whole planes lie together in the file
        proxy = ArrayProxy(self.probseg.get_filename(), (stored.shape, stored.dtype, stored.offset))
        try:
            planes = proxy[:, :, region[2]]
        except _UNREADABLE as error:
            raise _damaged(self.probseg.get_filename(), error) from error
        part = np.moveaxis(planes[region[:2]], -1, 0).astype(np.float32)
        return part * np.float32(stored.slope) + np.float32(stored.inter)


def find_scans_of(output: Path, subject: str) -> list[Scan]:
    """Find a subject's scans by their QC tables.

    Parameters
    ----------
    output : Path
        The derivatives dataset.
    subject : str
        Label, without ``sub-``.

    Returns
    -------
    list of Scan
        Sorted by name; paths are names only.
    """
    folder = output / f"sub-{subject}"
    found = [*folder.glob("anat/*" + _ENDING), *folder.glob("ses-*/anat/*" + _ENDING)]
    stems = {path.name.removesuffix(_ENDING) for path in found if not path.name.startswith(".")}
    return [Scan.from_path(Path(f"{stem}_T1w.nii.gz")) for stem in sorted(stems)]


def unprocessed(bids_dir: Path, output: Path, subject: str) -> list[str]:
    """Name a subject's T1w images that have no outputs: left out by filters, or not done yet.

    Parameters
    ----------
    bids_dir, output : Path
        The raw and the derivatives dataset.
    subject : str
        Label, without ``sub-``.

    Returns
    -------
    list of str
        Names without suffix, sorted.
    """
    folder = bids_dir / f"sub-{subject}"
    files = [*folder.glob("anat/*"), *folder.glob("ses-*/anat/*")]
    found = [_T1W.fullmatch(path.name) for path in files]
    names = {match["stem"] for match in found if match}
    return sorted(names - {scan.stem for scan in find_scans_of(output, subject)})


def facts_files(output: Path, scan: Scan) -> dict[str, Path]:
    """Name the files that the facts of a scan come from: ``qc``, ``sidecar`` and ``morph``."""
    qc = output_path(output, scan, seg=_SEG, suffix="qc", extension=".tsv")
    morph = output_path(output, scan, seg=_SEG, suffix="morph", extension=".tsv")
    return {"qc": qc, "sidecar": qc.with_suffix(".json"), "morph": morph}


def read_facts(output: Path, scan: Scan) -> ScanFacts:
    """Read the tables and sidecars of a scan.

    Parameters
    ----------
    output : Path
        The derivatives dataset.
    scan : Scan
        The scan.

    Returns
    -------
    ScanFacts
        Files that are not there or damaged are named in ``problems``.
    """
    paths = facts_files(output, scan)
    problems: list[str] = []
    qc = _first(_rows(paths["qc"], ("status",), problems))
    status = qc.get("status", "incomplete")
    if status not in ("done", "failed"):
        status = "incomplete"
    if status == "failed":
        reason = qc.get("reason") or "no reason was recorded"
        return ScanFacts(scan, status, reason, (), (), (), (), (), None, None, None)
    provenance = _provenance(paths["sidecar"], problems)
    colors = {
        row["index"]: row["color"]
        for row in _rows(output / "seg-hippocampus_dseg.tsv", ("index", "color"), problems)
    }
    morph = _rows(paths["morph"], ("index", "name", "hemi", "part", "volume_mm3"), problems)
    structures = tuple(_structure(row, colors) for row in morph)
    flags = tuple((qc.get("flags") or "").split())
    values = {name: _float(text) for name, text in qc.items()}
    if problems and status == "done":
        status = "incomplete"
    return ScanFacts(
        scan=scan,
        status=status,
        reason="",
        flags=tuple(Flag(name, describe_flag(name, values).sentence) for name in flags),
        remarks=tuple(part for part in (qc.get("remarks") or "").split("; ") if part),
        problems=tuple(problems),
        structures=structures,
        figures=tuple(_figures(qc, flags)),
        icv_mm3=_float(qc.get("icv_mm3")),
        asymmetry=_float(qc.get("asymmetry")),
        provenance=provenance,
    )


def read_raw(bids_dir: Path, scan: Scan) -> ConformedImage:
    """Read the T1w image of a scan.

    Raises
    ------
    MissingInput
        If it is not there.
    BadData
        If it cannot be read.
    """
    folder = bids_dir / scan.folder
    path = folder / f"{scan.stem}_T1w.nii.gz"
    plain = path.with_suffix("")
    return conform(plain if plain.exists() and not path.exists() else path)


def read_images(output: Path, scan: Scan, raw: ConformedImage) -> Images:
    """Read the images of a scan.

    Parameters
    ----------
    output : Path
        The derivatives dataset.
    scan : Scan
        The scan.
    raw : ConformedImage
        Its T1w image.

    Returns
    -------
    Images
        In the file's own axes.

    Raises
    ------
    MissingInput
        If an image is not there.
    BadData
        If an image is damaged, or of another grid than the T1w image.
    """
    labels = _derivative(output_path(output, scan, seg=_SEG, suffix="dseg", extension=".nii.gz"))
    mask = _derivative(output_path(output, scan, label="ICV", suffix="mask", extension=".nii.gz"))
    path = output_path(output, scan, seg=_SEG, suffix="probseg", extension=".nii.gz")
    probabilities = _derivative(path)
    for image in (labels, mask, probabilities):
        if image.shape[:3] != raw.native_shape:
            raise BadData(
                f"{image.get_filename()}: its grid {image.shape[:3]} is not that of the T1w image, "
                f"{raw.native_shape}; run the participant level again"
            )
    inverse = np.linalg.inv(nib.orientations.inv_ornt_aff(raw.orientation, raw.native_shape))
    back = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), raw.orientation)
    return Images(
        t1w=nib.apply_orientation(raw.data, back),
        affine=raw.affine @ inverse,
        labels=_voxels(labels),
        intracranial=_voxels(mask),
        probseg=probabilities,
    )


def _derivative(path: Path) -> nib.Nifti1Image:
    if not path.exists():
        raise MissingInput(f"{path}: no such file; run the participant level again")
    try:
        return nib.load(path)
    except _UNREADABLE as error:
        raise _damaged(path, error) from error


def _voxels(image: nib.Nifti1Image) -> np.ndarray:
    try:
        return image.dataobj.get_unscaled()
    except _UNREADABLE as error:
        raise _damaged(image.get_filename(), error) from error


def _damaged(path: Path | str, error: Exception) -> BadData:
    return BadData(f"{path}: damaged ({error}); run the participant level again")


def _rows(path: Path, needed: Iterable[str], problems: list[str]) -> list[dict[str, str]]:
    """Read a table; cells with n/a are left out."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        problems.append(f"{path.name} is not there; run the participant level again")
        return []
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path.name} cannot be read ({error}); run the participant level again")
        return []
    lines = [line for line in csv.reader(io.StringIO(text), delimiter="\t") if line]
    header = lines[0] if lines else []
    if len(lines) < 2 or {*map(len, lines)} != {len(header)} or not {*needed} <= {*header}:
        problems.append(f"{path.name} is damaged; run the participant level again")
        return []
    return [
        {key: cell for key, cell in zip(header, line, strict=True) if cell not in ("", "n/a")}
        | {key: "" for key in needed if line[header.index(key)] in ("", "n/a")}
        for line in lines[1:]
    ]


def _first(rows: list[dict[str, str]]) -> dict[str, str]:
    return rows[0] if rows else {}


def _provenance(path: Path, problems: list[str]) -> dict[str, Any] | None:
    """Read the sidecar of a scan that is done, as far as a report needs it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        problems.append(
            f"{path.name} is not there: the scan was interrupted; run the participant level again"
        )
        return None
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} cannot be read ({error}); run the participant level again")
        return None
    if not _is_provenance(content):
        problems.append(f"{path.name} does not say what was run; run the participant level again")
        return None
    return content


def _is_provenance(content: Any) -> bool:
    """Tell whether a sidecar has what the report and the methods text show."""
    models = content.get("Models") if isinstance(content, dict) else None
    return (
        isinstance(models, dict)
        and {"Localizer", "Base", "Adapter"} <= set(models)
        and all(
            isinstance(model, dict)
            and isinstance(model.get("Name"), str)
            and isinstance(model.get("SHA256"), str)
            for model in models.values()
        )
        and isinstance(content.get("Devices", {}), dict)
        and _are_centers(content.get("BoxCentres", {}))
        and {"SoftwareVersion", "BiasFieldCorrection"} <= set(content)
    )


def _are_centers(boxes: Any) -> bool:
    return isinstance(boxes, dict) and all(
        isinstance(boxes[hemi], list)
        and len(boxes[hemi]) == 3
        and all(isinstance(value, int | float) and math.isfinite(value) for value in boxes[hemi])
        for hemi in HEMISPHERES
        if hemi in boxes
    )


def _structure(row: Mapping[str, str], colors: Mapping[str, str]) -> Structure:
    index, volume, icv = row["index"], _float(row["volume_mm3"]), _float(row.get("icv_mm3"))
    color = colors.get(index, "")
    return Structure(
        index=int(index) if index.isdecimal() else None,
        name=row["name"],
        hemi=row["hemi"],
        part=row["part"],
        # goes into a style: nothing but a color
        color=color if _is_color(color) else "#888888",
        voxels=_float(row.get("voxels")),
        volume_mm3=volume,
        soft_mm3=_float(row.get("volume_soft_mm3")),
        icv_percent=100 * volume / icv if volume is not None and icv else None,
    )


def _is_color(text: str) -> bool:
    digits = text.removeprefix("#")
    return (
        len(text) == 7 and len(digits) == 6 and all(c in "0123456789abcdefABCDEF" for c in digits)
    )


def _float(text: str | None) -> float | None:
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _figures(qc: Mapping[str, str], flags: Collection[str]) -> Iterable[Figure]:
    flagged = {flag.partition("_")[2] for flag in flags}
    for figure, known in quality_bounds().items():
        names = [figure, f"{figure}_L", f"{figure}_R"]
        sided = figure not in SCAN_FIGURES
        limits = [known[end] for end in ("low", "high") if end in known]
        for name in names[1:] if sided else names[:1]:
            value = _float(qc.get(name))
            unknown = "missing" if f"missing_{name[-1]}" in flags and sided else "n/a"
            yield Figure(
                name=name,
                title=FIGURES[figure][0],
                side=split_figure(name)[1],
                value=unknown if value is None else format_figure(figure, value, limits),
                bounds=describe_bounds(figure),
                description=str(known["description"]),
                flagged=name in flagged,
            )
