"""Charts hold the right numbers, in plain JSON."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from hyps_bids.reports import charts
from hyps_bids.reports.charts import Spec


def _values(spec: Spec, layer: int) -> list[Spec]:
    return spec["layer"][layer].get("data", spec.get("data"))["values"]


def test_the_mean_roc_curve_is_that_of_the_repeats_and_long_curves_are_thinned() -> None:
    # One repeat is chance, and its curve has many points. The other repeat is perfect.
    chance = np.linspace(0, 1, 5000)
    table = pd.DataFrame(
        {
            "class": "AD",
            "repeat": [1] * 5000 + [2] * 3,
            "false_positive_rate": [*chance, 0.0, 0.0, 1.0],
            "sensitivity": [*chance, 0.0, 1.0, 1.0],
        }
    )
    spec = charts.roc_chart(table)
    mean = {point["x"]: point["y"] for point in _values(spec, 2)}
    assert mean[0.5] == pytest.approx((0.5 + 1) / 2)
    assert "specificity 0.80" in spec["description"]
    assert len(_values(spec, 1)) == 101 + 3


def test_confusion_gives_shares_of_the_true_class() -> None:
    table = pd.DataFrame({"true": ["a", "b"], "a": [3.0, 0.0], "b": [1.0, 0.0]})
    values = {
        (v["true"], v["predicted"]): v for v in charts.confusion_chart(table)["data"]["values"]
    }
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
    rules = [layer for layer in spec["layer"] if layer["mark"]["type"] == "rule"]
    assert len(rules) == 2, "zero and the mean difference"
    assert [(v["x"], v["y"]) for v in _values(spec, 2)] == [(105.0, 10.0)]


@pytest.mark.parametrize("n", [5, 60])
def test_dice_of_few_scans_is_by_name_of_many_by_rank(n: int) -> None:
    scans = [f"sub-{i}" for i in range(n)]
    table = pd.DataFrame({"scan": scans, "dice": np.linspace(0.9, 0.5, n)})
    table = table.assign(hemi="L", part="whole", status="ok")
    spec = charts.dice_chart(table, "whole")
    assert spec["layer"][1]["encoding"]["y"]["field"] == ("scan" if n == 5 else "rank")
    assert _values(spec, 1)[0]["dice"] == 0.5, "the worst first"


@pytest.mark.parametrize(("name", "spec"), charts.scan_charts().items())
def test_templates_of_scans_name_no_column_of_the_data(name: str, spec: Spec) -> None:
    json.dumps(spec, allow_nan=False)
    channels = [spec.get("encoding", {}), *(layer.get("encoding", {}) for layer in spec["layer"])]
    fields = {c["field"] for encoding in channels for c in encoding.values() if c and "field" in c}
    assert fields <= {
        *("x", "value", "color", "i", "state", "subject"),
        *("bound", "at", "from", "to", "low", "middle", "high"),
        *("mean", "mean_low", "mean_high"),
    }


def test_missing_effects_are_null_not_nan() -> None:
    rows = pd.DataFrame(
        {"label": ["left"], "effect": [0.5], "effect_low": [np.nan], "effect_high": [np.nan]}
    ).assign(p_fdr=[np.nan])
    spec = charts.forest_chart(rows)
    json.dumps(spec, allow_nan=False)
    assert spec["data"]["values"][0]["low"] is None
