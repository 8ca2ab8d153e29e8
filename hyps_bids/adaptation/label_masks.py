"""Manual labels of a scan as masks, and the checks that they must pass before training.

Every check raises :class:`~hyps_bids.errors.BadData` with the files that are wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from nibabel.affines import apply_affine
from scipy import ndimage

from hyps_bids.errors import BadData
from hyps_bids.imaging.conform import ConformedImage, conform
from hyps_bids.imaging.roi import shifted
from hyps_bids.labels.find import LabeledScan, LabelImage
from hyps_bids.labels.meanings import WHOLE_HIPPOCAMPUS
from hyps_bids.messages import join_names
from hyps_bids.outputs.labels import HEMISPHERES, SIDE_NAMES
from hyps_bids.segmentation.localize import Location

#: Range of the labeled volume of one hippocampus, mm³.
VOLUME_RANGE = (200.0, 15_000.0)
#: Largest distance of a label's center from that of the localizer's hippocampus, mm.
FARTHEST = 30.0
#: Share of a label outside the image, or outside the network's box, that is an error.
LOST_ERROR = 0.5


@dataclass(frozen=True)
class StructureMask:
    """One labeled structure of one file, as a boolean array cut out of it with a margin."""

    hemi: str
    part: str
    data: np.ndarray
    affine: np.ndarray

    @property
    def points(self) -> np.ndarray:
        """World coordinates of the voxels, mm, shape ``(n, 3)``."""
        return apply_affine(self.affine, np.argwhere(self.data))

    @property
    def volume_mm3(self) -> float:
        """Volume of the voxels."""
        return float(self.data.sum() * abs(np.linalg.det(self.affine[:3, :3])))

    @property
    def title(self) -> str:
        """The structure in words, such as ``left anterior hippocampus``."""
        part = [] if self.part == WHOLE_HIPPOCAMPUS else [self.part]
        return " ".join([SIDE_NAMES[self.hemi], *part, "hippocampus"])


def read_masks(item: LabeledScan) -> list[StructureMask]:
    """Read the label images of a scan: a mask for each structure that has voxels.

    A side that is too small or too large for a hippocampus is an error.
    """
    masks = [mask for image in item.labels for mask in _read_label_image(image)]
    if not masks:
        raise BadData(
            f"{item.labels[0].path}: no voxel of a hippocampus is labeled", code="nothing-labeled"
        )
    low, high = VOLUME_RANGE
    for hemi in HEMISPHERES:
        mine = [mask.volume_mm3 for mask in masks if mask.hemi == hemi]
        if mine and not low <= sum(mine) <= high:
            raise BadData(
                f"{label_files(item)}: {sum(mine):,.0f} mm³ are labeled on the "
                f"{SIDE_NAMES[hemi]}, but a hippocampus has {low:,.0f} to {high:,.0f} mm³",
                code="label-volume",
            )
    return masks


def check_world(
    item: LabeledScan, masks: Sequence[StructureMask], shape: Sequence[int], affine: np.ndarray
) -> None:
    """Refuse labels that lie beyond the image."""
    points = np.concatenate([mask.points for mask in masks])
    voxels = apply_affine(np.linalg.inv(affine), points)
    inside = ((voxels >= -0.5) & (voxels <= np.array(shape) - 0.5)).all(axis=1).mean()
    if inside < 1 - LOST_ERROR:
        raise BadData(
            f"{label_files(item)}: {1 - inside:.0%} of the labeled voxels lie outside "
            f"{item.scan.path}; the labels must have the world coordinates of their image",
            code="label-outside-image",
        )


def check_positions(
    item: LabeledScan, masks: Sequence[StructureMask], found: Mapping[str, Location | None]
) -> None:
    """Refuse a label far from the localizer's hippocampus of its side, or on the other side."""
    swapped = set()
    for mask in masks:
        center = mask.points.mean(axis=0)
        distance = {
            hemi: math.inf if place is None else float(np.linalg.norm(center - place.center))
            for hemi, place in found.items()
        }
        nearest = min(distance, key=distance.__getitem__)
        if nearest != mask.hemi and distance[nearest] <= FARTHEST:
            swapped.add(mask.title)
        elif FARTHEST < distance[mask.hemi] < math.inf:
            raise BadData(
                f"{label_files(item)}: the label of the {mask.title} is "
                f"{distance[mask.hemi]:.0f} mm from where the localizer found it in "
                f"{item.scan.path}; check that the labels are in the world coordinates of this "
                "image, and that the label map is right",
                code="label-far-away",
            )
    if swapped:
        raise BadData(
            f"{label_files(item)}: the labels of the {' and the '.join(sorted(swapped))} lie on "
            f"the other side of {item.scan.path}; left and right are swapped in the labels, in "
            "the label map or in the image's header",
            code="label-sides-swapped",
        )


def label_files(item: LabeledScan) -> str:
    """List the label images of a scan, for messages."""
    return ", ".join(str(image.path) for image in item.labels)


def _read_label_image(image: LabelImage) -> list[StructureMask]:
    """Read one label image and cut out its structures."""
    read = conform(image.path, is_label=True)
    data = _label_values(image, read)
    named: dict[tuple[str, str], list[int]] = {}
    for structure in image.structures:
        named.setdefault((structure.hemi, structure.part), []).append(structure.index)
    masks = []
    for (hemi, part), indices in named.items():
        mask = np.isin(data, indices)
        if mask.any():
            region = ndimage.find_objects(mask.astype(np.uint8))[0]
            # With a margin of zeros the label fades out between voxels instead of being cut off.
            start = [side.start - 2 for side in region]
            cut = np.pad(mask[region], 2)
            masks.append(StructureMask(hemi, part, cut, shifted(read.affine, start)))
    return masks


def _label_values(image: LabelImage, read: ConformedImage) -> np.ndarray:
    """Return the integer values of a label image; refuse values without a meaning."""
    if not np.array_equal(read.data, np.rint(read.data)) or read.data.min() < 0:
        raise BadData(
            f"{image.path}: not all values are whole numbers from 0 upward, so this is no label "
            "image",
            code="label-values-fractional",
        )
    data = (read.data > 0).astype(np.int32) if image.is_mask else read.data.astype(np.int32)
    # pandas finds distinct values by hashing; numpy would sort the whole volume.
    values = {int(value) for value in pd.unique(data.ravel())} - {0}
    known = {structure.index for structure in image.structures}
    unknown = set() if image.listed is None else values - image.listed
    if not values & known or unknown:
        strange = join_names(map(str, sorted(unknown or values))) or "none"
        expected = join_names(map(str, sorted(image.listed or known)))
        raise BadData(
            f"{image.path}: the image has the values {strange}, but a meaning is known for "
            f"{expected} only; correct its dseg.tsv, or give the map that fits with --label-map",
            code="label-value-unknown",
        )
    return data
