"""Synthetic brain MRI from label maps, whole batches at a time, on the device they live on.

In the manner of SynthSeg (Billot et al. 2023, Medical Image Analysis 86:102789): label maps are
deformed at random, each tissue receives a random intensity, and the image is then spoilt as
scanners and earlier processing spoil images. No real image is involved.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F

from hyps_bids.errors import BadData, MissingInput
from hyps_bids.networks.checkpoints import GRID
from hyps_bids.segmentation.normalize import standardize
from hyps_bids.training import augment

__all__ = [
    "BASE_CLASSES",
    "BOX",
    "HEAD",
    "HEAD_CLASSES",
    "HIPPOCAMPI",
    "LabelMaps",
    "SynthesisSettings",
    "Tissues",
    "box_batch",
    "head_batch",
    "load_labelmaps",
    "tissues",
]

#: FreeSurfer labels of the left and the right hippocampus
HIPPOCAMPI = (17, 53)

#: what the localizer tells apart, in the order of its outputs
HEAD_CLASSES = ("background", "intracranial", "left hippocampus", "right hippocampus")

#: what the base network tells apart, in the order of its outputs
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

# a slice at the rim of a head with more tissue than this was cut, not rounded off; mm²
_CUT_AREA = 1500.0


@dataclass(frozen=True)
class SynthesisSettings:
    """Ranges from which each synthetic image is drawn; lengths in mm.

    Attributes
    ----------
    shape : tuple of int
        Voxels of the image.
    voxel : float
        Side of a voxel.
    rotation : float
        Largest angle about each axis, degrees.
    scaling, shearing : float
        Largest deviation of the affine's diagonal from 1, and of the rest from 0.
    translation : float
        Largest shift along each axis.
    elastic, elastic_spacing : float
        Largest standard deviation of the elastic displacement, and its smoothness.
    t1w_probability : float
        How often the tissues have the contrast of T1w images. Otherwise it is any contrast.
    structure_spread : float
        Standard deviation of the mean of a structure about the mean of its tissue; intensities
        are on a 0–255 scale before normalization.
    texture : tuple of float
        Range of the factor on the standard deviations within tissues.
    blur : tuple of float
        Range of the partial volume blur's standard deviation, in voxels.
    bias, bias_spacing : float
        Largest standard deviation of the logarithm of the bias field, and its smoothness.
    gamma : float
        Standard deviation of the logarithm of the exponent on intensities.
    noise : float
        Largest standard deviation of the noise, where the brightest voxel is 1.
    thickest : float
        Largest voxel or slice thickness from which an image is interpolated.
    thick_probability : float
        How often it is interpolated at all.
    strip_probability : float
        How often the skull is stripped. Half of these masks are drawn around the brain, half
        around the intracranial space.
    strip_threshold : tuple of float
        Range of the tightness: the smoothed mask is cut there. Below 0.5 leaves a rim.
    deface_probability : float
        How often the face is blanked.
    cut_probability, deep_cut_probability : float
        How often each of the six sides of the field of view is cut mildly, and deeply.
    mild_cut, deep_cut : tuple of float
        What is left of the half of the image on a cut side, as a fraction.
    """

    shape: tuple[int, int, int]
    voxel: float
    rotation: float = 20.0
    scaling: float = 0.15
    shearing: float = 0.08
    translation: float = 25.0
    elastic: float = 4.0
    elastic_spacing: float = 30.0
    t1w_probability: float = 0.5
    structure_spread: float = 4.0
    texture: tuple[float, float] = (0.2, 1.0)
    blur: tuple[float, float] = (0.3, 0.8)
    bias: float = 0.4
    bias_spacing: float = 80.0
    gamma: float = 0.3
    noise: float = 0.08
    thickest: float = 6.0
    thick_probability: float = 0.4
    strip_probability: float = 0.35
    strip_threshold: tuple[float, float] = (0.05, 0.6)
    deface_probability: float = 0.2
    cut_probability: float = 0.4
    mild_cut: tuple[float, float] = (0.6, 1.0)
    deep_cut_probability: float = 0.05
    deep_cut: tuple[float, float] = (0.1, 0.6)


#: whole heads as the localizer sees them
HEAD = SynthesisSettings(shape=(96, 96, 96), voxel=2.5)

#: boxes around one hippocampus as the base network sees them
BOX = SynthesisSettings(
    shape=GRID,
    voxel=1.0,
    rotation=15.0,
    translation=6.0,
    elastic=2.0,
    elastic_spacing=12.0,
    bias_spacing=30.0,
    thickest=4.0,
    deface_probability=0.0,
    mild_cut=(0.75, 1.0),
    deep_cut=(0.3, 0.75),
)


@dataclass(frozen=True)
class Tissues:
    """What the labels mean, from ``data/tissues.tsv``.

    Rows stand for labels in ascending order; a last row stands for voxels outside the field of
    view. T1w priors of the brain are SynthSeg's; those of the rest of the head are wide guesses.

    Attributes
    ----------
    labels : tuple of int
        FreeSurfer's label numbers, ``k`` of them.
    tissue, structure : torch.Tensor
        Index of each row's tissue and structure, shape ``(k + 1,)``. Structures of one tissue,
        such as cortex and hippocampus, look alike; the two sides of a structure are one.
    priors : torch.Tensor
        Per tissue: mean of means, SD of means, mean of SDs, SD of SDs on a 0–255 scale, shape
        ``(tissues, 4)``.
    base_class : torch.Tensor
        Index in :data:`BASE_CLASSES`, shape ``(k + 1,)``.
    head_class : torch.Tensor
        Index in :data:`HEAD_CLASSES`, shape ``(k + 1,)``.
    intracranial, brain : torch.Tensor
        Boolean, shape ``(k + 1,)``; the brain is what is intracranial without the outer fluid.
    """

    labels: tuple[int, ...]
    tissue: torch.Tensor
    structure: torch.Tensor
    priors: torch.Tensor
    base_class: torch.Tensor
    head_class: torch.Tensor
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
        rows = list(csv.DictReader(stream, delimiter="\t"))
    labels = tuple(int(row["label"]) for row in rows)
    # outside the field of view nothing is drawn: any row's intensities will do
    rows.append(rows[labels.index(0)])
    kinds = list(dict.fromkeys(row["tissue"] for row in rows))
    structures = list(dict.fromkeys(row["structure"] for row in rows))
    columns = ("mean_mean", "mean_sd", "sd_mean", "sd_sd")
    priors = {row["tissue"]: [float(row[column]) for column in columns] for row in rows}
    inside = torch.tensor([row["intracranial"] == "1" for row in rows])
    base = torch.tensor([BASE_CLASSES.index(row["base_class"]) for row in rows])
    head = inside.long()
    for i, label in enumerate(HIPPOCAMPI):
        head[labels.index(label)] = 2 + i
    return Tissues(
        labels=labels,
        tissue=torch.tensor([kinds.index(row["tissue"]) for row in rows], device=device),
        structure=torch.tensor([structures.index(r["structure"]) for r in rows], device=device),
        priors=torch.tensor([priors[kind] for kind in kinds], device=device),
        base_class=base.to(device),
        head_class=head.to(device),
        intracranial=inside.to(device),
        brain=(inside & (base != BASE_CLASSES.index("cerebrospinal fluid"))).to(device),
    )


@dataclass(frozen=True)
class LabelMaps:
    """Label maps in memory, RAS axes.

    Attributes
    ----------
    names : tuple of str
        File names.
    volumes : torch.Tensor
        Rows of :class:`Tissues`, uint8, shape ``(n, x, y, z)``.
    voxel : float
        Side of a voxel, mm.
    heads : torch.Tensor
        Center of the box that holds each head, voxels, shape ``(n, 3)``.
    hippocampi : torch.Tensor
        Center of the box that holds the left and the right hippocampus of each, voxels, shape
        ``(n, 2, 3)``.
    """

    names: tuple[str, ...]
    volumes: torch.Tensor
    voxel: float
    heads: torch.Tensor
    hippocampi: torch.Tensor

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, part: slice) -> LabelMaps:
        return LabelMaps(
            self.names[part],
            self.volumes[part],
            self.voxel,
            self.heads[part],
            self.hippocampi[part],
        )

    def to(self, device: torch.device) -> LabelMaps:
        """Return the maps on a device."""
        return LabelMaps(
            self.names,
            self.volumes.to(device),
            self.voxel,
            self.heads.to(device),
            self.hippocampi.to(device),
        )


def load_labelmaps(folder: Path) -> LabelMaps:
    """Read all NIfTI label maps of a folder, in order of name.

    Where a head is cut off flat, the field of view is taken to end there.

    Parameters
    ----------
    folder : Path
        Whole-head label maps in FreeSurfer's numbering with one isotropic voxel size.

    Returns
    -------
    LabelMaps
        On the CPU. Maps of unlike shape are padded.

    Raises
    ------
    MissingInput
        If the folder holds no NIfTI file.
    BadData
        If a label is not in ``data/tissues.tsv``, a hippocampus is missing, or voxel sizes differ
        between axes or maps.
    """
    paths = sorted(p for p in folder.glob("*.nii*") if not p.name.startswith("."))
    if not paths:
        raise MissingInput(f"{folder}: no NIfTI files")
    read = [_read_labelmap(path) for path in paths]
    voxels = np.array([zooms for _, zooms in read])
    if np.ptp(voxels) > 0.01:
        raise BadData(f"{folder}: label maps need one isotropic voxel size, not {voxels.tolist()}")
    voxel = float(voxels.mean())
    frame = np.max([volume.shape for volume, _ in read], axis=0)
    table = tissues()
    volumes, heads, hippocampi = [], [], []
    for volume, _ in read:
        _mark_cuts(volume, table.outside, _CUT_AREA / voxel**2)
        tissue = (volume != table.labels.index(0)) & (volume != table.outside)
        heads.append(_center_of(tissue))
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


def head_batch(
    maps: LabelMaps, settings: SynthesisSettings, size: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw whole heads with the classes of the localizer.

    Half of the heads are mirrored, with their left and right exchanged.

    Parameters
    ----------
    maps : LabelMaps
        Where anatomy comes from, on the generator's device.
    settings : SynthesisSettings
        For example :data:`HEAD`.
    size : int
        Heads to draw.
    generator : torch.Generator
        Source of randomness.

    Returns
    -------
    images : torch.Tensor
        Percentiles 1 and 99.5 of the field of view scaled to 0 and 1, at most 1.5, zero outside,
        shape ``(size, 1, *settings.shape)``.
    targets : torch.Tensor
        Index in :data:`HEAD_CLASSES`, background outside the field of view, same shape.
    """
    device = generator.device
    which = torch.randint(len(maps), (size,), generator=generator, device=device)
    mirrored = torch.rand(size, generator=generator, device=device) < 0.5
    offsets = _offsets(settings, size, mirrored, generator)
    rows = _rows(maps, which, maps.heads[which], offsets)
    # defacing is planned in the head's own space, about the middle between the hippocampi
    middle = (maps.hippocampi[which].mean(dim=1) - maps.heads[which]) * maps.voxel
    place = offsets - middle[:, None, None, None]
    image, inside = _scan(rows, place, settings, generator)
    targets = tissues(device).head_class[rows] * inside
    exchanged = torch.where(targets >= 2, 5 - targets, targets)
    targets = torch.where(mirrored.view(-1, 1, 1, 1, 1), exchanged, targets)
    return augment.scale_percentiles(image, inside), targets


def box_batch(
    maps: LabelMaps, settings: SynthesisSettings, size: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw boxes around one hippocampus each, in left orientation, with the base's classes.

    Parameters
    ----------
    maps : LabelMaps
        Where anatomy comes from, on the generator's device.
    settings : SynthesisSettings
        For example :data:`BOX`.
    size : int
        Boxes to draw.
    generator : torch.Generator
        Source of randomness.

    Returns
    -------
    images : torch.Tensor
        Standardized inside the field of view, zero outside, shape ``(size, 1, *settings.shape)``.
    targets : torch.Tensor
        Index in :data:`BASE_CLASSES`, background outside the field of view, same shape.
    """
    device = generator.device
    which = torch.randint(len(maps), (size,), generator=generator, device=device)
    side = torch.randint(2, (size,), generator=generator, device=device)
    offsets = _offsets(settings, size, side == 1, generator)
    rows = _rows(maps, which, maps.hippocampi[which, side], offsets)
    image, inside = _scan(rows, offsets, settings, generator)
    targets = tissues(device).base_class[rows] * inside
    return standardize(image, inside), targets


def _offsets(
    settings: SynthesisSettings, size: int, mirrored: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Draw where voxels sample, mm from the center, shape ``(size, x, y, z, 3)``."""
    voxel = settings.voxel
    offsets = augment.random_sampling_grid(
        size,
        settings.shape,
        generator,
        rotation=settings.rotation,
        scaling=settings.scaling,
        shearing=settings.shearing,
        translation=settings.translation / voxel,
        elastic=settings.elastic / voxel,
        elastic_spacing=max(1, round(settings.elastic_spacing / voxel)),
    )
    offsets = offsets * voxel
    # to sample at mirrored places is to mirror the map, image and targets alike
    sign = torch.where(mirrored, -1.0, 1.0).view(-1, 1, 1, 1)
    offsets[..., 0] *= sign
    return offsets


def _rows(
    maps: LabelMaps, which: torch.Tensor, centers: torch.Tensor, offsets: torch.Tensor
) -> torch.Tensor:
    """Take the nearest label at each place.

    Returns
    -------
    torch.Tensor
        Rows of :class:`Tissues`, int64, shape ``(batch, 1, x, y, z)``.
    """
    points = (offsets / maps.voxel + centers[:, None, None, None]).round().long()
    last = torch.tensor(maps.volumes.shape[1:], device=points.device) - 1
    within = points.clamp(min=0).minimum(last)
    found = maps.volumes[which[:, None, None, None], *within.unbind(-1)].long()
    found[(points != within).any(-1)] = tissues(points.device).outside
    return found[:, None]


def _scan(
    rows: torch.Tensor,
    place: torch.Tensor,
    settings: SynthesisSettings,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw images of labels.

    Parameters
    ----------
    rows : torch.Tensor
        Rows of :class:`Tissues`, shape ``(batch, 1, x, y, z)``.
    place : torch.Tensor
        Place of each voxel in the head, mm from a point between the hippocampi, RAS, shape
        ``(batch, x, y, z, 3)``.
    settings : SynthesisSettings
        What to draw from.
    generator : torch.Generator
        Source of randomness.

    Returns
    -------
    image : torch.Tensor
        Intensities from 0 to about 1, shape ``(batch, 1, x, y, z)``.
    inside : torch.Tensor
        The field of view, boolean, same shape.
    """
    size, voxel, device = len(rows), settings.voxel, generator.device
    image = _intensities(rows, settings, generator)
    sigma = augment.uniform((size,), *settings.blur, generator)
    image = augment.gaussian_blur(image, sigma)
    image = augment.random_gamma(image, settings.gamma, generator)
    spacing = max(1, round(settings.bias_spacing / voxel))
    image = augment.random_bias_field(image, settings.bias, spacing, generator)
    image = augment.random_resolution(
        image, settings.thickest / voxel, settings.thick_probability, generator
    )
    level = augment.uniform((size, 1, 1, 1, 1), 0, settings.noise, generator)
    noise = torch.randn(image.shape, generator=generator, device=device)
    # scanners store magnitudes
    image = (image + level * noise).abs()
    seen = _unstripped(rows, settings, generator) & ~_face(rows, place, settings, generator)
    inside = (rows != tissues(device).outside) & augment.random_cuts(
        size,
        settings.shape,
        generator,
        probability=settings.cut_probability,
        mild=settings.mild_cut,
        deep_probability=settings.deep_cut_probability,
        deep=settings.deep_cut,
    )
    return image * (seen & inside), inside


def _intensities(
    rows: torch.Tensor, settings: SynthesisSettings, generator: torch.Generator
) -> torch.Tensor:
    """Draw a contrast and a voxel value for each label; 0–255, same shape as `rows`."""
    size, device = len(rows), generator.device
    table = tissues(device)
    count = len(table.priors)
    mean_mean, mean_sd, sd_mean, sd_sd = table.priors.T
    draws = torch.randn(2, size, count, generator=generator, device=device)
    means, sds = mean_mean + mean_sd * draws[0], sd_mean + sd_sd * draws[1]
    chance = torch.rand(size, 1, generator=generator, device=device)
    # air is dark in every contrast
    free = (chance >= settings.t1w_probability) & (
        torch.arange(count, device=device) != table.tissue[table.labels.index(0)]
    )
    means = torch.where(free, augment.uniform((size, count), 0, 255, generator), means)
    sds = torch.where(free, augment.uniform((size, count), 0, 35, generator), sds).clamp(min=0)
    sds = sds * augment.uniform((size, 1), *settings.texture, generator)
    structures = int(table.structure.max()) + 1
    shift = torch.randn(size, structures, generator=generator, device=device)
    means = means[:, table.tissue] + settings.structure_spread * shift[:, table.structure]
    sample = torch.arange(size, device=device).view(-1, 1, 1, 1, 1)
    noise = torch.randn(rows.shape, generator=generator, device=device)
    return (means[sample, rows] + sds[:, table.tissue][sample, rows] * noise).abs()


def _unstripped(
    rows: torch.Tensor, settings: SynthesisSettings, generator: torch.Generator
) -> torch.Tensor:
    """Draw what a skull-stripping leaves; everything for most images. Boolean, as `rows`."""
    size, device = len(rows), generator.device
    table = tissues(device)
    chance = torch.rand(2, size, 1, 1, 1, 1, generator=generator, device=device)
    mask = torch.where(chance[0] < 0.5, table.brain[rows], table.intracranial[rows])
    # borders are uneven: the threshold varies slowly over space
    spacing = max(1, round(20 / settings.voxel))
    uneven = 1 + 0.2 * augment.smooth_noise(size, 1, settings.shape, spacing, generator)
    threshold = augment.uniform((size, 1, 1, 1, 1), *settings.strip_threshold, generator)
    kept = _soften(mask, settings.voxel) * uneven > threshold
    return kept | (chance[1] >= settings.strip_probability)


def _face(
    rows: torch.Tensor,
    place: torch.Tensor,
    settings: SynthesisSettings,
    generator: torch.Generator,
) -> torch.Tensor:
    """Draw what a defacing takes away; nothing for most images. Boolean, as `rows`."""
    size, device = len(rows), generator.device
    if settings.deface_probability == 0:
        return torch.zeros(rows.shape, dtype=torch.bool, device=device)
    angle = torch.deg2rad(augment.uniform((size, 1, 1, 1), 25, 60, generator))
    distance = augment.uniform((size, 1, 1, 1), 45, 75, generator)
    front = place[..., 1] * torch.cos(angle) - place[..., 2] * torch.sin(angle) > distance
    apart = _soften(tissues(device).intracranial[rows], settings.voxel) < 0.02
    chance = torch.rand(size, 1, 1, 1, 1, generator=generator, device=device)
    return front[:, None] & apart & (chance < settings.deface_probability)


def _soften(mask: torch.Tensor, voxel: float) -> torch.Tensor:
    """Smooth a mask over about 5 mm."""
    radius = max(1, math.floor(2.5 / voxel))
    soft = mask.float()
    for _ in range(2):
        soft = F.avg_pool3d(soft, 2 * radius + 1, stride=1, padding=radius)
    return soft


def _read_labelmap(path: Path) -> tuple[np.ndarray, Sequence[float]]:
    """Read a label map as rows of :class:`Tissues` in RAS axes, with its voxel size in mm."""
    image = nib.as_closest_canonical(nib.load(path))
    values = np.asarray(image.dataobj).round().astype(np.int64)
    table = tissues()
    known = np.array(table.labels)
    rows = np.searchsorted(known, values).clip(max=len(known) - 1)
    unknown = np.unique(values[known[rows] != values])
    if unknown.size:
        raise BadData(f"{path}: labels without a tissue: {unknown.tolist()}")
    missing = [label for label in HIPPOCAMPI if not (values == label).any()]
    if values.ndim != 3 or missing:
        raise BadData(f"{path}: not a 3-D label map, or without hippocampus labels {missing}")
    return rows.astype(np.uint8), [float(z) for z in image.header.get_zooms()[:3]]


def _mark_cuts(volume: np.ndarray, outside: int, area: float) -> None:
    """Set what lies beyond a flat cut through the head to `outside`, in place.

    Parameters
    ----------
    volume : numpy.ndarray
        Rows of :class:`Tissues`.
    outside : int
        What to set.
    area : float
        Voxels of tissue in the first slice with tissue from which on that slice is a cut.
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
    """Center of the bounding box of a mask, voxels."""
    center = []
    for axis in range(mask.ndim):
        hit = np.flatnonzero(mask.any(axis=tuple(k for k in range(mask.ndim) if k != axis)))
        center.append(float(hit[0] + hit[-1]) / 2)
    return center
