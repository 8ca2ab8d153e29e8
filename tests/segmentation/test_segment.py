"""Tests of :mod:`hyps_bids.segmentation.segment` on a real head."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from hyps_bids.imaging.conform import ConformedImage
from hyps_bids.imaging.volumes import measure, restore
from hyps_bids.networks.checkpoints import GRID
from hyps_bids.outputs.labels import HEMISPHERES
from hyps_bids.outputs.scan_files import BOX
from hyps_bids.segmentation.inference import cached_adapted
from hyps_bids.segmentation.localize import Localization, Location
from hyps_bids.segmentation.pipeline import Pipeline
from hyps_bids.segmentation.segment import SegmentedSide, segment

CPU = torch.device("cpu")
ANTERIOR = 1
Places = dict[str, Location | None]


@pytest.fixture(scope="module")
def model(pipeline: Pipeline) -> nn.Module:
    return cached_adapted(pipeline.adapter, pipeline.base)[0]


@pytest.fixture(scope="module")
def places(found: Localization) -> Places:
    return found.hippocampi


@pytest.fixture(scope="module")
def sides(head: ConformedImage, places: Places, model: nn.Module) -> dict[str, SegmentedSide]:
    found, used = segment(head.data, head.affine, places, model, CPU)
    assert used == "cpu"
    return found


def volumes(
    found: dict[str, SegmentedSide], image: np.ndarray, affine: np.ndarray
) -> dict[str, float]:
    """Soft volume of each whole hippocampus, mm³."""
    return {
        hemi: measure(restore(s.probabilities, s.affine, image.shape, affine), affine)[
            -1
        ].volume_soft_mm3
        for hemi, s in found.items()
    }


def center(side: SegmentedSide, label: int | None = None) -> np.ndarray:
    labels = side.probabilities.argmax(axis=0)
    mask = labels > 0 if label is None else labels == label
    return nib.affines.apply_affine(side.affine, np.argwhere(mask).mean(axis=0))


def test_probabilities(sides: dict[str, SegmentedSide]) -> None:
    assert list(sides) == list(HEMISPHERES)
    for side in sides.values():
        assert side.probabilities.shape[1:] == GRID
        assert side.probabilities.dtype == np.float32
        np.testing.assert_allclose(side.probabilities.sum(axis=0), 1, atol=1e-5)
        assert side.inside.sum() == np.prod(BOX)


def test_each_hippocampus_is_where_it_was_found(
    sides: dict[str, SegmentedSide], places: Places
) -> None:
    for hemi, side in sides.items():
        place = places[hemi]
        assert place is not None
        assert np.linalg.norm(center(side) - place.center) < 6
    assert center(sides["L"])[0] < center(sides["R"])[0] - 35


def test_heads_lie_in_front_of_tails(sides: dict[str, SegmentedSide]) -> None:
    for side in sides.values():
        assert center(side, ANTERIOR)[1] > center(side, ANTERIOR + 1)[1] + 8


def test_volumes_are_plausible(sides: dict[str, SegmentedSide], head: ConformedImage) -> None:
    found = volumes(sides, head.data, head.affine)
    for volume in found.values():
        assert 1800 < volume < 4800
    assert 0.8 < found["L"] / found["R"] < 1.25


def test_mirrored_image_swaps_the_volumes(
    sides: dict[str, SegmentedSide], head: ConformedImage, places: Places, model: nn.Module
) -> None:
    ends = [nib.affines.apply_affine(head.affine, (x, 0, 0))[0] for x in (0, len(head.data) - 1)]
    swapped: Places = {}
    for hemi, other in (("L", "R"), ("R", "L")):
        place = places[other]
        assert place is not None
        x, y, z = place.center
        swapped[hemi] = Location((sum(ends) - x, y, z), place.volume_mm3, place.confidence)
    data = np.ascontiguousarray(head.data[::-1])
    found = volumes(segment(data, head.affine, swapped, model, CPU)[0], data, head.affine)
    expected = volumes(sides, head.data, head.affine)
    # the network sees the very same boxes
    assert found["L"] == pytest.approx(expected["R"], rel=0.01)
    assert found["R"] == pytest.approx(expected["L"], rel=0.01)


def test_one_side_gives_the_same_alone(
    sides: dict[str, SegmentedSide], head: ConformedImage, places: Places, model: nn.Module
) -> None:
    found, _ = segment(head.data, head.affine, {"L": None, "R": places["R"]}, model, CPU)
    assert list(found) == ["R"]
    np.testing.assert_allclose(found["R"].probabilities, sides["R"].probabilities, atol=1e-3)


def test_intensities_may_have_any_scale(
    sides: dict[str, SegmentedSide], head: ConformedImage, places: Places, model: nn.Module
) -> None:
    found, _ = segment(head.data * 0.01 + 3, head.affine, places, model, CPU)
    for hemi, side in sides.items():
        np.testing.assert_allclose(found[hemi].probabilities, side.probabilities, atol=0.02)


def test_nothing_found_computes_nothing(head: ConformedImage, model: nn.Module) -> None:
    assert segment(head.data, head.affine, {"L": None, "R": None}, model, CPU) == ({}, "none")
