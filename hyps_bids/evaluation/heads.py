"""Real heads with known hippocampi, and what remains known when an image is spoiled on purpose."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage
from skimage.filters import threshold_multiotsu

from hyps_bids.imaging.conform import ConformedImage
from hyps_bids.imaging.resample import resample
from hyps_bids.imaging.roi import bounding_box
from hyps_bids.segmentation.pipeline import Pipeline, Result

#: Voxels from which the intensities of tissues are estimated, about.
_SAMPLE = 30_000


class Tissues(NamedTuple):
    """Mean intensities in an image, and the standard deviation of its noise in white matter."""

    air: float
    csf: float
    gray: float
    white: float
    noise: float


@dataclass(frozen=True)
class Head:
    """A T1w head, or a crop of one, with its hippocampi.

    Attributes
    ----------
    data : numpy.ndarray
        Intensities, float32, shape ``(x, y, z)``; axes about right, anterior, superior.
    affine : numpy.ndarray
        Voxel-to-world transform.
    sides : mapping of str to numpy.ndarray
        Hemisphere → boolean mask of its hippocampus, of the shape of `data`. Sides that are not
        known, or not in the image, are left out.
    brain, brain_affine : numpy.ndarray
        Probability of being inside the skull, on a grid of its own, and that grid's
        voxel-to-world transform. In crops it is 1 everywhere.
    """

    data: np.ndarray
    affine: np.ndarray
    sides: Mapping[str, np.ndarray]
    brain: np.ndarray
    brain_affine: np.ndarray

    @property
    def is_crop(self) -> bool:
        """Whether the image shows nothing but the inside of the skull."""
        return bool((self.brain > 0.5).all())

    @cached_property
    def tissues(self) -> Tissues:
        """The intensities of its tissues, from voxels inside the skull."""
        return _estimate_tissues(self)

    def inside(self, grow: float = 0.0) -> np.ndarray:
        """Mark the inside of the skull, or what is within `grow` mm of it (less, if negative).

        Returns
        -------
        numpy.ndarray
            Boolean mask of the shape of `data`.
        """
        if self.is_crop:
            return np.ones(self.data.shape, bool)
        probability, threshold = self.brain, 0.5
        if grow:
            # The edge of a blurred mask falls to one sixth at one standard deviation.
            probability = ndimage.gaussian_filter(
                probability, abs(grow) / voxel_sizes(self.brain_affine)
            )
            threshold = 0.16 if grow > 0 else 0.84
        there = resample(probability, self.brain_affine, self.data.shape, self.affine)
        return there > threshold


@dataclass(frozen=True)
class Spoiled:
    """An image that was spoiled on purpose, and where its hippocampi are.

    Attributes
    ----------
    data, affine : numpy.ndarray
        The image; its grid may differ from that of the head it was made from.
    moved : numpy.ndarray
        Transform from the world of the head to the world of this image, shape (4, 4).
    truth : mapping of str to numpy.ndarray, optional
        Hemisphere → boolean mask on the grid of the head, where hippocampi were deformed or
        removed (then without voxels); None where they are as in the head.
    """

    data: np.ndarray
    affine: np.ndarray
    moved: np.ndarray = field(default_factory=lambda: np.eye(4))
    truth: Mapping[str, np.ndarray] | None = None

    def hippocampi(self, head: Head) -> Mapping[str, np.ndarray]:
        """Return the true masks on the grid of the head that this image was made from."""
        return head.sides if self.truth is None else self.truth

    def grid(self, head: Head) -> np.ndarray:
        """Return the head's voxel-to-world transform in the world of this image.

        On this grid, true masks and segmentations of this image can be compared.
        """
        grid: np.ndarray = self.moved @ head.affine
        return grid

    def visible(self, head: Head) -> dict[str, float]:
        """Return the share of each true hippocampus that is inside the field of view, 0 to 1.

        The share of a hippocampus without voxels is 0.
        """
        to_voxel = np.linalg.inv(self.affine) @ self.grid(head)
        last = np.array(self.data.shape) - 0.5
        shares = {}
        for hemi, mask in self.hippocampi(head).items():
            voxels = np.argwhere(mask) @ to_voxel[:3, :3].T + to_voxel[:3, 3]
            seen = ((voxels >= -0.5) & (voxels <= last)).all(axis=1)
            shares[hemi] = float(seen.mean()) if len(seen) else 0.0
        return shares

    def masks(self, head: Head) -> dict[str, np.ndarray]:
        """Return the true masks on the grid of this image.

        Returns
        -------
        dict of str to numpy.ndarray
            Hemisphere → boolean mask of the shape of `data`.
        """
        grid = self.grid(head)
        spacing = float(voxel_sizes(self.affine).max())
        return {
            hemi: _sample_mask(mask, grid, self.data.shape, self.affine, spacing)
            for hemi, mask in self.hippocampi(head).items()
        }


#: Makes a spoiled image of a head.
Spoiler = Callable[[Head, np.random.Generator], Spoiled]


@dataclass(frozen=True)
class Kind:
    """A way of spoiling images.

    Attributes
    ----------
    strengths : dict of str to Spoiler
        Name of each strength, and the function that spoils.
    crops : bool
        Whether it makes sense for a crop around one hippocampus.
    """

    strengths: dict[str, Spoiler]
    crops: bool = True


def head_from_result(result: Result) -> Head:
    """Take what the pipeline found in a good image for the truth about its spoiled variants."""
    image = result.image
    sides = {}
    for hemi, side in result.restored.items():
        mask = np.zeros(image.data.shape, bool)
        mask[side.region] = side.labels > 0
        if mask.any():
            sides[hemi] = mask
    found = result.localization
    return Head(image.data, image.affine, sides, found.intracranial, found.affine)


def segment_head(pipeline: Pipeline, image: ConformedImage) -> tuple[Head, Result]:
    """Segment a good image, and take the result for the truth about its spoiled variants."""
    result = pipeline.run(image)
    return head_from_result(result), result


def head_from_crop(
    data: np.ndarray, labels: np.ndarray, affine: np.ndarray | None = None, hemisphere: str = "L"
) -> Head:
    """Make a head of a crop around one hippocampus, such as those of MSD Task04.

    Parameters
    ----------
    data, labels : numpy.ndarray
        Intensities, and labels whose values above 0 are hippocampus; shape ``(x, y, z)``.
    affine : numpy.ndarray, optional
        Voxel-to-world transform; by default, voxels of 1 mm.
    hemisphere : str
        Which hippocampus it is; MSD crops are left-oriented.
    """
    affine = np.eye(4) if affine is None else affine
    sides = {hemisphere: np.asarray(labels) > 0}
    low, high = -0.5, np.array(data.shape) - 0.5
    # One voxel per corner covers the whole crop.
    corners = affine @ np.diag([*(high - low), 1.0])
    corners[:3, 3] = affine[:3, :3] @ np.full(3, low) + affine[:3, 3]
    return Head(np.asarray(data, np.float32), affine, sides, np.ones((2, 2, 2)), corners)


def region_around(
    mask: np.ndarray, affine: np.ndarray, margin: float
) -> tuple[slice, slice, slice]:
    """Find the part of an image within `margin` mm of a mask that is not empty."""
    box = bounding_box(mask, margin=np.ceil(margin / voxel_sizes(affine)).astype(int))
    assert box is not None
    x, y, z = (
        slice(part.start, min(part.stop, side)) for part, side in zip(box, mask.shape, strict=True)
    )
    return x, y, z


def smooth_noise(
    shape: tuple[int, ...], sizes: np.ndarray, wavelength: float, rng: np.random.Generator
) -> np.ndarray:
    """Draw a smooth field with zero mean and unit variance; lengths in mm."""
    step = np.maximum(1, wavelength / 2 / sizes)
    coarse = rng.standard_normal(
        [int(np.ceil(side / every)) + 3 for side, every in zip(shape, step, strict=True)]
    )
    coarse = ndimage.gaussian_filter(coarse, 0.7, mode="wrap")
    coarse = (coarse - coarse.mean()) / coarse.std()
    shift = rng.uniform(0, 1, 3)
    grid = np.diag([*(1 / step), 1.0])
    grid[:3, 3] = shift
    return resample(coarse.astype(np.float32), np.eye(4), shape, grid)


def _sample_mask(
    mask: np.ndarray, grid: np.ndarray, shape: tuple[int, ...], affine: np.ndarray, spacing: float
) -> np.ndarray:
    if not mask.any():
        return np.zeros(shape, bool)
    return resample(mask.astype(np.float32), grid, shape, affine, smooth=spacing) > 0.5


def _estimate_tissues(head: Head) -> Tissues:
    # Dark membranes around the brain are no fluid.
    inside = head.inside(-10.0)
    if not inside.any():
        inside = head.inside()
    values = head.data[inside]
    values = values[:: max(1, len(values) // _SAMPLE)]
    values = values[values <= np.percentile(values, 99.5)]
    low, high = threshold_multiotsu(values, classes=3, nbins=128)
    # Most voxels below the first threshold hold some gray matter, too.
    csf = float(np.percentile(values[values <= low], 8))
    gray = float(np.median(values[(values > low) & (values <= high)]))
    white = float(np.median(values[values > high]))
    air = csf if head.is_crop else float(np.percentile(head.data[::4, ::4, ::4], 5))
    # Neighbors in white matter differ by little but noise.
    some = head.data[..., ::2]
    residual = np.diff(some, axis=0)[inside[:-1, :, ::2] & (some[:-1] > high)]
    noise = float(np.median(np.abs(residual))) * 1.48 / np.sqrt(2) if residual.size else 0.0
    return Tissues(air, csf, gray, white, noise)
