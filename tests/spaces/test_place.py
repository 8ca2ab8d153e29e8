"""Labels of a scan in the space of a template."""

from __future__ import annotations

import numpy as np
import pytest

from hyps_bids.spaces.place import _carry_labels, carry
from hyps_bids.spaces.quality import correlation_ratio


def test_maps_keep_their_place_and_their_sum() -> None:
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    target = np.diag([-1.0, 1.0, 1.0, 1.0])
    target[:3, 3] = (39, -3, 1)
    for start, value in ((5, 200), (12, 100)):
        values = np.zeros((20, 20, 20), np.uint8)
        values[start : start + 4, 6:12, 7:11] = value
        region, found = carry(values, affine, (44, 44, 44), target)
        volume = np.zeros((44, 44, 44))
        volume[region] = found
        # Voxels are 8 times smaller; linear interpolation moves nothing out of the volume.
        assert volume.sum() / 8 == pytest.approx(values.sum(dtype=float), rel=1e-5)
        index = np.argwhere(volume > 0)
        weights = volume[volume > 0]
        middle = target[:3, :3] @ np.average(index, axis=0, weights=weights) + target[:3, 3]
        expected = 2 * np.argwhere(values > 0).mean(axis=0)
        np.testing.assert_allclose(middle, expected, atol=1e-4)


def test_coarser_grids_average() -> None:
    values = np.zeros((24, 24, 24), bool)
    values[::2] = True
    values[:, :4] = values[:, 20:] = False
    target = np.diag([4.0, 4.0, 4.0, 1.0])
    region, found = carry(values, np.eye(4), (6, 6, 6), target)
    volume = np.zeros((6, 6, 6))
    volume[region] = found
    assert volume[2:4, 2:4, 2:4] == pytest.approx(0.5, abs=0.02)


def test_nothing_stays_nothing() -> None:
    region, values = carry(np.zeros((5, 5, 5), bool), np.eye(4), (4, 4, 4), np.eye(4))
    assert values.size == 0
    assert np.zeros((4, 4, 4))[region].size == 0
    assert not _carry_labels(np.zeros((5, 5, 5), int), 2, np.eye(4), (4, 4, 4), np.eye(4)).any()


def test_labels_compete_with_each_other_and_with_the_background() -> None:
    labels = np.zeros((12, 12, 12), np.uint8)
    labels[0:5, 3:9, 3:9], labels[5:8, 3:9, 3:9], labels[8:9, 3:9, 3:9] = 1, 3, 2
    whole = _carry_labels(labels, 4, np.eye(4), labels.shape, np.eye(4))
    np.testing.assert_array_equal(whole, labels)
    shift = np.eye(4)
    shift[:3, 3] = (0.4, 0, 0)
    moved = _carry_labels(labels, 4, np.eye(4), labels.shape, shift)
    # The new voxel x lies at x + 0.4, nearest to the old voxel x.
    np.testing.assert_array_equal(moved[:, 6, 6], labels[:, 6, 6])
    shift[:3, 3] = (0.6, 0, 0)
    moved = _carry_labels(labels, 4, np.eye(4), labels.shape, shift)
    np.testing.assert_array_equal(moved[:-1, 6, 6], labels[1:, 6, 6])


def test_noise_explains_nothing() -> None:
    noise = np.random.default_rng(0).normal(size=(2, 20_000))
    assert correlation_ratio(*noise) < 0.01
    assert correlation_ratio(noise[0], np.exp(noise[0])) > 0.8
    assert correlation_ratio(noise[0], np.zeros(20_000)) == 0
