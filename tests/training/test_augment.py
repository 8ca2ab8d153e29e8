"""Tests of :mod:`hyps_bids.training.augment`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import ndimage

from hyps_bids.training import augment


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def volumes() -> torch.Tensor:
    return torch.rand(3, 1, 14, 12, 10, generator=seeded(1))


DEPTHS = {"mild": (0.5, 0.8), "deep_probability": 0.1, "deep": (0.1, 0.2)}
STILL = augment.Deformation(rotation=0, scaling=0, shearing=0, translation=0, elastic=0)
RANDOM: dict[str, Callable[[torch.Tensor, torch.Generator], torch.Tensor]] = {
    "grid": lambda x, g: augment.random_sampling_grid(
        len(x), x.shape[2:], g, augment.Deformation()
    ),
    "box": lambda x, g: augment.random_box(len(x), x.shape[2:], (6, 6, 6), 2.0, g),
    "gamma": lambda x, g: augment.random_gamma(x, 0.5, g),
    "bias": lambda x, g: augment.random_bias_field(x, 0.5, 5, g),
    "resolution": lambda x, g: augment.random_resolution(x, 3.0, 0.9, g),
    "cuts": lambda x, g: augment.random_cuts(len(x), x.shape[2:], g, probability=0.8, **DEPTHS),
}


@pytest.mark.parametrize("name", RANDOM)
def test_same_seed_same_result(name: str, volumes: torch.Tensor) -> None:
    first, again, other = (RANDOM[name](volumes, seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_grid_without_deformation_and_with_a_shift(volumes: torch.Tensor) -> None:
    grid = augment.random_sampling_grid(len(volumes), volumes.shape[2:], seeded(), STILL)
    for mode in ("bilinear", "nearest"):
        torch.testing.assert_close(augment.sample(volumes, grid, mode), volumes)
    grid[..., 1] += 1
    moved = augment.sample(volumes, grid)
    torch.testing.assert_close(moved[..., :-1, :], volumes[..., 1:, :])
    torch.testing.assert_close(moved[..., -1, :], torch.zeros_like(moved[..., -1, :]))


def test_blur_is_scipys_for_each_volume(volumes: torch.Tensor) -> None:
    sigma = torch.tensor([0.0, 0.6, 1.0])
    blurred = augment.gaussian_blur(volumes, sigma, radius=2)
    torch.testing.assert_close(blurred[0], volumes[0])
    for i in (1, 2):
        expected = ndimage.gaussian_filter(
            volumes[i, 0].numpy(), float(sigma[i]), mode="nearest", radius=2
        )
        np.testing.assert_allclose(blurred[i, 0].numpy(), expected, atol=1e-5)


def test_boxes_hold_their_smallest_size() -> None:
    inside = augment.random_box(50, (20, 20, 20), (10, 12, 14), 0.0, seeded())
    for axis, least in ((2, 10), (3, 12), (4, 14)):
        others = tuple(k for k in (2, 3, 4) if k != axis)
        width = inside.any(dim=others[1]).any(dim=others[0])[:, 0].sum(dim=1)
        assert int(width.min()) >= least
        assert int(width.max()) <= 20


@pytest.mark.parametrize(("probability", "expected"), [(0.0, 0), (1.0, 6)])
def test_cuts_take_sides_at_their_probability(probability: float, expected: int) -> None:
    depths = DEPTHS | {"deep_probability": 0.0}
    inside = augment.random_cuts(20, (16, 16, 16), seeded(), probability=probability, **depths)
    for one in inside[:, 0]:
        faces = [one.select(axis, at) for axis in range(3) for at in (0, -1)]
        assert sum(not face.any() for face in faces) == expected
        # Mild cuts leave the inner half.
        assert one[4:12, 4:12, 4:12].all()


def test_percentiles_are_numpys_and_outside_is_zero(volumes: torch.Tensor) -> None:
    inside = torch.zeros_like(volumes, dtype=torch.bool)
    inside[:, :, 2:11] = True
    out = augment.scale_percentiles(1000 * volumes - 300, inside)
    assert not out[~inside].any()
    for x, seen, got in zip(volumes, inside, out, strict=True):
        values = (1000 * x - 300)[seen].numpy()
        low, high = np.percentile(values, (1, 99.5))
        np.testing.assert_allclose(
            got[seen].numpy(), np.clip((values - low) / (high - low), 0, 1.5), atol=1e-4
        )
    x = torch.ones(2, 1, 4, 4, 4)
    nothing = torch.zeros_like(x, dtype=torch.bool)
    assert not augment.scale_percentiles(x, nothing).any()
    assert torch.isfinite(augment.scale_percentiles(x, ~nothing)).all()


def test_gamma_stays_between_zero_and_one(volumes: torch.Tensor) -> None:
    out = augment.random_gamma(50 * volumes - 20, 0.5, seeded())
    assert float(out.min()) == 0
    assert float(out.max()) == 1


def test_resolution_keeps_flat_images_and_skips_at_probability_zero(volumes: torch.Tensor) -> None:
    flat = torch.full_like(volumes, 3.0)
    torch.testing.assert_close(augment.random_resolution(flat, 4.0, 1.0, seeded()), flat)
    assert torch.equal(augment.random_resolution(volumes, 4.0, 0.0, seeded()), volumes)
    coarse = augment.random_resolution(volumes, 4.0, 1.0, seeded())
    assert float(coarse.var()) < float(volumes.var())


def test_bias_field_is_positive_and_smooth() -> None:
    field = augment.random_bias_field(torch.ones(4, 1, 24, 24, 24), 0.4, 12, seeded())
    assert float(field.min()) > 0
    assert float(field.diff(dim=2).abs().max()) < 0.5 * float(field.max() - field.min())


def test_resolution_is_torchs_interpolation_of_each_volume() -> None:
    x = torch.rand(40, 1, 9, 12, 10, generator=seeded())
    out = augment.random_resolution(x, 4.0, 0.7, seeded(1))
    unchanged, along_one_axis = 0, 0
    for before, after in zip(x[:, None], out[:, None], strict=True):
        # Every volume is one that these coarser grids give.
        grids = [(a, 12, 10) for a in range(2, 10)] + [(9, b, 10) for b in range(3, 13)]
        grids += [(9, 12, c) for c in range(2, 11)]
        voxels = torch.linspace(1, 4, 3000).tolist()
        grids += [tuple(round(side / voxel) for side in (9, 12, 10)) for voxel in voxels]
        found = {g for g in set(grids) if torch.allclose(_coarse(before, g), after, atol=1e-5)}
        assert found
        unchanged += (9, 12, 10) in found
        along_one_axis += any(sum(map(int.__ne__, g, (9, 12, 10))) == 1 for g in found)
    assert 4 <= unchanged <= 24
    assert 4 <= along_one_axis <= 28


def _coarse(x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    low = torch.nn.functional.interpolate(x, size=shape, mode="area")
    return torch.nn.functional.interpolate(low, size=x.shape[2:], mode="trilinear")
