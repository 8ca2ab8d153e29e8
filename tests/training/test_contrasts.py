"""Random contrasts keep the anatomy and change the order of the tissues' intensities."""

import torch

from hyps_bids.training.contrasts import (
    ContrastSettings,
    map_intensities,
    random_contrasts,
    recolor_tissues,
)

KINDS = torch.tensor([0, 1, 2, 3])


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _head(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Four slabs of tissue, with intensities as in T1w images."""
    tissues = torch.arange(4).repeat_interleave(5).view(1, 1, 20, 1, 1).expand(size, 1, 20, 8, 8)
    return torch.tensor([-1.5, 0.0, 1.2, 0.6])[tissues], tissues.contiguous()


def test_recolored_tissues_are_uniform_but_for_their_borders_and_texture():
    images, tissues = _head(16)
    texture = 0.1 * torch.randn(images.shape, generator=_generator(1))
    found = recolor_tissues(images + texture, tissues, KINDS, _generator())
    middle = found.view(16, 4, 5, 8, 8)[:, :, 2]
    means = middle.mean(dim=(2, 3))
    assert (middle.std(dim=(2, 3)) < 0.04).all()
    assert (means > -0.15).all()
    assert (means < 1.15).all()
    # Fluid is the darkest tissue in some images, and the brightest one in others.
    assert {int(i) for i in means.argmax(dim=1)} >= {0, 2}
    assert (means.argmin(dim=1) == 0).any()


def test_intensity_maps_are_functions_of_the_intensity():
    images = torch.linspace(-2, 2, 64).view(1, 1, 64, 1, 1).repeat(1, 1, 1, 2, 2)
    found = map_intensities(images, _generator())
    assert torch.equal(found[..., 0, 0], found[..., 1, 1])
    # Piecewise linear with at most 8 knots: the slope changes seven times at most.
    slope = found[0, 0, :, 0, 0].diff()
    assert (slope.diff().abs() > 1e-4).sum() <= 2 * 7


def test_the_asked_fractions_change():
    images, tissues = _head(400)
    settings = ContrastSettings(mapped=0.2, recolored=0.3)
    found, changed = random_contrasts(images, tissues, KINDS, settings, _generator())
    assert abs(changed.float().mean() - 0.5) < 0.08
    assert torch.equal(found[~changed], images[~changed])
    same = (found == images).flatten(1).all(dim=1)
    assert not (same & changed).any()
    again, _ = random_contrasts(images, tissues, KINDS, settings, _generator())
    assert torch.equal(again, found)
