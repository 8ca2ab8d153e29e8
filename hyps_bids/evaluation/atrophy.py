"""Make scans of a head on another day, on which its hippocampi have shrunk by a known share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from nibabel.affines import voxel_sizes
from scipy import fft, ndimage

from hyps_bids.evaluation import signal_faults as signal
from hyps_bids.evaluation.heads import Head, region_around
from hyps_bids.evaluation.retest import rigid_move
from hyps_bids.imaging.conform import ConformedImage
from hyps_bids.imaging.roi import bounding_box

#: Mm around a hippocampus within which tissue moves.
_REACH = 24.0
#: Mm around the brain that a scan shows.
_MARGIN = 20
#: Largest angle about each axis (degrees) and shift along it (mm) between two scans.
_TURN, _SHIFT = 5.0, 5.0
#: Noise as a share of white matter, range of the ratio of the largest and smallest value of the
#: bias field, and largest logarithm of the exponent of intensities.
_NOISE, _BIAS, _GAMMA = 0.02, (1.1, 1.5), 0.1


@dataclass(frozen=True)
class Atrophy:
    """How tissue around one hippocampus has moved.

    Attributes
    ----------
    region : tuple of slice
        Part of the head in which tissue has moved.
    pull : numpy.ndarray
        From each voxel of the region to the place in the head that it now shows, voxels, shape
        ``(3, x, y, z)``.
    change : dict of int to float
        Label of each part, and 0 for the whole → relative change of its volume, negative.
    """

    region: tuple[slice, slice, slice]
    pull: np.ndarray
    change: dict[int, float]


def shrink_smoothly(head: Head, labels: np.ndarray, share: float) -> Atrophy:
    """Let a hippocampus shrink everywhere alike, while the fluid around it grows.

    The displacement is the gradient of a potential whose Laplacian is constant in the hippocampus
    and negative in the fluid around it, so that no other tissue changes its volume. The true change
    is measured with the displacement itself.

    Parameters
    ----------
    head : Head
        The head.
    labels : numpy.ndarray
        Labels of the parts of one hippocampus, 0 elsewhere, of the shape of the head.
    share : float
        Share of its volume that the whole hippocampus loses, at least 0.
    """
    region = region_around(labels > 0, head.affine, _REACH)
    there, sizes = labels[region], voxel_sizes(head.affine)
    unit = _displacement(head.data[region], there > 0, head, sizes)
    factor, change = share, {0: 0.0}
    for _ in range(4 if share else 1):
        change = _volume_change(there, factor * unit)
        factor *= -share / change[0] if share else 1.0
    return Atrophy(region, factor * unit, _volume_change(there, factor * unit))


def _displacement(image: np.ndarray, mask: np.ndarray, head: Head, sizes: np.ndarray) -> np.ndarray:
    """Return the pull, voxels, whose divergence is about 1 in the mask."""
    source = ndimage.gaussian_filter(mask.astype(np.float64), 0.7 / sizes)
    distance = ndimage.distance_transform_edt(~mask, sampling=sizes)
    csf, gray = head.tissues.csf, head.tissues.gray
    fluid = np.clip((gray - image) / (gray - csf), 0.02, 1) * (distance > 0)
    sink = fluid * np.clip(1.5 - distance / 8, 0, 1)
    divergence = source - sink * (source.sum() / sink.sum())
    # The boundary is far away, so it does not matter that transforms are periodic.
    axes = [
        2 * np.pi * fft.fftfreq(side, size) for side, size in zip(mask.shape, sizes, strict=True)
    ]
    waves = np.meshgrid(*axes, indexing="ij")
    squares = sum(wave**2 for wave in waves)
    squares[0, 0, 0] = 1
    potential = -fft.fftn(divergence) / squares
    # At the edge of the region, the displacement ends.
    edge = ndimage.distance_transform_edt(np.pad(np.ones(mask.shape, bool), 1), sampling=sizes)
    fade = np.clip(edge[1:-1, 1:-1, 1:-1] / 6, 0, 1)
    steps = [
        fft.ifftn(1j * wave * potential).real * fade / size
        for wave, size in zip(waves, sizes, strict=True)
    ]
    return np.stack(steps).astype(np.float32)


def _volume_change(labels: np.ndarray, pull: np.ndarray) -> dict[int, float]:
    """Return the relative change of the volume of each label, and of all together as 0."""
    index = np.indices(labels.shape, np.float32) + pull
    change = {}
    for label in (0, *np.unique(labels[labels > 0])):
        mask = (labels == label if label else labels > 0).astype(np.float32)
        after = ndimage.map_coordinates(mask, index, order=1, mode="nearest")
        change[int(label)] = float(after.sum(dtype=np.float64) / mask.sum(dtype=np.float64) - 1)
    return change


def scan_again(
    head: Head,
    atrophies: Mapping[str, Atrophy],
    rng: np.random.Generator,
    coefficients: np.ndarray,
) -> ConformedImage:
    """Make a scan of a head that lies elsewhere, with its own noise, bias field and contrast.

    Displacement and movement are applied at once, by cubic splines.

    Parameters
    ----------
    head : Head
        The head.
    atrophies : mapping of str to Atrophy
        Hemisphere → what has happened to its hippocampus.
    rng : numpy.random.Generator
        Draws movement, noise, bias field and contrast.
    coefficients : numpy.ndarray
        Spline coefficients of the head's image (:func:`scipy.ndimage.spline_filter`).
    """
    brain = bounding_box(head.inside(), np.ceil(_MARGIN / voxel_sizes(head.affine)).astype(int))
    assert brain is not None
    low = np.array([part.start for part in brain])
    shape = tuple(np.minimum([part.stop for part in brain], head.data.shape) - low)
    grid = head.affine.copy()
    grid[:3, 3] += head.affine[:3, :3] @ low
    center = grid @ [*(np.array(shape) - 1) / 2, 1]
    degrees, shift = rng.uniform(-_TURN, _TURN, 3), rng.uniform(-_SHIFT, _SHIFT, 3)
    moved = rigid_move(degrees, shift, center[:3])
    to_head = np.linalg.inv(head.affine) @ moved @ grid
    index = np.einsum("ij,jxyz->ixyz", to_head[:3, :3], np.indices(shape)).astype(np.float32)
    index += to_head[:3, 3].astype(np.float32)[:, None, None, None]
    pull = np.zeros_like(index)
    for atrophy in atrophies.values():
        start = np.array([part.start for part in atrophy.region], np.float32)
        local = index - start[:, None, None, None]
        last = np.array(atrophy.pull.shape[1:], np.float32) - 1
        near = ((local >= 0) & (local <= last[:, None, None, None])).all(axis=0)
        for axis in range(3):
            pull[axis][near] += ndimage.map_coordinates(atrophy.pull[axis], local[:, near], order=1)
    data = ndimage.map_coordinates(coefficients, index + pull, np.float32, 3, prefilter=False)
    data = _spoil(np.maximum(data, 0), head, rng)
    return ConformedImage(data, grid, shape, np.array([[0, 1], [1, 1], [2, 1]]))


def _spoil(data: np.ndarray, head: Head, rng: np.random.Generator) -> np.ndarray:
    """Give an image a contrast, bias field and noise of its own."""
    white = np.float32(head.tissues.white)
    data = white * (data / white) ** np.float32(np.exp(rng.uniform(-_GAMMA, _GAMMA)))
    data = signal.add_bias(_like(head, data), rng, rng.uniform(*_BIAS)).data
    return signal.add_rician_noise(_like(head, data), rng, _NOISE).data


def _like(head: Head, data: np.ndarray) -> Head:
    """Return a head with another image, whose tissues keep their intensities."""
    other = replace(head, data=data, sides={})
    other.__dict__["tissues"] = head.tissues
    return other
