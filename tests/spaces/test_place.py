"""Labels of a scan in the space of a template."""

from __future__ import annotations

import numpy as np
import pytest

from hyps_bids.spaces.place import carry
from hyps_bids.spaces.quality import correlation_ratio


def test_maps_keep_their_place_and_their_sum() -> None:
    maps = np.zeros((2, 20, 20, 20), np.uint8)
    maps[0, 5:9, 6:12, 7:11] = 200
    maps[1, 12:15, 6:12, 7:11] = 100
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    target = np.diag([-1.0, 1.0, 1.0, 1.0])
    target[:3, 3] = (39, -3, 1)
    region, values = carry(maps, affine, (44, 44, 44), target)
    volumes = np.zeros((2, 44, 44, 44))
    volumes[(slice(None), *region)] = values
    # Voxels are 8 times smaller; linear interpolation moves nothing out of the volume.
    np.testing.assert_allclose(
        volumes.sum(axis=(1, 2, 3)) / 8, maps.sum(axis=(1, 2, 3), dtype=float), rtol=1e-5
    )
    for volume, map_ in zip(volumes, maps, strict=True):
        index = np.argwhere(volume > 0)
        weights = volume[volume > 0]
        middle = target[:3, :3] @ np.average(index, axis=0, weights=weights) + target[:3, 3]
        expected = 2 * np.argwhere(map_ > 0).mean(axis=0)
        np.testing.assert_allclose(middle, expected, atol=1e-4)


def test_coarser_grids_average() -> None:
    maps = np.zeros((1, 24, 24, 24), bool)
    maps[0, ::2] = True
    maps[0, :, :4] = maps[0, :, 20:] = False
    target = np.diag([4.0, 4.0, 4.0, 1.0])
    region, values = carry(maps, np.eye(4), (6, 6, 6), target)
    volume = np.zeros((6, 6, 6))
    volume[region] = values[0]
    assert volume[2:4, 2:4, 2:4] == pytest.approx(0.5, abs=0.02)


def test_nothing_stays_nothing() -> None:
    region, values = carry(np.zeros((3, 5, 5, 5), bool), np.eye(4), (4, 4, 4), np.eye(4))
    assert values.size == 0
    assert np.zeros((4, 4, 4))[region].size == 0


def test_noise_explains_nothing() -> None:
    noise = np.random.default_rng(0).normal(size=(2, 20_000))
    assert correlation_ratio(*noise) < 0.01
    assert correlation_ratio(noise[0], np.exp(noise[0])) > 0.8
    assert correlation_ratio(noise[0], np.zeros(20_000)) == 0
