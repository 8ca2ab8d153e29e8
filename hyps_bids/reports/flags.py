"""QC figures and flags in words, the same in the reports of subjects and of the group."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hyps_bids.outputs.quality import quality_bounds

__all__ = [
    "FIGURES",
    "HEMISPHERES",
    "SCAN_FIGURES",
    "FlagWords",
    "describe_bounds",
    "describe_flag",
    "format_figure",
    "split_figure",
]

#: BIDS values of ``hemi`` → words
HEMISPHERES = {"L": "left", "R": "right"}
#: figure → its name in a sentence, and what to think of when it is too low or too high
FIGURES: dict[str, tuple[str, dict[str, str]]] = {
    "confidence": (
        "Confidence of the segmentation",
        {"low": "the network was unsure of many voxels; look at the outline and the uncertainty"},
    ),
    "entropy": (
        "Uncertainty around the border",
        {"high": "the border is ill defined; look for motion, low contrast or pathology"},
    ),
    "component_fraction": (
        "Share of the largest component",
        {"low": "the segmentation fell into pieces and only the largest was kept"},
    ),
    "border_voxels": (
        "Number of voxels on the edge",
        {"high": "the hippocampus may be cut off by the image or by the network's box"},
    ),
    "agreement": (
        "Agreement with the localizer",
        {"low": "two independent networks see different structures; one of them is wrong"},
    ),
    "volume_mm3": (
        "Volume of the whole hippocampus",
        {
            "low": "severe atrophy, or a segmentation that missed a part",
            "high": "unusually large, or a segmentation that took in its neighbors",
        },
    ),
    "localiser_confidence": (
        "Confidence of the localizer",
        {"low": "the hippocampus was hard to find; check that the right structure is outlined"},
    ),
    "asymmetry": (
        "Asymmetry",
        {
            "low": "left is much smaller than right: atrophy of one side, or an error on one side",
            "high": "right is much smaller than left: atrophy of one side, or an error on one side",
        },
    ),
    "icv_mm3": (
        "Intracranial volume",
        {
            "low": "the field of view may cut the head; fractions of it are then too large",
            "high": "the mask may take in the skull; look at its contour",
        },
    ),
}
#: figures that are not one per side
SCAN_FIGURES = ("asymmetry", "icv_mm3")
#: figure → factor to its unit, unit, decimals; the others have three decimals and no unit
_UNITS = {
    "icv_mm3": (1e-3, " ml", 0),
    "volume_mm3": (1.0, " mm³", 0),
    "asymmetry": (100.0, " %", 1),
    "border_voxels": (1.0, "", 0),
}
_SHORT = {
    "low_asymmetry": "left much smaller than right",
    "high_asymmetry": "right much smaller than left",
    "low_icv_mm3": "low intracranial volume",
    "high_icv_mm3": "high intracranial volume",
}
_NO_VOLUME = "it has no volume, which is not the same as a volume of 0"


@dataclass(frozen=True)
class FlagWords:
    """Why a scan should be looked at.

    Attributes
    ----------
    short : str
        A few words: ``low agreement, left``.
    title : str
        Begins a sentence: ``Agreement with the localizer, left,``.
    finding : str
        Value and bound: ``0.52, below 0.65``; empty for a flag that is not known.
    advice : str
        What to think of; ends the sentence.
    """

    short: str
    title: str
    finding: str
    advice: str

    @property
    def sentence(self) -> str:
        """All in one sentence, without a full stop."""
        return f"{self.title}{f' is {self.finding}' if self.finding else ''}: {self.advice}"


def split_figure(name: str) -> tuple[str, str]:
    """Split the name of a QC column into figure and side.

    Examples
    --------
    >>> split_figure("agreement_L"), split_figure("icv_mm3")
    (('agreement', 'left'), ('icv_mm3', ''))
    """
    figure, _, hemi = name.rpartition("_")
    return (figure, HEMISPHERES[hemi]) if hemi in HEMISPHERES and figure else (name, "")


def format_figure(figure: str, value: float, unlike: Iterable[float] = ()) -> str:
    """Write a QC figure as people read it.

    Parameters
    ----------
    figure : str
        Name, without side.
    value : float
        As in the QC table.
    unlike : iterable of float
        Other values that rounding must not make look the same.

    Returns
    -------
    str
        With unit.

    Examples
    --------
    >>> format_figure("volume_mm3", 4041.13), format_figure("asymmetry", -0.0289)
    ('4,041 mm³', '−2.9 %')
    >>> format_figure("agreement", 0.519), format_figure("agreement", 0.6499, unlike=[0.65])
    ('0.519', '0.6499')
    >>> format_figure("icv_mm3", 899_990.0, unlike=[900_000.0])
    '899.99 ml'
    """
    scale, unit, decimals = _UNITS.get(figure, (1.0, "", 3))
    others = [scale * other for other in unlike if other != value]
    while decimals < 9 and any(
        round(scale * value, decimals) == round(other, decimals) for other in others
    ):
        decimals += 1
    # no minus zero
    text = f"{round(scale * value, decimals) + 0.0:,.{decimals}f}".replace("-", "−")
    if figure not in _UNITS:
        text = text.rstrip("0").rstrip(".")
    return text + unit


def describe_bounds(figure: str) -> str:
    """Say between which values a QC figure is inconspicuous.

    Examples
    --------
    >>> describe_bounds("agreement"), describe_bounds("asymmetry")
    ('at least 0.65', 'at least −25.0 %, at most 25.0 %')
    """
    known = quality_bounds()[figure]
    texts = []
    if "low" in known:
        texts.append(f"at least {format_figure(figure, known['low'])}")
    if "high" in known:
        texts.append(f"at most {format_figure(figure, known['high'])}")
    return ", ".join(texts)


def describe_flag(flag: str, values: Mapping[str, float | None]) -> FlagWords:
    """Say a flag in words.

    Parameters
    ----------
    flag : str
        As in the QC table: ``low_NAME``, ``high_NAME`` or ``missing_L``.
    values : mapping of str to float or None
        The scan's QC figures by column; None or not a number where there is none.
    """
    end, _, name = flag.partition("_")
    if end == "missing" and name in HEMISPHERES:
        side = HEMISPHERES[name]
        if _known(values.get(f"localiser_confidence_{name}")) is not None:
            title = f"The {side} hippocampus was located, but nothing was segmented there"
        else:
            title = f"No {side} hippocampus was found in the field of view"
        return FlagWords(f"no {side} hippocampus", title, "", _NO_VOLUME)
    figure, side = split_figure(name)
    known: Mapping[str, Any] = quality_bounds().get(figure) or {}
    bound = known.get(end)
    if end not in ("low", "high") or figure not in FIGURES or bound is None:
        return FlagWords(flag, flag, "", "a flag that this version of the report does not know")
    title, advice = FIGURES[figure]
    short = _SHORT.get(flag, f"{end} {figure.removesuffix('_mm3').replace('_', ' ')}")
    if side:
        title, short = f"{title}, {side},", f"{short}, {side}"
    return FlagWords(short, title, _finding(figure, end, bound, values.get(name)), advice[end])


def _finding(figure: str, end: str, bound: float, value: float | None) -> str:
    value = _known(value)
    if value is None:
        return "out of bounds; the QC table does not have its value"
    than = "below" if end == "low" else "above"
    if value == bound:
        # rounded in the table
        return f"{format_figure(figure, value)}, just {than} the bound"
    if (value < bound) == (end == "low"):
        return f"{format_figure(figure, value, [bound])}, {than} {format_figure(figure, bound)}"
    # flagged by a version with other bounds
    return f"{format_figure(figure, value, [bound])}, {than} the bound of its version"


def _known(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
