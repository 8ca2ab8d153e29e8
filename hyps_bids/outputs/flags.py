"""QC measures and flags in words, the same in the QC table and in all reports."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from hyps_bids.outputs.labels import SIDE_NAMES
from hyps_bids.outputs.quality import EXPECTED, EXPECTED_LOW, GEOMETRY, quality_bounds

#: measure → factor to its unit, unit, decimals; all other measures have three decimals and no unit
_UNITS = {
    "icv_mm3": (1e-3, " ml", 0),
    "icv_cut": (100.0, " %", 1),
    "volume_mm3": (1.0, " mm³", 0),
    "asymmetry": (100.0, " %", 1),
    "border_voxels": (1.0, "", 0),
    EXPECTED: (1.0, "", 2),
    EXPECTED_LOW: (1.0, "", 2),
}
_SHORT = {
    "low_asymmetry": "left much smaller than right",
    "high_asymmetry": "right much smaller than left",
    "high_icv_cut": "head cut off by the field of view",
}


class Note(NamedTuple):
    """Why a scan should be looked at: in short (``low agreement, left``) and in sentences."""

    short: str
    finding: str = ""
    advice: str = ""

    @property
    def text(self) -> str:
        """Finding and advice together."""
        return f"{self.finding} {self.advice}".strip()


_CONTRADICTION = Note(
    "contradictory geometry",
    "The header of the image contradicts itself about the size or the direction of its voxels; "
    "the remarks on the file say how.",
    "All volumes, the intracranial volume included, may be wrong by the difference. Compare the "
    "header with the protocol of the scanner, and convert the image again.",
)


#: Code in the QC table of a series → its words: {others} are the scans that it is compared with,
#: and {side} is that of a code such as missing_L.
_SERIES_NOTES = {
    "different-head": Note(
        "another head",
        "This and {others} do not look like the same head.",
        "Check whether files of two persons were swapped, and look at the images side by side.",
    ),
    "sides-swapped": Note(
        "left and right swapped",
        "Left and right are swapped between this scan and {others}.",
        "Find out which of them is wrong, and convert it again: its own volumes of the left and "
        "the right side are swapped as well.",
    ),
    "different-contrast": Note(
        "another contrast",
        "This scan and {others} have so little in common that their contrast seems to differ.",
        "If it does not, check whether files of two persons were swapped. If it does, name what "
        "differs (such as ce- for a contrast agent) in the names of the files, so that scans of "
        "one contrast are compared with each other.",
    ),
    "same-image": Note(
        "a copy",
        "All voxels of this image are those of another one among {others}.",
        "Find out to which session the image belongs, and remove the copy.",
    ),
    "not-aligned": Note(
        "not aligned",
        "The registration of this scan with {others} failed.",
        "Look at the images: large artifacts, or parts of the head that are missing, may be why.",
    ),
    "little-overlap": Note(
        "another part of the head",
        "This scan and {others} show different parts of the head.",
        "A scan whose field of view holds the whole brain is needed.",
    ),
    "no-brain": Note(
        "no brain",
        "No intracranial space was found in this scan.",
        "Look at the image, and at the report of the scan.",
    ),
    "scan-flagged": Note(
        "flagged by itself",
        "This scan should be reviewed by itself, as its own QC table says.",
        "Its change over time is doubtful for the same reasons.",
    ),
    "scan-failed": Note(
        "failed by itself",
        "This scan could not be segmented, so that its change over time is not known.",
        "The QC table of the scan says why.",
    ),
    "missing": Note(
        "no {side} hippocampus",
        "The {side} hippocampus was not found in this scan, or the field of view ends before it.",
        "Its change leaves this scan out.",
    ),
    "unlike": Note(
        "other shape, {side}",
        "The {side} hippocampus of this scan differs from that of {others} by more than a smooth "
        "deformation, so that it was measured by itself, with an unknown error.",
        "Look at the outlines: one may be wrong, or there was an operation between the scans.",
    ),
    "methods-disagree": Note(
        "change contradictory, {side}",
        "The change of the {side} hippocampus by its volume and that by the boundary shift "
        "integral contradict each other.",
        "Look at the scans one after the other: motion, noise or another contrast may be the "
        "reason.",
    ),
    "unlike-itself": Note(
        "unlike the scan by itself, {side}",
        "The volume of the {side} hippocampus over time differs by more than a tenth from that in "
        "the scan by itself.",
        "One of the scans may be spoiled there; look at the outlines of all of them.",
    ),
    "other-voxels": Note(
        "other voxel size",
        "Its voxels differ in size from those of other scans by more than a tenth.",
        "Part of the change may be the difference in resolution.",
    ),
    "other-protocol": Note(
        "other protocol",
        "Its JSON sidecar states another scanner or sequence than that of the first scan.",
        "Part of the change may be the difference between them.",
    ),
}


def describe_series_flag(flag: str, others: str) -> Note:
    """Put a flag of the QC table of a series into words.

    Parameters
    ----------
    flag : str
        A code such as ``different-head``, or ``missing_L``.
    others : str
        Names of the scans that the scan is compared with.

    Examples
    --------
    >>> describe_series_flag("missing_L", "ses-1").short
    'no left hippocampus'
    >>> describe_series_flag("different-head", "sub-1_ses-2").finding
    'This and sub-1_ses-2 do not look like the same head.'
    """
    code, _, hemi = flag.partition("_")
    note = _SERIES_NOTES.get(code, Note(flag, f"The reason has the code {flag}."))
    side = SIDE_NAMES.get(hemi, "")
    return Note(*(text.format(others=others, side=side) for text in note))


def split_measure(name: str) -> tuple[str, str]:
    """Split the name of a QC column into measure and side.

    Examples
    --------
    >>> split_measure("agreement_L"), split_measure("icv_mm3")
    (('agreement', 'left'), ('icv_mm3', ''))
    """
    measure, _, hemi = name.rpartition("_")
    return (measure, SIDE_NAMES[hemi]) if hemi in SIDE_NAMES and measure else (name, "")


def short_name(measure: str) -> str:
    """Name a QC measure in a few words.

    Examples
    --------
    >>> short_name("localiser_confidence"), short_name("icv_mm3")
    ('localizer confidence', 'intracranial volume')
    """
    if measure == EXPECTED_LOW:
        return "lower bound of the expected Dice"
    # The column of the table keeps its spelling for the sake of older outputs.
    words = measure.removesuffix("_mm3").replace("_", " ")
    return (
        words.replace("localiser", "localizer")
        .replace("icv", "intracranial volume")
        .replace("dice", "Dice")
    )


def format_measure(measure: str, value: float, unlike: Iterable[float] = ()) -> str:
    """Write a QC measure (name without side) with its unit.

    Enough decimals are shown to tell the value from those that it is `unlike`.

    Examples
    --------
    >>> format_measure("volume_mm3", 4041.13), format_measure("asymmetry", -0.0289)
    ('4,041 mm³', '−2.9 %')
    >>> format_measure("agreement", 0.519), format_measure("agreement", 0.6499, unlike=[0.65])
    ('0.519', '0.6499')
    >>> format_measure("icv_mm3", 899_990.0, unlike=[900_000.0])
    '899.99 ml'
    """
    scale, unit, decimals = _UNITS.get(measure, (1.0, "", 3))
    others = [scale * other for other in unlike if other != value]
    while decimals < 9 and any(
        round(scale * value, decimals) == round(other, decimals) for other in others
    ):
        decimals += 1
    # Adding 0.0 turns a minus zero into zero.
    text = f"{round(scale * value, decimals) + 0.0:,.{decimals}f}".replace("-", "−")
    if measure not in _UNITS:
        text = text.rstrip("0").rstrip(".")
    return text + unit


def describe_bounds(measure: str) -> str:
    """Say between which values a QC measure is not flagged; empty if it never is.

    Examples
    --------
    >>> describe_bounds("agreement"), describe_bounds("asymmetry")
    ('at least 0.65', 'at least −25.0 % and at most 25.0 %')
    """
    known = quality_bounds()[measure]
    texts = []
    if "low" in known:
        texts.append(f"at least {format_measure(measure, known['low'])}")
    if "high" in known:
        texts.append(f"at most {format_measure(measure, known['high'])}")
    return " and ".join(texts)


def describe_flag(flag: str, values: Mapping[str, float | None]) -> Note:
    """Put a flag of the QC table into words: ``low_NAME``, ``missing_L`` or ``geometry``.

    The values are the scan's QC measures by column; None or NaN where there is no value.
    """
    if flag == GEOMETRY:
        return _CONTRADICTION
    end, _, name = flag.partition("_")
    if end == "missing" and name in SIDE_NAMES:
        return _describe_missing(name, values)
    measure, side = split_measure(name)
    words = short_name(measure)
    if measure == EXPECTED:
        # Its lower bound is what is flagged.
        measure, name = EXPECTED_LOW, name.replace(EXPECTED, EXPECTED_LOW)
    known: Mapping[str, Any] = quality_bounds().get(measure) or {}
    if end not in ("low", "high") or end not in known:
        return Note(flag, f"{flag} is a flag that this version of the report does not know.")
    title = known["title"]
    short = _SHORT.get(flag, f"{end} {words}")
    if side:
        title, short = f"{title} ({side})", f"{short}, {side}"
    finding = _finding(measure, end, known[end], finite(values.get(name)))
    return Note(short, f"{title} is {finding}.", known[f"{end}_advice"])


def reasons(flags: Iterable[str], values: Mapping[str, float | None]) -> list[str]:
    """Say in sentences why a scan should be looked at; see :func:`describe_flag`.

    Examples
    --------
    >>> reasons(["high_entropy_L"], {"entropy_L": 0.5})
    ['Uncertainty around the border (left) is 0.5, above the bound of 0.45. ...']
    """
    return [describe_flag(flag, values).text for flag in flags]


def finite(value: float | None) -> float | None:
    """Return a number, or None for everything that is not a finite number."""
    return value if value is not None and math.isfinite(value) else None


def _describe_missing(hemi: str, values: Mapping[str, float | None]) -> Note:
    side = SIDE_NAMES[hemi]
    if finite(values.get(f"localiser_confidence_{hemi}")) is not None:
        finding = f"The {side} hippocampus was located, but nothing was segmented there."
    else:
        finding = f"No {side} hippocampus was found in the field of view."
    advice = "It has no volume, which is not the same as a volume of 0."
    return Note(f"no {side} hippocampus", finding, advice)


def _finding(measure: str, end: str, bound: float, value: float | None) -> str:
    if value is None:
        return "outside its bounds, but the QC table does not have its value"
    beyond = "below" if end == "low" else "above"
    if value == bound:
        # The value was rounded when it was written to the table.
        return f"{format_measure(measure, value)}, just {beyond} the bound"
    shown = format_measure(measure, value, [bound])
    if (value < bound) == (end == "low"):
        return f"{shown}, {beyond} the bound of {format_measure(measure, bound)}"
    return f"{shown}, {beyond} the bound of the version that flagged it"
