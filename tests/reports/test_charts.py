"""Charts hold the right numbers, in plain JSON."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from hyps_bids.reports import charts


def _marks(spec):
    return [layer["mark"]["type"] for layer in spec["layer"]]


def _values(spec, layer):
    return spec["layer"][layer].get("data", spec.get("data"))["values"]


def test_mean_roc_curve_is_the_mean_of_the_repeats() -> None:
    table = pd.DataFrame(
        {
            "class": "AD",
            "repeat": [1, 1, 1, 2, 2],
            "threshold": [np.nan, 0.5, 0.1, np.nan, 0.1],
            "false_positive_rate": [0.0, 0.0, 1.0, 0.0, 1.0],
            "sensitivity": [0.0, 1.0, 1.0, 0.0, 1.0],
        }
    )
    spec = charts.roc_chart(table)
    mean = {point["x"]: point["y"] for point in _values(spec, 2)}
    # one repeat is perfect, the other is chance
    assert mean[0.5] == pytest.approx((1 + 0.5) / 2)
    assert "specificity 0.80" in spec["description"]


def test_long_roc_curves_are_thinned() -> None:
    x = np.linspace(0, 1, 5000)
    table = pd.DataFrame(
        {"class": "AD", "repeat": 1, "false_positive_rate": x, "sensitivity": np.sqrt(x)}
    )
    spec = charts.roc_chart(table)
    assert len(_values(spec, 1)) == 101
    assert len(json.dumps(spec)) < 40_000


def test_confusion_gives_shares_of_the_true_class() -> None:
    table = pd.DataFrame({"true": ["a", "b"], "a": [3.0, 0.0], "b": [1.0, 0.0]})
    values = {(v["true"], v["called"]): v for v in charts.confusion_chart(table)["data"]["values"]}
    assert values["a", "b"]["share"] == 0.25
    assert values["b", "b"]["share"] == 0, "a class without subjects is not divided by"


def test_bland_altman_draws_the_limits_that_are_known() -> None:
    table = pd.DataFrame(
        {
            "scan": ["s1", "s2"],
            "hemi": ["L", "R"],
            "part": "whole",
            "volume_mm3": [110.0, np.nan],
            "reference_mm3": [100.0, 90.0],
        }
    )
    spec = charts.agreement_chart(
        table, "whole", {"mean_difference": 10.0, "lower_limit": None, "upper_limit": None}
    )
    assert _marks(spec).count("rule") == 2, "zero and the mean difference"
    assert [(v["x"], v["y"]) for v in _values(spec, 2)] == [(105.0, 10.0)]


@pytest.mark.parametrize("n", [5, 60])
def test_dice_of_few_scans_is_by_name_of_many_by_rank(n: int) -> None:
    table = pd.DataFrame(
        {
            "scan": [f"sub-{i}" for i in range(n)],
            "hemi": "L",
            "part": "whole",
            "dice": np.linspace(0.9, 0.5, n),
            "status": "ok",
        }
    )
    spec = charts.dice_chart(table, "whole")
    assert spec["layer"][1]["encoding"]["y"]["field"] == ("scan" if n == 5 else "rank")
    assert _values(spec, 1)[0]["dice"] == 0.5, "the worst first"


def test_templates_name_no_column_of_the_data() -> None:
    for spec in (
        charts.distribution_chart([-25, 25]),
        charts.relation_chart(),
        charts.quality_chart(),
        charts.change_chart(),
    ):
        fields = {
            channel["field"]
            for layer in spec["layer"]
            for channel in layer["encoding"].values()
            if "field" in channel
        }
        assert fields <= {
            *("x", "value", "color", "i", "state", "subject"),
            *("bound", "at", "from", "to", "low", "middle", "high"),
        }
        json.dumps(spec, allow_nan=False)


def test_missing_effects_are_null_not_nan() -> None:
    rows = pd.DataFrame(
        {"label": ["left"], "effect": [0.5], "effect_low": [np.nan], "effect_high": [np.nan]}
    ).assign(p_fdr=[np.nan])
    spec = charts.forest_chart(rows)
    json.dumps(spec, allow_nan=False)
    assert spec["data"]["values"][0]["low"] is None
