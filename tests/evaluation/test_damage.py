"""Damaged hippocampi look as their names say, and the truth says what is left of them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from hyps_bids.evaluation.damage import DAMAGES
from hyps_bids.evaluation.heads import Head, Spoiled, head_from_crop
from hyps_bids.evaluation.variants import spoil
from hyps_bids.imaging.agreement import dice
from tests.evaluation import phantom as known


def core(mask: np.ndarray) -> np.ndarray:
    """Leave out partial volumes."""
    eroded: np.ndarray = ndimage.binary_erosion(mask)
    return eroded


def remains(spoiled: Spoiled, head: Head, hemi: str) -> float:
    return float(spoiled.hippocampi(head)[hemi].sum() / head.sides[hemi].sum())


def test_resected_hippocampus_is_a_cavity_of_fluid(head: Head) -> None:
    spoiled = spoil(head, "resection", "L_csf")
    there = spoiled.data[core(head.sides["L"])]
    assert there.mean() == pytest.approx(head.tissues.csf, abs=3)
    assert there.std() == pytest.approx(known.NOISE, rel=0.5)
    assert remains(spoiled, head, "L") < 0.03
    # The other side, and what is 30 mm away, stay as they are.
    assert np.array_equal(spoiled.hippocampi(head)["R"], head.sides["R"])
    assert np.array_equal(spoiled.data[core(head.sides["R"])], head.data[core(head.sides["R"])])
    changed = np.abs(spoiled.data - head.data) > 1
    assert ndimage.distance_transform_edt(~head.sides["L"])[changed].max() * known.SPACING < 30


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fill", "low", "high"),
    [
        ("blood", known.WHITE, 1.6 * known.WHITE),
        ("darkrim", 0.3 * known.CSF, known.GRAY),
        ("scar", known.CSF, known.GRAY),
    ],
)
def test_what_fills_a_cavity(head: Head, fill: str, low: float, high: float) -> None:
    spoiled = spoil(head, "resection", f"R_{fill}")
    there = spoiled.data[core(head.sides["R"])]
    assert low < there.mean() < high
    assert remains(spoiled, head, "R") < 0.03


@pytest.mark.slow
def test_rims_are_where_cavities_end(head: Head) -> None:
    spoiled = spoil(head, "lobectomy", "L_brightrim80")
    lost = head.sides["L"] & ~spoiled.hippocampi(head)["L"]
    changed = ndimage.binary_opening(np.abs(spoiled.data - head.data) > 8)
    inner = ndimage.binary_erosion(changed, iterations=3)
    assert np.median(spoiled.data[inner]) == pytest.approx(head.tissues.csf, abs=10)
    edge = changed & ~ndimage.binary_erosion(changed, iterations=2)
    assert (spoiled.data[edge] > known.WHITE).mean() > 0.03
    assert not (spoiled.data[inner] > known.GRAY).any()
    assert lost.sum() > 0.6 * head.sides["L"].sum()


@pytest.mark.slow
def test_collapsed_cavity_is_filled_by_its_surroundings(head: Head) -> None:
    spoiled = spoil(head, "resection", "L_collapsed")
    there = spoiled.data[core(head.sides["L"])]
    # White matter is around the phantom's hippocampus.
    assert np.median(there) > (known.GRAY + known.WHITE) / 2
    assert remains(spoiled, head, "L") < 0.03


@pytest.mark.slow
@pytest.mark.parametrize(("strength", "share"), [("L_csf95", 0.95), ("R_csf60", 0.6)])
def test_lobectomy_takes_the_front_of_the_hippocampus(
    head: Head, strength: str, share: float
) -> None:
    spoiled = spoil(head, "lobectomy", strength)
    hemi = strength[0]
    left = spoiled.hippocampi(head)[hemi]
    assert 1 - remains(spoiled, head, hemi) == pytest.approx(share, abs=0.12)
    lost = head.sides[hemi] & ~left
    if left.any():
        assert np.argwhere(lost)[:, 1].mean() > np.argwhere(left)[:, 1].mean() + 3
    # Nothing outside the skull changes.
    outside = ~head.inside(4)
    assert np.allclose(spoiled.data[outside], head.data[outside], atol=1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tumor", "stroke", "absent"])
def test_large_lesions_leave_little(head: Head, kind: str) -> None:
    strength = [name for name in DAMAGES[kind].strengths if name.startswith("R")][-1]
    spoiled = spoil(head, kind, strength)
    assert remains(spoiled, head, "R") < 0.2
    assert np.array_equal(spoiled.hippocampi(head)["L"], head.sides["L"])


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.3, 0.5])
def test_atrophy_takes_its_share(head: Head, share: float) -> None:
    spoiled = spoil(head, "atrophy", f"LR_{share}")
    for hemi, mask in spoiled.hippocampi(head).items():
        assert 1 - remains(spoiled, head, hemi) == pytest.approx(share, abs=0.04)
        assert not (mask & ~head.sides[hemi]).any()
        # What is left is still hippocampus, and along its whole length.
        assert spoiled.data[core(mask)].mean() == pytest.approx(known.GRAY, abs=10)
        before, after = (np.ptp(np.argwhere(m)[:, 1]) for m in (head.sides[hemi], mask))
        assert after >= before - 3


@pytest.mark.slow
def test_hydrocephalus_widens_fluid_and_moves_the_truth(head: Head) -> None:
    spoiled = spoil(head, "hydrocephalus", "7")
    deep = head.inside(-18)
    before, after = ((d[deep] < 1.5 * known.CSF).sum() for d in (head.data, spoiled.data))
    assert after > 1.8 * before
    for hemi, mask in spoiled.hippocampi(head).items():
        assert 0.3 < remains(spoiled, head, hemi) < 1
        assert dice(mask, head.sides[hemi]) < 0.9
        assert spoiled.data[core(mask)].mean() == pytest.approx(known.GRAY, abs=25)
    outside = ~head.inside(6)
    assert np.allclose(spoiled.data[outside], head.data[outside], atol=1)


@pytest.mark.slow
def test_crops_can_be_damaged(head: Head) -> None:
    box = (slice(10, 40), slice(20, 60), slice(10, 40))
    crop = head_from_crop(head.data[box], head.sides["L"][box])
    for kind, strength in (("resection", "R_csf"), ("lobectomy", "L_csf95"), ("atrophy", "L_0.4")):
        spoiled = spoil(crop, kind, strength)
        assert remains(spoiled, crop, "L") < 0.7
        assert np.isfinite(spoiled.data).all()
