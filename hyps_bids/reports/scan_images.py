"""The images of a scan as reports show them: the raw image and the derivatives of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine

from hyps_bids.errors import BadData
from hyps_bids.imaging.conform import ConformedImage, conform
from hyps_bids.outputs.images import Region, opened, read_part
from hyps_bids.outputs.names import scan_paths
from hyps_bids.outputs.scan import IMAGE_NAME, Scan


@dataclass(frozen=True)
class Voxels:
    """Voxels, shape ``(x, y, z)``, and their place in the world (RAS, mm)."""

    data: np.ndarray
    affine: np.ndarray

    def content(self) -> Region | None:
        """Find the smallest part that holds all voxels above 0; None if there are none."""
        found = [slice(0, side) for side in self.data.shape]
        # The first pass reads all voxels in the order in which they are stored.
        for axis in np.argsort(np.abs(self.data.strides))[::-1]:
            others = tuple(other for other in range(3) if other != axis)
            used = np.flatnonzero(self.data[tuple(found)].max(axis=others) > 0)
            if not used.size:
                return None
            found[axis] = slice(int(used[0]), int(used[-1]) + 1)
        return found[0], found[1], found[2]

    def part(self, region: Sequence[slice]) -> Voxels:
        """Take a part of the voxels, which stays where it is in the world."""
        return Voxels(self.data[tuple(region)], self.moved([part.start for part in region]))

    def moved(self, start: Sequence[float]) -> np.ndarray:
        """Return the affine of an array whose first voxel is at the index `start` of this one."""
        affine = self.affine.copy()
        affine[:3, 3] = apply_affine(self.affine, np.asarray(start, dtype=float))
        return affine

    def extent(self, margin: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Find the lowest and highest world coordinates of the voxels' centers.

        The margin is in voxels; one half includes the whole of each voxel.

        Examples
        --------
        >>> low, high = Voxels(np.ones((2, 2, 2)), np.eye(4)).extent(0.5)
        >>> low.tolist(), high.tolist()
        ([-0.5, -0.5, -0.5], [1.5, 1.5, 1.5])
        """
        ends = [(-margin, side - 1 + margin) for side in self.data.shape]
        corners = apply_affine(self.affine, list(product(*ends)))
        return corners.min(axis=0), corners.max(axis=0)


@dataclass(frozen=True)
class StoredImages:
    """The images of a scan, all on the grid and in the axes of its own file.

    `anatomy` is the image itself, with float32 intensities; `labels` and the `intracranial` mask
    have integers. `probseg` is a file with a volume per label. It is large, so only the parts that
    are asked for are read.
    """

    anatomy: Voxels
    labels: Voxels
    intracranial: Voxels
    probseg: Path

    def probabilities(self, region: Region) -> np.ndarray:
        """Read the probabilities in a part of the image, shape ``(labels, x, y, z)``."""
        with opened(self.probseg) as image:
            return read_part(image, region)


def read_raw(bids_dir: Path, scan: Scan) -> ConformedImage:
    """Read the image of a scan; see :func:`~hyps_bids.imaging.conform.conform` for errors."""
    folder = bids_dir / scan.folder
    try:
        names = sorted(filter(IMAGE_NAME.fullmatch, os.listdir(folder)))
    except OSError:
        names = []
    # The entities may be in another order in the name. Of .nii and .nii.gz, the latter is taken.
    found = {Scan.from_path(Path(name)).stem: name for name in names}
    return conform(folder / found.get(scan.stem, scan.image_names[0]))


def read_images(output_dir: Path, scan: Scan, raw: ConformedImage) -> StoredImages:
    """Read the derivatives of a scan, and bring its image back to the file's own axes.

    Raises
    ------
    MissingInput
        If an image is not there.
    BadData
        If an image is damaged, or its grid is not that of the image.
    """
    paths = scan_paths(scan, output_dir)
    integers = {}
    for kind in ("dseg", "mask", "probseg"):
        with opened(paths[kind]) as image:
            if image.shape[:3] != raw.native_shape:
                raise BadData(
                    f"{paths[kind]}: its grid {image.shape[:3]} is not the grid of the image, "
                    f"{raw.native_shape}; run the participant level again",
                    code="derivative-grid",
                )
            if kind != "probseg":
                integers[kind] = image.dataobj.get_unscaled()
    affine = raw.affine @ np.linalg.inv(
        nib.orientations.inv_ornt_aff(raw.orientation, raw.native_shape)
    )
    back = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), raw.orientation)
    return StoredImages(
        anatomy=Voxels(nib.apply_orientation(raw.data, back), affine),
        labels=Voxels(integers["dseg"], affine),
        intracranial=Voxels(integers["mask"], affine),
        probseg=paths["probseg"],
    )
