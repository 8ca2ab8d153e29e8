"""Bring the results of a scan to the spaces of templates; what the node of a scan does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np

from hyps_bids import __version__
from hyps_bids.errors import BadData
from hyps_bids.imaging.conform import ConformedImage, canonical_view, conform, restore_orientation
from hyps_bids.imaging.registration import Head
from hyps_bids.imaging.resample import resample
from hyps_bids.imaging.roi import bounding_box, index_range, shifted
from hyps_bids.messages import join_names
from hyps_bids.outputs.completion import (
    content_of,
    fingerprint_of,
    provenance_of,
    recorded_fingerprint,
)
from hyps_bids.outputs.compression import open_compressed
from hyps_bids.outputs.labels import HEMISPHERES
from hyps_bids.outputs.names import scan_paths
from hyps_bids.outputs.reading import read_table
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.space_files import (
    SpaceImages,
    TemplateRecord,
    recorded_space,
    scan_record,
    scan_uri,
    space_fingerprint,
    write_space,
)
from hyps_bids.outputs.spaces import space_paths
from hyps_bids.resources import read_many
from hyps_bids.spaces.align import align
from hyps_bids.spaces.template import Template, load_template

#: Contrast of all templates.
_TEMPLATE_SUFFIX = "T1w"


@dataclass(frozen=True)
class SpacePlan:
    """Where to bring scans.

    Attributes
    ----------
    output_dir : Path
        The derivatives dataset.
    templates : tuple of TemplateRecord
        The templates.
    localizer : Path
        Weights that find the brain in the templates.
    labels : tuple of str
        The adapter's classes in order, background left out.
    """

    output_dir: Path
    templates: tuple[TemplateRecord, ...]
    localizer: Path
    labels: tuple[str, ...]


@dataclass(frozen=True)
class _Results:
    """A scan and its results, all on the canonical grid of its image."""

    image: ConformedImage
    head: Head
    labels: np.ndarray
    probabilities: np.ndarray


def unplaced(scans: Sequence[Scan], plan: SpacePlan) -> tuple[list[Scan], int]:
    """Find the scans whose results in the spaces are not those of their present results.

    Returns
    -------
    left : list of Scan
        Those that are to be done.
    count : int
        How many scans have results at all.
    """
    known = dict(zip(scans, read_many(lambda scan: _is_placed(scan, plan), scans), strict=True))
    done = [scan for scan, is_so in known.items() if is_so is not None]
    return [scan for scan in done if not known[scan]], len(done)


def _is_placed(scan: Scan, plan: SpacePlan) -> bool | None:
    """Tell whether a scan needs nothing; None if it is not done."""
    own = recorded_fingerprint(scan, plan.output_dir)
    if own is None:
        return None
    return all(_is_current(scan, template, plan, own) for template in plan.templates)


def describe_placed(scans: Sequence[Scan], plan: SpacePlan) -> list[str]:
    """Say which of these scans were refused, and why, and name those to look at."""
    texts = []
    for template in plan.templates:
        space, flagged = template.space, []
        for scan in _current(scans, template, plan):
            row = read_table(space_paths(scan, space, plan.output_dir)["qc"]).iloc[0]
            if row["status"] == "refused":
                texts.append(f"{scan.stem}: no images in {space.label}. {row['reason']}")
            elif row["review"] == "yes":
                flagged.append(f"{scan.stem} ({row['flags']})")
        if flagged:
            texts.append(
                f"Look at these scans in the reports before you use them in {space.label}: "
                + join_names(flagged)
            )
    return texts


def count_refused(scans: Sequence[Scan], plan: SpacePlan) -> int:
    """Count the scans that present results refuse for a template, those of earlier runs as well."""
    refused = set()
    for template in plan.templates:
        for scan in _current(scans, template, plan):
            sidecar = recorded_space(scan, template.space, plan.output_dir)
            if sidecar.get("Status") == "refused":
                refused.add(scan)
    return len(refused)


def _current(scans: Sequence[Scan], template: TemplateRecord, plan: SpacePlan) -> list[Scan]:
    """Return the scans whose results in a space are those of their present results."""

    def is_current(scan: Scan) -> bool:
        own = recorded_fingerprint(scan, plan.output_dir)
        return own is not None and _is_current(scan, template, plan, own)

    return [scan for scan, so in zip(scans, read_many(is_current, scans), strict=True) if so]


def _is_current(scan: Scan, template: TemplateRecord, plan: SpacePlan, own: str) -> bool:
    recorded = recorded_space(scan, template.space, plan.output_dir).get("Fingerprint")
    return bool(recorded == space_fingerprint(own, template, __version__))


class Outlines(NamedTuple):
    """What a picture of a scan in the space of a template shows, on the template's grid.

    Attributes
    ----------
    template, affine : numpy.ndarray
        Intensities of the template, and their voxel-to-world transform.
    labels, inside : numpy.ndarray
        Labels of the scan, and 1 inside its skull.
    """

    template: np.ndarray
    affine: np.ndarray
    labels: np.ndarray
    inside: np.ndarray


def place_scan(scan: Scan, plan: SpacePlan, draw: Callable[[Outlines], str]) -> None:
    """Bring the results of a scan to the spaces of all templates where they are not yet.

    Parameters
    ----------
    scan : Scan
        A scan that is done.
    plan : SpacePlan
        The templates.
    draw : callable
        Makes an SVG picture for the report.

    Raises
    ------
    BadData
        If the image or a result of the scan cannot be read, or has changed since.
    CannotCreateOutput
        If a file cannot be written.
    """
    record, content, results = _read(scan, plan)
    own = record["Fingerprint"]
    common = provenance_of(record)
    for known in plan.templates:
        if _is_current(scan, known, plan, own):
            continue
        template = load_template(known, plan.localizer)
        move, verdict = align(
            template.head, results.head, same_contrast=scan.suffix == _TEMPLATE_SUFFIX
        )
        images = None
        if move is not None and not verdict.refusal:
            count = len(HEMISPHERES) * len(plan.labels)
            images = _carry(results, template, move, count, draw)
        facts: dict[str, Any] = {
            "Sources": [scan_uri(scan), known.url],
            **common,
            "Template": {
                "Name": known.space.template,
                "File": known.path.name,
                "SHA256": known.digest,
            },
            "Parts": list(plan.labels),
            "ScanFingerprint": own,
            "Fingerprint": space_fingerprint(own, known, __version__),
        }
        row = {"refusal": verdict.refusal, "flags": verdict.flags, "figures": verdict.figures}
        write_space(scan, plan.output_dir, known, images, row, facts, content)


def _read(scan: Scan, plan: SpacePlan) -> tuple[dict[str, Any], str, _Results]:
    """Read the image of a scan and its results, and check that they belong together."""
    paths = scan_paths(scan, plan.output_dir)
    content = content_of(scan)
    image = conform(scan.path)
    try:
        record = scan_record(scan, plan.output_dir)
        made_by = provenance_of(record)
        read = [_read_image(paths[kind], image) for kind in ("mask", "dseg", "probseg")]
        mask, labels, probabilities = read
        if probabilities.shape[3] != len(HEMISPHERES) * len(plan.labels):
            raise ValueError("they have other parts than those of this run")
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise BadData(
            f"{paths['qc'].parent}: the results of {scan.stem} cannot be read ({error}). Remove "
            f"{paths['qc'].name} and run the command again.",
            code="scan-results-damaged",
        ) from error
    if fingerprint_of(content, made_by) != record["Fingerprint"]:
        raise BadData(
            f"{scan.path}: the image is not the one that was segmented. Run the participant level "
            "for this scan first.",
            code="image-changed",
        )
    parts = len(plan.labels)
    sides = np.stack([(labels > i * parts) & (labels <= (i + 1) * parts) for i in range(2)])
    head = Head(image.data, image.affine, mask > 0, sides, image.affine)
    return record, content, _Results(image, head, labels, probabilities)


def _read_image(path: Path, image: ConformedImage) -> np.ndarray:
    """Read an image of ours as it is stored, with canonical axes."""
    with open_compressed(path) as stream:
        stored = nib.Nifti1Image.from_stream(stream)
        data = np.asanyarray(stored.dataobj.get_unscaled())
    if data.shape[:3] != image.native_shape:
        raise ValueError(f"{path.name} has another shape than the image")
    return canonical_view(data, image.orientation)


def _carry(
    results: _Results,
    template: Template,
    move: np.ndarray,
    count: int,
    draw: Callable[[Outlines], str],
) -> SpaceImages:
    grid, affine = template.image, results.image.affine
    target = grid.data.shape, move @ grid.affine
    labels = _carry_labels(results.labels, count, affine, *target)
    probabilities = [
        _on_grid(np.round(values), region, grid.data.shape)
        for region, values in (
            carry(results.probabilities[..., i], affine, *target) for i in range(count)
        )
    ]
    region, inside = carry(results.head.inside, affine, *target)
    outlines = Outlines(
        grid.data, grid.affine, labels, _on_grid(inside > 0.5, region, grid.data.shape)
    )
    return SpaceImages(
        _in_file(labels, grid),
        [_in_file(each, grid) for each in probabilities],
        np.linalg.inv(move),
        draw(outlines),
    )


def _carry_labels(
    labels: np.ndarray, count: int, affine: np.ndarray, shape: Sequence[int], target: np.ndarray
) -> np.ndarray:
    """Resample each label by itself; the largest share decides, that of the background included."""
    best, largest = np.zeros(tuple(shape), np.uint8), np.zeros(tuple(shape), np.float32)
    total = np.zeros(tuple(shape), np.float32)
    box = bounding_box(labels > 0)
    if box is None:
        return best
    near, there = labels[box], shifted(affine, [part.start for part in box])
    # The share of a label at the border of this box must fall to zero within it.
    near, there = np.pad(near, 2), shifted(there, [-2] * 3)
    for label in range(1, count + 1):
        region, share = carry(near == label, there, shape, target)
        best[region][share > largest[region]] = label
        largest[region] = np.maximum(largest[region], share)
        total[region] += share
    best[largest <= 1 - total] = 0
    return best


def carry(
    values: np.ndarray, affine: np.ndarray, shape: Sequence[int], target: np.ndarray
) -> tuple[tuple[slice, ...], np.ndarray]:
    """Sample a map that is zero almost everywhere on another grid, linearly.

    Parameters
    ----------
    values, affine : numpy.ndarray
        Shape ``(x, y, z)``, and voxel-to-world transform.
    shape, target : sequence of int, numpy.ndarray
        The new grid. Where it is coarser, the map is averaged.

    Returns
    -------
    region : tuple of slice
        The part of the new grid outside which it is zero.
    sampled : numpy.ndarray
        The map in this part, float32.
    """
    box = bounding_box(values > 0, margin=2)
    if box is None:
        return (slice(0),) * 3, np.zeros((0, 0, 0), np.float32)
    near, there = values[box].astype(np.float32), shifted(affine, [part.start for part in box])
    region = index_range(near.shape, there, shape, target)
    sides = [part.stop - part.start for part in region]
    origin = shifted(target, [part.start for part in region])
    # Of a transform that stretches the axes, the cube root of the volume of a voxel.
    spacing = float(np.abs(np.linalg.det(target[:3, :3]))) ** (1 / 3)
    return region, resample(near, there, sides, origin, smooth=spacing)


def _on_grid(data: np.ndarray, region: tuple[slice, ...], shape: Sequence[int]) -> np.ndarray:
    """Put data of a region on the whole grid."""
    volume = np.zeros(tuple(shape), np.uint8)
    volume[region] = data
    return volume


def _in_file(data: np.ndarray, grid: ConformedImage) -> np.ndarray:
    """Put canonical data into the axis order of the template's file."""
    return restore_orientation(data, grid.orientation)
