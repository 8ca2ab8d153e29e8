"""Random deformations and intensity changes for batches of volumes, on CPU or GPU.

Each function draws from a :class:`torch.Generator`, on whose device it computes, so that the same
seed gives the same batch. Lengths are in voxels, batches have shape ``(batch, channels, x, y, z)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F


def uniform(
    size: Sequence[int], low: float, high: float, generator: torch.Generator
) -> torch.Tensor:
    """Draw from [low, high)."""
    draws = torch.rand(tuple(size), generator=generator, device=generator.device)
    return low + (high - low) * draws


def smooth_noise(
    batch: int, channels: int, shape: Sequence[int], spacing: int, generator: torch.Generator
) -> torch.Tensor:
    """Draw normal values on a grid of this spacing and interpolate to the shape."""
    coarse = [max(2, side // spacing + 1) for side in shape]
    field = torch.randn(batch, channels, *coarse, generator=generator, device=generator.device)
    return F.interpolate(field, size=tuple(shape), mode="trilinear", align_corners=True)


@dataclass(frozen=True)
class Deformation:
    """Ranges of a random deformation."""

    #: Largest angle about each axis, degrees.
    rotation: float = 15.0
    #: Largest deviation of the affine's diagonal from 1, and of its other elements from 0.
    scaling: float = 0.15
    shearing: float = 0.05
    #: Largest shift along each axis, voxels.
    translation: float = 4.0
    #: Largest standard deviation of the elastic displacement, and spacing of its grid, voxels.
    elastic: float = 1.5
    elastic_spacing: float = 12.0


def random_sampling_grid(
    batch: int,
    shape: Sequence[int],
    generator: torch.Generator,
    deformation: Deformation,
) -> torch.Tensor:
    """Draw where the voxels of `batch` volumes of this shape sample their source.

    The result has offsets from the source's center in voxels, shape ``(batch, x, y, z, 3)``.
    """
    device = generator.device
    affine = _random_affine(batch, generator, deformation)
    axes = [torch.arange(side, device=device) - (side - 1) / 2 for side in shape]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    strength = uniform((batch, 1, 1, 1, 1), 0, deformation.elastic, generator)
    spacing = max(1, round(deformation.elastic_spacing))
    elastic = smooth_noise(batch, 3, shape, spacing, generator) * strength
    largest = deformation.translation
    shift = uniform((batch, 1, 1, 1, 3), -largest, largest, generator)
    moved = torch.einsum("bij,xyzj->bxyzi", affine, points)
    return moved + elastic.movedim(1, -1) + shift


def _random_affine(
    batch: int, generator: torch.Generator, deformation: Deformation
) -> torch.Tensor:
    """Draw rotations about the three axes, followed by stretches; shape ``(batch, 3, 3)``."""
    rotation, scaling, shearing = deformation.rotation, deformation.scaling, deformation.shearing
    device = generator.device
    angles = torch.deg2rad(uniform((batch, 3), -rotation, rotation, generator))
    affine = torch.eye(3, device=device).expand(batch, 3, 3)
    for axis in range(3):
        cos, sin = torch.cos(angles[:, axis]), torch.sin(angles[:, axis])
        i, j = [k for k in range(3) if k != axis]
        turn = torch.eye(3, device=device).repeat(batch, 1, 1)
        turn[:, i, i], turn[:, j, j], turn[:, i, j], turn[:, j, i] = cos, cos, -sin, sin
        affine = affine @ turn
    stretch = uniform((batch, 3, 3), -shearing, shearing, generator)
    diagonal = 1 + uniform((batch, 3), -scaling, scaling, generator)
    stretch[:, range(3), range(3)] = diagonal
    return affine @ stretch


def sample(volumes: torch.Tensor, offsets: torch.Tensor, mode: str = "bilinear") -> torch.Tensor:
    """Sample volumes at the offsets of :func:`random_sampling_grid`, which give the new shape.

    Places outside a volume are zero; the mode is ``bilinear`` or ``nearest``.
    """
    half = torch.tensor(
        [max((side - 1) / 2, 0.5) for side in volumes.shape[2:]], device=volumes.device
    )
    # The grid starts with the last axis.
    grid = (offsets / half).flip(-1)
    return F.grid_sample(volumes, grid, mode=mode, padding_mode="zeros", align_corners=True)


def random_box(
    batch: int,
    shape: Sequence[int],
    smallest: Sequence[int],
    offset: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """Draw a box in each volume, with sides from `smallest` to the whole volume.

    Its center lies up to `offset` voxels from the volume's center along each axis. The result is
    True inside, shape ``(batch, 1, *shape)``.
    """
    inside = torch.ones(batch, 1, *shape, dtype=torch.bool, device=generator.device)
    for axis, (side, least) in enumerate(zip(shape, smallest, strict=True)):
        width = uniform((batch, 1), least, side, generator)
        center = (side - 1) / 2 + uniform((batch, 1), -offset, offset, generator)
        index = torch.arange(side, device=generator.device)[None]
        inside &= _along(axis, (index - center).abs() <= width / 2)
    return inside


def random_gamma(x: torch.Tensor, spread: float, generator: torch.Generator) -> torch.Tensor:
    """Scale volumes to 0–1 and raise them to a random power ``exp(N(0, spread))``."""
    low = x.amin(dim=(1, 2, 3, 4), keepdim=True)
    high = x.amax(dim=(1, 2, 3, 4), keepdim=True)
    draws = torch.randn(len(x), 1, 1, 1, 1, generator=generator, device=x.device)
    return ((x - low) / (high - low).clamp(min=1e-6)).clamp(0, 1) ** torch.exp(spread * draws)


def random_bias_field(
    x: torch.Tensor, strength: float, spacing: int, generator: torch.Generator
) -> torch.Tensor:
    """Multiply volumes by ``exp`` of a smooth field of random strength up to `strength`."""
    scale = uniform((len(x), 1, 1, 1, 1), 0, strength, generator)
    return x * torch.exp(scale * smooth_noise(len(x), 1, x.shape[2:], spacing, generator))


def random_resolution(
    x: torch.Tensor, thickest: float, probability: float, generator: torch.Generator
) -> torch.Tensor:
    """Give some volumes coarser voxels, in all directions or along one axis.

    Volumes are averaged onto the coarser grid and interpolated back; `thickest` is the largest
    voxel side, `probability` the fraction of volumes that change.
    """
    draws = uniform((4, len(x)), 0, 1, generator)
    chosen = (draws[0] < probability).nonzero()[:, 0]
    changed = x[chosen]
    voxel = 1 + draws[1, chosen] * (thickest - 1)
    axis = torch.where(draws[2, chosen] < 0.5, (draws[3, chosen] * 3).long(), -1)
    for k, side in enumerate(x.shape[2:]):
        coarse = (side / voxel).round().long().clamp(min=min(2, side), max=side)
        coarse = torch.where((axis == -1) | (axis == k), coarse, side)
        # Both averaging and interpolation are linear, and done along one axis after the other.
        matrices = _coarsening(side, x.device)[coarse]
        changed = torch.einsum("nij,nc...j->nc...i", matrices, changed.movedim(2 + k, -1))
        changed = changed.movedim(-1, 2 + k)
    out = x.clone()
    out[chosen] = changed
    return out


@cache
def _coarsening(side: int, device: torch.device) -> torch.Tensor:
    """Return the matrices that average `side` voxels to 0, 1, … `side`, and interpolate back."""
    unit = torch.eye(side, device=device)[:, None]
    matrices = torch.zeros(side + 1, side, side, device=device)
    for coarse in range(1, side + 1):
        low = F.interpolate(unit, size=coarse, mode="area")
        back = F.interpolate(low, size=side, mode="linear", align_corners=False)
        matrices[coarse] = back[:, 0].T
    return matrices


def gaussian_blur(x: torch.Tensor, sigma: torch.Tensor, radius: int = 2) -> torch.Tensor:
    """Blur each volume with its own Gaussian; edge voxels are repeated outwards.

    `sigma` has a standard deviation in voxels for each volume; 0 leaves a volume unchanged. The
    kernel has this radius in voxels.
    """
    steps = torch.arange(-radius, radius + 1, device=x.device)
    kernel = torch.exp(-0.5 * (steps / sigma.clamp(min=1e-3)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).view(-1, 2 * radius + 1, 1, 1, 1, 1)
    for axis in (2, 3, 4):
        pad = [0] * 6
        pad[2 * (4 - axis)] = pad[2 * (4 - axis) + 1] = radius
        wide = F.pad(x, pad, mode="replicate")
        # Shifted sums serve instead of a convolution because each volume has its own kernel.
        x = sum(  # type: ignore[assignment]
            kernel[:, i] * wide.narrow(axis, i, x.shape[axis]) for i in range(2 * radius + 1)
        )
    return x


def random_cuts(
    batch: int,
    shape: Sequence[int],
    generator: torch.Generator,
    *,
    probability: float,
    mild: tuple[float, float],
    deep_probability: float,
    deep: tuple[float, float],
) -> torch.Tensor:
    """Draw a field of view for each volume by cutting each of its six sides independently.

    `probability` and `deep_probability` are those that a side is cut mildly, and deeply; `mild` and
    `deep` are ranges of the fraction that is left of the half on a cut side, 0 (nothing) to 1. The
    result is True inside, shape ``(batch, 1, *shape)``.
    """
    device = generator.device
    chance = uniform((batch, 3, 2), 0, 1, generator)
    left = torch.ones(batch, 3, 2, device=device)
    left = torch.where(chance < probability, uniform((batch, 3, 2), *mild, generator), left)
    deeply = uniform((batch, 3, 2), 0, 1, generator) < deep_probability
    left = torch.where(deeply, uniform((batch, 3, 2), *deep, generator), left)
    inside = torch.ones(batch, 1, *shape, dtype=torch.bool, device=device)
    for axis, side in enumerate(shape):
        place = (torch.arange(side, device=device) - (side - 1) / 2) / (side / 2)
        inside &= _along(axis, (place >= -left[:, axis, :1]) & (place <= left[:, axis, 1:]))
    return inside


def scale_percentiles(
    x: torch.Tensor, inside: torch.Tensor, low: float = 1.0, high: float = 99.5, clip: float = 1.5
) -> torch.Tensor:
    """Scale two percentiles inside a mask to 0 and 1, and set voxels outside to zero.

    Volumes and masks have shape ``(batch, 1, x, y, z)``; the result lies between 0 and `clip`.
    """
    # Every other voxel along each axis is enough, and eight times as fast to sort.
    seen = torch.where(inside, x, torch.nan)
    if min(x.shape[2:]) >= 32:
        seen = seen[:, :, ::2, ::2, ::2]
    seen = seen.flatten(1)
    levels = torch.tensor([low / 100, high / 100], device=x.device, dtype=x.dtype)
    floor, ceiling = torch.nanquantile(seen, levels, dim=1).nan_to_num().view(2, -1, 1, 1, 1, 1)
    return ((x - floor) / (ceiling - floor).clamp(min=1e-6)).clamp(0, clip) * inside


def _along(axis: int, values: torch.Tensor) -> torch.Tensor:
    """Turn values along one axis, shape ``(batch, side)``, into a broadcastable batch."""
    shape = [len(values), 1, 1, 1, 1]
    shape[axis + 2] = values.shape[1]
    return values.view(shape)
