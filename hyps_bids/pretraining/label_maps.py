"""Whole-head label maps and the tissues that their labels stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from scipy import ndimage

from hyps_bids.errors import BadData, MissingInput

#: FreeSurfer labels of the left and the right hippocampus.
HIPPOCAMPI = (17, 53)

#: Classes of the localizer, in the order of its outputs.
HEAD_CLASSES = ("background", "intracranial", "left hippocampus", "right hippocampus")

#: Classes of the base network, in the order of its outputs.
BASE_CLASSES = (
    "background",
    "cerebral white matter",
    "cerebral cortex",
    "ventricles",
    "thalamus",
    "caudate and accumbens",
    "putamen",
    "pallidum",
    "hippocampus",
    "amygdala",
    "brainstem",
    "cerebellar white matter",
    "cerebellar cortex",
    "ventral DC and chiasm",
    "cerebrospinal fluid",
)

#: Tissue in the outermost slice of a head, mm²; with more, the head was cut off there.
_CUT_AREA = 1500.0


@dataclass(frozen=True)
class Tissues:
    """The tissue table ``data/tissues.tsv``, with a row for each label.

    Rows are in ascending order of the labels, and a last row stands for voxels outside the field of
    view. T1w priors of the brain are SynthSeg's; priors of the rest of the head are wide guesses.
    Tensors have shape ``(k + 1,)`` for k labels but for the priors.
    """

    #: FreeSurfer's label numbers.
    labels: tuple[int, ...]
    #: Index of each row's tissue and structure; structures of one tissue, such as cortex and
    #: hippocampus, look alike, and both sides of the body share a structure.
    tissue: torch.Tensor
    structure: torch.Tensor
    #: Mean of means, SD of means, mean of SDs, SD of SDs on a 0–255 scale, shape ``(tissues, 4)``
    priors: torch.Tensor
    #: Indices in :data:`BASE_CLASSES` and :data:`HEAD_CLASSES`
    base_class: torch.Tensor
    head_class: torch.Tensor
    #: Boolean; the brain excludes the outer fluid.
    intracranial: torch.Tensor
    brain: torch.Tensor

    @property
    def outside(self) -> int:
        """Row of voxels outside the field of view."""
        return len(self.labels)


@cache
def tissues(device: torch.device = torch.device("cpu")) -> Tissues:  # noqa: B008
    """Read ``data/tissues.tsv``.

    Examples
    --------
    >>> table = tissues()
    >>> row = table.labels.index(53)
    >>> BASE_CLASSES[table.base_class[row]], HEAD_CLASSES[table.head_class[row]]
    ('hippocampus', 'right hippocampus')
    """
    with (files("hyps_bids") / "data" / "tissues.tsv").open() as stream:
        table = pd.read_csv(stream, sep="\t")
    labels = tuple(table["label"].tolist())
    # Nothing is drawn outside the field of view, so the intensities of any row will do.
    table = pd.concat([table, table[table["label"] == 0]])
    priors = table.drop_duplicates("tissue")[["mean_mean", "mean_sd", "sd_mean", "sd_sd"]]
    inside = torch.tensor((table["intracranial"] == 1).to_numpy())
    base = torch.tensor(table["base_class"].map(BASE_CLASSES.index).to_numpy())
    head = inside.long()
    for i, label in enumerate(HIPPOCAMPI):
        head[labels.index(label)] = 2 + i
    return Tissues(
        labels=labels,
        tissue=torch.tensor(pd.factorize(table["tissue"])[0], device=device),
        structure=torch.tensor(pd.factorize(table["structure"])[0], device=device),
        priors=torch.tensor(priors.to_numpy(), dtype=torch.float32, device=device),
        base_class=base.to(device),
        head_class=head.to(device),
        intracranial=inside.to(device),
        brain=(inside & (base != BASE_CLASSES.index("cerebrospinal fluid"))).to(device),
    )


@dataclass(frozen=True)
class LabelMaps:
    """Label maps in memory, RAS axes."""

    #: File names.
    names: tuple[str, ...]
    #: Rows of :class:`Tissues`, uint8, shape ``(n, x, y, z)``
    volumes: torch.Tensor
    #: Side of a voxel, mm.
    voxel: float
    #: Centers of the bounding boxes of the heads, voxels, shape ``(n, 3)``
    heads: torch.Tensor
    #: The same of the left and right hippocampi, shape ``(n, 2, 3)``
    hippocampi: torch.Tensor

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, part: slice) -> LabelMaps:
        return replace(
            self,
            names=self.names[part],
            volumes=self.volumes[part],
            heads=self.heads[part],
            hippocampi=self.hippocampi[part],
        )

    def to(self, device: torch.device) -> LabelMaps:
        """Return the maps on a device."""
        return replace(
            self,
            volumes=self.volumes.to(device),
            heads=self.heads.to(device),
            hippocampi=self.hippocampi.to(device),
        )


def load_labelmaps(folder: Path) -> LabelMaps:
    """Read all NIfTI label maps of a folder, in order of name.

    They show whole heads in FreeSurfer's numbering and share one isotropic voxel size. Smaller maps
    are padded to the largest. Where a head is cut off flat, the field of view is assumed to end.

    Raises
    ------
    MissingInput, BadData
        If the folder holds no NIfTI file, a label is not in ``data/tissues.tsv``, a hippocampus is
        missing, or voxel sizes differ between axes or maps.
    """
    paths = sorted(p for p in folder.glob("*.nii*") if not p.name.startswith("."))
    if not paths:
        raise MissingInput(
            f"{folder}: contains no NIfTI label maps (*.nii, *.nii.gz)", code="label-maps-missing"
        )
    read = [_read_labelmap(path) for path in paths]
    voxels = np.array([zooms for _, zooms in read])
    if np.ptp(voxels) > 0.01:
        raise BadData(
            f"{folder}: the label maps need one isotropic voxel size, not {voxels.tolist()} mm",
            code="label-map-spacing",
        )
    voxel = float(voxels.mean())
    frame = np.max([volume.shape for volume, _ in read], axis=0)
    table = tissues()
    volumes, heads, hippocampi = [], [], []
    for volume, _ in read:
        _mark_cuts(volume, table.outside, _CUT_AREA / voxel**2)
        heads.append(_center_of((volume != table.labels.index(0)) & (volume != table.outside)))
        hippocampi.append([_center_of(volume == table.labels.index(v)) for v in HIPPOCAMPI])
        pad = [(0, full - side) for full, side in zip(frame, volume.shape, strict=True)]
        volumes.append(np.pad(volume, pad, constant_values=table.outside))
    return LabelMaps(
        tuple(path.name for path in paths),
        torch.from_numpy(np.stack(volumes)),
        voxel,
        torch.tensor(np.array(heads), dtype=torch.float32),
        torch.tensor(np.array(hippocampi), dtype=torch.float32),
    )


def _read_labelmap(path: Path) -> tuple[np.ndarray, Sequence[float]]:
    """Read a label map as rows of :class:`Tissues` in RAS axes, with its voxel size in mm."""
    image = nib.as_closest_canonical(nib.load(path))
    values = np.asarray(image.dataobj).round().astype(np.int64)
    table = tissues()
    known = np.array(table.labels)
    rows = np.searchsorted(known, values).clip(max=len(known) - 1)
    unknown = np.unique(values[known[rows] != values])
    if unknown.size:
        raise BadData(
            f"{path}: the labels {unknown.tolist()} are not in the tissue table",
            code="label-without-tissue",
        )
    missing = [label for label in HIPPOCAMPI if not (values == label).any()]
    if values.ndim != 3 or missing:
        raise BadData(
            f"{path}: not a 3-D label map, or without the hippocampus labels {missing}",
            code="label-map-unusable",
        )
    return rows.astype(np.uint8), [float(z) for z in image.header.get_zooms()[:3]]


def _mark_cuts(volume: np.ndarray, outside: int, area: float) -> None:
    """Set voxels beyond flat cuts through the head to `outside`, in place.

    The outermost slice with tissue is a cut if it has more than `area` voxels of tissue.
    """
    tissue = volume != 0
    for axis in range(3):
        filled = tissue.sum(axis=tuple(k for k in range(3) if k != axis))
        occupied = np.flatnonzero(filled)
        along = np.moveaxis(volume, axis, 0)
        if filled[occupied[0]] > area:
            along[: occupied[0]] = outside
        if filled[occupied[-1]] > area:
            along[occupied[-1] + 1 :] = outside


def _center_of(mask: np.ndarray) -> list[float]:
    """Return the center of the bounding box of a mask, voxels."""
    (box,) = ndimage.find_objects(mask.astype(np.uint8))
    return [(side.start + side.stop - 1) / 2 for side in box]
