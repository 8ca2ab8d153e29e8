"""What each quality measure means, its bounds, and the flags that follow from them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import NotRequired, TypedDict

#: Dice that is to be expected with a human rater, and its lower bound.
EXPECTED, EXPECTED_LOW = "expected_dice", "expected_dice_low"
#: Quality measures of each hippocampus, in the order of the table's columns.
SIDE_MEASURES = (
    EXPECTED,
    EXPECTED_LOW,
    "confidence",
    "entropy",
    "component_fraction",
    "border_voxels",
    "agreement",
    "disagreement",
    "volume_mm3",
    "localiser_confidence",
)
#: Quality measures of the scan as a whole.
SCAN_MEASURES = ("asymmetry", "brightness_difference", "icv_mm3", "icv_cut")
#: Flag of scans whose header contradicts itself about the size or the direction of voxels.
GEOMETRY = "geometry"


class QualityBounds(TypedDict):
    """Words for a quality measure; values below `low` or above `high` are flagged.

    A measure without bounds is never flagged by itself: it helps to estimate the expected Dice. The
    advice says what a value beyond the bound may mean and what to do about it.
    """

    title: str
    description: str
    low: NotRequired[float]
    low_advice: NotRequired[str]
    high: NotRequired[float]
    high_advice: NotRequired[str]


@cache
def quality_bounds() -> dict[str, QualityBounds]:
    """Read the meaning and the bounds of each quality measure from ``data/qc.json``."""
    text = (files("hyps_bids") / "data" / "qc.json").read_text(encoding="utf-8")
    bounds: dict[str, QualityBounds] = json.loads(text)
    return bounds


def flags(measures: Mapping[str, float]) -> list[str]:
    """Name the measures that are outside their bounds.

    Parameters
    ----------
    measures : mapping of str to float
        Names as in ``data/qc.json``, with ``_L`` or ``_R`` appended for one side.

    Returns
    -------
    list of str
        ``low_NAME`` or ``high_NAME``; measures that are not a number raise no flag. If the lower
        bound of the expected Dice is too low, this is ``low_expected_dice_L``.

    Examples
    --------
    >>> flags({"confidence_L": 0.5, "confidence_R": 0.95, "asymmetry": 0.4})
    ['low_confidence_L', 'high_asymmetry']
    """
    found = []
    for name, value in measures.items():
        bounds = quality_bounds()[name.removesuffix("_L").removesuffix("_R")]
        name = name.replace(EXPECTED_LOW, EXPECTED)
        if value < float(bounds.get("low", -math.inf)):
            found.append(f"low_{name}")
        elif value > float(bounds.get("high", math.inf)):
            found.append(f"high_{name}")
    return found
