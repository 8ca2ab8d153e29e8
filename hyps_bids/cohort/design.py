"""Design matrices of linear models, built by formulaic from formulas."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from hyps_bids.cohort.formulas import ParsedFormula, formula_warnings, parse_formula
from hyps_bids.cohort.levels import as_categories, equals_level
from hyps_bids.errors import UsageError
from hyps_bids.messages import format_count, join_names

#: Magnitudes whose squares could not be computed with.
_LARGEST, _SMALLEST = 1e100, 1e-100
#: Singular values below this share of the largest one are of columns that follow from others.
_DEPENDENT = 1e-10


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
    references: tuple[str | None, ...]  # what each column compares with
    data: pd.DataFrame  # (scans, columns of the table)
    warnings: tuple[str, ...] = ()
    variables: pd.DataFrame = field(default_factory=pd.DataFrame)  # (scans, variables after ~)
    spec: Any = None  # formulaic's memory of how the matrix was made
    parsed: ParsedFormula | None = None

    @property
    def n_subjects(self) -> int:
        """Number of subjects."""
        return len(np.unique(self.subjects))

    @property
    def scales(self) -> np.ndarray:
        """Largest magnitude of each column; divided by it, mm³ and years are of one size."""
        largest = np.abs(self.matrix).max(axis=0)
        return np.where(largest > 0, largest, 1.0)

    def matrix_at(self, variables: pd.DataFrame) -> np.ndarray:
        """Build the rows of the matrix for other values of the variables.

        Splines, means and levels stay those of the scans.
        """
        assert self.parsed is not None
        columns = {}
        for safe in self.parsed.predictors:
            values = variables[self.parsed.columns[safe]]
            categories = values.cat.categories if hasattr(values, "cat") else values
            # The numbers of a variable that is also in C() stay numbers elsewhere.
            is_number = categories.dtype.kind in "iuf" and safe not in self.parsed.groups
            columns[safe] = values.astype("float64") if is_number else values
        matrix = self.spec.get_model_matrix(pd.DataFrame(columns), context=_context())
        return np.asarray(matrix, dtype=np.float64)


def build_design(
    formula: str, used: pd.DataFrame, outcome: str, controls: tuple[str, str] | None
) -> Design:
    """Build the design matrix of scans without missing values, or raise CannotFit.

    `outcome` is the name before ``~``. The level of the controls becomes the reference level of
    its column, instead of the first level. Scans for which a term is not finite are left out.
    """
    if used.empty:
        raise CannotFit("no scan has all values")
    parsed = parse_formula(formula, frozenset(used))
    data = _variables(parsed, used, outcome, controls)
    left, right = _matrices(formula, parsed, data)
    y, matrix = _as_numbers(formula, outcome, left), _as_numbers(formula, outcome, right)
    if y.shape[1] != 1:
        raise _outcome_is_no_number(formula, outcome)
    finite = np.isfinite(y[:, 0]) & np.isfinite(matrix).all(axis=1)
    if not finite.all():
        names = [*left.model_spec.column_names, *right.model_spec.column_names]
        unknown = ~np.isfinite(np.hstack([y, matrix])).all(axis=0)
        text = parsed.restored(
            join_names(str(name) for name, is_not in zip(names, unknown, strict=True) if is_not)
        )
        if not finite.any():
            raise CannotFit(f"no scan has a finite value of {text}")
        # Levels, means and knots are those of the scans that remain.
        design = build_design(formula, used[finite], outcome, controls)
        note = f"{(~finite).sum()} scans were left out, because {text} is not finite"
        return replace(design, warnings=(note, *design.warnings))
    spec = right.model_spec
    columns = [str(name) for name in spec.column_names]
    design = Design(
        outcome=y[:, 0],
        matrix=matrix,
        names=tuple(map(parsed.restored, columns)),
        terms={
            {"1": "Intercept"}.get(str(term), parsed.restored(str(term))): where
            for term, where in spec.term_slices.items()
        },
        subjects=used["participant_id"].to_numpy(),
        data=used,
        references=tuple(map(_references(spec, parsed).get, columns)),
        warnings=(
            *formula_warnings(formula, used),
            *_control_warnings(parsed, used, outcome, controls),
        ),
        variables=_read_variables(parsed, data),
        spec=spec,
        parsed=parsed,
    )
    return _checked(design)


def _variables(
    parsed: ParsedFormula, used: pd.DataFrame, outcome: str, controls: tuple[str, str] | None
) -> pd.DataFrame:
    """Return the columns by their names in the parsed formula, with their levels in order."""
    column, level = controls or (None, None)
    result = {}
    for safe, name in parsed.columns.items():
        values = used[name]
        is_predictor = safe in parsed.predictors and name != "participant_id"
        if is_predictor and values.nunique() < 2:
            raise CannotFit(f"{name} is {values.iloc[0]} in all {len(used)} scans")
        is_number = pd.api.types.is_numeric_dtype(values)
        is_number &= not pd.api.types.is_bool_dtype(values)
        if (safe in parsed.groups or not is_number) and name != outcome:
            values = as_categories(values, level if name == column else None)
        result[safe] = values
    return pd.DataFrame(result)


def _read_variables(parsed: ParsedFormula, data: pd.DataFrame) -> pd.DataFrame:
    """Return the variables after ~ by the user's names, as categories where one use is so."""
    result: dict[str, pd.Series] = {}
    for safe, name in parsed.columns.items():
        if safe in parsed.predictors and (name not in result or safe in parsed.groups):
            result[name] = data[safe]
    return pd.DataFrame(result)


def _context() -> dict[str, Any]:
    # formulaic 1.2 calculates x to the power of 10 instead.
    return {"exp10": lambda x: np.power(10.0, x)}


def _matrices(formula: str, parsed: ParsedFormula, data: pd.DataFrame) -> tuple[Any, Any]:
    from formulaic import model_matrix
    from formulaic.errors import DataMismatchWarning

    def refused(why: object) -> UsageError:
        text = parsed.restored(" ".join(str(why).split()))
        return UsageError(
            f"--model '{formula}': the formula cannot be computed from the group table. {text}",
            code="formula-not-computable",
        )

    with warnings.catch_warnings():
        # What is not finite is found in the result, but unlisted levels are not.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", DataMismatchWarning)
        try:
            # The context hides our own variables; formulas see the table and NumPy as np.
            matrices = model_matrix(parsed.formula, data, context=_context(), na_action="ignore")
        except DataMismatchWarning as error:
            levels = re.search(r"\{.*\}", str(error))
            raise refused(
                f"levels= in C() does not list {levels[0] if levels else 'all levels'}; list all "
                "levels, because scans of others would count as the reference level."
            ) from error
        except Exception as error:  # The expressions of users can fail in any way.
            raise refused(error) from error
    return matrices.lhs, matrices.rhs


def _as_numbers(formula: str, outcome: str, matrix: Any) -> np.ndarray:
    try:
        return np.asarray(matrix, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise _outcome_is_no_number(formula, outcome) from error


def _outcome_is_no_number(formula: str, outcome: str) -> UsageError:
    return UsageError(
        f"--model '{formula}': {outcome} before ~ must be one number for each scan.",
        code="formula-outcome-text",
    )


def too_few(count: int, unit: str, coefficients: int) -> str:
    """Say that a model has more coefficients than data can tell.

    Examples
    --------
    >>> too_few(2, "scan", 4)
    '2 scans for 4 coefficients, and at least 5 are needed'
    """
    return (
        f"{format_count(count, unit)} for {format_count(coefficients, 'coefficient')}, and at "
        f"least {coefficients + 1} are needed"
    )


def _checked(design: Design) -> Design:
    """Refuse designs that cannot be fitted, and warn of a line that is forced through zero."""
    scans, count = design.matrix.shape
    if scans <= count:
        raise CannotFit(too_few(scans, "scan", count))
    sizes = zip(
        ("the measure", *design.names), (np.abs(design.outcome).max(), *design.scales), strict=True
    )
    for name, size in sizes:
        if size > _LARGEST or 0 < size < _SMALLEST:
            raise CannotFit(f"{name} is as large as {size:.0e}; please use another unit")
    scaled = design.matrix / design.scales
    if _rank(scaled) < count:
        raise CannotFit(_dependent(design, scaled))
    if np.ptp(design.outcome) == 0:
        raise CannotFit("the measure is the same in all scans")
    if _rank(np.column_stack([scaled, np.ones(scans)])) > count:
        note = (
            "the formula has no intercept, so the line is forced through zero; to subtract a "
            "number, write arithmetic in braces, as in {age - 1}"
        )
        return replace(design, warnings=(*design.warnings, note))
    return design


def _rank(columns: np.ndarray) -> int:
    return int(np.linalg.matrix_rank(columns, rtol=_DEPENDENT))


def _dependent(design: Design, scaled: np.ndarray) -> str:
    """Name the columns that follow from those before them."""
    # NumPy 2.0 cannot tell the rank of no columns.
    ranks = [0, *(_rank(scaled[:, :end]) for end in range(1, scaled.shape[1] + 1))]
    names = [
        name for name, old, new in zip(design.names, ranks, ranks[1:], strict=False) if new == old
    ]
    text = f"the terms cannot be told apart: {join_names(names)} can be computed from the others"
    splines = [name for name in names if re.match(r"(cr|cs|cc)\(", name)]
    if splines:
        text += ", because this spline has an intercept of its own; add constraints='center' to it"
    return text


def _control_warnings(
    parsed: ParsedFormula, used: pd.DataFrame, outcome: str, controls: tuple[str, str] | None
) -> Iterator[str]:
    """Say where the level of the controls has no effect on the reference level."""
    column, level = controls or ("", "")
    names = [safe for safe, name in parsed.columns.items() if name == column]
    if not names or column == outcome:
        return
    values = used[column]
    is_number = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    if is_number and any(name not in parsed.groups for name in names):
        yield (
            f"{column} enters the formula as numbers, so {column}={level} of --controls is no "
            f"reference level there; write C({column}) to compare its levels"
        )
    elif not equals_level(values, level).any():
        yield f"no scan of the controls ({column}={level}) has all values of this model"


def _references(spec: Any, parsed: ParsedFormula) -> dict[str, str | None]:
    """Return for each column with which level of its categorical variables it compares."""
    result: dict[str, str | None] = {}
    for structure in spec.structure:
        for scoped in structure.scoped_terms:
            factors = [each.factor.factor for each in scoped.factors]
            names = [", ".join(parsed.variables_of(factor)) for factor in factors]
            pieces = [_pieces(each, spec) for each in scoped.factors]
            # A column is named NAME[LEVEL]:NAME[LEVEL], but levels may have colons too.
            pattern = ":".join(
                "(" + ("|".join(map(re.escape, piece)) or rf"{re.escape(str(factor))}.*") + ")"
                for factor, piece in zip(factors, pieces, strict=True)
            )
            for column in map(str, structure.columns):
                if match := re.fullmatch(pattern, column):
                    found = zip(names, map(dict.get, pieces, match.groups()), strict=True)
                    result[column] = _in_words([(name, at) for name, at in found if at], factors)
    return result


def _in_words(found: list[tuple[str, str]], factors: list[Any]) -> str | None:
    if len(found) == len(factors) == 1:
        return found[0][1]
    return ", ".join(f"{name}={at}" for name, at in found) or None


def _pieces(scoped: Any, spec: Any) -> dict[str, str | None]:
    """Return the columns of a categorical factor and what each compares with; {} for numbers."""
    _, state = spec.encoder_state.get(scoped.factor.expr, (None, {}))
    if "contrasts" not in state:
        return {}
    coding, levels = state["contrasts"].contrasts, list(state["contrasts"].levels)
    reduced = scoped.reduced
    names = coding.get_coding_column_names(levels, reduced_rank=reduced)
    compared = _compared_with(coding, levels) if reduced else [None] * len(names)
    form = coding.get_factor_format(levels, reduced_rank=reduced)
    return {
        form.format(name=scoped.factor.expr, field=name): text
        for name, text in zip(names, compared, strict=True)
    }


def _compared_with(coding: Any, levels: list[Any]) -> list[str]:
    """Say with what each column of a coding compares."""
    from formulaic.transforms import contrasts

    def mean(some: list[Any]) -> str:
        return str(some[0]) if len(some) == 1 else f"mean of {', '.join(map(str, some))}"

    places = range(1, len(levels))
    match coding:
        case contrasts.TreatmentContrasts():
            return [str(levels[coding._find_base_index(levels)])] * len(places)
        case contrasts.SumContrasts():
            return [mean(levels)] * len(places)
        case contrasts.HelmertContrasts(reverse=True):
            return [mean(levels[:i]) for i in places]
        case contrasts.HelmertContrasts():
            return [mean(levels[i:]) for i in places]
        case contrasts.DiffContrasts(backward=True):
            return [str(levels[i - 1]) for i in places]
        case contrasts.DiffContrasts():
            return [str(levels[i]) for i in places]
        case contrasts.PolyContrasts():
            return [f"trend over {', '.join(map(str, levels))}" for _ in places]
    names = coding.get_coding_column_names(levels, reduced_rank=True)
    return ["contrast of the formula"] * len(names)
