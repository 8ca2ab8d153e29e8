"""Volumes side by side, and the measures that follow from them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from hyps_bids.outputs.columns import ColumnDescription
from hyps_bids.outputs.labels import HEMISPHERES, SIDE_NAMES, WHOLE

SIDES = (*HEMISPHERES, "bilateral")
_SIDE_NAMES = SIDE_NAMES | {"bilateral": "left and right"}
_KEYS = ["scan", "hemi", "part"]
#: Kind of volume → what it adds to the names of the measures that are derived from it
KINDS = {"volume_mm3": "", "volume_soft_mm3": "_soft", "volume_longitudinal_mm3": "_longitudinal"}
#: Those of each scan by itself; the others are of participants with several scans only.
CROSS_SECTIONAL = ("volume_mm3", "volume_soft_mm3")
#: Kind of volume → its intracranial volume, by which fractions and residuals are computed
ICV_OF = dict.fromkeys(CROSS_SECTIONAL, "icv_mm3") | {
    "volume_longitudinal_mm3": "icv_longitudinal_mm3"
}
#: Method of change → its measure, which is one value per participant and contrast
CHANGES = {"volume": "percent_per_year_longitudinal", "bsi": "percent_per_year_bsi"}
_ASYMMETRY = "(left - right) / mean of left and right"
_RATIO = "Anterior / posterior volume"
_FRACTION = "Volume / intracranial volume"
_RESIDUAL = "Volume - slope * (intracranial volume - its mean)"
_HARD, _SOFT = "of voxel counts", "of sums of probabilities"
_LONG = "of the longitudinal volumes of all scans of the participant"
_YEARLY = "Change in percent of the volume at the first scan, per year, the same for all scans of"
#: measure → description and units; a name stands after the longer names that begin with it
MEASURES = {
    "volume_soft_mm3": ("Sum of probabilities times the volume of a voxel", "mm3"),
    "volume_longitudinal_mm3": (
        "Volume from all scans of the participant together, see desc-longitudinal_morph.tsv of "
        "the participant",
        "mm3",
    ),
    "volume_mm3": ("Voxel count times the volume of a voxel", "mm3"),
    "asymmetry_soft": (f"{_ASYMMETRY}, {_SOFT}", "1"),
    "asymmetry_longitudinal": (f"{_ASYMMETRY}, {_LONG}", "1"),
    "asymmetry": (f"{_ASYMMETRY}, {_HARD}", "1"),
    "anterior_posterior_ratio_soft": (f"{_RATIO}, {_SOFT}", "1"),
    "anterior_posterior_ratio_longitudinal": (f"{_RATIO}, {_LONG}", "1"),
    "anterior_posterior_ratio": (f"{_RATIO}, {_HARD}", "1"),
    "icv_fraction_soft": (f"{_FRACTION}, {_SOFT}", "1"),
    "icv_fraction_longitudinal": (f"{_FRACTION}, {_LONG}", "1"),
    "icv_fraction": (f"{_FRACTION}, {_HARD}", "1"),
    "icv_residual_soft_mm3": (f"{_RESIDUAL}, {_SOFT}", "mm3"),
    "icv_residual_longitudinal_mm3": (f"{_RESIDUAL}, {_LONG}", "mm3"),
    "icv_residual_mm3": (f"{_RESIDUAL}, {_HARD}", "mm3"),
    "percent_per_year_longitudinal": (f"{_YEARLY} a participant, {_LONG}", "%/year"),
    "percent_per_year_bsi": (f"{_YEARLY} a participant, by the boundary shift integral", "%/year"),
}
#: Those that only participants with several scans have.
LONGITUDINAL = frozenset(m for m in MEASURES if "_longitudinal" in m or m in CHANGES.values())


def volumes(morph: pd.DataFrame) -> pd.DataFrame:
    """Put the volumes of each scan side by side.

    A bilateral volume is the sum of both sides, and missing unless both are there. The whole is the
    row of that name, or else the sum of the parts. A part that is the only one of its scan is the
    whole by another name and has no column of its own.

    Parameters
    ----------
    morph : pandas.DataFrame
        Long table with scan, hemi, part, volume_mm3, volume_soft_mm3 and, if known,
        volume_longitudinal_mm3 and the intracranial volumes of :data:`ICV_OF`.

    Returns
    -------
    pandas.DataFrame
        Indexed by scan: intracranial volumes, then ``KIND_SIDE_PART`` for each of :data:`KINDS`,
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
    rows = rows.drop_duplicates(_KEYS)
    kinds = [kind for kind in KINDS if kind in rows]
    parts = rows[rows["part"] != WHOLE]
    sums = parts.groupby(["scan", "hemi"], sort=False)[kinds].sum(skipna=False)
    wholes = pd.concat([rows[rows["part"] == WHOLE], sums.reset_index().assign(part=WHOLE)])
    parts = parts[parts.groupby("scan")["part"].transform("nunique") > 1]
    names = [*parts["part"].unique(), WHOLE]
    rows = pd.concat([parts, wholes]).drop_duplicates(_KEYS)
    wide = rows.set_index(_KEYS)[kinds].unstack(["hemi", "part"])
    columns = {
        name: morph.groupby("scan")[name].first()
        for name in dict.fromkeys(ICV_OF.values())
        if name in morph
    }
    missing = pd.Series(np.nan, index=wide.index)
    for kind in kinds:
        for side in HEMISPHERES:
            for part in names:
                # No scan may have this volume, for example if all of them lack a side.
                columns[f"{kind}_{side}_{part}"] = wide.get((kind, side, part), missing)
        for part in names:
            left, right = (columns[f"{kind}_{side}_{part}"] for side in HEMISPHERES)
            columns[f"{kind}_bilateral_{part}"] = left + right
    return pd.DataFrame(columns, index=wide.index)


def derive(frame: pd.DataFrame) -> pd.DataFrame:
    """Compute the measures that follow from the columns of :func:`volumes`, scan by scan.

    These are asymmetry_PART, anterior_posterior_ratio_SIDE (if there are such parts) and
    icv_fraction_SIDE_PART, each also with ``_soft`` and ``_longitudinal`` after the measure's name.

    Examples
    --------
    >>> frame = pd.DataFrame({"icv_mm3": [1.5e6], "volume_mm3_L_whole": [3300.0],
    ...     "volume_mm3_R_whole": [2700.0], "volume_mm3_bilateral_whole": [6000.0]})
    >>> derive(frame)[["asymmetry_whole", "icv_fraction_bilateral_whole"]].values.tolist()
    [[0.2, 0.004]]
    """
    columns: dict[str, pd.Series] = {}
    names = [name for kind in KINDS for name in volume_columns(frame, kind)]
    parts = list(dict.fromkeys(split_column(name)[2] for name in names))
    for kind, soft in KINDS.items():
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
        fraction = _ratio(frame[name], frame[ICV_OF[kind]])
        columns[f"icv_fraction{KINDS[kind]}_{side}_{part}"] = fraction
    return pd.DataFrame(columns, index=frame.index)


def _ratio(above: pd.Series, below: pd.Series) -> pd.Series:
    return above / below.where(below != 0)


def volume_columns(frame: pd.DataFrame, measure: str = "volume_mm3") -> list[str]:
    """Name the columns of a measure, one per side and part, in the frame's order."""
    return [name for name in frame.columns if _measure(name) == measure]


def _measure(name: str) -> str | None:
    try:
        return split_column(name)[0]
    except ValueError:
        return None


def is_measure(name: str) -> bool:
    """Tell whether a column has the name of a measure of this module.

    Examples
    --------
    >>> is_measure("volume_mm3_L_CA1"), is_measure("volume_mm3_total")
    (True, False)
    """
    return _measure(name) is not None


def is_change(name: str) -> bool:
    """Tell whether a column is a change per year, of which a participant has one value.

    Examples
    --------
    >>> is_change("percent_per_year_bsi_L_whole"), is_change("volume_mm3_L_whole")
    (True, False)
    """
    return _measure(name) in CHANGES.values()


def is_longitudinal(name: str) -> bool:
    """Tell whether a column is a measure that only participants with several scans have.

    Examples
    --------
    >>> is_longitudinal("asymmetry_longitudinal_whole"), is_longitudinal("asymmetry_whole")
    (True, False)
    """
    return _measure(name) in LONGITUDINAL


def split_column(name: str) -> tuple[str, str, str]:
    """Split the name of a column into measure, side and part, of which side or part may be empty.

    Raises
    ------
    ValueError
        If the column is not one of this module.

    Examples
    --------
    >>> split_column("icv_residual_soft_mm3_bilateral_whole")
    ('icv_residual_soft_mm3', 'bilateral', 'whole')
    >>> split_column("asymmetry_soft_anterior"), split_column("anterior_posterior_ratio_L")
    (('asymmetry_soft', '', 'anterior'), ('anterior_posterior_ratio', 'L', ''))
    """
    for measure in MEASURES:
        rest = name.removeprefix(f"{measure}_")
        if rest == name:
            continue
        if measure.startswith("asymmetry"):
            return measure, "", rest
        side, _, part = rest.partition("_")
        if side in SIDES and bool(part) != measure.startswith("anterior_posterior_ratio"):
            return measure, side, part
    raise ValueError(f"{name} is not a measure of the hippocampus")


def describe(name: str) -> ColumnDescription:
    """Describe a column of this module for the sidecar.

    Examples
    --------
    >>> describe("asymmetry_soft_whole")["Description"]
    '(left - right) / mean of left and right, of sums of probabilities: whole.'
    """
    measure, side, part = split_column(name)
    text, units = MEASURES[measure]
    place = " ".join(filter(None, [_SIDE_NAMES.get(side), part]))
    return {"Description": f"{text}: {place}.", "Units": units}
