"""Design matrices of linear models, built by formulaic from formulas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from hyps_bids.errors import UsageError


class CannotFit(Exception):
    """The reason why one measure cannot be modeled; it is written to the table."""


@dataclass(frozen=True)
class Design:
    """One model of one measure, ready to be fitted."""

    outcome: np.ndarray  # (scans,)
    matrix: np.ndarray  # (scans, columns)
    subjects: np.ndarray  # (scans,)
    names: tuple[str, ...]  # of the columns
    terms: dict[str, slice]  # columns of each term
    references: dict[str, str]  # first level of each categorical variable
    data: pd.DataFrame  # (scans, variables)

    @property
    def n_subjects(self) -> int:
        """Number of subjects."""
        return len(np.unique(self.subjects))

    @property
    def scales(self) -> np.ndarray:
        """Largest magnitude of each column; divided by it, mm³ and years are of one size."""
        largest = np.abs(self.matrix).max(axis=0)
        return np.where(largest > 0, largest, 1.0)


def build_design(
    formula: str, used: pd.DataFrame, outcome: str, controls: tuple[str, str] | None
) -> Design:
    """Build the design matrix of scans without missing values, or raise CannotFit.

    `outcome` is the name before ``~``. The level of the controls becomes the reference level of
    its column, instead of the first level.
    """
    if used.empty:
        raise CannotFit("no scan has all values")
    columns: dict[str, pd.Series] = {}
    references: dict[str, str] = {}
    for name, column in used.items():
        if name not in ("participant_id", outcome):
            if column.nunique() < 2:
                raise CannotFit(f"{name} is {column.iloc[0]} in all {len(used)} scans")
            if not pd.api.types.is_numeric_dtype(column):
                column = _with_reference(column, controls)
                references[str(name)] = str(column.cat.categories[0])
        columns[str(name)] = column
    left, right = _matrices(formula, pd.DataFrame(columns))
    y, matrix = (np.asarray(side, dtype=np.float64) for side in (left, right))
    if y.shape[1] != 1:
        raise UsageError(
            f"--model '{formula}': {outcome} before ~ must be one number for each scan.",
            code="formula-outcome-text",
        )
    # The logarithm of zero, for example, is not finite.
    finite = np.isfinite(y[:, 0]) & np.isfinite(matrix).all(axis=1)
    spec = right.model_spec
    design = Design(
        outcome=y[finite, 0],
        matrix=matrix[finite],
        names=tuple(spec.column_names),
        terms={{"1": "Intercept"}.get(str(t), str(t)): w for t, w in spec.term_slices.items()},
        subjects=used["participant_id"].to_numpy()[finite],
        references=references,
        data=used[finite],
    )
    scans, count = design.matrix.shape
    if scans <= count:
        raise CannotFit(f"{scans} scans for {count} coefficients")
    if np.linalg.matrix_rank(design.matrix / design.scales) < count:
        raise CannotFit("the terms cannot be told apart: one follows from the others")
    if np.ptp(design.outcome) == 0:
        raise CannotFit("the measure is the same in all scans")
    return design


def _with_reference(column: pd.Series, controls: tuple[str, str] | None) -> pd.Series:
    """Make a column categorical; its first category is the reference level."""
    column = column.astype("category").cat.remove_unused_categories()
    # The level of the controls sorts before all others, which keep their order.
    levels = sorted(column.cat.categories, key=lambda level: (column.name, level) != controls)
    return column.cat.reorder_categories(levels)


def _matrices(formula: str, data: pd.DataFrame) -> tuple[Any, Any]:
    from formulaic import model_matrix
    from formulaic.errors import FormulaicError

    try:
        # The empty context hides our own variables; formulas see the table and NumPy as np.
        matrices = model_matrix(formula, data, context={}, na_action="ignore")
    except (FormulaicError, ValueError, TypeError, NameError, SyntaxError) as error:
        raise UsageError(
            f"--model '{formula}': the formula cannot be computed from the group table. "
            f"{' '.join(str(error).split())}",
            code="formula-not-computable",
        ) from error
    return matrices.lhs, matrices.rhs
