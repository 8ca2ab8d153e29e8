"""Tests of the expected Dice: a forest that is small enough to be computed by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from hyps_bids.errors import BadData
from hyps_bids.networks.cards import ADAPTER, BASE, LOCALIZER, shipped_weights
from hyps_bids.outputs.digests import sha256
from hyps_bids.segmentation.expected import QualityModel, expect_dice, load_model, shipped_model
from tests.raising import raises

#: Two trees: confidence <= 0.8 gives 0.4, else noise <= 0.1 gives 0.9, else 0.7; and always 0.8.
TREES = {
    "feature": np.array([[0, -1, 1, -1, -1], [-1, -1, -1, -1, -1]], np.int8),
    "threshold": np.array([[0.8, 0, 0.1, 0, 0], [0] * 5], np.float32),
    "left": np.array([[1, 0, 3, 0, 0], [0] * 5], np.int16),
    "right": np.array([[2, 0, 4, 0, 0], [0] * 5], np.int16),
    "value": np.array([[0, 0.4, 0, 0.9, 0.7], [0.8, 0, 0, 0, 0]], np.float32),
}
MODEL = QualityModel(
    networks=({"Adapter": "ab"},),
    features=("confidence", "noise"),
    usual=np.array([0.9, 0.2]),
    trees=TREES,
    margins=np.array([[0.6, 0.8], [0.5, 0.1]]),
)


@pytest.mark.parametrize(
    ("features", "expected", "low"),
    [
        ({"confidence": 0.9, "noise": 0.05}, 0.85, 0.75),
        ({"confidence": 0.9, "noise": 0.2}, 0.75, 0.55),
        ({"confidence": 0.7, "noise": 0.05}, 0.6, 0.1),
        # What is missing or not a number is taken as usual
        ({"confidence": 0.9}, 0.75, 0.55),
        ({"confidence": math.nan, "noise": math.inf, "beauty": 1.0}, 0.75, 0.55),
        # Nothing is extrapolated
        ({"confidence": -1e9, "noise": 1e9}, 0.6, 0.1),
    ],
)
def test_forest_computed_by_hand(features: dict[str, float], expected: float, low: float) -> None:
    assert MODEL.predict(features) == pytest.approx((expected, low))


def test_lower_bound_stays_a_dice() -> None:
    assert MODEL.bounded(0.3) == (0.3, 0.0)


def test_shipped_model_belongs_to_the_shipped_networks() -> None:
    names = {"Localizer": LOCALIZER, "Base": BASE, "Adapter": ADAPTER}
    networks = {role: sha256(shipped_weights(name)) for role, name in names.items()}
    good = {"confidence": 0.96, "entropy": 0.1, "uncertain": 0.15, "soft_dice": 0.96}
    poor = {"confidence": 0.8, "entropy": 0.4, "uncertain": 0.8, "soft_dice": 0.75}
    found, _ = expect_dice({"L": good, "R": poor}, networks)
    assert 0 <= found["R"].low < found["R"].expected < found["L"].expected < 1
    assert shipped_model().stat().st_size < 2e6
    # Others have no estimate, and the note says so
    assert expect_dice({"L": good}, networks | {"Adapter": "0"})[0] == {}
    assert expect_dice({"L": good}, networks | {"Adapter": "0"})[1].startswith("n/a")


def test_other_files_are_refused(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"no model")
    for path in (damaged, tmp_path / "absent.safetensors", shipped_weights(LOCALIZER)):
        with raises(BadData, "quality-model-unreadable", path):
            load_model(path)
