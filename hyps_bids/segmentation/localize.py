"""Find the brain and both hippocampi in a whole head at coarse resolution."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage

from hyps_bids.imaging.conform import ConformedImage
from hyps_bids.imaging.resample import resample, world_grid
from hyps_bids.imaging.roi import shifted
from hyps_bids.imaging.volumes import largest_component
from hyps_bids.outputs.labels import HEMISPHERES
from hyps_bids.segmentation.inference import WINDOW, cached_network

#: Voxel size of the grid that the localizer was trained on, mm.
SPACING = 2.5
#: Smallest volume of a hippocampus, mm³. Smaller components are false positives, which occur where
#: one hemisphere is cut off.
SMALLEST_HIPPOCAMPUS = 500.0
#: Classes of the localizer.
_INTRACRANIAL, _LEFT = 1, 2
#: Scaled intensity of air, at most.
_AIR = 0.1
#: Radius of the sphere with the volume of an intracranial space, mm.
_HEAD_RADIUS = 70.0
#: The sides of the window around the head are multiples of this.
_MULTIPLE = 8


@dataclass(frozen=True)
class Location:
    """Where one hippocampus is.

    Attributes
    ----------
    center : tuple of float
        Middle of its extent along each axis, world coordinates, RAS, mm. The crops that the
        segmentation network learned from are centered there, and not on the center of mass.
    volume_mm3 : float
        Coarse volume, at 2.5 mm.
    confidence : float
        Mean probability in the component, in [0, 1].
    """

    center: tuple[float, float, float]
    volume_mm3: float
    confidence: float


@dataclass(frozen=True)
class Localization:
    """What the localizer found.

    Attributes
    ----------
    hippocampi : dict of str to Location or None
        By hemisphere; None if there is none in the field of view.
    intracranial : numpy.ndarray
        Probability of being inside the skull, float32 in [0, 1], shape ``(x, y, z)``; zero outside
        the largest component.
    hippocampus : numpy.ndarray
        Probability of each hippocampus, float32 in [0, 1], shape ``(2, x, y, z)``.
    affine : numpy.ndarray
        Voxel-to-world transform of both arrays.
    icv_mm3 : float
        Intracranial volume: the sum of `intracranial` times the volume of a voxel.
    device : str
        Where it was computed.
    icv_cut : float
        About which share of the intracranial space is beyond the field of view, in [0, 1].
    """

    hippocampi: dict[str, Location | None]
    intracranial: np.ndarray
    hippocampus: np.ndarray
    affine: np.ndarray
    icv_mm3: float
    device: str
    icv_cut: float = 0.0


def localize(image: ConformedImage, weights: Path, device: str = "cpu") -> Localization:
    """Find the intracranial volume and both hippocampi.

    Parameters
    ----------
    image : ConformedImage
        Image of any contrast; its axes may have any orientation.
    weights : Path
        Localizer with the classes background, intracranial, left and right hippocampus.
    device : str
        Where to compute: ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
    """
    shape, grid = world_grid(image.data.shape, image.affine, SPACING)
    air = float(image.data.min())
    coarse = resample(image.data, image.affine, shape, grid, outside=air, smooth=SPACING)
    window, start = head_window(_scale(coarse))
    grid = shifted(grid, start)
    (volume,), used = cached_network(weights, device).predict(window[None, None])
    skull_content = volume[_INTRACRANIAL:].sum(axis=0)
    brain, _ = largest_component(skull_content > 0.5)
    brain = ndimage.binary_fill_holes(brain)
    # The voxels around the component hold part of its volume.
    intracranial = np.where(ndimage.binary_dilation(brain), skull_content, 0).astype(np.float32)
    hippocampus = volume[_LEFT:]
    labels = volume.argmax(axis=0)
    found = {
        hemisphere: _locate(labels == _LEFT + i, hippocampus[i], grid)
        for i, hemisphere in enumerate(HEMISPHERES)
    }
    icv_mm3 = float(intracranial.sum(dtype=np.float64) * SPACING**3)
    lost = lost_volume(intracranial, grid, image.data.shape, image.affine)
    return Localization(
        hippocampi=found,
        intracranial=intracranial,
        hippocampus=hippocampus.astype(np.float32),
        affine=grid,
        icv_mm3=icv_mm3,
        device=used,
        icv_cut=lost / max(icv_mm3 + lost, 1.0),
    )


def _scale(coarse: np.ndarray) -> np.ndarray:
    """Scale the 1st and the 99.5th percentile to 0 and 1, and clip at 1.5, as in training."""
    low, high = np.percentile(coarse, (1, 99.5))
    if high <= low:
        low, high = float(coarse.min()), float(coarse.max())
    scaled = (coarse - low) / max(high - low, np.finfo(np.float32).tiny)
    clipped: np.ndarray = np.clip(scaled, 0, 1.5)
    return clipped.astype(np.float32)


def head_window(scaled: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Put the head in the middle of a zero-padded window of fixed size, larger if the head is.

    Instance normalization depends on the amount of air. In a fixed window, the result does not
    depend on how the image was padded or cropped, and the network sees what it saw in training.

    Returns
    -------
    window : numpy.ndarray
        The head in its window.
    start : list of int
        Index of the window's first voxel in `scaled`; may be negative.
    """
    bright = scaled > _AIR
    window, start = scaled, []
    for axis, (side, least) in enumerate(zip(scaled.shape, WINDOW, strict=True)):
        index = np.flatnonzero(bright.any(axis=tuple(k for k in range(3) if k != axis)))
        low, high = int(index[0]), int(index[-1]) + 1
        length = max(least, -(-(high - low) // _MULTIPLE) * _MULTIPLE)
        first = (low + high - length) // 2
        kept = np.take(window, range(max(0, first), min(side, first + length)), axis=axis)
        before = max(0, -first)
        pad = [(0, 0)] * 3
        pad[axis] = (before, length - before - kept.shape[axis])
        window = np.pad(kept, pad)
        start.append(first)
    return np.ascontiguousarray(window), start


def lost_volume(
    intracranial: np.ndarray, grid: np.ndarray, shape: tuple[int, ...], affine: np.ndarray
) -> float:
    """Estimate the intracranial volume beyond the field of view, mm³.

    A plane that cuts off a cap from a sphere meets it in a disk, from whose area the height and the
    volume of the cap follow. The disk is what the intracranial space occupies of a face of the
    field of view. The estimate is too small where more than half of a head is missing.

    Parameters
    ----------
    intracranial, grid : numpy.ndarray
        Probability of being inside the skull, and its voxel-to-world transform.
    shape, affine : tuple of int, numpy.ndarray
        Shape of the image and its voxel-to-world transform; may be oblique.
    """
    to_grid = np.linalg.inv(grid) @ affine
    # Smoothing blurs what lies less than a voxel of the localizer inside a face.
    steps = SPACING / voxel_sizes(affine)
    lost = 0.0
    for axis, side in enumerate(shape):
        depth = min(steps[axis], (side - 1) / 2)
        for place in (depth, side - 1 - depth):
            lines = [np.arange(steps[k] / 2 - 0.5, shape[k] - 0.5, steps[k]) for k in range(3)]
            lines[axis] = np.array([place])
            points = np.stack(np.meshgrid(*lines, indexing="ij")).reshape(3, -1)
            index = np.round(to_grid[:3, :3] @ points + to_grid[:3, 3:]).astype(int)
            known = ((index >= 0) & (index < np.reshape(intracranial.shape, (3, 1)))).all(axis=0)
            area = SPACING**2 * np.count_nonzero(intracranial[tuple(index[:, known])] > 0.5)
            below = max(_HEAD_RADIUS**2 - area / np.pi, 0.0) ** 0.5
            height = max(_HEAD_RADIUS - below - SPACING, 0.0)
            lost += np.pi * height**2 * (_HEAD_RADIUS - height / 3)
    return float(lost)


def _locate(mask: np.ndarray, probability: np.ndarray, affine: np.ndarray) -> Location | None:
    component, _ = largest_component(mask)
    volume = float(component.sum() * SPACING**3)
    if volume < SMALLEST_HIPPOCAMPUS:
        return None
    near = np.where(ndimage.binary_dilation(component), probability, 0)
    ends = np.array([_ends(near.max(axis=tuple(k for k in range(3) if k != i))) for i in range(3)])
    x, y, z = affine[:3, :3] @ ends.mean(axis=1) + affine[:3, 3]
    return Location((float(x), float(y), float(z)), volume, float(probability[component].mean()))


def _ends(profile: np.ndarray) -> tuple[float, float]:
    """Return the first and the last index where a profile crosses one half, interpolated.

    Examples
    --------
    >>> _ends(np.array([0, 0.3, 0.7, 0.9, 0.1]))
    (1.5, 3.5)
    """
    level = min(0.5, float(profile.max()))
    padded = np.pad(profile, 1)
    above = np.flatnonzero(padded >= level)
    first, last = int(above[0]), int(above[-1])
    low = first - (padded[first] - level) / (padded[first] - padded[first - 1])
    high = last + (padded[last] - level) / (padded[last] - padded[last + 1])
    return float(low) - 1, float(high) - 1
