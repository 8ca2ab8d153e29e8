"""Volumes side by side, and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

__all__ = [
    "SIDES",
    "Adjustment",
    "derive",
    "describe",
    "icv_residuals",
    "split_column",
    "volume_columns",
    "volumes",
]

SIDES = ("L", "R", "bilateral")
_SIDE_NAMES = {"L": "left", "R": "right", "bilateral": "left and right"}
#: volume → what the names of its derived measures add
_KINDS = {"volume_mm3": "", "volume_soft_mm3": "_soft"}
_ASYMMETRY = "(left - right) / mean of left and right"
_RATIO = "Anterior / posterior volume"
_FRACTION = "Volume / intracranial volume"
_RESIDUAL = "Volume - slope * (intracranial volume - its mean)"
_HARD, _SOFT = "of voxel counts", "of sums of probabilities"
#: measure → description, units; longer names before those they begin with
_MEASURES = {
    "volume_soft_mm3": ("Sum of probabilities times the volume of a voxel", "mm3"),
    "volume_mm3": ("Voxel count times the volume of a voxel", "mm3"),
    "asymmetry_soft": (f"{_ASYMMETRY}, {_SOFT}", "1"),
    "asymmetry": (f"{_ASYMMETRY}, {_HARD}", "1"),
    "anterior_posterior_ratio_soft": (f"{_RATIO}, {_SOFT}", "1"),
    "anterior_posterior_ratio": (f"{_RATIO}, {_HARD}", "1"),
    "icv_fraction_soft": (f"{_FRACTION}, {_SOFT}", "1"),
    "icv_fraction": (f"{_FRACTION}, {_HARD}", "1"),
    "icv_residual_soft_mm3": (f"{_RESIDUAL}, {_SOFT}", "mm3"),
    "icv_residual_mm3": (f"{_RESIDUAL}, {_HARD}", "mm3"),
}
#: fewer subjects give no line worth subtracting
_FEWEST = 3


@dataclass(frozen=True)
class Adjustment:
    """Regression of a volume on the intracranial volume.

    Attributes
    ----------
    fitted_on : str
        ``all`` or ``column=level``.
    slope : float
        mm³ per mm³.
    mean_icv : float
        mm³; at this intracranial volume the adjusted volume is the volume itself.
    n : int
        Subjects; of several scans the mean counts.
    """

    fitted_on: str
    slope: float
    mean_icv: float
    n: int


def volumes(morph: pd.DataFrame) -> pd.DataFrame:
    """Put the volumes of each scan side by side.

    A bilateral volume is the sum of both sides, missing unless both are there. The whole is what
    the table gives as such, else the sum of its parts. A part that is the only one of its scan is
    the whole by another name and has no column of its own.

    Parameters
    ----------
    morph : pandas.DataFrame
        Long table with columns scan, hemi, part, volume_mm3, volume_soft_mm3 and, if known,
        icv_mm3.

    Returns
    -------
    pandas.DataFrame
        Indexed by scan: icv_mm3, then ``volume_mm3_SIDE_PART`` and ``volume_soft_mm3_SIDE_PART``
        with SIDE in :data:`SIDES` and the parts in the order of the tables, ``whole`` last.

    Examples
    --------
    >>> morph = pd.DataFrame({"scan": "sub-01", "hemi": ["L", "L", "R", "R"],
    ...     "part": ["head", "tail"] * 2, "volume_mm3": [1.0, 2.0, 3.0, 4.0],
    ...     "volume_soft_mm3": 1.0})
    >>> volumes(morph)["volume_mm3_bilateral_whole"].tolist()
    [10.0]
    """
    rows = morph.assign(part=morph["part"].str.replace(r"\W+", "_", regex=True))
    rows = rows.drop_duplicates(["scan", "hemi", "part"])
    parts = rows[rows["part"] != "whole"]
    several = parts.groupby("scan")["part"].transform("nunique") > 1
    summed = parts.groupby(["scan", "hemi"], sort=False)[list(_KINDS)].sum(skipna=False)
    wholes = pd.concat([rows[rows["part"] == "whole"], summed.reset_index().assign(part="whole")])
    parts = parts[several]
    names = [*parts["part"].unique(), "whole"]
    rows = pd.concat([parts, wholes]).drop_duplicates(["scan", "hemi", "part"])
    wide = rows.set_index(["scan", "hemi", "part"])[list(_KINDS)].unstack(["hemi", "part"])
    columns = {}
    if "icv_mm3" in morph:
        columns["icv_mm3"] = morph.groupby("scan")["icv_mm3"].first()
    for kind in _KINDS:
        sides = {side: {part: _column(wide, (kind, side, part)) for part in names} for side in "LR"}
        sides["bilateral"] = {part: sides["L"][part] + sides["R"][part] for part in names}
        for side, of_parts in sides.items():
            columns |= {f"{kind}_{side}_{part}": values for part, values in of_parts.items()}
    return pd.DataFrame(columns, index=wide.index)


def _column(frame: pd.DataFrame, name: tuple[str, ...]) -> pd.Series:
    # no scan may have it, as where every scan lacks a side
    return frame[name] if name in frame else pd.Series(np.nan, index=frame.index)


def derive(frame: pd.DataFrame) -> pd.DataFrame:
    """Compute what follows from the volumes of one scan.

    Parameters
    ----------
    frame : pandas.DataFrame
        With the columns of :func:`volumes`.

    Returns
    -------
    pandas.DataFrame
        Same index: asymmetry_PART, anterior_posterior_ratio_SIDE (if there are such parts) and
        icv_fraction_SIDE_PART, each also with ``_soft`` after the measure's name.

    Examples
    --------
    >>> frame = pd.DataFrame({"icv_mm3": [1.5e6], "volume_mm3_L_whole": [3300.0],
    ...     "volume_mm3_R_whole": [2700.0], "volume_mm3_bilateral_whole": [6000.0]})
    >>> derive(frame)[["asymmetry_whole", "icv_fraction_bilateral_whole"]].values.tolist()
    [[0.2, 0.004]]
    """
    columns: dict[str, pd.Series] = {}
    names = _volume_names(frame)
    parts = list(dict.fromkeys(split_column(name)[2] for name in names))
    for kind, soft in _KINDS.items():
        for part in parts:
            sides = [f"{kind}_{side}_{part}" for side in SIDES]
            if set(sides) <= set(frame):
                left, right, both = (frame[side] for side in sides)
                columns[f"asymmetry{soft}_{part}"] = _ratio(left - right, both / 2)
        for side in SIDES:
            pair = [f"{kind}_{side}_{part}" for part in ("anterior", "posterior")]
            if set(pair) <= set(frame):
                ratio = _ratio(frame[pair[0]], frame[pair[1]])
                columns[f"anterior_posterior_ratio{soft}_{side}"] = ratio
    for name in names:
        kind, side, part = split_column(name)
        fraction = _ratio(frame[name], frame["icv_mm3"])
        columns[f"icv_fraction{_KINDS[kind]}_{side}_{part}"] = fraction
    return pd.DataFrame(columns, index=frame.index)


def _ratio(above: pd.Series, below: pd.Series) -> pd.Series:
    return above / below.where(below != 0)


def icv_residuals(
    frame: pd.DataFrame, reference: pd.Series, fitted_on: str
) -> tuple[pd.DataFrame, dict[str, Adjustment]]:
    """Adjust volumes for the intracranial volume by the residual method.

    A line is fitted to the reference's subjects, each with the mean of its scans; every scan's
    volume is moved along it to the mean intracranial volume of the reference. All volumes are
    adjusted with the same subjects: those of whom no volume is missing.

    Parameters
    ----------
    frame : pandas.DataFrame
        With participant_id and the columns of :func:`volumes`.
    reference : pandas.Series
        Which rows to fit on, boolean.
    fitted_on : str
        The reference in words.

    Returns
    -------
    pandas.DataFrame
        Same index: icv_residual_mm3_SIDE_PART and icv_residual_soft_mm3_SIDE_PART.
    dict of str to Adjustment
        By column. Nothing is adjusted if no line can be fitted (fewer than three subjects, or all
        of one intracranial volume), and no column that the reference has no values of.
    """
    columns, adjustments = {}, {}
    # some have values of other scans only, such as the parts of another adapter
    names = [name for name in _volume_names(frame) if frame.loc[reference, name].notna().any()]
    known = frame.loc[reference, ["participant_id", "icv_mm3", *names]].dropna()
    subjects = known.groupby("participant_id").mean()
    icv = subjects["icv_mm3"]
    if len(subjects) < _FEWEST or np.ptp(icv) == 0:
        return pd.DataFrame(index=frame.index), {}
    centerd = icv - icv.mean()
    for name in names:
        kind, side, part = split_column(name)
        volume = subjects[name]
        slope = float((centerd * volume).sum() / (centerd**2).sum())
        column = f"icv_residual{_KINDS[kind]}_mm3_{side}_{part}"
        columns[column] = frame[name] - slope * (frame["icv_mm3"] - icv.mean())
        adjustments[column] = Adjustment(fitted_on, slope, float(icv.mean()), len(subjects))
    return pd.DataFrame(columns, index=frame.index), adjustments


def volume_columns(frame: pd.DataFrame, measure: str = "volume_mm3") -> list[str]:
    """Name the columns of a measure, one per side and part, in the frame's order."""
    return [name for name in frame.columns if _measure(name) == measure]


def _volume_names(frame: pd.DataFrame) -> list[str]:
    return [name for kind in _KINDS for name in volume_columns(frame, kind)]


def _measure(name: str) -> str | None:
    try:
        return split_column(name)[0]
    except ValueError:
        return None


def split_column(name: str) -> tuple[str, str, str]:
    """Take a column of this module apart: measure, side, part; what does not apply is empty.

    Raises
    ------
    ValueError
        If it is none of ours.

    Examples
    --------
    >>> split_column("icv_residual_soft_mm3_bilateral_whole")
    ('icv_residual_soft_mm3', 'bilateral', 'whole')
    >>> split_column("asymmetry_soft_anterior"), split_column("anterior_posterior_ratio_L")
    (('asymmetry_soft', '', 'anterior'), ('anterior_posterior_ratio', 'L', ''))
    """
    for measure in _MEASURES:
        rest = name.removeprefix(f"{measure}_")
        if rest == name:
            continue
        if measure.startswith("asymmetry"):
            return measure, "", rest
        side, _, part = rest.partition("_")
        if side in SIDES and bool(part) != measure.startswith("anterior_posterior_ratio"):
            return measure, side, part
    raise ValueError(f"{name}: not a measure of the hippocampus")


def describe(name: str, adjustment: Adjustment | None = None) -> dict[str, Any]:
    """Describe a column for the sidecar.

    Examples
    --------
    >>> describe("asymmetry_soft_whole")["Description"]
    '(left - right) / mean of left and right, of sums of probabilities: whole.'
    """
    measure, side, part = split_column(name)
    text, units = _MEASURES[measure]
    where = " ".join(filter(None, [_SIDE_NAMES.get(side), part]))
    described: dict[str, Any] = {"Description": f"{text}: {where}.", "Units": units}
    if adjustment is not None:
        described["ICVAdjustment"] = {
            "FittedOn": adjustment.fitted_on,
            "Slope": adjustment.slope,
            "MeanICV": adjustment.mean_icv,
            "N": adjustment.n,
        }
    return described
