"""Tests of the words for flags and quality measures."""

from __future__ import annotations

from hyps_bids.outputs.flags import describe_bounds, describe_flag, format_measure, reasons
from hyps_bids.outputs.quality import flags, quality_bounds


def test_a_low_expected_dice_is_flagged_by_its_lower_bound() -> None:
    bound = quality_bounds()["expected_dice_low"]["low"]
    measures = {"expected_dice_L": 0.9, "expected_dice_low_L": bound - 0.09}
    measures |= {"expected_dice_R": 0.9, "expected_dice_low_R": bound}
    assert flags(measures) == ["low_expected_dice_L"]
    note = describe_flag("low_expected_dice_L", measures)
    assert note.short == "low expected Dice, left"
    for fact in ("(left)", f"{bound - 0.09:.2f}", f"{bound:.2f}"):
        assert fact in note.finding
    assert reasons(["low_expected_dice_L", "missing_R"], measures)[0] == note.text


def test_measures_without_bounds_are_never_flagged() -> None:
    assert describe_bounds("disagreement") == describe_bounds("expected_dice") == ""
    assert flags({"disagreement_L": 1.0, "expected_dice_L": 0.0}) == []
    assert format_measure("expected_dice", 0.8765) == "0.88"
