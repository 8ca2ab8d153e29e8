"""All facts about a scan, read from the outputs of the participant level.

Nothing is computed here: a report shows what the tables and sidecars say. A file that is missing or
damaged becomes a problem that the report names.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired, cast

from hyps_bids.outputs.completion import recorded_fingerprint
from hyps_bids.outputs.flags import (
    Note,
    describe_bounds,
    describe_flag,
    finite,
    format_measure,
    split_measure,
)
from hyps_bids.outputs.labels import HEMISPHERES, WHOLE
from hyps_bids.outputs.names import SEG_PREFIX, norms_path, parse_output, scan_paths, sidecar_path
from hyps_bids.outputs.provenance import Provenance
from hyps_bids.outputs.quality import EXPECTED, EXPECTED_LOW, SCAN_MEASURES, quality_bounds
from hyps_bids.outputs.reading import load_json
from hyps_bids.outputs.scan import DEFAULT_SUFFIX, IMAGE_NAME, Scan
from hyps_bids.outputs.space_flags import describe_space_flag
from hyps_bids.outputs.spaces import space_paths, spaces_of
from hyps_bids.settings import SUFFIXES

_AGAIN = "run the participant level again"
#: Figure of a scan in the space of a template → its title, decimals.
_SPACE_FIGURES = {
    "overlap": ("Overlap (Dice) of the intracranial spaces", 2),
    "hippocampus_L": ("Overlap (Dice) of the left hippocampi", 2),
    "hippocampus_R": ("Overlap (Dice) of the right hippocampi", 2),
    "scale_least": ("Smallest factor of length", 2),
    "scale_most": ("Largest factor of length", 2),
    "volume_factor": ("Factor of volume", 2),
    "rotation_deg": ("Rotation, degrees", 1),
    "covered": ("Share of the template in the field of view", 2),
}


class ScanRecord(Provenance):
    """The part of a scan's QC sidecar that reports show; the centers are in world coordinates."""

    Devices: NotRequired[dict[str, str]]
    ExpectedDice: NotRequired[str]
    BoxCentres: NotRequired[dict[str, list[float]]]


@dataclass(frozen=True)
class Structure:
    """One row of the volume table.

    A whole hippocampus has no index, and a missing one has no numbers. The color is ``#rrggbb``.
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
    """A flag as it stands in the QC table, such as ``low_agreement_L``, and its words."""

    name: str
    words: Note


@dataclass(frozen=True)
class Measure:
    """One QC measure in words; measures of the whole scan have no side."""

    name: str
    title: str
    side: str
    value: str
    bounds: str
    description: str
    flagged: bool


@dataclass(frozen=True)
class PlacedScan:
    """A scan in the space of a template, in words.

    Its status is ``done``, ``refused`` or, if its images are not those of the present results of
    the scan, ``stale``. Figures are titles and values. The picture is the address of an SVG in the
    page; empty if there is none.
    """

    space: str
    status: str
    notes: tuple[str, ...]
    figures: tuple[tuple[str, str], ...]
    picture: str = ""


@dataclass(frozen=True)
class ScanFacts:
    """Everything that is known about a scan without its images.

    Its status is ``done``, ``failed`` (for the reason given) or ``incomplete``. Remarks are about
    the input; problems are outputs that are damaged or missing. `expected` has the expected Dice of
    each hemisphere and its lower bound, if they are known.
    """

    scan: Scan
    status: str
    reason: str = ""
    flags: tuple[Flag, ...] = ()
    remarks: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    structures: tuple[Structure, ...] = ()
    measures: tuple[Measure, ...] = ()
    icv_mm3: float | None = None
    asymmetry: float | None = None
    expected: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    record: ScanRecord | None = None
    spaces: tuple[PlacedScan, ...] = ()

    @property
    def box_centers(self) -> dict[str, list[float]]:
        """Centers of the network's boxes by hemisphere, world coordinates, mm."""
        boxes = self.record.get("BoxCentres", {}) if self.record else {}
        return {hemi: boxes[hemi] for hemi in HEMISPHERES if hemi in boxes}

    @property
    def wholes(self) -> dict[str, Structure]:
        """The whole hippocampi by hemisphere."""
        return {s.hemi: s for s in self.structures if s.part == WHOLE}

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

    def parts(self, hemi: str = "") -> dict[int, Structure]:
        """Return the parts of one hippocampus, or of both, by their label."""
        return {s.index: s for s in self.structures if s.index and hemi in ("", s.hemi)}


@dataclass(frozen=True)
class Inventory:
    """The scans of a subject, sorted as in reports; the paths of `scans` are file names only.

    `unprocessed` are names of images without outputs: they were filtered out, or are not done yet.
    Contrasts of which there are no outputs at all were not asked for. `without_image` are the
    names of images that are gone while others are there.
    """

    scans: tuple[Scan, ...]
    unprocessed: tuple[str, ...]
    without_image: tuple[str, ...]


def take_inventory(bids_dir: Path, output_dir: Path, subject: str) -> Inventory:
    """List the images and the outputs of a subject (label without ``sub-``)."""
    scans = find_scans_of(output_dir, subject)
    outputs = {scan.stem: scan for scan in scans}
    images = {
        image.stem: image
        for name in _anat_files(bids_dir, subject)
        if name.startswith("sub-") and IMAGE_NAME.fullmatch(name)
        for image in [Scan.from_path(Path(name))]
    }
    asked = {scan.suffix for scan in scans} or {DEFAULT_SUFFIX}
    left = [image for stem, image in images.items() if stem not in outputs]
    gone = [scan for stem, scan in outputs.items() if images and stem not in images]
    return Inventory(
        tuple(scans),
        tuple(sorted(_name(image) for image in left if image.suffix in asked)),
        tuple(sorted(map(_name, gone))),
    )


def _name(scan: Scan) -> str:
    return scan.path.name.split(".")[0]


def find_scans_of(output_dir: Path, subject: str) -> list[Scan]:
    """Find the scans of a subject (label without ``sub-``) by their QC tables.

    They are sorted by session, contrast and name, and their paths are file names only.
    """
    names = (name for name in _anat_files(output_dir, subject) if name.endswith("_qc.tsv"))
    stems = {named[0] for name in names if (named := parse_output(name))}
    scans = map(Scan.from_stem, stems)
    return sorted(scans, key=lambda s: (s.session or "", SUFFIXES.index(s.suffix), s.stem))


def _anat_files(dataset: Path, subject: str) -> Iterator[str]:
    """Name the files in all ``anat`` folders of a subject."""
    folder = f"{dataset}/sub-{subject}"
    # Listing a folder once is ten times faster than a search with patterns.
    for name in listed(folder):
        if name == "anat":
            yield from listed(f"{folder}/anat")
        elif name.startswith("ses-"):
            yield from listed(f"{folder}/{name}/anat")


def listed(folder: str) -> list[str]:
    """List a folder; what is no folder, or must not be read, has nothing to show."""
    try:
        return os.listdir(folder)
    except OSError:
        return []


def facts_files(output_dir: Path, scan: Scan) -> dict[str, Path]:
    """Name the files that the facts of a scan come from.

    The keys are ``qc``, ``sidecar``, ``morph`` and, if there are any, ``norms`` and ``curves``, and
    those of the QC tables and sidecars of spaces.
    """
    paths, norms = scan_paths(scan, output_dir), norms_path(scan, output_dir)
    placed = {s.label: space_paths(scan, s, output_dir) for s in spaces_of(scan, output_dir)}
    tables = {label: own["qc"] for label, own in placed.items()}
    return {
        "qc": paths["qc"],
        "sidecar": sidecar_path(paths["qc"]),
        "morph": paths["morph"],
        "norms": norms,
        "curves": sidecar_path(norms),
        **tables,
        **{f"{label} sidecar": sidecar_path(path) for label, path in tables.items()},
    }


def read_facts(output_dir: Path, scan: Scan) -> ScanFacts:
    """Read the tables and sidecars of a scan; ``problems`` names missing and damaged files."""
    paths = facts_files(output_dir, scan)
    problems: list[str] = []
    qc = next(iter(read_rows(paths["qc"], ("status",), problems)), {})
    status = qc.get("status", "incomplete")
    if status == "failed":
        return ScanFacts(scan, status, qc.get("reason") or "no reason was recorded")
    record = _read_record(paths["sidecar"], problems)
    colors = read_colors(output_dir, problems)
    morph = read_rows(paths["morph"], ("index", "name", "hemi", "part", "volume_mm3"), problems)
    flags = (qc.get("flags") or "").split()
    values = {name: read_number(text) for name, text in qc.items()}
    return ScanFacts(
        scan=scan,
        status="done" if status == "done" and not problems else "incomplete",
        flags=tuple(Flag(name, describe_flag(name, values)) for name in flags),
        remarks=tuple(part for part in (qc.get("remarks") or "").split("; ") if part),
        problems=tuple(problems),
        structures=tuple(_structure(row, colors) for row in morph),
        measures=tuple(_measures(values, flags)),
        icv_mm3=values.get("icv_mm3"),
        asymmetry=values.get("asymmetry"),
        expected=_expected(values),
        record=record,
        spaces=tuple(_read_spaces(output_dir, scan)),
    )


def _read_spaces(output_dir: Path, scan: Scan) -> Iterator[PlacedScan]:
    """Read the QC tables of a scan in the spaces of templates."""
    own = recorded_fingerprint(scan, output_dir)
    for space in spaces_of(scan, output_dir):
        paths = space_paths(scan, space, output_dir)
        path, picture = paths["qc"], ""
        row = next(iter(read_rows(path, ("status",), [])), {"status": "stale"})
        try:
            is_current = load_json(sidecar_path(path))["ScanFingerprint"] == own
        except (OSError, ValueError, KeyError, TypeError):
            is_current = False
        if not is_current:
            row = {"status": "stale"}
        codes = row.get("flags", "").split()
        figures = [
            (title, f"{value:.{decimals}f}")
            for name, (title, decimals) in _SPACE_FIGURES.items()
            if (value := read_number(row.get(name))) is not None
        ]
        notes = tuple(describe_space_flag(code, space.label).text for code in codes)
        if row["status"] == "done":
            # Runs that only look whether reports are current need not wait for this import.
            from hyps_bids.reports.page import data_uri

            with suppress(OSError):
                picture = data_uri(paths["picture"].read_bytes(), "image/svg+xml")
        yield PlacedScan(space.label, row["status"], notes, tuple(figures), picture)


def read_rows(path: Path, required: Iterable[str], problems: list[str]) -> list[dict[str, str]]:
    """Read a table as text. Cells without a value are left out, or empty in required columns."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        problems.append(f"{path.name} is not there; {_AGAIN}")
        return []
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path.name} cannot be read ({error}); {_AGAIN}")
        return []
    lines = [line for line in csv.reader(io.StringIO(text), delimiter="\t") if line]
    header = lines[0] if lines else []
    if len(lines) < 2 or {*map(len, lines)} != {len(header)} or not {*required} <= {*header}:
        problems.append(f"{path.name} is damaged; {_AGAIN}")
        return []
    return [
        dict.fromkeys(required, "")
        | {key: cell for key, cell in zip(header, line, strict=True) if cell not in ("", "n/a")}
        for line in lines[1:]
    ]


def read_colors(output_dir: Path, problems: list[str]) -> dict[str, str]:
    """Read the color of each label, as text, from the table of labels."""
    path = output_dir / f"{SEG_PREFIX}_dseg.tsv"
    return {row["index"]: row["color"] for row in read_rows(path, ("index", "color"), problems)}


def color_of(index: str, colors: Mapping[str, str]) -> str:
    """Return the color of a label; gray if it is unknown."""
    color = colors.get(index, "")
    # The page puts it into a style, so nothing but a color may pass.
    return color if re.fullmatch("#[0-9a-fA-F]{6}", color) else "#888888"


def _read_record(path: Path, problems: list[str]) -> ScanRecord | None:
    """Read the sidecar of a scan that is done, as far as a report needs it."""
    try:
        content = load_json(path)
    except FileNotFoundError:
        problems.append(f"{path.name} is not there: the scan was interrupted; {_AGAIN}")
        return None
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} cannot be read ({error}); {_AGAIN}")
        return None
    if not _is_record(content):
        problems.append(f"{path.name} does not say what was run; {_AGAIN}")
        return None
    return cast(ScanRecord, content)


def _is_record(content: Any) -> bool:
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
        and isinstance(content.get("ExpectedDice", ""), str)
        and _are_centers(content.get("BoxCentres", {}))
        and {"SoftwareVersion", "BiasFieldCorrection"} <= set(content)
    )


def _are_centers(boxes: Any) -> bool:
    return isinstance(boxes, dict) and all(
        isinstance(boxes[hemi], list)
        and len(boxes[hemi]) == 3
        and all(
            isinstance(value, int | float) and finite(value) is not None for value in boxes[hemi]
        )
        for hemi in HEMISPHERES
        if hemi in boxes
    )


def _structure(row: Mapping[str, str], colors: Mapping[str, str]) -> Structure:
    index, volume, icv = (
        row["index"],
        read_number(row["volume_mm3"]),
        read_number(row.get("icv_mm3")),
    )
    return Structure(
        index=int(index) if index.isdecimal() else None,
        name=row["name"],
        hemi=row["hemi"],
        part=row["part"],
        color=color_of(index, colors),
        voxels=read_number(row.get("voxels")),
        volume_mm3=volume,
        soft_mm3=read_number(row.get("volume_soft_mm3")),
        icv_percent=100 * volume / icv if volume is not None and icv else None,
    )


def read_number(text: str | None) -> float | None:
    """Read a finite number; None if a cell has none."""
    try:
        return finite(float(text or "nan"))
    except ValueError:
        return None


def _expected(values: Mapping[str, float | None]) -> dict[str, tuple[float, float]]:
    found = {}
    for hemi in HEMISPHERES:
        mean, low = (values.get(f"{name}_{hemi}") for name in (EXPECTED, EXPECTED_LOW))
        if mean is not None and low is not None:
            found[hemi] = mean, low
    return found


def _measures(values: Mapping[str, float | None], flags: Collection[str]) -> Iterator[Measure]:
    # The flag of an expected Dice is about its lower bound.
    flagged = {flag.partition("_")[2].replace(EXPECTED, EXPECTED_LOW) for flag in flags}
    for measure, known in quality_bounds().items():
        of_scan = measure in SCAN_MEASURES
        limits = [known[end] for end in ("low", "high") if end in known]
        for name in [measure] if of_scan else [f"{measure}_{hemi}" for hemi in HEMISPHERES]:
            value = values.get(name)
            unknown = "missing" if f"missing_{name[-1]}" in flags and not of_scan else "n/a"
            yield Measure(
                name=name,
                title=known["title"],
                side=split_measure(name)[1],
                value=unknown if value is None else format_measure(measure, value, limits),
                bounds=describe_bounds(measure),
                description=known["description"],
                flagged=name in flagged,
            )
