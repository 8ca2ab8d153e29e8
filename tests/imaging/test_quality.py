"""Tests of :mod:`hyps_bids.imaging.quality`."""

from __future__ import annotations

import numpy as np
import pytest

from hyps_bids.imaging.quality import asymmetry, side_quality
from hyps_bids.imaging.roi import box_affine, inside_box
from hyps_bids.imaging.volumes import restore
from hyps_bids.outputs.quality import flags, quality_bounds

GRID = (40, 56, 40)
BOX = box_affine((-25, -20, -15), GRID)
SHAPE = (80, 80, 80)
IMAGE = box_affine((-25, -20, -15), SHAPE)
COARSE = box_affine((-25, -20, -15), (24, 24, 24), 2.5)
INSIDE = inside_box(GRID, (36, 52, 36))


def ball(
    shape: tuple[int, ...], affine: np.ndarray, radius: float = 9, x: float = -25
) -> np.ndarray:
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    place = index @ affine[:3, :3].T + affine[:3, 3]
    distance = np.linalg.norm(place - np.array([x, -20, -15]), axis=-1)
    return (1 / (1 + np.exp(4 * (distance - radius)))).astype(np.float32)


def quality(
    whole: np.ndarray,
    *,
    inside: np.ndarray = INSIDE,
    shape: tuple[int, ...] = SHAPE,
    image: np.ndarray = IMAGE,
    localized: np.ndarray | None = None,
) -> dict[str, float]:
    probabilities = np.stack((1 - whole, whole))
    restored = restore(probabilities, BOX, shape, image)
    if localized is None:
        localized = ball((24, 24, 24), COARSE)
    return side_quality(probabilities, inside, BOX, restored, shape, localized, COARSE)


def test_clean_segmentation_raises_no_flag() -> None:
    figures = quality(ball(GRID, BOX))
    assert flags({f"{name}_L": value for name, value in figures.items()}) == []
    assert figures["border_voxels"] == 0
    assert figures["component_fraction"] == 1
    assert 0.9 < figures["agreement"] <= 1
    assert 0.9 < figures["confidence"] <= 1
    assert 0 <= figures["entropy"] < 0.45


def test_doubt_lowers_confidence_and_raises_entropy() -> None:
    figures = quality(ball(GRID, BOX) * 0.6)
    assert figures["confidence"] == pytest.approx(0.6, abs=0.02)
    assert flags({f"{name}_R": value for name, value in figures.items()}) == [
        "low_confidence_R",
        "high_entropy_R",
    ]


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("end", ["low", "high"])
def test_cut_image_is_flagged(axis: int, end: str) -> None:
    # the image ends 5 mm from the ball's center
    shape, image = list(SHAPE), IMAGE.copy()
    if end == "high":
        shape[axis] = 45
    else:
        shape[axis], image[axis, 3] = 45, image[axis, 3] + 35
    figures = quality(ball(GRID, BOX), shape=tuple(shape), image=image)
    assert figures["border_voxels"] > 10
    assert "high_border_voxels_L" in flags({f"{k}_L": v for k, v in figures.items()})


def test_segmentation_at_the_edge_of_what_was_seen_is_flagged() -> None:
    figures = quality(ball(GRID, BOX, x=-12), inside=INSIDE)
    assert figures["border_voxels"] > 10
    inside = INSIDE.copy()
    inside[18:] = False
    assert quality(ball(GRID, BOX), inside=inside)["border_voxels"] > 10


def test_second_component_lowers_its_fraction() -> None:
    whole = ball(GRID, BOX)
    whole[3:11, 4:12, 3:11] = 0.9
    figures = quality(whole)
    assert figures["component_fraction"] < 0.95
    assert flags(figures) == ["low_component_fraction"]


def test_localizer_elsewhere_lowers_agreement() -> None:
    figures = quality(ball(GRID, BOX), localized=ball((24, 24, 24), COARSE, x=-10))
    assert figures["agreement"] < 0.5
    assert flags({"agreement_L": figures["agreement"]}) == ["low_agreement_L"]
    nowhere = np.zeros((24, 24, 24), np.float32)
    assert quality(ball(GRID, BOX), localized=nowhere)["agreement"] == 0


def test_nothing_segmented() -> None:
    figures = quality(np.zeros(GRID, np.float32))
    assert figures.pop("agreement") == 0
    assert all(np.isnan(value) for value in figures.values())
    assert set(figures) == {"confidence", "entropy", "component_fraction", "border_voxels"}


def test_asymmetry() -> None:
    assert asymmetry({"L": 1.0, "R": 3.0}) == -1
    assert asymmetry({"L": 3.0, "R": 1.0}) == 1
    for missing in ({}, {"L": 1.0}, {"R": 1.0}, {"L": 0.0, "R": 1.0}):
        assert np.isnan(asymmetry(missing))


@pytest.mark.parametrize("name", sorted(quality_bounds()))
def test_flags_begin_beyond_the_bounds(name: str) -> None:
    bounds = quality_bounds()[name]
    assert bounds["description"]
    assert {"low", "high"} & bounds.keys()
    for end, away in (("low", -1e-6), ("high", 1e-6)):
        if end in bounds:
            limit = float(bounds[end])
            for suffix in ("", "_L", "_R"):
                assert flags({name + suffix: limit}) == []
                assert flags({name + suffix: limit * (1 + away * np.sign(limit))}) == [
                    f"{end}_{name}{suffix}"
                ]
    assert flags({name: float("nan")}) == []


def test_unknown_figure_is_an_error() -> None:
    with pytest.raises(KeyError):
        flags({"beauty": 1.0})
