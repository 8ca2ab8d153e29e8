"""Deform hippocampi, and their truth with them: atrophy and hydrocephalus."""

from __future__ import annotations

import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from scipy import ndimage

from hyps_bids.evaluation.heads import Head, Spoiled
from hyps_bids.evaluation.sites import Site, site_of, with_region
from hyps_bids.imaging.resample import resample
from hyps_bids.imaging.roi import bounding_box, shifted


def shrink(head: Head, _: np.random.Generator, hemispheres: str, share: float) -> Spoiled:
    """Let hippocampi lose a share of their volume, which fluid beside and above them fills."""
    spoiled = Spoiled(head.data, head.affine)
    truth = dict(head.sides)
    for hemisphere in hemispheres:
        current = Head(spoiled.data, head.affine, truth, head.brain, head.brain_affine)
        current.__dict__["tissues"] = head.tissues
        spoiled = _shrink_one(current, hemisphere, share)
        truth = dict(spoiled.hippocampi(head))
    return spoiled


def _shrink_one(head: Head, hemisphere: str, share: float) -> Spoiled:
    site = site_of(head, hemisphere, 12.0)
    distance = site.distance()
    center = _center_line(site)
    soft = site.mask.astype(np.float32)
    fade = np.clip((8 - distance) / 10, 0, 1)
    fade = fade * fade * (3 - 2 * fade)

    def warp(volume: np.ndarray, factor: float) -> np.ndarray:
        # Sections across the long axis shrink towards their middle.
        away = [axis - middle for axis, middle in zip(site.axes, center, strict=True)]
        steps = [(1 / factor - 1) * fade * axis for axis in away]
        return _pull(site, volume, steps)

    low, high = 0.2, 1.0
    for _ in range(7):
        middle = (low + high) / 2
        small = (warp(soft, middle) > 0.5).sum() < (1 - share) * site.mask.sum()
        low, high = (middle, high) if small else (low, middle)
    mask = warp(soft, high) > 0.5
    there = warp(site.data, high)
    lost = ndimage.gaussian_filter((site.mask & ~mask).astype(np.float32), 0.5 / site.sizes)
    beside = (site.lateral - center[0]) + (site.superior - center[2]) > 0
    there = there + np.where(beside, lost, 0) * (head.tissues.csf - there)
    truth = head.sides[site.hemisphere].copy()
    truth[site.region] = mask
    return with_region(head, site, there, {site.hemisphere: truth})


def _center_line(site: Site) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the middle of the hippocampus in each coronal section, as broadcastable arrays."""
    index = np.argwhere(site.mask)
    values = np.stack([np.broadcast_to(axis, site.mask.shape)[site.mask] for axis in site.axes])
    sections = np.unique(index[:, 1])
    means = np.stack([values[:, index[:, 1] == section].mean(axis=1) for section in sections])
    means = ndimage.gaussian_filter1d(means, 2.0, axis=0, mode="nearest")
    every = np.arange(site.mask.shape[1])
    lateral, superior = (np.interp(every, sections, means[:, k]) for k in (0, 2))
    return lateral[None, :, None], site.anterior, superior[None, :, None]


def enlarge_ventricles(head: Head, _: np.random.Generator, growth: float) -> Spoiled:
    """Let the ventricles grow by this much, mm, and compress the brain and the hippocampi."""
    distance, steps, grid = _ventricle_growth(head, growth)
    # Beyond the skull, nothing moves.
    region = bounding_box(head.inside(), margin=2)
    assert region is not None
    affine = shifted(head.affine, [part.start for part in region])
    there = head.data[region]
    pull = [resample(step, grid, there.shape, affine) for step in steps]
    to_voxel = np.linalg.inv(affine[:3, :3])
    index = np.indices(there.shape, np.float32)
    for axis in range(3):
        index[axis] += sum(np.float32(w) * p for w, p in zip(to_voxel[axis], pull, strict=True))
    there = ndimage.map_coordinates(there, index, order=1, mode="nearest")
    depth = resample(distance - growth, grid, there.shape, affine, outside=99.0)
    fluid = 1 / (1 + np.exp(np.clip(depth / 0.7, -30, 30)))
    data = head.data.copy()
    data[region] = there + fluid * (head.tissues.csf - there)
    truth = {}
    for hemi, mask in head.sides.items():
        warped = ndimage.map_coordinates(mask[region].astype(np.float32), index, order=1)
        truth[hemi] = np.zeros_like(mask)
        truth[hemi][region] = (warped > 0.5) & (depth > 0)
    return Spoiled(data, head.affine, truth=truth)


def _ventricle_growth(
    head: Head, growth: float
) -> tuple[np.ndarray, tuple[np.ndarray, ...], np.ndarray]:
    """Compute, on a coarse grid, the distance from the ventricles and where voxels come from.

    Returns
    -------
    distance : numpy.ndarray
        Distance from the ventricles, mm.
    steps : tuple of numpy.ndarray
        World displacement to the place that a voxel shows, mm.
    grid : numpy.ndarray
        Voxel-to-world transform of both.
    """
    factor = np.maximum(1, np.round(2 / voxel_sizes(head.affine))).astype(int)
    every = tuple(slice(None, None, f) for f in factor)
    grid = head.affine @ np.diag([*factor, 1])
    sizes = voxel_sizes(grid)
    image = ndimage.uniform_filter(head.data, factor)[every]
    skull = head.inside()[every]
    deep = ndimage.distance_transform_edt(skull, sampling=sizes)
    fluid = (image < (head.tissues.csf + head.tissues.gray) / 2) & (deep > 22)
    fluid &= _center_of_brain(head, fluid.shape, grid)
    labels, count = ndimage.label(fluid)
    sizes_of = ndimage.sum_labels(fluid, labels, range(1, count + 1)) if count else np.zeros(0)
    ventricles = np.isin(labels, 1 + np.flatnonzero(sizes_of * np.prod(sizes) > 300))
    for hemi in head.sides:
        horn = _temporal_horn(head, hemi)
        ventricles |= horn[every]
    distance = ndimage.distance_transform_edt(~ventricles, sampling=sizes)
    reach = np.clip(distance + deep, 1.5 * growth, 40.0)
    source = np.clip((distance - growth) * reach / (reach - growth), 0, None)
    pull = np.where((distance < reach) & skull, source - distance, 0)
    normal = np.stack(np.gradient(ndimage.gaussian_filter(distance, 1.0), *sizes))
    normal /= np.maximum(np.linalg.norm(normal, axis=0), 1e-3)
    rotation = grid[:3, :3] / sizes
    steps = np.einsum("ij,jxyz->ixyz", rotation, normal * pull)
    smooth = tuple(skull * ndimage.gaussian_filter(step, 1.0).astype(np.float32) for step in steps)
    return distance.astype(np.float32), smooth, grid


def _center_of_brain(head: Head, shape: tuple[int, ...], grid: np.ndarray) -> np.ndarray:
    """Mark an ellipsoid that holds the ventricles, but few fissures."""
    masks = [apply_affine(head.affine, np.argwhere(m).mean(axis=0)) for m in head.sides.values()]
    center = np.mean(masks, axis=0) + np.array([0, 5, 22])
    x, y, z = np.ogrid[tuple(slice(0, side) for side in shape)]
    squares = [
        ((row[0] * x + row[1] * y + row[2] * z + row[3] - c) / radius) ** 2
        for row, c, radius in zip(grid[:3], center, (38, 58, 26), strict=True)
    ]
    inside: np.ndarray = squares[0] + squares[1] + squares[2] < 1
    return inside


def _temporal_horn(head: Head, hemisphere: str) -> np.ndarray:
    """Mark a thin layer beside and above a hippocampus, where the ventricle's horn is."""
    site = site_of(head, hemisphere, 5.0)
    distance = site.distance()
    center = _center_line(site)
    beside = 0.8 * (site.lateral - center[0]) + 0.6 * (site.superior - center[2]) > 2.5
    out = np.zeros(head.data.shape, bool)
    out[site.region] = (distance > 0) & (distance < 1.8) & beside
    return out


def _pull(site: Site, volume: np.ndarray, steps: list[np.ndarray]) -> np.ndarray:
    """Sample a volume at places that are away by lateral, anterior and superior steps, mm."""
    right = -steps[0] if site.hemisphere == "L" else steps[0]
    world = (right, steps[1], steps[2])
    to_voxel = np.linalg.inv(site.affine[:3, :3])
    index = np.indices(volume.shape, np.float32)
    for axis in range(3):
        index[axis] += sum(w * step for w, step in zip(to_voxel[axis], world, strict=True))
    pulled: np.ndarray = ndimage.map_coordinates(volume, index, order=1, mode="nearest")
    return pulled
