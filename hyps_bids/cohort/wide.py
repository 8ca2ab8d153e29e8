"""The wide table: one row per scan, with all measures and the dataset's own columns."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from hyps_bids.cohort.column_types import infer_types
from hyps_bids.cohort.derived import derive, describe, is_measure, volumes
from hyps_bids.cohort.gather import Gathered
from hyps_bids.cohort.gather_series import GatheredSeries, measured_change
from hyps_bids.cohort.icv import Adjustments, adjustment_scans, icv_residuals, warn_of_few
from hyps_bids.cohort.image_contrasts import CONTRAST
from hyps_bids.cohort.metadata import Metadata, join, rows_of_sessions
from hyps_bids.cohort.selection import compare_participants
from hyps_bids.cohort.visits import order_scans, report_order
from hyps_bids.outputs.columns import (
    CONTRAST_COLUMN,
    KEYS,
    SERIES_COLUMNS,
    SERIES_MORPH_COLUMNS,
    VISIT_COLUMNS,
    ColumnDescription,
    described,
    table_columns,
)
from hyps_bids.outputs.scan import Scan
from hyps_bids.settings import Settings

#: Description of the column status in all group tables.
STATUS = "done, failed (reason says why), or missing: there are no outputs."
_MADE_BY = {
    "software_version": "Version of HyPS-BIDS that made the volumes.",
    "adapter": "Adapter that made the volumes.",
    "models": "All weights with the first digits of their SHA-256, and the bias field correction. "
    "Volumes are comparable where software_version and models are the same.",
}
#: Term of every linear model
_INTERCEPT = "Intercept"


def build_wide_table(
    gathered: Gathered,
    qc: pd.DataFrame,
    metadata: Metadata,
    settings: Settings,
) -> tuple[pd.DataFrame, dict[str, ColumnDescription]]:
    """Put everything that is known about each scan into one row, and describe the columns.

    These are keys, further entities, status, provenance, volumes, derived measures and metadata.
    `qc` is the QC table with the missing scans.
    """
    base, entities = _scans(qc)
    base = compare_participants(base, metadata, settings)
    base, measured = _with_measures(base, gathered)
    added, order, raw = _with_metadata(base, metadata, str(settings.bids_dir))
    fit_on, fitted_on = adjustment_scans(pd.concat([base, added], axis=1), settings.controls)
    residuals, adjustments = icv_residuals(base, fit_on, fitted_on)
    warn_of_few(adjustments, fitted_on)
    table = pd.concat([base, residuals, order, added], axis=1)

    columns = described(table_columns("qc") | {"status": STATUS} | _MADE_BY | CONTRAST_COLUMN)
    columns |= described(VISIT_COLUMNS)
    columns |= described({name: f"Entity {name} of the scan's name." for name in entities})
    columns |= {name: describe(name) for name in [*measured, *residuals] if is_measure(name)}
    columns["icv_mm3"] = {"Description": table_columns("morph")["icv_mm3"], "Units": "mm3"}
    text = SERIES_MORPH_COLUMNS["icv_longitudinal_mm3"]
    columns["icv_longitudinal_mm3"] = {"Description": text, "Units": "mm3"}
    columns["years_since_first_scan"]["Units"] = "year"
    _describe_adjustments(columns, adjustments)
    columns |= {name: _with_all_levels(raw[name], added[name]) for name in added}
    numbers = set(table.select_dtypes("number"))
    for name in table:
        columns[name] = {**columns[name], "Format": "number" if name in numbers else "string"}
    return table, {name: columns[name] for name in table}


def add_series(
    wide: pd.DataFrame, columns: Mapping[str, ColumnDescription], series: GatheredSeries
) -> tuple[pd.DataFrame, dict[str, ColumnDescription]]:
    """Add the change per year and the state of the longitudinal results of each scan.

    They stand before the order of the scans and the columns of the dataset.
    """
    change = change_columns(wide, series.change)[0]
    middle = wide.columns.get_loc(next(iter(VISIT_COLUMNS)))
    before, after = wide.iloc[:, :middle], wide.iloc[:, middle:]
    table = pd.concat([before, change, series_states(wide, series.qc), after], axis=1)
    added: dict[str, ColumnDescription] = {
        name: {**describe(name), "Format": "number"} for name in map(str, change)
    }
    for name, description in described(SERIES_COLUMNS).items():
        added[name] = {**description, "Format": "string"}
    every = {**columns, **added}
    return table, {name: every[name] for name in table}


def change_columns(table: pd.DataFrame, change: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Put the change per year of the longitudinal results beside the scans that are done.

    All scans of a participant and contrast have the same values, so that they can be features of
    classifiers; whatever counts participants takes the row of the first scan.

    Parameters
    ----------
    table : pandas.DataFrame
        One row per scan with participant_id, image_contrast and status.
    change : pandas.DataFrame
        :attr:`~hyps_bids.cohort.gather_series.GatheredSeries.change`.

    Returns
    -------
    tuple of pandas.DataFrame
        Changes in percent per year and their standard errors, with the index of `table` and the
        names of :data:`~hyps_bids.cohort.derived.CHANGES`, followed by side and part.
    """
    keys = pd.MultiIndex.from_frame(table[["participant_id", CONTRAST]])
    done = (table["status"] == "done").to_numpy()
    values, errors = {}, {}
    for name, percent, error in measured_change(change):
        if not is_measure(name):
            continue
        values[name] = np.where(done, percent.reindex(keys), np.nan)
        errors[name] = np.where(done, error.reindex(keys), np.nan)
    return pd.DataFrame(values, index=table.index), pd.DataFrame(errors, index=table.index)


def series_states(table: pd.DataFrame, qc: pd.DataFrame) -> pd.DataFrame:
    """Return the columns about the longitudinal results of each scan, with the index of `table`.

    Parameters
    ----------
    table : pandas.DataFrame
        One row per scan, with its name.
    qc : pandas.DataFrame
        :attr:`~hyps_bids.cohort.gather_series.GatheredSeries.qc`.
    """
    names = {name: name.removeprefix("longitudinal_") for name in SERIES_COLUMNS}
    by_scan = qc.drop_duplicates("scan").set_index("scan").reindex(table["scan"])
    states = {name: by_scan[own].to_numpy() for name, own in names.items()}
    return pd.DataFrame(states, index=table.index, dtype="str")


def build_scan_table(
    gathered: Gathered, metadata: Metadata, source: str
) -> tuple[pd.DataFrame, dict[str, ColumnDescription]]:
    """Make the part of the wide table that needs no comparison with other participants.

    Parameters
    ----------
    gathered, metadata : Gathered, Metadata
        Outputs of some scans, and what the dataset says about them.
    source : str
        The dataset, for warnings.

    Returns
    -------
    pandas.DataFrame
        One row per scan.
    dict
        What the dataset's sidecars say about its own columns.
    """
    base, _ = _with_measures(_scans(gathered.qc)[0], gathered)
    added, order, raw = _with_metadata(base, metadata, source)
    return pd.concat([base, order, added], axis=1), raw


def _scans(qc: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return keys, contrast, entities and state of the scans of a QC table, and the entities."""
    entities = _further_entities(qc["scan"])
    state = ["status", "reason", "review", "reasons", "flags", "remarks", "edited"]
    contrast = qc["scan"].map(lambda stem: Scan.from_stem(stem).contrast).rename(CONTRAST)
    base = pd.concat([qc[[*KEYS]], contrast.astype("str"), entities, qc[state]], axis=1)
    return base, entities


def _with_measures(base: pd.DataFrame, gathered: Gathered) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Add provenance and measures, and return the measures as well."""
    measured = volumes(gathered.morph)
    measured = pd.concat([measured, derive(measured)], axis=1)
    base = base.merge(gathered.provenance, on="scan", how="left")
    return base.merge(measured, left_on="scan", right_index=True, how="left"), measured


def _with_metadata(
    base: pd.DataFrame, metadata: Metadata, source: str
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, ColumnDescription]]:
    """Return the dataset's columns, the order of scans, and what sidecars say about the columns."""
    added, origins = join(base, metadata, _reserved(metadata))
    raw = {str(name): metadata.columns.get(origins[name], {}) for name in added}
    added = infer_types(added, raw, source)
    return added, _order(pd.concat([base, added], axis=1), metadata, raw), raw


def _describe_adjustments(columns: dict[str, ColumnDescription], adjustments: Adjustments) -> None:
    for contrast, by_column in adjustments.items():
        for name, adjustment in by_column.items():
            if len(adjustments) == 1:
                columns[name]["ICVAdjustment"] = adjustment
            else:
                columns[name].setdefault("ICVAdjustments", {})[contrast] = adjustment


def _reserved(metadata: Metadata) -> set[str]:
    """Name the columns of the dataset that would be taken for one of ours."""
    tables = [metadata.participants, metadata.sessions, *metadata.phenotype]
    names = {str(name) for table in tables for name in table.columns}
    ours = {*VISIT_COLUMNS, *SERIES_COLUMNS, "icv_longitudinal_mm3", _INTERCEPT}
    return {*ours, *filter(is_measure, names)}


def _order(
    table: pd.DataFrame, metadata: Metadata, raw: Mapping[str, ColumnDescription]
) -> pd.DataFrame:
    """Put the scans that are done in order; the others have no place in it."""
    done = table[table["status"] == "done"]
    unit = next((str(raw[n].get("Units", "")) for n in raw if n.casefold() == "age"), "")
    order = order_scans(done, rows_of_sessions(done, metadata), unit)
    keys = ["participant_id", "session_id", CONTRAST]
    report_order(pd.concat([done[keys], order], axis=1))
    return order.reindex(table.index)


def _further_entities(stems: pd.Series) -> pd.DataFrame:
    """Return the entities of scans beyond subject and session, as text."""
    rows = [dict(Scan.from_stem(stem).entities) for stem in stems]
    frame = pd.DataFrame(rows, index=stems.index, dtype="str")
    return frame.drop(columns=["sub", "ses"], errors="ignore")


def _with_all_levels(description: ColumnDescription, values: pd.Series) -> ColumnDescription:
    """Take over what the dataset's sidecar says, and list all levels that occur."""
    if not isinstance(values.dtype, pd.CategoricalDtype):
        return description
    given = description.get("Levels")
    meanings = {str(k): v for k, v in given.items()} if isinstance(given, dict) else {}
    levels = {level: meanings.get(level, level) for level in values.cat.categories}
    return {**description, "Levels": levels}
