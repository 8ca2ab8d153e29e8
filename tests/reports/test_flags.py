from __future__ import annotations

from hyps_bids.outputs.columns import qc_columns
from hyps_bids.outputs.quality import quality_bounds
from hyps_bids.reports.flags import FIGURES, SCAN_FIGURES, describe_flag


def test_every_figure_has_words_for_each_of_its_quality_bounds() -> None:
    assert set(FIGURES) == set(quality_bounds())
    for name, known in quality_bounds().items():
        assert set(FIGURES[name][1]) == {"low", "high"} & set(known)


def test_a_hippocampus_that_was_located_but_not_segmented() -> None:
    assert describe_flag("missing_L", {"localiser_confidence_L": 0.91}).sentence == (
        "The left hippocampus was located, but nothing was segmented there: it has no volume, "
        "which is not the same as a volume of 0"
    )
    for values in ({}, {"localiser_confidence_L": float("nan")}):
        assert describe_flag("missing_L", values).title.startswith("No left hippocampus was found")


def test_the_direction_of_an_asymmetry_is_said() -> None:
    words = describe_flag("low_asymmetry", {"asymmetry": -0.3})
    assert words.short == "left much smaller than right"
    assert words.finding == "−30.0 %, below −25.0 %"


def test_figures_of_a_scan_are_those_of_the_table() -> None:
    assert set(SCAN_FIGURES) == set(qc_columns()) & set(FIGURES)


def test_a_value_that_was_rounded_to_its_bound_is_not_of_another_version() -> None:
    words = describe_flag("low_agreement_R", {"agreement_R": quality_bounds()["agreement"]["low"]})
    assert words.finding == "0.65, just below the bound"


def test_bounds_of_other_versions_are_not_claimed() -> None:
    assert describe_flag("high_entropy_R", {"entropy_R": 0.4}).finding == (
        "0.4, above the bound of its version"
    )
    assert "does not have its value" in describe_flag("high_entropy_R", {}).finding
    assert describe_flag("low_entropy_R", {"entropy_R": 0.4}).short == "low_entropy_R"
