"""Random MRI contrasts for training images of one contrast.

A network that learned from T1w images alone fails on other contrasts. These functions make images
of any contrast from T1w images, in the manner of SynthSeg (Billot et al. 2023, Medical Image
Analysis 86:102789), but with the anatomy, the texture and the manual labels of real images. Volumes
have shape ``(batch, 1, x, y, z)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hyps_bids.training.augment import gaussian_blur, uniform

#: Fluid, gray matter and white matter on a scale from dark to bright, for the contrasts that
#: scanners make: T1w, T2w, fluid-attenuated T2w and proton density.
_USUAL = torch.tensor(
    [[0.15, 0.5, 0.8], [0.95, 0.55, 0.35], [0.1, 0.7, 0.5], [0.7, 0.75, 0.5]], dtype=torch.float32
)
#: Largest deviation of a tissue's brightness from that of its kind.
_SPREAD = 0.08


@dataclass(frozen=True)
class ContrastSettings:
    """How often, and how much, the contrast of training images changes."""

    #: Fraction of the images whose intensities are mapped by a random piecewise linear function.
    mapped: float = 0.2
    #: Fraction of the images whose tissues receive new intensities.
    recolored: float = 0.35
    #: Thickest slices of an image whose contrast has changed, mm, and the share of such images.
    thickest: float = 4.0
    thick_probability: float = 0.5


def random_contrasts(
    images: torch.Tensor,
    tissues: torch.Tensor,
    kinds: torch.Tensor,
    settings: ContrastSettings,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give some images another contrast.

    Parameters
    ----------
    images : torch.Tensor
        Images with about unit variance, zero outside the field of view.
    tissues : torch.Tensor
        Index of the tissue of each voxel, integers of the same shape.
    kinds : torch.Tensor
        Kind of each tissue: 0 fluid, 1 gray matter, 2 white matter, 3 a mixture of these; shape
        ``(tissues,)``.
    settings : ContrastSettings
        The fractions of images to change.
    generator : torch.Generator
        Source of the random numbers, on the device of the images.

    Returns
    -------
    images : torch.Tensor
        All images, changed or not; the scale of changed ones is arbitrary.
    changed : torch.Tensor
        Boolean, shape ``(batch,)``.
    """
    chance = torch.rand(len(images), generator=generator, device=images.device)
    mapped = chance < settings.mapped
    recolored = ~mapped & (chance < settings.mapped + settings.recolored)
    out = images.clone()
    if mapped.any():
        out[mapped] = map_intensities(images[mapped], generator)
    if recolored.any():
        out[recolored] = recolor_tissues(images[recolored], tissues[recolored], kinds, generator)
    return out, mapped | recolored


def map_intensities(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Map intensities by a random piecewise linear function with 4 to 8 knots within ±2.5 SD."""
    size, device = len(images), images.device
    pieces = torch.randint(3, 8, (size, 1, 1, 1, 1), generator=generator, device=device)
    values = torch.randn(size, 8, generator=generator, device=device)
    place = (images.clamp(-2.5, 2.4999) + 2.5) / 5 * pieces
    below = place.floor().long()
    share = place - below
    flat = below.flatten(1)
    low, high = (values.gather(1, flat + k).view(images.shape) for k in (0, 1))
    return low * (1 - share) + high * share


def recolor_tissues(
    images: torch.Tensor, tissues: torch.Tensor, kinds: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Draw a new intensity for each tissue, and keep some of the texture of the image.

    Half of the images have the order of fluid, gray and white matter of a usual contrast, with
    some deviation of each tissue; the others have any intensities.
    """
    size, count, device = len(images), len(kinds), images.device
    usual = _USUAL.to(device)
    # A mixture of gray and white matter, as in the thalamus and the brainstem.
    usual = torch.cat([usual, usual[:, 1:].mean(dim=1, keepdim=True)], dim=1)
    which = torch.randint(len(usual), (size,), generator=generator, device=device)
    shift = uniform((size, count), -_SPREAD, _SPREAD, generator)
    structured = usual[which][:, kinds] + shift
    free = uniform((size, count), 0, 1, generator)
    is_free = uniform((size, 1), 0, 1, generator) < 0.5
    new = torch.where(is_free, free, structured)

    flat = tissues.flatten(1)
    ones = torch.ones_like(images).flatten(1)
    sums = torch.zeros(size, count, device=device).scatter_add_(1, flat, images.flatten(1))
    numbers = torch.zeros(size, count, device=device).scatter_add_(1, flat, ones)
    old = sums / numbers.clamp(min=1)
    # The same blur on both, so that the difference is texture and not the border of a tissue.
    sigma = uniform((size,), 0.4, 0.9, generator)
    painted = gaussian_blur(_paint(new, tissues), sigma)
    texture = images - gaussian_blur(_paint(old, tissues), sigma)
    strength = uniform((size, 1, 1, 1, 1), -0.2, 0.2, generator)
    return painted + strength * texture


def _paint(values: torch.Tensor, tissues: torch.Tensor) -> torch.Tensor:
    return values.gather(1, tissues.flatten(1)).view(tissues.shape).to(values.dtype)
