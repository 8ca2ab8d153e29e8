"""The surroundings of a hippocampus, in which it is damaged."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage

from hyps_bids.evaluation.heads import Head, Spoiled, region_around
from hyps_bids.imaging.roi import shifted


@dataclass(frozen=True)
class Site:
    """The surroundings of one hippocampus.

    Arrays have the shape of the region. `lateral`, `anterior` and `superior` are distances from
    the middle of the hippocampus along these directions, mm; they broadcast to that shape.
    """

    hemisphere: str
    region: tuple[slice, slice, slice]
    affine: np.ndarray
    data: np.ndarray
    mask: np.ndarray
    lateral: np.ndarray
    anterior: np.ndarray
    superior: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """Voxel sizes, mm."""
        sizes: np.ndarray = voxel_sizes(self.affine)
        return sizes

    @property
    def axes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The distances from the middle along all three directions, mm."""
        return self.lateral, self.anterior, self.superior

    def distance(self) -> np.ndarray:
        """Return the distance from the surface of the hippocampus, mm, negative inside."""
        return signed_distance(self.mask, self.sizes)

    def along(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the place along the long axis, mm from the middle to the front, and its end."""
        points = np.argwhere(self.mask) * self.sizes
        directions = np.linalg.svd(points[::7] - points.mean(axis=0), full_matrices=False)[2]
        axis = directions[0] * np.sign(directions[0][1])
        outwards = -1.0 if self.hemisphere == "L" else 1.0
        place = (
            axis[0] * outwards * self.lateral + axis[1] * self.anterior + axis[2] * self.superior
        )
        return place, place[self.mask]


def site_of(head: Head, hemisphere: str, margin: float) -> Site:
    """Take the surroundings of one hippocampus; of the only one, if the other is not known."""
    if hemisphere not in head.sides:
        hemisphere = next(iter(head.sides))
    mask = head.sides[hemisphere]
    region = region_around(mask, head.affine, margin)
    affine = shifted(head.affine, [part.start for part in region])
    there = mask[region]
    middle = affine[:3, :3] @ np.argwhere(there).mean(axis=0)
    x, y, z = np.ogrid[tuple(slice(0, side) for side in there.shape)]
    right, anterior, superior = (
        (row[0] * x + row[1] * y + row[2] * z - center).astype(np.float32)
        for row, center in zip(affine[:3, :3], middle, strict=True)
    )
    lateral = -right if hemisphere == "L" else right
    data = head.data[region]
    return Site(hemisphere, region, affine, data, there, lateral, anterior, superior)


def signed_distance(mask: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the distance from the surface of a mask, mm, negative inside."""
    outer = ndimage.distance_transform_edt(~mask, sampling=sizes)
    inner = ndimage.distance_transform_edt(mask, sampling=sizes)
    # The surface lies between the voxels.
    half = float(np.mean(sizes)) / 2
    distance: np.ndarray = np.where(mask, half - inner, outer - half).astype(np.float32)
    return distance


def with_region(
    head: Head, site: Site, there: np.ndarray, changed: dict[str, np.ndarray]
) -> Spoiled:
    """Put changed surroundings back into the head.

    Parameters
    ----------
    head, site : Head, Site
        The head, and the surroundings taken from it.
    there : numpy.ndarray
        New intensities of the surroundings.
    changed : dict of str to numpy.ndarray
        Hemisphere → new true mask, of the shape of the head.
    """
    data = head.data.copy()
    data[site.region] = there
    return Spoiled(data, head.affine, truth={**head.sides, **changed})
