"""Adjust volumes for the intracranial volume (ICV) by the residual method."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from hyps_bids.cohort.derived import CROSS_SECTIONAL, ICV_OF, KINDS, split_column, volume_columns
from hyps_bids.cohort.image_contrasts import contrasts_of, count_contrasts
from hyps_bids.cohort.levels import equals_level
from hyps_bids.cohort.own_columns import users_first
from hyps_bids.errors import UsageError
from hyps_bids.messages import join_names, suggest_names
from hyps_bids.outputs.columns import ColumnDescription, ICVAdjustment
from hyps_bids.outputs.quality import GEOMETRY

_LOG = logging.getLogger("hyps_bids")
#: Contrast → column → its adjustment
Adjustments = dict[str, dict[str, ICVAdjustment]]
#: A line through fewer subjects is not worth subtracting.
_FEWEST = 3
#: Number of subjects below which the adjustment is doubtful.
_FEW = 20


def parse_controls(text: str) -> tuple[str, str]:
    """Split COLUMN=LEVEL into the column and the level that marks the controls."""
    column, _, level = text.partition("=")
    if not column or not level:
        raise UsageError(
            f"--controls {text}: write COLUMN=LEVEL, for example group=control.",
            code="controls-syntax",
        )
    return column, level


def adjustment_scans(frame: pd.DataFrame, controls: str | None) -> tuple[pd.Series, str]:
    """Select the scans on which the adjustment is fitted.

    These are all scans, or those of the `controls` (COLUMN=LEVEL), without scans whose intracranial
    volume or geometry is flagged. The selection is returned as booleans and in words.
    """
    done = frame["status"] == "done"
    flagged = done & frame["flags"].str.contains(rf"_icv_mm3|\b{GEOMETRY}\b", na=False)
    if flagged.any():
        _LOG.warning(
            "The intracranial volume (ICV) or the geometry of these scans is flagged, so the "
            "adjustment of volumes for ICV is fitted without them; please look at them: %s",
            join_names(frame.loc[flagged, "scan"]),
        )
        done &= ~flagged
    if controls is None:
        return done, "all"
    column, level = parse_controls(controls)
    if column not in frame:
        raise UsageError(
            f"--controls {controls}: there is no column {column} in the group table. Choose one "
            f"of these: {suggest_names([column], users_first(frame))}",
            code="controls-column-unknown",
        )
    values = frame[column]
    chosen = equals_level(values, level)
    if not (done & chosen).any():
        found = join_names(sorted(map(str, values[done].dropna().unique())))
        raise UsageError(
            f"--controls {controls}: no scan with volumes has the value {level} in the column "
            f"{column}. "
            + (f"Choose one of these: {found}" if found else "All of them have no value there."),
            code="controls-level-unknown",
        )
    return done & chosen, f"{column}={level}"


def icv_residuals(
    frame: pd.DataFrame, fit_on: pd.Series, fitted_on: str
) -> tuple[pd.DataFrame, Adjustments]:
    """Adjust volumes for the intracranial volume, those of each contrast by themselves.

    Each contrast has its own line, so that its values do not depend on other contrasts in the
    table. A line is fitted to the subjects of the rows `fit_on`, each with the mean of its scans.
    Every scan's volume is then moved along it to their mean intracranial volume. All volumes are
    adjusted with the same subjects: those without a missing volume. Longitudinal volumes have
    lines of their own, because not every subject has several scans.

    Returns
    -------
    pandas.DataFrame
        With the same index: icv_residual_mm3_SIDE_PART and the same of the other kinds of volumes.
        Volumes that none of the selected scans has are left out, and all volumes if no line can be
        fitted: with fewer than three subjects, or if all have the same intracranial volume.
    dict of str to dict of str to ICVAdjustment
        By contrast of the measured scans, and by column; `fitted_on` says in words which rows
        were selected.
    """
    contrast = contrasts_of(frame)
    tables = []
    adjustments: Adjustments = {}
    for name in count_contrasts(frame[frame["icv_mm3"].notna()]):
        rows = frame[contrast == name]
        adjustments[name] = {}
        parts = []
        for kinds in (
            CROSS_SECTIONAL,
            tuple(kind for kind in KINDS if kind not in CROSS_SECTIONAL),
        ):
            table, found = _residuals(rows, fit_on[rows.index], fitted_on, kinds)
            adjustments[name] |= found
            parts.append(table)
        tables.append(pd.concat(parts, axis=1))
    if not tables:
        return pd.DataFrame(index=frame.index), {}
    return pd.concat(tables).reindex(frame.index), adjustments


def _residuals(
    frame: pd.DataFrame, fit_on: pd.Series, fitted_on: str, kinds: Sequence[str]
) -> tuple[pd.DataFrame, dict[str, ICVAdjustment]]:
    # Volumes of another adapter's parts may be known for other scans only.
    names = [
        name
        for kind in kinds
        for name in volume_columns(frame, kind)
        if frame.loc[fit_on, name].notna().any()
    ]
    if not names:
        return pd.DataFrame(index=frame.index), {}
    of = ICV_OF[kinds[0]]
    known = frame.loc[fit_on, ["participant_id", of, *names]].dropna()
    subjects = known.groupby("participant_id").mean()
    icv = subjects[of]
    if len(subjects) < _FEWEST or np.ptp(icv) == 0:
        return pd.DataFrame(index=frame.index), {}
    centered = icv - icv.mean()
    columns = {}
    adjustments: dict[str, ICVAdjustment] = {}
    for name in names:
        kind, side, part = split_column(name)
        slope = float((centered * subjects[name]).sum() / (centered**2).sum())
        column = f"icv_residual{KINDS[kind]}_mm3_{side}_{part}"
        columns[column] = frame[name] - slope * (frame[of] - icv.mean())
        adjustments[column] = {
            "FittedOn": fitted_on,
            "Slope": slope,
            "MeanICV": float(icv.mean()),
            "N": len(subjects),
        }
    return pd.DataFrame(columns, index=frame.index), adjustments


def stored_adjustments(
    sidecar: Mapping[str, ColumnDescription], column: str
) -> dict[str, ICVAdjustment]:
    """Return how a column was adjusted, by contrast; the name is empty if there is only one."""
    described = sidecar.get(column, {})
    if "ICVAdjustment" in described:
        return {"": described["ICVAdjustment"]}
    return described.get("ICVAdjustments", {})


def warn_of_few(adjustments: Adjustments, fitted_on: str) -> None:
    """Warn if the adjustment of a contrast could not be made, or rests on few subjects."""
    fewest, longitudinal = (
        {
            contrast: min(
                (a["N"] for name, a in by.items() if ("_longitudinal" in name) == own), default=0
            )
            for contrast, by in adjustments.items()
        }
        for own in (False, True)
    )
    without = [contrast for contrast, n in fewest.items() if n == 0]
    few = {contrast: n for contrast, n in fewest.items() if 0 < n < _FEW}
    if without or not adjustments:
        _LOG.warning(
            "No volumes were adjusted for the intracranial volume (ICV)%s, so there are no values "
            "of icv_residual: there are fewer than %d subjects with all volumes%s, or all have "
            "the same ICV.",
            f" in {join_names(without)} images" if len(adjustments) > 1 else "",
            *(_FEWEST, "" if fitted_on == "all" else f" ({fitted_on})"),
        )
    if few or any(0 < n < _FEW for n in longitudinal.values()):
        several = len(adjustments) > 1
        counts = [f"{n} subjects{f' in {name} images' * several}" for name, n in few.items()]
        counts += [
            f"{n} subjects with longitudinal volumes{f' in {name} images' * several}"
            for name, n in longitudinal.items()
            if 0 < n < _FEW
        ]
        _LOG.warning(
            "The adjustment for the intracranial volume (ICV) rests on only %s (%s); use the "
            "columns icv_residual with caution.",
            *(join_names(counts), fitted_on),
        )
