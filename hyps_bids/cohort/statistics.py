"""Linear models of the volumes, given as formulas."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from hyps_bids.cohort.derived import split_column, volume_columns
from hyps_bids.cohort.metadata import not_numbers
from hyps_bids.errors import UsageError
from hyps_bids.messages import listed, similar

__all__ = ["COLUMNS", "FAMILIES", "fit_models", "formula_variables"]

_LOG = logging.getLogger("hyps_bids")

#: name in a formula → the measure whose columns it stands for, one after the other
FAMILIES = {
    "volume": "volume_mm3",
    "volume_soft": "volume_soft_mm3",
    "icv_fraction": "icv_fraction",
    "icv_fraction_soft": "icv_fraction_soft",
    "icv_residual": "icv_residual_mm3",
    "icv_residual_soft": "icv_residual_soft_mm3",
    "asymmetry": "asymmetry",
    "asymmetry_soft": "asymmetry_soft",
    "anterior_posterior_ratio": "anterior_posterior_ratio",
    "anterior_posterior_ratio_soft": "anterior_posterior_ratio_soft",
}
#: short names of columns of the wide table
_ALIASES = {"icv": "icv_mm3"}
_LEVEL = 0.95
#: noncentrality from which on scipy gives up (F) or takes ever longer (t); the fit is perfect then
_FARTHEST = 1e4
#: degrees of freedom below which a fit warns
_FEW_DF = 10
#: of scipy; the faster L-BFGS often steps so far that matrices are singular
_OPTIMIZERS = ["bfgs", "powell"]

#: column of the table → description
COLUMNS = {
    "model": "The formula.",
    "method": "ols: least squares. mixed: linear mixed model, REML, with a random intercept per "
    "subject; used where a subject has several scans, unless subjects do not vary.",
    "measure": "Column of the wide table that was modeled.",
    "side": "L, R or bilateral.",
    "part": "Part of the hippocampus.",
    "term": "Term of the formula.",
    "coefficient": "Column of the design matrix: NAME[T.LEVEL] is LEVEL against the reference "
    "level. '(all)': joint test of a term that has several.",
    "reference": "Level that a coefficient compares with.",
    "estimate": "Coefficient, in units of the measure.",
    "se": "Its standard error.",
    "ci_low": "95 % confidence interval of the coefficient, lower end.",
    "ci_high": "Upper end.",
    "statistic": "t of a coefficient; F of a joint test.",
    "df": "Degrees of freedom of t; of F 'numerator, denominator'. Of mixed models: subjects minus "
    "coefficients, on the safe side for terms that vary within subjects.",
    "p": "Two-sided p-value.",
    "p_fdr": "p adjusted over all measures of the model for this coefficient (Benjamini-Hochberg).",
    "effect": "Effect size. Of a coefficient: d, estimate / residual SD, for a column of zeros "
    "and ones (Cohen's d, adjusted for the other terms), or the same per SD of any other column. "
    "The residual SD of a mixed model includes that between subjects. Of a joint test (ols): "
    "partial eta squared.",
    "effect_low": "95 % confidence interval of the effect size, lower end: from the noncentral t "
    "or F distribution (ols), or scaled from that of the coefficient (mixed).",
    "effect_high": "Upper end.",
    "effect_kind": "d, d_per_sd or partial_eta2.",
    "n_scans": "Scans used.",
    "n_subjects": "Subjects among them.",
    "n_left_out": "Scans of the wide table that were not used: failed, missing, or without a "
    "value of the measure or of a term.",
    "converged": "Whether the fit ended as it should.",
    "warnings": "What the fit warned of, or why there is none.",
}

Row = dict[str, Any]


@dataclass(frozen=True)
class _Design:
    """One model of one measure, ready to be fitted.

    Attributes
    ----------
    outcome : numpy.ndarray
        Shape ``(scans,)``.
    matrix : numpy.ndarray
        Shape ``(scans, columns)``.
    names : tuple of str
        Of the columns.
    terms : dict of str to slice
        Columns of each term.
    subjects : numpy.ndarray
        Subject of each scan.
    references : dict of str to str
        First level of each categorical variable.
    """

    outcome: np.ndarray
    matrix: np.ndarray
    names: tuple[str, ...]
    terms: dict[str, slice]
    subjects: np.ndarray
    references: dict[str, str]


@dataclass(frozen=True)
class _Fit:
    """Estimates of a linear model.

    Attributes
    ----------
    estimate, error : numpy.ndarray
        Coefficients and their standard errors.
    covariance : numpy.ndarray
        Of the coefficients.
    sd : float
        Residual standard deviation, that between subjects included.
    df : float
        Degrees of freedom of t; of a mixed model, subjects minus coefficients.
    method : str
        ``ols`` or ``mixed``.
    converged : bool
        Whether the fit ended as it should.
    warnings : tuple of str
        What it warned of.
    """

    estimate: np.ndarray
    error: np.ndarray
    covariance: np.ndarray
    sd: float
    df: float
    method: str
    converged: bool
    warnings: tuple[str, ...]


class _CannotFit(Exception):
    """Why one measure cannot be modeled; goes to the table."""


def formula_variables(formula: str) -> set[str]:
    """Names that a formula uses.

    Raises
    ------
    UsageError
        If it cannot be understood.

    Examples
    --------
    >>> sorted(formula_variables("volume ~ C(site) + np.log(age) + `ICD-10`"))
    ['ICD-10', 'age', 'site', 'volume']
    """
    return {str(name) for name in _parse(formula).required_variables}


def fit_models(
    frame: pd.DataFrame, formulas: Sequence[str], reference: tuple[str, str] | None = None
) -> pd.DataFrame:
    """Fit each formula to each region.

    Parameters
    ----------
    frame : pandas.DataFrame
        The wide table; only scans that are done are used.
    formulas : sequence of str
        For example ``volume ~ diagnosis + age + sex + icv``. What stands before ``~`` is a name
        of :data:`FAMILIES`, which stands for each of its columns in turn, or a column.
    reference : tuple of str, optional
        Column and level that the other levels of that column are compared with, instead of its
        first.

    Returns
    -------
    pandas.DataFrame
        Tidy: one row per model, measure and coefficient (:data:`COLUMNS`). A model that cannot be
        fitted has one row per measure that says why.

    Raises
    ------
    UsageError
        If a formula cannot be understood, names columns that do not exist, or a column of numbers
        of which some are mistyped.
    """
    aliases = {short: frame[name] for short, name in _ALIASES.items() if short not in frame}
    data = frame.assign(**aliases)
    plans = [(formula, _measures(formula, data)) for formula in formulas]
    tables = []
    for formula, (name, measures) in plans:
        # mixed models of thousands of scans take minutes
        _LOG.warning("model '%s': fitting %d measures", formula, len(measures))
        rows = [
            row
            for measure in measures
            for row in _fit_measure(
                formula, data.assign(**{name: data[measure]}), name, measure, reference
            )
        ]
        table = pd.DataFrame(rows, columns=list(COLUMNS))
        table["p_fdr"] = _adjusted(table)
        tables.append(table)
        _tell(formula, table)
    return pd.concat(tables, ignore_index=True)


def _parse(formula: str) -> Any:
    from formulaic import Formula
    from formulaic.errors import FormulaicError

    try:
        parsed = Formula(formula)
    except (FormulaicError, SyntaxError) as error:
        # the position is marked with colors of a terminal
        text = " ".join(re.sub(r"\x1b\[[\d;]*m|[⧛⧚]", "", str(error)).split())
        raise UsageError(f"--model '{formula}': {text}") from error
    if not hasattr(parsed, "lhs") or len(parsed.lhs.required_variables) != 1:
        raise UsageError(
            f"--model '{formula}': needs one name before ~, as in 'volume ~ age + sex + icv'"
        )
    return parsed


def _measures(formula: str, data: pd.DataFrame) -> tuple[str, list[str]]:
    """Name the outcome in the formula and the columns it stands for."""
    parsed = _parse(formula)
    (name,) = map(str, parsed.lhs.required_variables)
    unknown = sorted(formula_variables(formula) - set(data) - set(FAMILIES))
    families = formula_variables(formula) & set(FAMILIES) - set(data) - {name}
    if unknown or families:
        wanted = [*unknown, *sorted(families)]
        raise UsageError(
            f"--model '{formula}': no column {', '.join(wanted)}; there are "
            f"{similar(wanted, list(data.columns))}; and, before ~, {', '.join(FAMILIES)}"
        )
    # C(name) says that it is one of categories
    plain = {str(factor) for term in parsed.rhs for factor in term.factors}
    for variable in sorted(plain & set(data)):
        if wrong := not_numbers(data[variable]):
            raise UsageError(
                f"--model '{formula}': {variable} is a number but for {listed(map(repr, wrong))}; "
                f"correct the table, or write C({variable}) if it is a category"
            )
    if name in data:
        if not pd.api.types.is_numeric_dtype(data[name]):
            raise UsageError(f"--model '{formula}': {name} is not a number")
        return name, [name]
    columns = volume_columns(data, FAMILIES[name])
    if not columns:
        raise UsageError(f"--model '{formula}': the table has no column of {name}")
    return name, columns


def _fit_measure(
    formula: str,
    data: pd.DataFrame,
    name: str,
    measure: str,
    reference: tuple[str, str] | None,
) -> list[Row]:
    scans = int(data["scan"].notna().sum())
    try:
        _, side, part = split_column(measure)
    except ValueError:
        side = part = ""
    common: Row = {
        "model": formula,
        "measure": measure,
        "side": side or None,
        "part": part or None,
    }
    variables = sorted(formula_variables(formula))
    used = data.loc[data["status"] == "done", ["participant_id", *variables]].dropna()
    counts: Row = {}
    try:
        design = _design(formula, used, name, reference)
        subjects = len(np.unique(design.subjects))
        used_scans = len(design.outcome)
        counts = {
            "n_scans": used_scans,
            "n_subjects": subjects,
            "n_left_out": scans - used_scans,
        }
        fit = _least_squares(design) if used_scans == subjects else _mixed(design)
        if fit.df < _FEW_DF:
            count = design.matrix.shape[1]
            few = f"few subjects ({subjects}) for {count} coefficients"
            fit = replace(fit, warnings=(few, *fit.warnings))
    except _CannotFit as why:
        counts = counts or {
            "n_scans": len(used),
            "n_subjects": used["participant_id"].nunique(),
            "n_left_out": scans - len(used),
        }
        return [common | counts | {"converged": False, "warnings": f"not fitted: {why}"}]
    common |= counts
    common |= {
        "method": fit.method,
        "converged": fit.converged,
        "warnings": "; ".join(fit.warnings) or None,
    }
    return [common | row for row in _coefficients(design, fit)]


def _design(
    formula: str, used: pd.DataFrame, name: str, reference: tuple[str, str] | None
) -> _Design:
    from formulaic import model_matrix
    from formulaic.errors import FormulaicError

    if used.empty:
        raise _CannotFit("no scan has all values")
    columns: dict[str, pd.Series] = {}
    for variable, column in used.items():
        if variable in ("participant_id", name):
            columns[str(variable)] = column
            continue
        if column.nunique() < 2:
            raise _CannotFit(f"{variable} is {column.iloc[0]} in all {len(used)} scans")
        if not pd.api.types.is_numeric_dtype(column):
            column = column.astype("category").cat.remove_unused_categories()
            if reference and variable == reference[0] and reference[1] in column.cat.categories:
                others = [level for level in column.cat.categories if level != reference[1]]
                column = column.cat.reorder_categories([reference[1], *others])
        columns[str(variable)] = column
    try:
        # no names but those of the table (and numpy as np): not the variables of this function
        matrices = model_matrix(formula, pd.DataFrame(columns), context={}, na_action="ignore")
    except (FormulaicError, ValueError, TypeError, NameError, SyntaxError) as error:
        raise UsageError(f"--model '{formula}': {' '.join(str(error).split())}") from error
    left = np.asarray(matrices.lhs, dtype=np.float64)
    if left.shape[1] != 1:
        raise UsageError(f"--model '{formula}': {name} must be a number")
    spec = matrices.rhs.model_spec
    matrix = np.asarray(matrices.rhs, dtype=np.float64)
    # such as the logarithm of zero
    finite = np.isfinite(left[:, 0]) & np.isfinite(matrix).all(axis=1)
    terms = {
        "Intercept" if str(t) == "1" else str(t): where for t, where in spec.term_slices.items()
    }
    design = _Design(
        outcome=left[finite, 0],
        matrix=matrix[finite],
        names=tuple(spec.column_names),
        terms=terms,
        subjects=used["participant_id"].to_numpy()[finite],
        references={
            name: str(column.cat.categories[0])
            for name, column in columns.items()
            if isinstance(column.dtype, pd.CategoricalDtype)
        },
    )
    scans, count = design.matrix.shape
    if scans <= count:
        raise _CannotFit(f"{scans} scans for {count} coefficients")
    if np.linalg.matrix_rank(design.matrix / _scales(design.matrix)) < count:
        raise _CannotFit("the terms cannot be told apart: one follows from the others")
    if np.ptp(design.outcome) == 0:
        raise _CannotFit("the measure is the same in all scans")
    return design


def _scales(matrix: np.ndarray) -> np.ndarray:
    """Largest magnitude of each column, so that mm³ and years do not differ by a million."""
    largest = np.abs(matrix).max(axis=0)
    return np.where(largest > 0, largest, 1.0)


def _least_squares(design: _Design) -> _Fit:
    from statsmodels.regression.linear_model import OLS

    scales = _scales(design.matrix)
    result = OLS(design.outcome, design.matrix / scales).fit()
    covariance = np.asarray(result.cov_params()) / np.outer(scales, scales)
    sd = float(np.sqrt(result.mse_resid))
    return _Fit(
        estimate=result.params / scales,
        error=np.sqrt(np.diag(covariance)),
        covariance=covariance,
        sd=sd,
        df=float(result.df_resid),
        method="ols",
        converged=True,
        warnings=() if sd > 1e-8 * np.ptp(design.outcome) else ("the fit is perfect",),
    )


def _mixed(design: _Design) -> _Fit:
    from statsmodels.regression.mixed_linear_model import MixedLM

    scales, unit = _scales(design.matrix), float(design.outcome.std())
    subjects = len(np.unique(design.subjects))
    if subjects <= design.matrix.shape[1]:
        raise _CannotFit(f"{subjects} subjects for {design.matrix.shape[1]} coefficients")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model = MixedLM(design.outcome / unit, design.matrix / scales, design.subjects)
            result = model.fit(reml=True, method=_OPTIMIZERS)
        except np.linalg.LinAlgError as why:
            raise _CannotFit(f"the mixed model cannot be solved ({why})") from why
        count = len(scales)
        covariance = np.asarray(result.cov_params())[:count, :count]
        between = float(np.asarray(result.cov_re)[0, 0])
    texts = dict.fromkeys(" ".join(str(warning.message).split()) for warning in caught)
    covariance = covariance * unit**2 / np.outer(scales, scales)
    with np.errstate(invalid="ignore"):
        error = np.sqrt(np.diag(covariance))
    return _Fit(
        estimate=np.asarray(result.fe_params) * unit / scales,
        error=error,
        covariance=covariance,
        sd=float(np.sqrt(between + result.scale)) * unit,
        # as if each subject were one observation: z-tests find too much in few subjects
        df=float(subjects - count),
        method="mixed",
        converged=bool(result.converged) and bool(np.isfinite(error).all()),
        warnings=tuple(texts),
    )


def _coefficients(design: _Design, fit: _Fit) -> list[Row]:
    from scipy import stats

    rows = []
    wide = stats.t.ppf((1 + _LEVEL) / 2, fit.df)
    for term, where in design.terms.items():
        for i in range(len(design.names))[where]:
            estimate, error = fit.estimate[i], fit.error[i]
            statistic = estimate / error
            row = {
                "term": term,
                "coefficient": design.names[i],
                "reference": design.references.get(term),
                "estimate": estimate,
                "se": error,
                "ci_low": estimate - wide * error,
                "ci_high": estimate + wide * error,
                "statistic": statistic,
                "df": f"{fit.df:g}",
                "p": 2 * stats.t.sf(abs(statistic), fit.df),
            }
            if term != "Intercept":
                row |= _effect(design.matrix[:, i], row, fit)
            rows.append(row)
        if where.stop - where.start > 1:
            rows.append({"term": term, "coefficient": "(all)"} | _joint(where, fit))
    return rows


def _effect(column: np.ndarray, row: Row, fit: _Fit) -> Row:
    """Standardize a coefficient by the residual standard deviation."""
    from scipy.special import nctdtrinc

    indicator = set(np.unique(column)) <= {0.0, 1.0}
    scale = (1.0 if indicator else float(column.std(ddof=1))) / fit.sd
    low, high = row["ci_low"] * scale, row["ci_high"] * scale
    if fit.method == "ols":
        # the estimate and the SD are both uncertain
        known = abs(row["statistic"]) < _FARTHEST
        levels = [(1 + _LEVEL) / 2, (1 - _LEVEL) / 2]
        ends = nctdtrinc(fit.df, levels, row["statistic"] if known else np.nan)
        low, high = ends * row["se"] * scale
    return {
        "effect": row["estimate"] * scale,
        "effect_low": low,
        "effect_high": high,
        "effect_kind": "d" if indicator else "d_per_sd",
    }


def _joint(where: slice, fit: _Fit) -> Row:
    """Test all coefficients of a term at once."""
    from scipy import stats
    from scipy.special import ncfdtrinc

    estimate, count = fit.estimate[where], where.stop - where.start
    wald = float(estimate @ np.linalg.solve(fit.covariance[where, where], estimate))
    f = wald / count
    test = {"statistic": f, "df": f"{count}, {fit.df:g}", "p": stats.f.sf(f, count, fit.df)}
    if fit.method != "ols":
        return test
    ends = ncfdtrinc(count, fit.df, [(1 + _LEVEL) / 2, (1 - _LEVEL) / 2], f)
    ends = np.where(ends < _FARTHEST, ends, np.nan)
    low, high = ends / (ends + count + fit.df + 1)
    return test | {
        "effect": wald / (wald + fit.df),
        "effect_low": low,
        "effect_high": high,
        "effect_kind": "partial_eta2",
    }


def _adjusted(table: pd.DataFrame) -> pd.Series:
    """Adjust p-values over measures, coefficient by coefficient."""
    from scipy.stats import false_discovery_control

    def adjust(p: pd.Series) -> pd.Series:
        known = p.dropna().astype("float64")
        return pd.Series(false_discovery_control(known), known.index).reindex(p.index)

    tested = table[table["term"].notna() & (table["term"] != "Intercept")]
    if tested.empty:
        return pd.Series(np.nan, index=table.index)
    groups = tested.groupby(["term", "coefficient"])["p"]
    return groups.transform(adjust).reindex(table.index)


def _tell(formula: str, table: pd.DataFrame) -> None:
    used = table.groupby("measure", sort=False)[["n_scans", "n_left_out"]].first()
    _LOG.warning(
        "model '%s': %s scans used, %s left out",
        formula,
        _range(used["n_scans"]),
        _range(used["n_left_out"]),
    )
    for text, rows in table.groupby("warnings", sort=False):
        names = rows["measure"].unique()
        _LOG.warning("model '%s': %s (%d of %d measures)", formula, text, len(names), len(used))


def _range(values: pd.Series) -> str:
    low, high = int(values.min()), int(values.max())
    return str(low) if low == high else f"{low} to {high}"
