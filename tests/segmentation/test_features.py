"""Tests of the features of the expected Dice, on bodies whose measures are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hyps_bids.evaluation.expected_dice import INPUTS
from hyps_bids.imaging.conform import ConformedImage
from hyps_bids.imaging.roi import box_affine
from hyps_bids.imaging.volumes import RestoredSide, restore
from hyps_bids.outputs.labels import HEMISPHERES
from hyps_bids.segmentation.expected import load_model, shipped_model
from hyps_bids.segmentation.features import describe_sides
from hyps_bids.segmentation.localize import Localization, Location
from hyps_bids.segmentation.segment import SegmentedSide

GRID = (40, 56, 40)
SHAPE = (90, 80, 60)
IMAGE = box_affine((0, 0, 0), SHAPE)
CENTERS = {"L": (-22.0, 0.0, 0.0), "R": (22.0, 0.0, 0.0)}


def places(shape: tuple[int, ...], affine: np.ndarray, center: tuple[float, ...]) -> np.ndarray:
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return index @ affine[:3, :3].T + affine[:3, 3] - np.array(center)


def body(hemi: str, pitch: float = -30, yaw: float = 0, width: float = 6) -> np.ndarray:
    """Probability of an ellipsoid of 40 mm length in the box of a hemisphere."""
    y, z = np.deg2rad(pitch), np.deg2rad(yaw if hemi == "L" else -yaw)
    axis = np.array([np.cos(y) * np.sin(z), np.cos(y) * np.cos(z), np.sin(y)])
    offset = places(GRID, box_affine(CENTERS[hemi], GRID), CENTERS[hemi])
    along = offset @ axis
    across = np.linalg.norm(offset - along[..., None] * axis, axis=-1)
    radius = np.sqrt((along / 20) ** 2 + (across / width) ** 2)
    return (1 / (1 + np.exp(20 * (radius - 1)))).astype(np.float32)


def sides(**shape: float) -> dict[str, SegmentedSide]:
    return {hemi: one_side(hemi, body(hemi, **shape)) for hemi in HEMISPHERES}


def one_side(hemi: str, whole: np.ndarray) -> SegmentedSide:
    # Two thirds belong to the first of two parts
    parts = np.stack((1 - whole, 2 / 3 * whole, 1 / 3 * whole))
    return SegmentedSide(parts, box_affine(CENTERS[hemi], GRID), np.ones(GRID, bool))


def restored(found: dict[str, SegmentedSide]) -> dict[str, RestoredSide]:
    return {
        hemi: restore(side.probabilities, side.affine, SHAPE, IMAGE) for hemi, side in found.items()
    }


def image(found: dict[str, SegmentedSide], noise: float = 3) -> ConformedImage:
    """Gray hippocampi of 90, between dark (40) below and bright (160) above."""
    level = np.where(np.arange(SHAPE[2]) < SHAPE[2] // 2, 40.0, 160.0)
    data = np.broadcast_to(level, SHAPE).astype(np.float32)
    for side in restored(found).values():
        data[side.region][side.labels > 0] = 90
    data += np.random.default_rng(0).normal(0, noise, SHAPE)
    return ConformedImage(data.astype(np.float32), IMAGE, SHAPE, np.eye(3))


def features(found: dict[str, SegmentedSide], **kwargs: float) -> dict[str, dict[str, float]]:
    return describe_sides(image(found, **kwargs), None, found, restored(found))


def test_shape_and_position() -> None:
    found = features(sides(pitch=-30, yaw=10))
    for hemi in HEMISPHERES:
        side = found[hemi]
        assert side["box_volume_mm3"] == pytest.approx(4 / 3 * np.pi * 20 * 6 * 6, rel=0.02)
        assert side["length_mm"] == pytest.approx(40, abs=2)
        assert side["pitch"] == pytest.approx(-30, abs=1)
        assert side["yaw"] == pytest.approx(10, abs=1)
        assert side["elongation"] == pytest.approx(20 / 6, rel=0.05)
        assert side["flatness"] == pytest.approx(1, rel=0.05)
        assert side["sides_distance_mm"] == pytest.approx(44, abs=0.5)
        assert side["first_part"] == 1
        assert side["border_voxels"] == 0
    # A ball is as compact as can be; an ellipsoid has a larger surface
    ball = features({"L": one_side("L", body("L", width=20))})
    assert found["L"]["compactness"] < 0.9 < ball["L"]["compactness"] < 1.05
    assert "sides_ratio" not in ball["L"]


def test_certainty() -> None:
    sure = features({"L": one_side("L", body("L"))})["L"]
    doubtful = features({"L": one_side("L", 0.7 * body("L"))})["L"]
    assert doubtful["confidence"] == pytest.approx(0.7, abs=0.05)
    assert doubtful["uncertain"] > 0.9 > sure["uncertain"]
    assert doubtful["entropy"] > sure["entropy"]
    assert doubtful["soft_dice"] < sure["soft_dice"] < 1
    # The sum of probabilities is smaller than the count of voxels
    assert doubtful["soft_ratio"] < sure["soft_ratio"]


def test_image_around_the_hippocampus() -> None:
    found = sides()
    quiet, noisy = features(found, noise=3)["L"], features(found, noise=12)["L"]
    # The noise is in units of the contrast of 120 between the surroundings
    assert quiet["noise"] == pytest.approx(3 / 120, rel=0.3)
    assert noisy["noise"] == pytest.approx(12 / 120, rel=0.4)
    assert quiet["level"] == pytest.approx(50 / 120, abs=0.05)
    assert quiet["core_sd"] == pytest.approx(3 / 120, rel=0.3)
    assert quiet["voxel_mm"] == quiet["largest_voxel_mm"] == 1


def test_unit_of_intensities_does_not_matter() -> None:
    found = sides()
    one = image(found)
    other = replace(one, data=one.data * 7 + 300)
    a, b = (describe_sides(each, None, found, restored(found)) for each in (one, other))
    assert a["R"] == pytest.approx(b["R"], rel=1e-3, nan_ok=True)


def test_agreement_with_the_localizer() -> None:
    found = sides()
    coarse = box_affine((0, 0, 0), (36, 32, 24), 2.5)
    there = np.zeros((36, 32, 24), np.float32)
    there[np.linalg.norm(places(there.shape, coarse, (-22, 3, 0)), axis=-1) < 9] = 1
    localization = Localization(
        hippocampi={"L": Location((-22.0, 3.0, 0.0), 3016.0, 0.9), "R": None},
        intracranial=np.ones_like(there),
        hippocampus=np.stack((there, np.zeros_like(there))),
        affine=coarse,
        icv_mm3=float(there.size * 2.5**3),
        device="cpu",
    )
    both = describe_sides(image(found), localization, found, restored(found))
    assert both["L"]["center_distance_mm"] == pytest.approx(3, abs=0.1)
    assert both["L"]["localizer_volume_ratio"] == pytest.approx(0, abs=0.03)
    assert both["L"]["localiser_confidence"] == 0.9
    assert 0.3 < both["L"]["agreement"] < 0.7
    assert both["R"]["agreement"] == both["R"]["localizer_inside"] == 0
    # The middle of the head is the origin
    radius = (localization.icv_mm3 * 3 / 4 / np.pi) ** (1 / 3)
    assert both["R"]["depth"] == pytest.approx(22 / radius, rel=0.02)
    # An input without a feature would silently be taken as usual.
    assert {*INPUTS, *load_model(shipped_model()).features} <= set(both["L"])


def test_sides_without_a_voxel_are_left_out() -> None:
    found = sides() | {"R": one_side("R", np.zeros(GRID, np.float32))}
    assert [*features(found)] == ["L"]


def test_thick_slices_and_images_without_contrast_are_described() -> None:
    found = {"L": one_side("L", body("L"))}
    thick = np.diag([1.0, 1.0, 6.0, 1.0])
    thick[:3, 3] = IMAGE[:3, 3]
    shape = (90, 80, 10)
    for data in (np.zeros(shape), np.random.default_rng(0).normal(size=shape)):
        scan = ConformedImage(data.astype(np.float32), thick, shape, np.eye(3))
        there = {"L": restore(found["L"].probabilities, found["L"].affine, shape, thick)}
        side = describe_sides(scan, None, found, there)["L"]
        assert side["largest_voxel_mm"] == 6
        assert ("noise" in side) == bool(data.any())
