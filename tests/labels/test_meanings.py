"""Tests of :mod:`hyps_bids.labels.meanings`."""

from __future__ import annotations

import numpy as np
import pytest

from hyps_bids.errors import BadData, UsageError
from hyps_bids.labels.meanings import LabelMap


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "1:X",
        "one:L",
        "0:L",
        "-1:L",
        "1:L,1:R",
        "*:L",
        "*:-",
        "mask:-",
        "mask:L,2:R",
        "1:L:a b",
    ],
)
def test_what_is_no_map_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="label map"):
        LabelMap.parse(text)


def test_parts_and_order() -> None:
    label_map = LabelMap.parse("1:L:anterior, 2:L:posterior, 3:LR:tail, 9:-")
    expected = (("L", "anterior"), ("L", "posterior"), ("L", "tail"), ("R", "tail"))
    assert label_map.structures == expected
    assert label_map.ignored == (9,)


def test_values_of_one_structure_are_joined() -> None:
    data = np.array([1, 2, 3, 0]).reshape(4, 1, 1)
    found = LabelMap.parse("1:L,2:L,3:-").apply(data, np.eye(4))
    assert list(found) == [("L", "hippocampus")]
    assert found["L", "hippocampus"].ravel().tolist() == [True, True, False, False]


def test_unknown_values_are_named_unless_ignored() -> None:
    data = np.array([0, 1, 21, 22]).reshape(4, 1, 1)
    with pytest.raises(BadData, match="has the values 21, 22, which"):
        LabelMap.parse("1:L").apply(data, np.eye(4))
    assert len(LabelMap.parse("1:L,*:-").apply(data, np.eye(4))) == 1


def test_masks_may_have_an_offset_but_two_values_only() -> None:
    mask = np.array([26896.988, 26897.988, 26896.988], dtype=np.float32).reshape(3, 1, 1)
    found = LabelMap.parse("mask:R").apply(mask, np.eye(4))
    assert found["R", "hippocampus"].ravel().tolist() == [False, True, False]
    with pytest.raises(BadData, match="3 values"):
        LabelMap.parse("mask:R").apply(np.array([[[0, 1, 2]]]), np.eye(4))
    with pytest.raises(BadData, match="1 values"):
        LabelMap.parse("mask:R").apply(np.zeros((2, 2, 2)), np.eye(4))


@pytest.mark.parametrize("flip", [1, -1])
def test_both_sides_in_one_mask_are_told_apart_in_the_world(flip: int) -> None:
    mask = np.zeros((20, 4, 4))
    mask[3:6] = mask[13:16] = 1
    # a loose voxel belongs to the side that it lies on
    mask[7, 0, 0] = 1
    found = LabelMap.parse("mask:LR").apply(mask, np.diag([flip, 1.0, 1.0, 1.0]))
    low, high = ("L", "R") if flip == 1 else ("R", "L")
    assert found[low, "hippocampus"].sum() == 49
    assert found[high, "hippocampus"][13:16].all()


def test_one_piece_is_not_two_hippocampi() -> None:
    mask = np.zeros((20, 4, 4))
    mask[3:16] = 1
    with pytest.raises(BadData, match="cannot be told apart"):
        LabelMap.parse("mask:LR").apply(mask, np.eye(4))


@pytest.mark.parametrize(
    ("data", "message"),
    [([0, 1.4], "not whole"), ([0, np.nan], "not finite"), ([0, 0], "no voxel")],
)
def test_what_are_no_labels_is_refused(data: list[float], message: str) -> None:
    with pytest.raises(BadData, match=message):
        LabelMap.parse("1:L").apply(np.array(data).reshape(2, 1, 1), np.eye(4))
