"""Made scans of a head whose hippocampi shrink by a known share."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from hyps_bids.evaluation.atrophy import scan_again, shrink_smoothly
from tests.evaluation.phantom import CSF, GRAY, phantom


@pytest.mark.parametrize("share", [0.0, 0.05])
def test_true_change_is_what_was_asked_for(share: float) -> None:
    head = phantom()
    atrophy = shrink_smoothly(head, head.sides["L"].astype(np.uint8), share)
    assert atrophy.change[0] == pytest.approx(-share, abs=1e-4)
    # All of it is one part here.
    assert atrophy.change[1] == atrophy.change[0]


def test_fluid_takes_the_place_of_a_hippocampus_that_shrinks() -> None:
    head = phantom()
    atrophy = shrink_smoothly(head, head.sides["L"].astype(np.uint8), 0.1)
    there = head.data[atrophy.region]
    index = np.indices(there.shape) + atrophy.pull
    distance = ndimage.distance_transform_edt(~head.sides["L"][atrophy.region], sampling=2)
    fluid = ((there < (CSF + GRAY) / 2) & (distance > 0)).astype(float)
    lost = 0.1 * head.sides["L"].sum()
    gained = (ndimage.map_coordinates(fluid, index, order=1, mode="nearest") - fluid).sum()
    # White matter, of which a little gives way, too, surrounds most of this hippocampus.
    assert 0.4 * lost < gained < 1.1 * lost
    edges = np.concatenate([np.take(atrophy.pull, [0, -1], axis + 1).ravel() for axis in range(3)])
    assert np.abs(edges).max() < 0.02


def test_scan_on_another_day_moves_the_head_and_keeps_its_tissues() -> None:
    head = phantom()
    coefficients = ndimage.spline_filter(head.data, 3, np.float32)
    scans = [scan_again(head, {}, np.random.default_rng(seed), coefficients) for seed in (1, 2)]
    # Voxels of both days differ as the head lies elsewhere, but their distribution does not.
    assert np.abs(scans[0].data - scans[1].data).mean() > 5
    for scan in scans:
        assert np.percentile(scan.data, 90) == pytest.approx(np.percentile(head.data, 90), rel=0.2)
