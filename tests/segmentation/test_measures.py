"""Tests of :mod:`hyps_bids.segmentation.measures` and of the quality bounds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hyps_bids.imaging.conform import ConformedImage
from hyps_bids.imaging.roi import box_affine, inside_box
from hyps_bids.imaging.volumes import restore
from hyps_bids.outputs.quality import GEOMETRY, flags, quality_bounds
from hyps_bids.segmentation.features import describe_sides
from hyps_bids.segmentation.localize import Localization, Location
from hyps_bids.segmentation.measures import asymmetry, measure_scan
from hyps_bids.segmentation.segment import Segmentation, SegmentedSide

GRID = (40, 56, 40)
CENTER = (-25, -20, -15)
BOX = box_affine(CENTER, GRID)
SHAPE = (80, 80, 80)
IMAGE = box_affine(CENTER, SHAPE)
COARSE = box_affine(CENTER, (24, 24, 24), 2.5)
INSIDE = inside_box(GRID, (36, 52, 36))


def ball(
    shape: tuple[int, ...] = GRID, affine: np.ndarray = BOX, radius: float = 9, x: float = -25
) -> np.ndarray:
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    place = index @ affine[:3, :3].T + affine[:3, 3]
    distance = np.linalg.norm(place - np.array([x, *CENTER[1:]]), axis=-1)
    return (1 / (1 + np.exp(4 * (distance - radius)))).astype(np.float32)


LOCALIZED = ball((24, 24, 24), COARSE)


def segmented(whole: np.ndarray, inside: np.ndarray = INSIDE) -> SegmentedSide:
    return SegmentedSide(np.stack((1 - whole, whole)), BOX, inside)


MEASURES = ("confidence", "entropy", "component_fraction", "border_voxels", "agreement")


def localization(localized: np.ndarray) -> Localization:
    place = Location((-25.0, -20.0, -15.0), 3000.0, 0.9)
    return Localization(
        hippocampi={"L": place, "R": place},
        intracranial=np.ones_like(localized),
        hippocampus=np.stack((localized, localized)),
        affine=COARSE,
        icv_mm3=1.4e6,
        device="cpu",
    )


def quality(
    whole: np.ndarray,
    *,
    inside: np.ndarray = INSIDE,
    shape: tuple[int, ...] = SHAPE,
    image: np.ndarray = IMAGE,
    localized: np.ndarray = LOCALIZED,
) -> dict[str, float]:
    side = segmented(whole, inside)
    restored = restore(side.probabilities, BOX, shape, image)
    data = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    scan = ConformedImage(data, image, shape, np.eye(3))
    found = localization(localized)
    features = describe_sides(scan, found, {"L": side}, {"L": restored}).get("L", {})
    # The measures of the QC table
    return {name: features[name] for name in MEASURES if name in features}


def test_clean_segmentation_raises_no_flag() -> None:
    measures = quality(ball())
    assert flags(measures) == []
    assert measures["border_voxels"] == 0
    assert measures["component_fraction"] == 1
    assert 0.9 < measures["agreement"] <= 1
    assert 0.9 < measures["confidence"] <= 1
    assert 0 <= measures["entropy"] < 0.45


def test_doubt_lowers_confidence_and_raises_entropy() -> None:
    measures = quality(ball() * 0.6)
    assert measures["confidence"] == pytest.approx(0.6, abs=0.02)
    assert flags(measures) == ["low_confidence", "high_entropy"]


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("end", ["low", "high"])
def test_cut_image_is_flagged(axis: int, end: str) -> None:
    # The image ends 5 mm from the ball's center
    shape, image = list(SHAPE), IMAGE.copy()
    shape[axis] = 45
    image[axis, 3] += 35 if end == "low" else 0
    measures = quality(ball(), shape=tuple(shape), image=image)
    assert measures["border_voxels"] > 10
    assert "high_border_voxels" in flags(measures)


def test_edge_of_what_the_network_saw_is_not_the_edge_of_the_image() -> None:
    inside = INSIDE.copy()
    inside[18:] = False
    assert quality(ball(), inside=inside)["border_voxels"] == 0
    assert quality(ball(x=-12))["border_voxels"] == 0


def test_second_component_lowers_its_fraction() -> None:
    whole = ball()
    whole[3:11, 4:12, 3:11] = 0.9
    measures = quality(whole)
    assert measures["component_fraction"] < 0.95
    assert flags(measures) == ["low_component_fraction"]


def test_localizer_elsewhere_lowers_agreement() -> None:
    measures = quality(ball(), localized=ball((24, 24, 24), COARSE, x=-10))
    assert 0 < measures["agreement"] < 0.5
    assert flags(measures) == ["low_agreement"]
    assert quality(ball(), localized=np.zeros_like(LOCALIZED))["agreement"] == 0


def test_nothing_segmented() -> None:
    assert quality(np.zeros(GRID, np.float32)) == {}


def test_asymmetry_needs_both_sides() -> None:
    assert asymmetry({"L": 1.0, "R": 3.0}) == -1
    for missing in ({}, {"L": 1.0}, {"R": 1.0}, {"L": 0.0, "R": 1.0}):
        assert np.isnan(asymmetry(missing))


def test_measures_of_a_scan() -> None:
    """A right hippocampus, and a left one that was localized but not segmented."""
    data = np.zeros(SHAPE, np.float32)
    image = ConformedImage(data, IMAGE, SHAPE, np.eye(3), ("odd",), (GEOMETRY,))
    center = (-25.0, -20.0, -15.0)
    localization = Localization(
        hippocampi={"L": Location(center, 3000.0, 0.89), "R": Location(center, 3000.0, 0.9)},
        intracranial=np.zeros_like(LOCALIZED),
        hippocampus=np.stack((LOCALIZED, LOCALIZED)),
        affine=COARSE,
        icv_mm3=1.4e6,
        device="cpu",
    )
    sides = {"L": segmented(np.zeros(GRID, np.float32)), "R": segmented(ball())}
    segmentation = Segmentation(sides, ("hippocampus",), "cuda:0")
    restored = {
        hemi: restore(side.probabilities, BOX, SHAPE, IMAGE) for hemi, side in sides.items()
    }
    measures = measure_scan(image, localization, segmentation, restored)
    assert measures.parts == ("hippocampus",)
    assert measures.remarks == ("odd",)
    assert measures.devices == {"localise": "cpu", "segment": "cuda:0"}
    assert measures.box_centers == {"L": center, "R": center}
    # The part is the whole
    assert list(measures.volumes) == ["R"]
    assert measures.volumes["R"][0] == measures.volumes["R"][1]
    assert measures.figures["volume_mm3_R"] == pytest.approx(4 / 3 * np.pi * 9**3, rel=0.02)
    assert "volume_mm3_L" not in measures.figures
    assert measures.figures["localiser_confidence_L"] == 0.89
    assert measures.figures["icv_mm3"] == 1.4e6
    assert np.isnan(measures.figures["asymmetry"])
    assert measures.flags == (GEOMETRY, "missing_L", "low_agreement_L")
    assert np.isnan(measures.figures["confidence_L"])
    assert measures.figures["agreement_L"] == 0
    # Networks that are not known have no expected Dice
    assert "expected_dice_R" not in measures.figures
    assert measures.expected_dice.startswith("n/a")
    nowhere = replace(localization, hippocampi={"L": None, "R": None})
    nothing = measure_scan(image, nowhere, Segmentation({}, ("hippocampus",), "none"), {})
    assert nothing.flags == (GEOMETRY, "missing_L", "missing_R")
    assert nothing.box_centers == nothing.volumes == {}


@pytest.mark.parametrize("name", sorted(quality_bounds()))
def test_flags_begin_beyond_the_bounds(name: str) -> None:
    bounds = quality_bounds()[name]
    assert bounds["description"]
    for end, away in (("low", -1e-6), ("high", 1e-6)):
        if end in bounds:
            limit = float(bounds[end])
            for suffix in ("", "_L", "_R"):
                assert flags({name + suffix: limit}) == []
                assert flags({name + suffix: limit * (1 + away * np.sign(limit))}) == [
                    f"{end}_{name}{suffix}".replace("dice_low", "dice")
                ]
    assert flags({name: float("nan")}) == []


def test_unknown_measure_is_an_error() -> None:
    with pytest.raises(KeyError):
        flags({"beauty": 1.0})
