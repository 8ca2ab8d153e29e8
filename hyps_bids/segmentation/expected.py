"""The expected Dice of a hippocampus, and its lower bound, from what a run knows.

The model is a small forest of regression trees in one file, evaluated by NumPy alone. Trees do not
extrapolate, and each is monotone in the features for which only one direction makes sense.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from hyps_bids.errors import BadData

#: Kind of the card in the file's header.
KIND = "expected-dice"
#: Arrays of a forest, one row per tree and one column per node.
TREES = ("feature", "threshold", "left", "right", "value")


class ExpectedDice(NamedTuple):
    """Dice to be expected with a rater, and its lower bound that holds in 90 % of cases."""

    expected: float
    low: float


@dataclass(frozen=True)
class QualityModel:
    """A calibrated forest.

    Attributes
    ----------
    networks : tuple of dict of str to str
        Each names networks for which it is valid: ``Localizer``, ``Base`` and ``Adapter`` →
        SHA-256 sum.
    features : tuple of str
        Names of the inputs.
    usual : numpy.ndarray
        Value of each input that stands for a missing one.
    trees : dict of str to numpy.ndarray
        :data:`TREES`, shape ``(trees, nodes)``. A node without children has feature -1.
    margins : numpy.ndarray
        Shape ``(2, n)``: expected Dice, ascending, and how far the lower bound is below it.
    """

    networks: tuple[dict[str, str], ...]
    features: tuple[str, ...]
    usual: np.ndarray
    trees: dict[str, np.ndarray]
    margins: np.ndarray

    def predict(self, features: Mapping[str, float]) -> ExpectedDice:
        """Estimate the Dice of one hippocampus from its features; missing ones may be NaN."""
        given = np.array([features.get(name, math.nan) for name in self.features])
        complete = np.where(np.isfinite(given), given, self.usual)
        return self.bounded(float(self.mean(complete[None])[0]))

    def bounded(self, expected: float) -> ExpectedDice:
        """Add the lower bound to an expected Dice."""
        low = expected - float(np.interp(expected, *self.margins))
        return ExpectedDice(expected, min(max(low, 0.0), 1.0))

    def mean(self, inputs: np.ndarray) -> np.ndarray:
        """Return the mean of the trees for inputs of shape ``(n, features)``."""
        feature, threshold, left, right, value = (self.trees[name] for name in TREES)
        inputs = inputs.astype(np.float32)
        rows, trees = np.arange(len(inputs))[:, None], np.arange(len(feature))[None]
        node = np.zeros((len(inputs), len(feature)), dtype=np.intp)
        while ((asked := feature[trees, node]) >= 0).any():
            goes_left = inputs[rows, asked] <= threshold[trees, node]
            child = np.where(goes_left, left[trees, node], right[trees, node])
            node = np.where(asked >= 0, child, node)
        means: np.ndarray = value[trees, node].mean(axis=1, dtype=np.float64)
        return means


def shipped_model() -> Path:
    """Return the path of the model that comes with the package."""
    return Path(str(files("hyps_bids") / "data" / "quality" / "expected-dice.safetensors"))


@cache
def load_model(path: Path) -> QualityModel:
    """Read a model.

    Raises
    ------
    BadData
        If the file holds no such model.
    """
    try:
        with safe_open(path, "np") as stored:
            card = json.loads((stored.metadata() or {}).get("hyps", "{}"))
            arrays = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise BadData(
            f"{path}: not a model of the expected Dice ({error}); install the package again",
            code="quality-model-unreadable",
        ) from error
    if card.get("kind") != KIND:
        raise BadData(
            f"{path}: holds something else than a model of the expected Dice",
            code="quality-model-unreadable",
        )
    return QualityModel(
        networks=tuple(card["networks"]),
        features=tuple(card["features"]),
        usual=arrays["usual"],
        trees={name: arrays[name] for name in TREES},
        margins=arrays["margins"],
    )


def expect_dice(
    features: Mapping[str, Mapping[str, float]], networks: Mapping[str, str]
) -> tuple[dict[str, ExpectedDice], str]:
    """Estimate the Dice of each side, if the model was calibrated for these networks.

    Parameters
    ----------
    features : mapping of str to mapping of str to float
        From :func:`hyps_bids.segmentation.features.describe_sides`.
    networks : mapping of str to str
        SHA-256 sums of the networks that segmented, by their role.

    Returns
    -------
    expected : dict of str to ExpectedDice
        Hemisphere → estimate; empty if there is no calibration for these networks.
    note : str
        For the sidecar: that it was calibrated, or why there is no estimate.
    """
    model = load_model(shipped_model())
    if dict(networks) not in model.networks:
        return {}, (
            "n/a: the expected Dice was not calibrated for these networks. The bounds of the other "
            "measures alone decide whether a scan is to be reviewed."
        )
    found = {hemi: model.predict(side) for hemi, side in features.items()}
    return found, "Calibrated for the networks that made this result."
