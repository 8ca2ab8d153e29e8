"""Synthetic brain MRI from label maps, in whole batches, on the device of the maps.

The images follow SynthSeg (Billot et al. 2023, Medical Image Analysis 86:102789): label maps are
deformed at random, each tissue receives a random intensity, and the image is then degraded as
scanners and earlier processing degrade images. No real image is involved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from hyps_bids.networks.cards import GRID
from hyps_bids.pretraining.label_maps import LabelMaps, tissues
from hyps_bids.training import augment
from hyps_bids.training.normalize import standardize


@dataclass(frozen=True)
class SynthesisSettings:
    """Ranges from which each synthetic image is drawn; lengths in mm."""

    #: Voxels of the image, and the side of a voxel.
    shape: tuple[int, int, int]
    voxel: float
    #: Ranges of the deformation of the label map, with lengths in mm instead of voxels.
    deformation: augment.Deformation
    #: Fraction of images with a T1w contrast; the others have a random contrast.
    t1w_probability: float = 0.5
    #: Standard deviation of the means of structures about the mean of their tissue, on the 0–255
    #: scale of intensities before normalization.
    structure_spread: float = 4.0
    #: Range of the factor on the standard deviations within tissues.
    texture: tuple[float, float] = (0.2, 1.0)
    #: Range of the standard deviation of the partial volume blur, voxels.
    blur: tuple[float, float] = (0.3, 0.8)
    #: Largest standard deviation of the logarithm of the bias field, and spacing of its grid.
    bias: float = 0.4
    bias_spacing: float = 80.0
    #: Standard deviation of the logarithm of the exponent on intensities.
    gamma: float = 0.3
    #: Largest standard deviation of the noise, as a fraction of the brightest voxel.
    noise: float = 0.08
    #: Largest voxel or slice thickness from which an image is interpolated, and how many are.
    thickest: float = 6.0
    thick_probability: float = 0.4
    #: Fraction of images that are skull-stripped, half of them around the brain, half around the
    #: intracranial space.
    strip_probability: float = 0.35
    #: Range of the threshold on the smoothed mask; a threshold below 0.5 leaves a rim.
    strip_threshold: tuple[float, float] = (0.05, 0.6)
    #: Fraction of images whose face is blanked.
    deface_probability: float = 0.2
    #: Probabilities of a mild and of a deep cut at each of the six sides of the field of view, and
    #: the fraction of the half of the image that is left on a cut side.
    cut_probability: float = 0.4
    mild_cut: tuple[float, float] = (0.6, 1.0)
    deep_cut_probability: float = 0.05
    deep_cut: tuple[float, float] = (0.1, 0.6)


#: Whole heads as the localizer sees them.
HEAD = SynthesisSettings(
    shape=(96, 96, 96),
    voxel=2.5,
    deformation=augment.Deformation(
        rotation=20.0,
        scaling=0.15,
        shearing=0.08,
        translation=25.0,
        elastic=4.0,
        elastic_spacing=30.0,
    ),
)

#: Boxes around one hippocampus as the base network sees them.
BOX = SynthesisSettings(
    shape=GRID,
    voxel=1.0,
    deformation=replace(
        HEAD.deformation, rotation=15.0, translation=6.0, elastic=2.0, elastic_spacing=12.0
    ),
    bias_spacing=30.0,
    thickest=4.0,
    deface_probability=0.0,
    mild_cut=(0.75, 1.0),
    deep_cut=(0.3, 0.75),
)


def head_batch(
    maps: LabelMaps, settings: SynthesisSettings, size: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw whole heads with the classes of the localizer, half of them mirrored.

    The maps are on the generator's device; the settings are for example :data:`HEAD`.

    Returns
    -------
    images : torch.Tensor
        Percentiles 1 and 99.5 of the field of view scaled to 0 and 1, at most 1.5, zero outside,
        shape ``(size, 1, *settings.shape)``.
    targets : torch.Tensor
        Indices in ``HEAD_CLASSES``, background outside the field of view, same shape.
    """
    device = generator.device
    which = torch.randint(len(maps), (size,), generator=generator, device=device)
    mirrored = torch.rand(size, generator=generator, device=device) < 0.5
    offsets = draw_offsets(settings, size, mirrored, generator)
    rows = _rows(maps, which, maps.heads[which], offsets)
    # Defacing happens in the head's own space, relative to the middle between the hippocampi.
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
    """Draw boxes around single hippocampi, all in left orientation, with the base's classes.

    As :func:`head_batch`, but the settings are for example :data:`BOX`, images are standardized
    inside the field of view, and targets are indices in ``BASE_CLASSES``.
    """
    device = generator.device
    which = torch.randint(len(maps), (size,), generator=generator, device=device)
    side = torch.randint(2, (size,), generator=generator, device=device)
    offsets = draw_offsets(settings, size, side == 1, generator)
    rows = _rows(maps, which, maps.hippocampi[which, side], offsets)
    image, inside = _scan(rows, offsets, settings, generator)
    targets = tissues(device).base_class[rows] * inside
    return standardize(image, inside), targets


def draw_offsets(
    settings: SynthesisSettings, size: int, mirrored: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Draw where voxels sample, mm from the center, shape ``(size, x, y, z, 3)``.

    The boolean `mirrored`, shape ``(size,)``, says which images exchange left and right.
    """
    voxel = settings.voxel
    ranges = settings.deformation
    deformation = replace(
        ranges,
        translation=ranges.translation / voxel,
        elastic=ranges.elastic / voxel,
        elastic_spacing=ranges.elastic_spacing / voxel,
    )
    offsets = voxel * augment.random_sampling_grid(size, settings.shape, generator, deformation)
    # Sampling at mirrored places mirrors the map, and so both image and targets.
    sign = torch.where(mirrored, -1.0, 1.0).view(-1, 1, 1, 1)
    offsets[..., 0] *= sign
    return offsets


def _rows(
    maps: LabelMaps, which: torch.Tensor, centers: torch.Tensor, offsets: torch.Tensor
) -> torch.Tensor:
    """Take the nearest label at each offset, as a row of the tissue table."""
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
    """Draw images, with intensities from 0 to about 1, and their fields of view.

    `place` is the position of each voxel in the head, mm from a point between the hippocampi, RAS.
    """
    image = degrade(_intensities(rows, settings, generator), settings, generator)
    seen = _unstripped(rows, settings, generator) & ~_face(rows, place, settings, generator)
    inside = rows != tissues(generator.device).outside
    inside = inside & field_of_view(len(rows), settings, generator)
    return image * (seen & inside), inside


def degrade(
    image: torch.Tensor, settings: SynthesisSettings, generator: torch.Generator
) -> torch.Tensor:
    """Blur images and give them a random contrast, bias field, resolution and noise.

    Images have shape ``(size, 1, x, y, z)``; the result has intensities from 0 to about 1.
    """
    size, voxel = len(image), settings.voxel
    sigma = augment.uniform((size,), *settings.blur, generator)
    image = augment.gaussian_blur(image, sigma)
    image = augment.random_gamma(image, settings.gamma, generator)
    spacing = max(1, round(settings.bias_spacing / voxel))
    image = augment.random_bias_field(image, settings.bias, spacing, generator)
    image = augment.random_resolution(
        image, settings.thickest / voxel, settings.thick_probability, generator
    )
    level = augment.uniform((size, 1, 1, 1, 1), 0, settings.noise, generator)
    noise = torch.randn(image.shape, generator=generator, device=generator.device)
    # Scanners store magnitudes.
    return (image + level * noise).abs()


def field_of_view(
    size: int, settings: SynthesisSettings, generator: torch.Generator
) -> torch.Tensor:
    """Draw masks of what is left after cuts, boolean, shape ``(size, 1, *settings.shape)``."""
    return augment.random_cuts(
        size,
        settings.shape,
        generator,
        probability=settings.cut_probability,
        mild=settings.mild_cut,
        deep_probability=settings.deep_cut_probability,
        deep=settings.deep_cut,
    )


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
    # Air is dark in every contrast.
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
    """Draw masks of what a skull-stripping leaves, which is everything for most images."""
    size, device = len(rows), generator.device
    table = tissues(device)
    chance = torch.rand(2, size, 1, 1, 1, 1, generator=generator, device=device)
    mask = torch.where(chance[0] < 0.5, table.brain[rows], table.intracranial[rows])
    # The threshold varies slowly over space, which makes the border uneven.
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
    """Draw masks of what a defacing removes, which is nothing for most images."""
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
