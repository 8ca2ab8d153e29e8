"""The part of a subject report that shows one scan: its state, pictures and interactive viewer."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
from markupsafe import Markup
from nibabel.affines import apply_affine

from hyps_bids.errors import BadData, MissingInput
from hyps_bids.messages import format_count, join_names
from hyps_bids.outputs.labels import HEMISPHERES, SIDE_NAMES
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.scan_files import BOX
from hyps_bids.reports import pictures, viewer
from hyps_bids.reports.commands import viewer_commands
from hyps_bids.reports.page import anchor, data_uri, packed, sentence
from hyps_bids.reports.scan_facts import ScanFacts, Structure, read_facts
from hyps_bids.reports.scan_images import Region, StoredImages, Voxels, read_images, read_raw

_LOG = logging.getLogger("hyps_bids")
#: Bytes of a scan below which there is only an overview, and below which there is no picture.
_OVERVIEW_ONLY, _NO_PICTURE = 170_000, 40_000
#: Largest size of what is packed quickly, as a multiple of that of the same packed well: 1.02 to
#: 1.20 in the viewers of a real head.
_PACKED_QUICKLY = 1.2
#: Bytes of a scan's tables.
_TABLES = 16_000
_TOO_MANY = "because this subject has too many scans for one report of 6 MB."
_CONVENTION = "In radiological convention, the patient’s left is on the right."


class State(NamedTuple):
    """A state as the page shows it: CSS class, symbol and words."""

    kind: str
    symbol: str
    words: str


class ViewerData(TypedDict):
    """What ``viewer.js`` needs to know about a scan.

    These are the names of its packed files; index, name and color of each label; and the world
    coordinates at which the viewer opens, mm.
    """

    files: list[str]
    labels: list[dict[str, Any]]
    start: list[float]


@dataclass(frozen=True)
class Shown:
    """A picture in the page; `image` is the address of its compressed pixels."""

    title: str
    caption: str
    alt: str
    picture: pictures.Picture
    image: str = ""


@dataclass
class Section:
    """What the page shows of a scan.

    The messages say what the report leaves out, and why; `unseen` says that a picture could not be
    drawn; `files` are the packed files of the interactive viewer; `commands` open other viewers.
    """

    facts: ScanFacts
    anchor: str
    title: str
    pictures: list[Shown] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    unseen: bool = False
    viewer: ViewerData | None = None
    files: str = ""
    commands: dict[str, str] = field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        """Reasons to look at the scan, in sentences: the error, or the flags."""
        if self.facts.status == "failed":
            return [sentence(self.facts.reason)]
        return [flag.words.text for flag in self.facts.flags]

    @property
    def errors(self) -> list[str]:
        """Everything that went wrong, in sentences."""
        reason = [self.facts.reason] if self.facts.status == "failed" else []
        return [sentence(text) for text in (*reason, *self.facts.problems, *self.messages)]

    @property
    def run(self) -> str | None:
        """The software, adapter and devices that made the results, in a sentence."""
        made = self.facts.record
        if made is None:
            return None
        adapter = made["Models"]["Adapter"]["Name"].removeprefix("adapter-")
        devices = join_names(sorted(set(made.get("Devices", {}).values()))) or "an unknown device"
        return (
            f"The results were made with HyPS-BIDS {made['SoftwareVersion']} and the adapter "
            f"{adapter} on {devices}."
        )

    @property
    def state(self) -> State:
        """State of the scan."""
        if self.facts.status != "done":
            return State("bad", "✗", self.facts.status)
        if self.facts.flags:
            return State("warn", "!", f"look at it: {format_count(len(self.facts.flags), 'flag')}")
        if self.unseen:
            return State("warn", "!", "no flags, but pictures are missing")
        return State("good", "✓", "no flags")


@dataclass(frozen=True)
class _Hippocampi:
    """The part of a scan's images that holds the hippocampi; probabilities by label."""

    region: Region
    labels: Voxels
    probabilities: np.ndarray

    def mask(self, parts: Mapping[int, Structure]) -> Voxels:
        return Voxels(np.isin(self.labels.data, list(parts)), self.labels.affine)

    def of_parts(self, parts: Mapping[int, Structure]) -> np.ndarray:
        return self.probabilities[[index - 1 for index in parts]]


def build_section(bids_dir: Path, output_dir: Path, scan: Scan, limit: int) -> Section:
    """Build the section of a scan in at most `limit` bytes.

    What is missing or damaged is logged and said in the section.
    """
    facts = read_facts(output_dir, scan)
    if limit < _OVERVIEW_ONLY:
        plain = tuple(replace(placed, picture="") for placed in facts.spaces)
        facts = replace(facts, spaces=plain)
    names = [f"{key}-{value}" for key, value in scan.entities if key != "sub"]
    title = ", ".join([*names, scan.suffix]) if names else f"{scan.suffix} image"
    section = Section(facts, anchor(scan.stem), title)
    if facts.status == "done":
        section.commands = viewer_commands(bids_dir, output_dir, scan)
    for problem in facts.problems:
        _warn(scan, problem)
    if limit < _NO_PICTURE:
        section.messages.append(f"There are no pictures, {_TOO_MANY}")
        return section
    try:
        _draw(section, bids_dir, output_dir, limit)
    except (BadData, MissingInput) as error:
        section.messages.append(f"Pictures are missing: {error}")
        section.unseen = True
        _warn(scan, error)
    return section


def _warn(scan: Scan, problem: object) -> None:
    _LOG.warning("Report of sub-%s, %s: %s", scan.subject, scan.stem, problem)


def _draw(section: Section, bids_dir: Path, output_dir: Path, limit: int) -> None:
    """Draw all pictures, or the image alone if there is nothing else."""
    facts = section.facts
    raw = read_raw(bids_dir, facts.scan)
    if facts.status != "failed":
        try:
            _illustrate(section, read_images(output_dir, facts.scan, raw), limit)
            return
        except (BadData, MissingInput) as error:
            # An output is damaged or missing, so the scan is not done, whatever its tables say.
            problems = (*facts.problems, str(error))
            section.facts = replace(facts, status="incomplete", problems=problems)
            section.unseen = True
            _warn(facts.scan, error)
    alone = Shown(
        f"{facts.scan.suffix} image",
        f"Slices through the middle of the head. {_CONVENTION}",
        "One sagittal, one coronal and one axial slice through the middle of the "
        f"{facts.scan.suffix} image.",
        pictures.overview(Voxels(raw.data, raw.affine)),
    )
    section.pictures = compressed([alone], limit // 2)


def _illustrate(section: Section, images: StoredImages, limit: int) -> None:
    """Draw all pictures of a scan, and pack the volumes and surfaces of its viewer."""
    facts = section.facts
    hippocampi = _read_hippocampi(images, facts)
    complete = limit >= _OVERVIEW_ONLY
    centers = {} if hippocampi is None else _centers(hippocampi, facts)
    shown: list[Shown] = []
    if hippocampi is not None and complete:
        for hemi in centers:
            shown += _side_pictures(images.anatomy, hippocampi, facts, hemi)
    shown.append(_head_picture(images, hippocampi, facts, centers))
    # Uncertainty comes last.
    shown.sort(key=lambda one: one.title.startswith("Uncertainty"))
    vectors = sum(len(one.picture.outline) + len(one.picture.marks) for one in shown)
    left = limit - vectors - _TABLES - sum(len(placed.picture) for placed in facts.spaces)
    section.pictures = compressed(shown, int(0.4 * left))
    left -= sum(len(one.image) for one in section.pictures)
    if complete:
        known = [*(centers | facts.box_centers).values()]
        if not known:
            known = [pictures.middle_of_head(images.anatomy, images.intracranial).tolist()]
        _add_viewer(section, images, hippocampi, known[0], left)
    else:
        section.messages.append(f"There is only an overview, {_TOO_MANY}")


def _read_hippocampi(images: StoredImages, facts: ScanFacts) -> _Hippocampi | None:
    """Read the part that holds the hippocampi; None if nothing is segmented."""
    region = viewer.region_around(images.labels)
    if region is None:
        return None
    count = max(facts.parts(), default=0)
    probabilities = images.probabilities(region)
    if len(probabilities) < count:
        raise BadData(
            f"{images.probseg}: has {len(probabilities)} volumes, but the volume "
            f"table has {count} parts; run the participant level again",
            code="probabilities-incomplete",
        )
    return _Hippocampi(region, images.labels.part(region), probabilities)


def _centers(hippocampi: _Hippocampi, facts: ScanFacts) -> dict[str, list[float]]:
    """Find the world coordinates of a central voxel of each hippocampus that is there.

    A hippocampus is curved, so its centroid may lie outside: the voxel nearest to it does not.
    """
    centers = {}
    for hemi in HEMISPHERES:
        mask = hippocampi.mask(facts.parts(hemi))
        voxels = np.argwhere(mask.data)
        if len(voxels):
            nearest = np.linalg.norm(voxels - voxels.mean(axis=0), axis=1).argmin()
            centers[hemi] = apply_affine(mask.affine, voxels[nearest]).tolist()
    return centers


def _colors(parts: Mapping[int, Structure]) -> dict[int, str]:
    return {index: part.color for index, part in parts.items()}


def _side_pictures(
    anatomy: Voxels, hippocampi: _Hippocampi, facts: ScanFacts, hemi: str
) -> Iterator[Shown]:
    """Draw the outlines of one hippocampus and the uncertainty around it."""
    side, parts = SIDE_NAMES[hemi], facts.parts(hemi)
    mask = hippocampi.mask(parts)
    region = mask.content()
    assert region is not None
    low, high = mask.part(region).extent(0.5)
    rows = pictures.side_tiles(low.tolist(), high.tolist())
    volumes = ", ".join(f"{p.part} {p.volume_mm3:,.0f} mm³" for p in parts.values() if p.volume_mm3)
    yield Shown(
        f"{side.capitalize()} hippocampus",
        f"Contours of the segmentation over the {facts.scan.suffix} image: coronal slices from "
        "anterior to posterior, sagittal slices from right to left, axial slices from top to "
        f"bottom, with world coordinates in mm. {_CONVENTION}",
        f"{side.capitalize()} hippocampus in six coronal, four sagittal and six axial slices "
        f"of the {facts.scan.suffix} image with contours of its parts: {volumes}.",
        pictures.mosaic(anatomy, hippocampi.labels, _colors(parts), rows),
    )
    whole = Voxels(hippocampi.of_parts(parts).sum(axis=0), hippocampi.labels.affine)
    lowest, highest = pictures.ENTROPY_RANGE
    yield Shown(
        f"Uncertainty, {side}",
        "Entropy of hippocampus against background where the probability of hippocampus is between "
        f"{lowest} and {highest}. The white line is where it is one half. A thin band along the "
        "border is normal; broad patches are not.",
        f"{side.capitalize()} hippocampus in six coronal and four sagittal slices, colored "
        "where the network is uncertain, by entropy in bits.",
        pictures.uncertainty(anatomy, whole, rows[:2]),
    )


def _head_picture(
    images: StoredImages,
    hippocampi: _Hippocampi | None,
    facts: ScanFacts,
    centers: Mapping[str, list[float]],
) -> Shown:
    """Draw the whole head, with slices through the hippocampi or else through the boxes."""
    boxes = facts.box_centers
    picture = pictures.overview(
        images.anatomy,
        intracranial=images.intracranial,
        labels=None if hippocampi is None else hippocampi.labels,
        colors=_colors(facts.parts()),
        centers=list((boxes | dict(centers)).values()),
        boxes=list(boxes.values()),
    )
    caption = ["The yellow contour is the intracranial volume."]
    if boxes:
        size = " × ".join(map(str, BOX))
        caption.append(
            f"The dashed boxes of {size} mm are what the network sees, around the places where the "
            "localizer found the hippocampi."
        )
    icv = "" if facts.icv_mm3 is None else f" of {facts.icv_mm3 / 1000:,.0f} ml"
    alt = f"Whole head in sagittal, coronal and axial slices of the {facts.scan.suffix} image with "
    alt += f"the contour of the intracranial volume{icv}"
    if len(facts.missing) < len(HEMISPHERES):
        alt += ", the hippocampi"
    if boxes:
        alt += " and the boxes around them"
    return Shown("Whole head", " ".join([*caption, _CONVENTION]), f"{alt}.", picture)


def compressed(shown: Sequence[Shown], limit: int) -> list[Shown]:
    """Compress pictures to a number of bytes in the page; each gets its part by its area."""
    area = sum(one.picture.pixels.size for one in shown)
    out = []
    for one in shown:
        pixels = one.picture.pixels
        # Base64 makes four bytes of three.
        content = pictures.compress(pixels, limit * 3 // 4 * pixels.size // area)
        out.append(replace(one, image=data_uri(content, "image/webp")))
    return out


def _add_viewer(
    section: Section,
    images: StoredImages,
    hippocampi: _Hippocampi | None,
    start: list[float],
    limit: int,
) -> None:
    """Pack what the viewer shows, in as much detail as the limit allows."""

    def pack(files: Mapping[str, bytes], *, well: bool) -> Markup:
        return Markup("\n").join(
            packed(content, f"{section.anchor}-{name}", well=well)
            for name, content in files.items()
        )

    parts = section.facts.parts()
    labels = [{"index": i, "name": p.name, "color": p.color} for i, p in parts.items()]
    fixed = {} if hippocampi is None else _segmentation_files(hippocampi, section.facts)
    for level in viewer.LEVELS:
        volumes = {}
        if hippocampi is not None:
            close = viewer.close_up(images.anatomy, hippocampi.region, level)
            volumes["close"] = viewer.nifti(close)
        if level.head_spacing:
            volumes["head"] = viewer.nifti(viewer.head(images.anatomy, level))
        # Detail is given up only where better compression, which takes longer, does not help.
        for well in (False, True) if volumes else ():
            if well and len(section.files) > _PACKED_QUICKLY * limit:
                break
            section.files = pack(fixed | volumes, well=well)
            if len(section.files) <= limit:
                section.viewer = {"files": [*fixed, *volumes], "labels": labels, "start": start}
                return
    section.files = ""
    section.messages.append(f"There is no interactive viewer, {_TOO_MANY}")


def _segmentation_files(hippocampi: _Hippocampi, facts: ScanFacts) -> dict[str, bytes]:
    """Make the files of the viewer that have the same detail at every level."""
    labels = hippocampi.labels
    whole = np.round(255 * np.clip(hippocampi.probabilities.sum(axis=0), 0, 1)).astype(np.uint8)
    files = {
        "labels": viewer.nifti(labels),
        "probability": viewer.nifti(Voxels(whole, labels.affine), slope=1 / 255),
    }
    for hemi in HEMISPHERES:
        parts = facts.parts(hemi)
        surface = viewer.surface(hippocampi.of_parts(parts), labels, _colors(parts))
        if surface is not None:
            files[f"surface-{hemi}"] = surface
    return files
