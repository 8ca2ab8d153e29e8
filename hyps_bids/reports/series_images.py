"""Pictures of one person over time: the same slices at each time point, and what has changed.

The images and labels are those in the space midway between the scans, on the grid that all of them
share. Intensities are matched to each other there, so one image may be subtracted from another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup
from PIL import Image

from hyps_bids.errors import BadData
from hyps_bids.outputs.images import opened
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.series import time_point_paths
from hyps_bids.reports.pictures import Layout, Picture, extremes, gray_bytes, side_tiles
from hyps_bids.reports.scan_images import Voxels

#: Share of the range from black to white at which the color of a difference is full.
FULL_COLOR = 0.2
#: Colors of voxels that became darker and brighter; safe for color-blind readers.
DARKER, BRIGHTER = (86, 180, 233), (230, 120, 0)
#: Rows of a picture: plane and number of slices.
_ROWS = ((1, 3), (0, 2), (2, 3))
#: Mm between sampled points, and height of the letters.
_STEP, _LETTERS = 0.5, 3.2
#: Pixels along each axis for a sampled point.
_ZOOM = 2
_WHITE = "#FFFFFF"


@dataclass(frozen=True)
class MidwayImages:
    """Intensities and labels of one time point in the midway space; 0 beyond the boxes."""

    anatomy: Voxels
    labels: Voxels


@dataclass(frozen=True)
class SidePictures:
    """Pictures of one hippocampus: one per time point, and one per difference from the first."""

    images: tuple[Picture, ...]
    differences: tuple[Picture, ...]


def read_midway(output_dir: Path, scans: Sequence[Scan]) -> list[MidwayImages]:
    """Read the images of all time points in the midway space.

    Raises
    ------
    MissingInput
        If an image is not there.
    BadData
        If an image is damaged, or the time points are not on the same grid.
    """
    found = []
    for scan in scans:
        paths = time_point_paths(scan, output_dir)
        with opened(paths["midway_image"]) as image:
            anatomy = Voxels(np.asarray(image.dataobj, np.float32), image.affine)
        with opened(paths["midway_dseg"]) as image:
            labels = Voxels(image.dataobj.get_unscaled(), image.affine)
        found.append(MidwayImages(anatomy, labels))
        for voxels, kind in ((anatomy, "midway_image"), (labels, "midway_dseg")):
            same = voxels.data.shape == found[0].anatomy.data.shape
            if not same or not np.allclose(voxels.affine, found[0].anatomy.affine, atol=1e-3):
                raise BadData(
                    f"{paths[kind]}: its grid is not that of the other images in the midway space; "
                    "run the participant level again",
                    code="midway-grid",
                )
    return found


def draw_side(images: Sequence[MidwayImages], colors: Mapping[int, str]) -> SidePictures | None:
    """Draw one hippocampus at all time points, in the same slices and with the same gray values.

    Parameters
    ----------
    images : sequence of MidwayImages
        The time points in their order; differences are from the first.
    colors : mapping of int to str
        Labels of the parts of this side, and their colors, ``#rrggbb``.

    Returns
    -------
    SidePictures or None
        None if no time point has this hippocampus.
    """
    anywhere = np.zeros(images[0].labels.data.shape, bool)
    for image in images:
        anywhere |= np.isin(image.labels.data, list(colors))
    union = Voxels(anywhere, images[0].labels.affine)
    region = union.content()
    if region is None:
        return None
    low, high = union.part(region).extent(0.5)
    layout = Layout.of_rows(side_tiles(low.tolist(), high.tolist(), _ROWS), _STEP)
    canvases = [layout.canvas(image.anatomy) for image in images]
    limits = extremes(np.stack(canvases))
    outlines = [layout.label_contours(image.labels, colors) for image in images]
    first = Voxels(np.isin(images[0].labels.data, list(colors)), images[0].labels.affine)
    return SidePictures(
        tuple(
            layout.picture(gray_bytes(canvas, limits, _ZOOM), outline, letters=_LETTERS)
            for canvas, outline in zip(canvases, outlines, strict=True)
        ),
        tuple(_differences(layout, canvases, limits, layout.contours(first, _WHITE))),
    )


def _differences(
    layout: Layout,
    canvases: Sequence[np.ndarray],
    limits: tuple[float, float],
    outline: Markup,
) -> Iterator[Picture]:
    """Color where an image is darker or brighter than the first, over the first in dim gray."""
    first, *later = canvases
    dim = gray_bytes(first, limits, _ZOOM)[..., None] * 0.6
    for canvas in later:
        change = (canvas - first) / max(limits[1] - limits[0], 1e-12)
        # Where one of the images ends there is no difference to be seen.
        change[(canvas == 0) | (first == 0)] = 0
        image = Image.fromarray(change).resize(dim.shape[1::-1], Image.Resampling.BICUBIC)
        smooth = np.asarray(image)[..., None]
        weight = np.minimum(np.abs(smooth) / FULL_COLOR, 1)
        color = np.where(smooth < 0, DARKER, BRIGHTER)
        pixels = np.round((1 - weight) * dim + weight * color).astype(np.uint8)
        yield layout.picture(pixels, outline, letters=_LETTERS)
