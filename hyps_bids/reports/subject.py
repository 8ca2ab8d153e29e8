"""The subject report: all scans of one subject in one HTML file."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from hyps_bids import __version__
from hyps_bids.errors import BadData, MissingInput
from hyps_bids.imaging.conform import ConformedImage
from hyps_bids.messages import listed
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.writing import write_text
from hyps_bids.reports import figures, viewer
from hyps_bids.reports.citation import methods_html
from hyps_bids.reports.flags import HEMISPHERES
from hyps_bids.reports.page import anchor, data_uri, embedded_json, packed, render
from hyps_bids.reports.scan import (
    Images,
    ScanFacts,
    Structure,
    facts_files,
    find_scans_of,
    read_facts,
    read_images,
    read_raw,
    unprocessed,
)

__all__ = ["LIMIT", "is_current", "write_subject_report"]

_LOG = logging.getLogger("hyps_bids")
#: bytes that a report does not exceed
LIMIT = 6_000_000
#: bytes of the page itself: viewer library, style, scripts, methods
_PAGE = 1_250_000
#: bytes of a scan: at most; below which there is only an overview; below which there is no picture
_SHARE, _OVERVIEW_ONLY, _NO_PICTURE = 1_500_000, 170_000, 40_000
#: characters in which the state of a report is
_HEAD = 2_000
#: bytes of a scan's tables
_TABLES = 16_000


@dataclass(frozen=True)
class _Shown:
    """A picture in the page."""

    title: str
    caption: str
    alt: str
    image: str
    picture: figures.Picture


@dataclass
class _Section:
    """What the page shows of a scan."""

    facts: ScanFacts
    anchor: str
    title: str
    pictures: list[_Shown] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    #: a picture could not be drawn
    unseen: bool = False
    viewer: dict[str, Any] | None = None
    files: str = ""

    @property
    def notes(self) -> list[str]:
        """Why to look at it: the error, or the flags in words."""
        if self.facts.status == "failed":
            return [self.facts.reason.removesuffix(".")]
        return [flag.text for flag in self.facts.flags]

    @property
    def run(self) -> str | None:
        """With what it was made, and where."""
        made = self.facts.provenance
        if made is None:
            return None
        adapter = made["Models"]["Adapter"]["Name"].removeprefix("adapter-")
        devices = listed(sorted(set(made.get("Devices", {}).values()))) or "an unknown device"
        return f"Made with HyPS-BIDS {made['SoftwareVersion']}, adapter {adapter}, on {devices}."

    @property
    def state(self) -> tuple[str, str, str]:
        """Class, symbol and words."""
        count = len(self.facts.flags)
        if self.facts.status == "failed":
            return "bad", "✗", "failed"
        if self.facts.status == "incomplete":
            return "bad", "✗", "incomplete"
        if count:
            return "warn", "!", f"look at it: {count} flag{'s' if count > 1 else ''}"
        if self.unseen:
            return "warn", "!", "no flags, but pictures are missing"
        return "good", "✓", "no flags"


def write_subject_report(
    bids_dir: Path, output_dir: Path, subject: str, *, settings_text: str = ""
) -> Path:
    """Write the report of a subject from its derivatives.

    Nothing is computed anew. What is not there or damaged is said in the report and logged. Several
    jobs may finish scans of a subject at once: the last of them to write sees what all have made.

    Parameters
    ----------
    bids_dir : Path
        The raw dataset.
    output_dir : Path
        The derivatives dataset.
    subject : str
        Label, without ``sub-``.
    settings_text : str
        Settings of the run, shown as they are.

    Returns
    -------
    Path
        ``OUT_DIR/sub-<subject>.html``; the same derivatives give the same file.

    Raises
    ------
    CannotCreateOutput
        If it cannot be written.
    """
    path = output_dir / f"sub-{subject}.html"
    state, complete = None, bool(settings_text)
    while state != (now := _state(bids_dir, output_dir, subject, with_settings=complete)):
        state = now
        write_text(path, _build(bids_dir, output_dir, subject, settings_text, state))
    return path


def is_current(bids_dir: Path, output_dir: Path, subject: str) -> bool:
    """Tell whether a report shows the outputs as they are and the settings, nothing left out.

    Parameters
    ----------
    bids_dir : Path
        The raw dataset.
    output_dir : Path
        The derivatives dataset.
    subject : str
        Label, without ``sub-``.

    Returns
    -------
    bool
        Also true if there are no outputs, and so nothing to report.
    """
    if not find_scans_of(output_dir, subject):
        return True
    try:
        with (output_dir / f"sub-{subject}.html").open(encoding="utf-8") as report:
            head = report.read(_HEAD)
    except OSError:
        return False
    return f'content="{_state(bids_dir, output_dir, subject, with_settings=True)}"' in head


def _state(bids_dir: Path, output: Path, subject: str, *, with_settings: bool) -> str:
    """Digest of what the report shows: it changes when another job finishes a scan."""
    digest = hashlib.sha256(f"{__version__} {with_settings} ".encode())
    digest.update(" ".join(unprocessed(bids_dir, output, subject)).encode())
    for scan in find_scans_of(output, subject):
        for path in facts_files(output, scan).values():
            try:
                content = path.read_bytes()
            except OSError:
                content = b""
            digest.update(f"{path.name} {len(content)} ".encode() + content)
    return digest.hexdigest()


def _build(bids_dir: Path, output: Path, subject: str, settings_text: str, state: str) -> str:
    scans = find_scans_of(output, subject)
    share = min(_SHARE, (LIMIT - _PAGE - len(settings_text.encode())) // max(1, len(scans)))
    sections = [_section(bids_dir, output, scan, share) for scan in scans]
    methods: dict[str, tuple[Markup, list[str]]] = {}
    for section in sections:
        if section.facts.provenance is not None:
            text = methods_html(section.facts.provenance)
            methods.setdefault(str(text), (text, []))[1].append(section.title)
    viewers = {s.anchor: s.viewer for s in sections if s.viewer is not None}
    return render(
        "subject.html.j2",
        # without one it is made again: what was missing may be there by then
        outputs_state="" if any(s.unseen for s in sections) else state,
        unprocessed=unprocessed(bids_dir, output, subject),
        subject=subject,
        sections=sections,
        verdict=_verdict(sections),
        columns=_columns(sections),
        runs=dict.fromkeys(s.run for s in sections if s.run is not None),
        methods=[
            (_with_own_anchors(text, i), titles)
            for i, (text, titles) in enumerate(methods.values())
        ],
        errors=[(s, _errors(s)) for s in sections if _errors(s)],
        viewers=embedded_json(viewers, "viewer-data") if viewers else None,
        settings_text=settings_text,
        hemispheres=HEMISPHERES,
    )


def _with_own_anchors(methods: Markup, number: int) -> Markup:
    """Tell the anchors of several lists of references apart."""
    if number == 0:
        return methods
    text = str(methods)
    for start in ('id="ref-', 'href="#ref-'):
        text = text.replace(start, f"{start}{number}-")
    return Markup(text)


def _section(bids_dir: Path, output: Path, scan: Scan, share: int) -> _Section:
    facts = read_facts(output, scan)
    names = [f"{key}-{value}" for key, value in scan.entities if key != "sub"]
    section = _Section(
        facts=facts,
        anchor=anchor(scan.stem),
        title=", ".join(names) or "T1w image",
    )
    for problem in facts.problems:
        _LOG.warning("report of sub-%s, %s: %s", scan.subject, scan.stem, problem)
    if share < _NO_PICTURE:
        section.messages.append("No pictures: there are too many scans for one report of 6 MB.")
        return section
    try:
        _draw(section, bids_dir, output, share)
    except (BadData, MissingInput) as error:
        section.messages.append(f"Pictures are missing: {error}")
        section.unseen = True
        _LOG.warning("report of sub-%s, %s: no pictures: %s", scan.subject, scan.stem, error)
    return section


def _draw(section: _Section, bids_dir: Path, output: Path, share: int) -> None:
    """Draw what can be: all, or the image alone if there is nothing else."""
    scan = section.facts.scan
    raw = read_raw(bids_dir, scan)
    if section.facts.status == "failed":
        _show(section, share // 2, [_raw_picture(raw)])
        return
    try:
        _illustrate(section, read_images(output, scan, raw), share)
    except (BadData, MissingInput) as error:
        # an output is damaged or gone: the scan is not done, whatever its tables say
        facts = section.facts
        section.facts = replace(facts, status="incomplete", problems=(*facts.problems, str(error)))
        section.unseen = True
        _LOG.warning("report of sub-%s, %s: %s", scan.subject, scan.stem, error)
        _show(section, share // 2, [_raw_picture(raw)])


def _raw_picture(raw: ConformedImage) -> tuple[str, str, str, figures.Picture]:
    return (
        "The image",
        "Slices through the middle of the head. Radiological convention: left is on the right.",
        "One sagittal, one coronal and one axial slice through the middle of the T1w image.",
        figures.overview(raw.data, raw.affine),
    )


@dataclass(frozen=True)
class _Cut:
    """The part of a scan's images that holds the hippocampi."""

    region: tuple[slice, slice, slice]
    affine: np.ndarray
    labels: np.ndarray
    #: by label, ``(labels, x, y, z)``
    probabilities: np.ndarray


def _cut(images: Images, count: int) -> _Cut | None:
    """Read the part that holds the hippocampi; None if there are none."""
    region = viewer.region_around(images.labels, images.affine)
    if region is None:
        return None
    probabilities = images.probabilities(region)
    if len(probabilities) < count:
        raise BadData(
            f"{images.probseg.get_filename()}: has {len(probabilities)} volumes and the volume "
            f"table {count} parts; run the participant level again"
        )
    affine = images.affine.copy()
    affine[:3, 3] += images.affine[:3, :3] @ [part.start for part in region]
    return _Cut(region, affine, images.labels[region], probabilities)


def _illustrate(section: _Section, images: Images, share: int) -> None:
    """Draw all pictures of a scan and pack its volumes and surfaces."""
    parts = {
        hemi: {s.index: s for s in section.facts.structures if s.hemi == hemi and s.index}
        for hemi in HEMISPHERES
    }
    colors = {index: s.color for side in parts.values() for index, s in side.items()}
    cut = _cut(images, max(colors, default=0))
    drawn: list[tuple[str, str, str, figures.Picture]] = []
    boxes = section.facts.box_centers
    centers: dict[str, list[float]] = {}
    if cut is not None:
        for hemi, side in parts.items():
            mask = np.isin(cut.labels, list(side))
            if not mask.any():
                continue
            low, high = figures.bounds(mask, cut.affine)
            voxels = np.argwhere(mask)
            # within it, although it is curved
            middle = voxels[np.linalg.norm(voxels - voxels.mean(axis=0), axis=1).argmin()]
            centers[hemi] = (cut.affine[:3, :3] @ middle + cut.affine[:3, 3]).tolist()
            if share >= _OVERVIEW_ONLY:
                rows = figures.side_tiles(low.tolist(), high.tolist())
                drawn += _of_side(images, cut, HEMISPHERES[hemi], side, rows)
    picture = figures.overview(
        images.t1w,
        images.affine,
        intracranial=images.intracranial,
        labels=None if cut is None else (cut.labels, cut.affine),
        colors=colors,
        # where nothing was segmented, what the localizer had found
        centers=list((boxes | centers).values()),
        boxes=list(boxes.values()),
    )
    drawn.append(_overview_words(picture, section.facts))
    # mosaics first, then the head, then what the network was unsure of
    drawn.sort(key=lambda item: item[0].startswith("Uncertainty"))
    vectors = sum(len(item[3].outline) + len(item[3].marks) for item in drawn)
    left = share - vectors - _TABLES
    _show(section, int(0.4 * left), drawn)
    left -= sum(len(shown.image) for shown in section.pictures)
    if share >= _OVERVIEW_ONLY:
        _pack(section, images, cut, parts, left)
        if section.viewer is not None:
            middle = figures.middle_of_head(images.t1w, images.affine, images.intracranial)
            section.viewer["start"] = [*(centers | boxes).values(), middle.tolist()][0]
    else:
        section.messages.append(
            "Only an overview: there are too many scans for one report of 6 MB."
        )


def _of_side(
    images: Images,
    cut: _Cut,
    side: str,
    parts: dict[int, Structure],
    rows: Sequence[Sequence[figures.Tile]],
) -> list[tuple[str, str, str, figures.Picture]]:
    """Draw one hippocampus: outlines, and uncertainty."""
    colors = {index: part.color for index, part in parts.items()}
    said = ", ".join(f"{p.part} {p.volume_mm3:,.0f} mm³" for p in parts.values() if p.volume_mm3)
    whole = cut.probabilities[[index - 1 for index in parts]].sum(axis=0)
    low, high = figures.ENTROPY_RANGE
    return [
        (
            f"{side.capitalize()} hippocampus",
            "Contours of the segmentation over the T1w image: coronal slices from anterior to "
            "posterior, sagittal ones from right to left, axial ones from top to bottom; world "
            "coordinates in mm. Radiological convention: the patient’s left is on the right.",
            f"{side.capitalize()} hippocampus in six coronal, four sagittal and six axial slices "
            f"of the T1w image with contours of its parts: {said}.",
            figures.mosaic(images.t1w, images.affine, cut.labels, cut.affine, colors, rows),
        ),
        (
            f"Uncertainty, {side}",
            f"Entropy of hippocampus against background where its probability is between {low} and "
            f"{high}; white: probability one half. A thin band along the border is normal; broad "
            "patches are not.",
            f"{side.capitalize()} hippocampus in six coronal and four sagittal slices, colored "
            "where the network is uncertain, by entropy in bits.",
            figures.uncertainty(images.t1w, images.affine, whole, cut.affine, rows[:2]),
        ),
    ]


def _overview_words(
    picture: figures.Picture, facts: ScanFacts
) -> tuple[str, str, str, figures.Picture]:
    box, seen, boxes = " × ".join(map(str, figures.BOX)), "", ""
    if facts.box_centers:
        seen = (
            f" Dashed: what the network sees, a box of {box} mm around where the localizer found "
            "each hippocampus."
        )
        boxes = " and the boxes around them"
    hippocampi = ", the hippocampi" if len(facts.missing) < len(HEMISPHERES) else ""
    icv = "" if facts.icv_mm3 is None else f" of {facts.icv_mm3 / 1000:,.0f} ml"
    return (
        "Whole head",
        f"Yellow: intracranial volume.{seen} Radiological convention: the patient’s left is on the "
        "right.",
        f"Whole head in sagittal, coronal and axial slices with the contour of the intracranial "
        f"volume{icv}{hippocampi}{boxes}.",
        picture,
    )


def _show(
    section: _Section, limit: int, drawn: Sequence[tuple[str, str, str, figures.Picture]]
) -> None:
    """Compress pictures; each gets its part of the bytes by its area."""
    area = sum(item[3].pixels.size for item in drawn)
    for title, caption, alt, picture in drawn:
        # base64 makes four bytes of three
        content = figures.compress(picture.pixels, limit * 3 // 4 * picture.pixels.size // area)
        section.pictures.append(
            _Shown(title, caption, alt, data_uri(content, "image/webp"), picture)
        )


def _pack(
    section: _Section,
    images: Images,
    cut: _Cut | None,
    parts: dict[str, dict[int, Structure]],
    limit: int,
) -> None:
    """Pack what the viewer shows, with as much detail as the limit allows."""
    anchor = section.anchor
    colors = {index: s.color for side in parts.values() for index, s in side.items()}
    fixed: dict[str, bytes] = {}
    if cut is not None:
        fixed["labels"] = viewer.nifti(cut.labels, cut.affine)
        whole = np.round(255 * np.clip(cut.probabilities.sum(axis=0), 0, 1)).astype(np.uint8)
        fixed["probability"] = viewer.nifti(whole, cut.affine, slope=1 / 255)
        for hemi, side in parts.items():
            if not side:
                continue
            own = cut.probabilities[[index - 1 for index in side]]
            surface = viewer.surface(own, cut.labels, cut.affine, list(side), colors)
            if surface is not None:
                fixed[f"surface-{hemi}"] = surface
    always = Markup("\n").join(packed(c, f"{anchor}-{name}") for name, c in fixed.items())
    for level in viewer.LEVELS:
        volumes = {}
        if cut is not None:
            volumes["close"] = viewer.nifti(
                *viewer.close_up(images.t1w, images.affine, cut.region, level)
            )
        if level.head_spacing:
            volumes["head"] = viewer.nifti(*viewer.head(images.t1w, images.affine, level))
        files = Markup("\n").join(packed(c, f"{anchor}-{name}") for name, c in volumes.items())
        if volumes and len(always) + len(files) <= limit:
            section.files = always + files
            section.viewer = {
                "title": section.title,
                "files": [*fixed, *volumes],
                "labels": [
                    {"index": index, "name": s.name, "color": s.color}
                    for side in parts.values()
                    for index, s in side.items()
                ],
            }
            return
    section.messages.append(
        "No interactive viewer: there are too many scans for one report of 6 MB."
    )


def _verdict(sections: Sequence[_Section]) -> tuple[str, str, str]:
    """Sum up all scans: class, symbol and words."""
    count = len(sections)
    if not count:
        return "bad", "✗", "No scan of this subject has been processed."
    bad = sum(s.state[0] == "bad" for s in sections)
    flagged = sum(s.state[0] == "warn" and bool(s.facts.flags) for s in sections)
    unseen = sum(s.state[0] == "warn" and not s.facts.flags for s in sections)
    words = [
        f"{n} of {count} {'scan' if count == 1 else 'scans'} {what}"
        for n, what in (
            (bad, "failed or incomplete"),
            (flagged, "flagged: look at the pictures"),
            (unseen, "without pictures"),
        )
        if n
    ]
    if words:
        return ("bad", "✗", "; ".join(words)) if bad else ("warn", "!", "; ".join(words))
    return "good", "✓", "No flags" if count == 1 else f"No flags in any of {count} scans"


def _columns(sections: Sequence[_Section]) -> list[tuple[str, str]]:
    """Parts of the hippocampi of all scans: hemisphere and part, whole last on each side."""
    parts = [part for s in sections for part in s.facts.structures]
    return [
        (hemi, part)
        for hemi in HEMISPHERES
        for part in [
            *dict.fromkeys(s.part for s in parts if s.hemi == hemi and s.part != "whole"),
            *dict.fromkeys(s.part for s in parts if s.hemi == hemi and s.part == "whole"),
        ]
    ]


def _errors(section: _Section) -> list[str]:
    reason = [section.facts.reason] if section.facts.status == "failed" else []
    return [*reason, *section.facts.problems, *section.messages]
