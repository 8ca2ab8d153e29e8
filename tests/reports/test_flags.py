from __future__ import annotations

import pytest

from hyps_bids.outputs.quality import GEOMETRY, quality_bounds
from hyps_bids.reports.flags import describe_flag


def test_every_bound_has_advice() -> None:
    for known in quality_bounds().values():
        assert known["title"]
        for end in ("low", "high"):
            assert (end in known) == (f"{end}_advice" in known)


def test_missing_hippocampi_that_were_and_were_not_located() -> None:
    located = describe_flag("missing_L", {"localiser_confidence_L": 0.91})
    assert located.short == "no left hippocampus"
    assert "was located" in located.finding
    for values in ({}, {"localiser_confidence_L": float("nan")}):
        assert "was found in the field of view" in describe_flag("missing_L", values).finding


def test_contradictory_geometry_has_words_and_advice() -> None:
    note = describe_flag(GEOMETRY, {})
    assert note.short
    assert note.advice
    assert "header" in note.finding


@pytest.mark.parametrize(
    ("flag", "value", "short", "fact"),
    [
        ("low_agreement_R", 0.52, "low agreement, right", "0.52, below the bound of 0.65."),
        ("low_asymmetry", -0.3, "left much smaller than right", "−30.0 %, below the bound of −25"),
        # The value was rounded to its bound in the table.
        ("low_agreement_R", 0.65, "low agreement, right", "0.65, just below the bound."),
        # A version with other bounds flagged it.
        ("high_entropy_R", 0.4, "high entropy, right", "0.4, above the bound of the version"),
        ("high_entropy_R", None, "high entropy, right", "does not have its value"),
        # This version has no such bound, or no such measure.
        ("low_entropy_R", 0.4, "low_entropy_R", "does not know"),
        ("low_news", 0.4, "low_news", "does not know"),
    ],
)
def test_a_flag_in_words(flag: str, value: float | None, short: str, fact: str) -> None:
    words = describe_flag(flag, {flag.partition("_")[2]: value})
    assert words.short == short
    assert fact in words.finding
    assert words.text.startswith(words.finding)
    assert words.text.endswith(".")
