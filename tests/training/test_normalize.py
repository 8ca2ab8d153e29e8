"""Tests of :mod:`hyps_bids.training.normalize`."""

from __future__ import annotations

import pytest
import torch

from hyps_bids.segmentation import segment
from hyps_bids.training.normalize import standardize


@pytest.fixture
def volumes() -> torch.Tensor:
    return torch.rand(3, 1, 14, 12, 10, generator=torch.Generator().manual_seed(1))


def test_standardized_inside_and_zero_outside(volumes: torch.Tensor) -> None:
    inside = volumes > 0.2
    out = standardize(40 * volumes + 7, inside)
    assert not out[~inside].any()
    for got, seen in zip(out, inside, strict=True):
        assert float(got[seen].mean()) == pytest.approx(0, abs=1e-5)
        assert float(got[seen].std(unbiased=False)) == pytest.approx(1, abs=1e-4)
    assert not standardize(volumes, torch.zeros_like(inside)).any()


def test_each_volume_has_its_own_scale(volumes: torch.Tensor) -> None:
    inside = torch.ones_like(volumes, dtype=torch.bool)
    factors = torch.tensor([1.0, 50.0, 1000.0]).view(3, 1, 1, 1, 1)
    torch.testing.assert_close(
        standardize(factors * volumes - 30, inside), standardize(volumes, inside), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("unit", [1e-15, 1e-6, 1e15])
def test_units_change_nothing(unit: float, volumes: torch.Tensor) -> None:
    inside = volumes > 0.1
    torch.testing.assert_close(standardize(unit * volumes, inside), standardize(volumes, inside))


def test_clipped_and_constant_volumes_are_finite() -> None:
    volume = torch.zeros(1, 1, 10, 10, 10)
    inside = torch.ones_like(volume, dtype=torch.bool)
    assert not standardize(volume + 7, inside).any()
    volume[0, 0, 5, 5, 5] = 1e6
    assert float(standardize(volume, inside).max()) == 5


@pytest.mark.parametrize(("factor", "offset"), [(1, 0), (1e-15, 0), (900, 1e4)])
def test_training_and_inference_see_the_same(
    factor: float, offset: float, volumes: torch.Tensor
) -> None:
    volumes, inside = factor * volumes + offset, volumes > 0.3
    volumes[0, 0, 3, 4, 5] *= 50
    for got, volume, seen in zip(standardize(volumes, inside), volumes, inside, strict=True):
        expected = segment.standardize(volume.numpy(), seen.numpy())
        torch.testing.assert_close(got, torch.from_numpy(expected), atol=2e-3, rtol=1e-4)
