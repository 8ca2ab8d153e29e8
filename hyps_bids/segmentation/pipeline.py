"""The chain from an image to its results, told once.

conform → correct_bias (if asked) → localize → segment → restore_sides → measure_scan and
native_images. Each step takes and returns dataclasses. The nipype nodes of the participant level
and ``hyps_bids.segment`` call them by :func:`run_networks` and :func:`measure_sides`; evaluation
and the training of adapters run them as a :class:`Pipeline`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hyps_bids.imaging.bias import correct_bias
from hyps_bids.imaging.conform import ConformedImage, canonical_view, conform
from hyps_bids.imaging.resample import resample
from hyps_bids.imaging.roi import bounding_box, index_range, shifted
from hyps_bids.imaging.volumes import RestoredSide, restore
from hyps_bids.outputs.labels import HEMISPHERES
from hyps_bids.outputs.provenance import Provenance
from hyps_bids.outputs.scan_files import ScanImages, ScanMeasures
from hyps_bids.segmentation.localize import Localization, localize
from hyps_bids.segmentation.measures import measure_scan
from hyps_bids.segmentation.segment import Segmentation, segment

__all__ = [
    "Grid",
    "Pipeline",
    "Result",
    "conform",
    "correct_bias",
    "localize",
    "measure_scan",
    "measure_sides",
    "native_images",
    "restore_sides",
    "run_networks",
    "segment",
]

#: Shape and voxel-to-world transform of a grid; its axes point about right, anterior, superior.
Grid = tuple[Sequence[int], np.ndarray]


def restore_sides(
    image: ConformedImage, segmentation: Segmentation, grids: Mapping[str, Grid] | None = None
) -> dict[str, RestoredSide]:
    """Bring the probabilities of each hippocampus to a grid, and label its voxels.

    Parameters
    ----------
    image : ConformedImage
        The image that was segmented.
    segmentation : Segmentation
        The hippocampi in their boxes.
    grids : mapping of str to (shape, affine), optional
        Hemisphere → grid in the image's world; by default, the image's own grid.
    """
    own = (image.data.shape, image.affine)
    return {
        hemi: restore(side.probabilities, side.affine, *(grids or {}).get(hemi, own))
        for hemi, side in segmentation.sides.items()
    }


def native_images(
    image: ConformedImage,
    restored: Mapping[str, RestoredSide],
    intracranial: np.ndarray,
    intracranial_affine: np.ndarray,
    parts: int,
) -> ScanImages:
    """Put the results of a scan on the grid of its own file, in the file's own axis order.

    Parameters
    ----------
    image : ConformedImage
        The conformed image.
    restored : mapping of str to RestoredSide
        Hemisphere → hippocampus on the canonical grid.
    intracranial, intracranial_affine : numpy.ndarray
        Intracranial probability on the localizer's grid, and its voxel-to-world transform.
    parts : int
        Number of parts of one hippocampus.
    """
    labels, inside = label_image(image, restored, parts), _file_grid(image)
    _mark_inside(
        canonical_view(inside, image.orientation), image.affine, intracranial, intracranial_affine
    )
    return ScanImages(labels, _probabilities(image, restored, parts), inside)


def label_image(
    image: ConformedImage, restored: Mapping[str, RestoredSide], parts: int
) -> np.ndarray:
    """Put labels on the grid of a scan's own file; the parameters are those of `native_images`."""
    labels = _file_grid(image)
    for hemi, side in restored.items():
        found = side.labels > 0
        region = canonical_view(labels, image.orientation)[side.region]
        region[found] = side.labels[found] + HEMISPHERES.index(hemi) * parts
    return labels


def _file_grid(image: ConformedImage) -> np.ndarray:
    """Make an empty volume on the grid of an image's file, in the order of axes of NIfTI."""
    return np.zeros(image.native_shape, np.uint8, order="F")


def _probabilities(
    image: ConformedImage, restored: Mapping[str, RestoredSide], parts: int
) -> Iterator[np.ndarray]:
    for hemi in HEMISPHERES:
        for part in range(parts):
            volume = _file_grid(image)
            if side := restored.get(hemi):
                there = canonical_view(volume, image.orientation)[side.region]
                there[...] = np.round(255 * side.probabilities[part])
            yield volume


def _mark_inside(
    volume: np.ndarray, affine: np.ndarray, probability: np.ndarray, probability_affine: np.ndarray
) -> None:
    """Set voxels to 1 where a probability on another grid is above one half."""
    box = bounding_box(probability > 0.5, margin=1)
    if box is None:
        return
    # Beyond the neighbors of voxels above one half, nothing is above it.
    probability = probability[box]
    grid = shifted(probability_affine, [part.start for part in box])
    region = index_range(probability.shape, grid, volume.shape, affine)
    there = volume[region]
    start = [part.start for part in region]
    there[...] = resample(probability, grid, there.shape, shifted(affine, start)) > 0.5


@dataclass(frozen=True)
class Result:
    """What the chain found in one image.

    Attributes
    ----------
    image : ConformedImage
        The image that the networks saw.
    localization, segmentation : Localization, Segmentation
        What they found.
    restored : dict of str to RestoredSide
        Hemisphere → hippocampus; only those that were found. Labels ``1 … len(parts)``.
    seconds : dict of str to float
        Step → time that it took.
    """

    image: ConformedImage
    localization: Localization
    segmentation: Segmentation
    restored: dict[str, RestoredSide]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Pipeline:
    """All steps together, with the networks to use.

    Attributes
    ----------
    localizer, base, adapter : Path
        Weights files.
    device : str
        Where to compute: ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
    n4 : bool
        Correct the bias field first.
    """

    localizer: Path
    base: Path
    adapter: Path
    device: str = "cpu"
    n4: bool = False

    def run(self, image: ConformedImage, grids: Mapping[str, Grid] | None = None) -> Result:
        """Run the steps on a conformed image; see :func:`restore_sides` for `grids`."""
        clock = [time.perf_counter()]
        image = correct_bias(image) if self.n4 else image
        clock.append(time.perf_counter())
        found = localize(image, self.localizer, self.device)
        clock.append(time.perf_counter())
        sides = segment(image, found.hippocampi, self.adapter, self.base, self.device)
        clock.append(time.perf_counter())
        restored = restore_sides(image, sides, grids)
        clock.append(time.perf_counter())
        steps = ("bias", "localize", "segment", "restore")
        seconds = dict(zip(steps, map(float, np.diff(clock)), strict=True))
        return Result(image, found, sides, restored, seconds)

    def segment_sides(
        self, image: ConformedImage, grids: Mapping[str, Grid] | None = None
    ) -> dict[str, RestoredSide]:
        """Segment each hippocampus into its parts; see :func:`restore_sides` for `grids`."""
        return self.run(image, grids).restored

    def segment(self, image: ConformedImage) -> np.ndarray:
        """Label the hippocampi of an image.

        Returns
        -------
        numpy.ndarray
            1 for the left and 2 for the right hippocampus, on the image's canonical grid.
        """
        labels = np.zeros(image.data.shape, dtype=np.uint8)
        for hemi, side in self.segment_sides(image).items():
            labels[side.region][side.labels > 0] = HEMISPHERES.index(hemi) + 1
        return labels


def run_networks(image: ConformedImage, pipeline: Pipeline) -> tuple[Localization, Segmentation]:
    """Find both hippocampi and segment them.

    Parameters
    ----------
    image : ConformedImage
        The image; its bias field is corrected already, if this was asked for.
    pipeline : Pipeline
        The networks, and where to compute.
    """
    found = localize(image, pipeline.localizer, pipeline.device)
    sides = segment(image, found.hippocampi, pipeline.adapter, pipeline.base, pipeline.device)
    return found, sides


def measure_sides(
    image: ConformedImage, found: Localization, sides: Segmentation, provenance: Provenance
) -> tuple[dict[str, RestoredSide], ScanMeasures]:
    """Bring the results of the networks to the image's grid, and compute all numbers of a scan.

    Parameters
    ----------
    image, found, sides : ConformedImage, Localization, Segmentation
        The image, and what :func:`run_networks` found in it.
    provenance : Provenance
        Names the networks, for which the expected Dice may be calibrated.
    """
    restored = restore_sides(image, sides)
    networks = {role: model["SHA256"] for role, model in provenance["Models"].items()}
    return restored, measure_scan(image, found, sides, restored, networks)
