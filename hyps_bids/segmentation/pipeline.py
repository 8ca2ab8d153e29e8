"""The chain from an image to the segmentation of both hippocampi, told once."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hyps_bids.imaging.bias import correct_bias
from hyps_bids.imaging.conform import ConformedImage, restore_orientation
from hyps_bids.imaging.resample import resample
from hyps_bids.imaging.volumes import RestoredSide, restore
from hyps_bids.outputs.labels import HEMISPHERES
from hyps_bids.outputs.scan_files import ScanImages
from hyps_bids.segmentation.inference import cached_adapted, cached_network
from hyps_bids.segmentation.localize import localize
from hyps_bids.segmentation.segment import segment

__all__ = ["Grid", "Pipeline", "native_images"]

#: shape, and voxel-to-world transform with axes nearest to right, anterior, superior
Grid = tuple[Sequence[int], np.ndarray]


@dataclass(frozen=True)
class Pipeline:
    """The networks, and what to do with one image.

    Attributes
    ----------
    localizer, base, adapter : Path
        Weights files.
    device : torch.device
        Where to compute.
    n4 : bool
        Correct the bias field first.
    """

    localizer: Path
    base: Path
    adapter: Path
    device: torch.device
    n4: bool = False

    @property
    def parts(self) -> list[str]:
        """The adapter's classes in order, background left out."""
        return list(cached_adapted(self.adapter, self.base)[1]["labels"])

    def segment(self, image: ConformedImage) -> np.ndarray:
        """Label the hippocampi of an image.

        Returns
        -------
        numpy.ndarray
            1 left, 2 right hippocampus, on the image's canonical grid.
        """
        return self.timed(image)[0]

    def segment_sides(
        self, image: ConformedImage, grids: Mapping[str, Grid] | None = None
    ) -> dict[str, RestoredSide]:
        """Segment each hippocampus in its parts.

        Parameters
        ----------
        image : ConformedImage
            The head.
        grids : mapping of str to (shape, affine), optional
            Hemisphere → grid to restore its probabilities to, in the image's world; the image's
            own where there is none.

        Returns
        -------
        dict of str to RestoredSide
            By hemisphere; only those that were found. Labels ``1 … len(parts)``.
        """
        return self._sides(image, grids or {})[0]

    def timed(self, image: ConformedImage) -> tuple[np.ndarray, dict[str, float]]:
        """As :meth:`segment`, with the seconds that each step took."""
        sides, seconds = self._sides(image, {})
        began = time.perf_counter()
        labels = np.zeros(image.data.shape, dtype=np.uint8)
        for hemi, side in sides.items():
            labels[side.region][side.labels > 0] = HEMISPHERES.index(hemi) + 1
        seconds["restore"] += time.perf_counter() - began
        return labels, seconds

    def _sides(
        self, image: ConformedImage, grids: Mapping[str, Grid]
    ) -> tuple[dict[str, RestoredSide], dict[str, float]]:
        localizer, _ = cached_network(self.localizer)
        network, _ = cached_adapted(self.adapter, self.base)
        clock = [time.perf_counter()]
        data = correct_bias(image.data, image.affine) if self.n4 else image.data
        clock.append(time.perf_counter())
        found = localize(data, image.affine, localizer, self.device)
        clock.append(time.perf_counter())
        sides, _ = segment(data, image.affine, found.hippocampi, network, self.device)
        clock.append(time.perf_counter())
        restored = {}
        for hemi, side in sides.items():
            shape, affine = grids.get(hemi, (data.shape, image.affine))
            restored[hemi] = restore(side.probabilities, side.affine, shape, affine)
        clock.append(time.perf_counter())
        steps = ("bias", "localize", "segment", "restore")
        return restored, dict(zip(steps, map(float, np.diff(clock)), strict=True))


def native_images(
    image: ConformedImage,
    restored: Mapping[str, RestoredSide],
    intracranial: np.ndarray,
    intracranial_affine: np.ndarray,
    parts: int,
) -> ScanImages:
    """Put the results of a scan on the grid of its own file.

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

    Returns
    -------
    ScanImages
        Labels, probabilities and intracranial mask in the file's own axis order.
    """
    shape = image.data.shape
    labels = np.zeros(shape, dtype=np.uint8)
    probabilities = np.zeros((*shape, len(HEMISPHERES) * parts), dtype=np.uint8)
    for hemi, side in restored.items():
        first = HEMISPHERES.index(hemi) * parts
        region = labels[side.region]
        region[side.labels > 0] = side.labels[side.labels > 0] + first
        probabilities[(*side.region, slice(first, first + parts))] = np.round(
            255 * np.moveaxis(side.probabilities, 0, -1)
        )
    inside = resample(intracranial, intracranial_affine, shape, image.affine) > 0.5
    return ScanImages(
        *(
            restore_orientation(array, image.orientation)
            for array in (labels, probabilities, inside.astype(np.uint8))
        )
    )
