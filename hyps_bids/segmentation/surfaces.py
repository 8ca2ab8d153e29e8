"""Surfaces of scans that are done, made from their outputs: labels and probabilities."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from hyps_bids.errors import HypsError, WriteFailed
from hyps_bids.imaging.conform import load_nifti
from hyps_bids.imaging.geometry import read_geometry
from hyps_bids.imaging.roi import bounding_box, shifted
from hyps_bids.imaging.surfaces import MARGIN, find_surface
from hyps_bids.messages import format_count
from hyps_bids.outputs.completion import recorded_fingerprint
from hyps_bids.outputs.images import Region, opened, read_part
from hyps_bids.outputs.labels import HEMISPHERES
from hyps_bids.outputs.names import scan_paths
from hyps_bids.outputs.reading import read_text_table
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.surface_files import Surface, lacks_surfaces, write_surfaces
from hyps_bids.progress import track
from hyps_bids.resources import available_cpus, read_many
from hyps_bids.settings import Settings

_LOG = logging.getLogger("hyps_bids")


def add_missing_surfaces(settings: Settings, scans: Sequence[Scan]) -> list[Scan]:
    """Make the surfaces of the scans that are done but have none yet.

    Returns
    -------
    list of Scan
        Scans whose surfaces cannot be made.

    Raises
    ------
    WriteFailed
        If the disk is full or broken.
    """
    output = settings.output_dir
    lacking = read_many(lambda scan: lacks_surfaces(scan, output), scans)
    to_do = [scan for scan, lacks in zip(scans, lacking, strict=True) if lacks]
    failed = []

    def attempt(scan: Scan) -> HypsError | None:
        try:
            add_surfaces(scan, output)
        except HypsError as error:
            return error
        return None

    # Most of the time is spent in functions that let other threads run.
    with ThreadPoolExecutor(settings.nprocs or available_cpus()) as pool:
        results = pool.map(attempt, to_do)
        for scan, error in zip(to_do, track(results, len(to_do), "scans", "Surfaces"), strict=True):
            if isinstance(error, WriteFailed):
                pool.shutdown(cancel_futures=True)
                raise error
            if error is not None:
                _LOG.error("%s: no surfaces: %s", scan.stem, error)
                failed.append(scan)
    if to_do:
        _LOG.info("Surfaces: made for %s that had none", format_count(len(to_do), "scan"))
    return failed


def add_surfaces(scan: Scan, output_dir: Path) -> None:
    """Make the surfaces of a scan that is done.

    Raises
    ------
    MissingInput, BadData
        If an output of the scan is not there or damaged.
    CannotCreateOutput
        If a file cannot be written.
    """
    paths = scan_paths(scan, output_dir)
    before = recorded_fingerprint(scan, output_dir)
    with opened(paths["dseg"]) as image:
        labels = image.dataobj.get_unscaled()
    # The header is read from the file, as it is stored.
    affine = read_geometry(load_nifti(paths["dseg"]), paths["dseg"]).affine

    def probabilities(region: Region) -> np.ndarray:
        with opened(paths["probseg"]) as image:
            return read_part(image, region)

    surfaces = find_surfaces(labels, affine, probabilities, _edited_sides(paths["qc"]))
    # If another job has meanwhile made the scan anew, it also makes the surfaces.
    if recorded_fingerprint(scan, output_dir) == before:
        write_surfaces(scan, output_dir, surfaces)


def find_surfaces(
    labels: np.ndarray,
    affine: np.ndarray,
    probabilities: Callable[[Region], np.ndarray],
    edited: Sequence[str] = (),
) -> dict[str, Surface]:
    """Make the surface of each hippocampus that has a voxel.

    Parameters
    ----------
    labels : numpy.ndarray
        Labels of the parts of both sides, shape ``(x, y, z)``.
    affine : numpy.ndarray
        Voxel-to-world transform (RAS, mm).
    probabilities : callable
        Returns the probability of each label in a part of the image, shape ``(labels, *part)``.
    edited : sequence of str
        Hemispheres whose labels are not those of the networks, which the probabilities are about.
    """
    box = bounding_box(labels > 0, margin=MARGIN)
    if box is None:
        return {}
    region = box[0], box[1], box[2]
    labels, likely = labels[region], probabilities(region)
    there = shifted(affine, [part.start for part in region])
    parts = len(likely) // len(HEMISPHERES)
    found = {}
    for number, hemi in enumerate(HEMISPHERES):
        first = number * parts
        mask = (labels > first) & (labels <= first + parts)
        if mask.any():
            own = likely[first : first + parts].sum(axis=0)
            found[hemi] = find_surface(mask, there, None if hemi in edited else own)
    return found


def _edited_sides(qc: Path) -> list[str]:
    """Read which sides have labels that differ from those of the networks."""
    table = read_text_table(qc)
    return [h for h in HEMISPHERES if set(table.get(f"edit_dice_{h}", ())) - {"n/a", "1"}]
