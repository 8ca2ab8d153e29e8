"""Linear models of the measures, given as formulas."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from hyps_bids.cohort.derived import split_column
from hyps_bids.cohort.design import CannotFit, build_design
from hyps_bids.cohort.formulas import find_measures, formula_variables
from hyps_bids.cohort.harmonize import (
    Harmonized,
    check_site,
    harmonize_measures,
    harmonized_table,
)
from hyps_bids.cohort.models import Row, coefficient_rows, fit_design
from hyps_bids.outputs.columns import LINEAR_MODEL_COLUMNS

_LOG = logging.getLogger("hyps_bids")

#: Short names of columns of the wide table.
_ALIASES = {"icv": "icv_mm3", "time": "years_since_first_scan"}


class Fitted(NamedTuple):
    """What the formulas gave.

    Attributes
    ----------
    models : pandas.DataFrame
        One row per model, measure and coefficient.
    harmonized : pandas.DataFrame
        The harmonized measures, one row per model and scan; empty without harmonization.
    """

    models: pd.DataFrame
    harmonized: pd.DataFrame


def fit_models(
    frame: pd.DataFrame,
    formulas: Sequence[str],
    controls: tuple[str, str] | None = None,
    site: str | None = None,
) -> pd.DataFrame:
    """Return only the models of :func:`fit_formulas`."""
    return fit_formulas(frame, formulas, controls, site).models


def fit_formulas(
    frame: pd.DataFrame,
    formulas: Sequence[str],
    controls: tuple[str, str] | None = None,
    site: str | None = None,
) -> Fitted:
    """Fit each formula to each region.

    Parameters
    ----------
    frame : pandas.DataFrame
        The wide table; only scans that are done are used.
    formulas : sequence of str
        For example ``volume ~ diagnosis + age + sex + icv``. The name before ``~`` is a column, or
        one of :data:`~hyps_bids.cohort.formulas.FAMILIES`, which stands for several in turn.
    controls : tuple of str, optional
        A column and its reference level, instead of the first level.
    site : str, optional
        Column of the sites by which the measures are harmonized before each formula is fitted.

    Returns
    -------
    Fitted
        The table of models is tidy, with the columns
        :data:`~hyps_bids.outputs.columns.LINEAR_MODEL_COLUMNS`. A model that cannot be fitted has
        one row per measure that says why.

    Raises
    ------
    UsageError
        If a formula cannot be understood, or names columns that do not exist or that have mistyped
        numbers.
    """
    aliases = {
        short: frame[name]
        for short, name in _ALIASES.items()
        if short not in frame and name in frame
    }
    data = frame.assign(**aliases)
    # All formulas are checked first, because mixed models of thousands of scans take minutes.
    plans = [(formula, *find_measures(formula, data)) for formula in formulas]
    if site is not None:
        for formula in formulas:
            check_site(formula, data, site)
    tables, volumes = [], [pd.DataFrame()]
    for formula, name, measures in plans:
        _LOG.info("Model '%s': fitting %d measures", formula, len(measures))
        ready = Harmonized(data, formula)
        if site is not None:
            ready = harmonize_measures(formula, data, name, measures, site, controls)
            volumes.append(harmonized_table(formula, ready, site))
        rows = _fit_measures(formula, ready, name, measures, controls, site)
        table = pd.DataFrame(list(rows), columns=list(LINEAR_MODEL_COLUMNS))
        table["p_fdr"] = _adjusted(table)
        tables.append(table)
        _log_result(formula, table)
    return Fitted(
        pd.concat(tables, ignore_index=True),
        pd.concat(volumes, ignore_index=True),
    )


def _fit_measures(
    formula: str,
    ready: Harmonized,
    name: str,
    measures: Sequence[str],
    controls: tuple[str, str] | None,
    site: str | None,
) -> Iterator[Row]:
    data = ready.data
    n_scans = int(data["scan"].notna().sum())
    variables = sorted(formula_variables(ready.formula, data.columns) - {"participant_id"})
    for measure in measures:
        try:
            _, side, part = split_column(measure)
        except ValueError:
            side = part = ""
        done = data[data["status"] == "done"].assign(**{name: data[measure]})
        used = done[["participant_id", *variables]].dropna()
        subjects = used["participant_id"].to_numpy()
        try:
            if ready.problem:
                raise CannotFit(ready.problem)
            design = build_design(ready.formula, used, name, controls)
            subjects = design.subjects
            fit = fit_design(design)
            about: Row = {
                "method": fit.method,
                "converged": fit.converged,
                "warnings": "; ".join([*ready.warnings, *design.warnings, *fit.warnings]) or None,
            }
            rows = [about | r for r in coefficient_rows(design, fit) if r["term"] != ready.term]
        except CannotFit as why:
            rows = [{"converged": False, "warnings": f"not fitted: {why}"}]
        common: Row = {
            "model": formula,
            "measure": measure,
            "side": side or None,
            "part": part or None,
            "harmonized": site if ready.columns else None,
            "n_scans": len(subjects),
            "n_subjects": len(np.unique(subjects)),
            "n_left_out": n_scans - len(subjects),
        }
        yield from (common | row for row in rows)


def _adjusted(table: pd.DataFrame) -> pd.Series:
    """Adjust p-values over measures, separately for each coefficient."""
    from scipy.stats import false_discovery_control

    tests = table[table["term"] != "Intercept"].dropna(subset="p").astype({"p": "float64"})
    adjusted = tests.groupby(["term", "coefficient"])["p"].transform(false_discovery_control)
    return adjusted.reindex(table.index)


def _log_result(formula: str, table: pd.DataFrame) -> None:
    used = table.groupby("measure", sort=False)[["n_scans", "n_left_out"]].first()
    used_scans, left_out = _range(used["n_scans"]), _range(used["n_left_out"])
    _LOG.info("Model '%s': %s scans were used, %s left out", formula, used_scans, left_out)
    for text, rows in table.groupby("warnings", sort=False):
        _LOG.warning(
            "Model '%s', %d of %d measures (see the column warnings of its table): %s",
            *(formula, rows["measure"].nunique(), len(used), text),
        )


def _range(values: pd.Series) -> str:
    low, high = int(values.min()), int(values.max())
    return str(low) if low == high else f"{low} to {high}"
