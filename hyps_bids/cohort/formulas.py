"""Formulas of linear models: parse them, and find the columns they mean."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd

from hyps_bids.cohort.column_types import mistyped_numbers
from hyps_bids.cohort.derived import MEASURES, volume_columns
from hyps_bids.cohort.random_effects import split_random_effects
from hyps_bids.errors import UsageError
from hyps_bids.messages import join_names, suggest_names

#: Name in a formula → the measure whose columns it stands for, one after the other
FAMILIES = {measure.removesuffix("_mm3"): measure for measure in MEASURES}


def formula_variables(formula: str) -> set[str]:
    """Name the variables of a formula, those of its random slopes included.

    Examples
    --------
    >>> sorted(formula_variables("volume ~ C(site) + np.log(age) + `ICD-10` + (time | subject)"))
    ['ICD-10', 'age', 'site', 'time', 'volume']
    """
    names = {str(name) for name in _parse(formula).required_variables}
    return names.union(*(block.slopes for block in split_random_effects(formula).random))


def find_measures(formula: str, data: pd.DataFrame) -> tuple[str, list[str]]:
    """Return the name before ``~`` and the columns of the wide table that it stands for.

    The formula and all columns that it uses are checked.
    """
    parsed = _parse(formula)
    start = f"--model '{formula}':"
    (name,) = map(str, parsed.lhs.required_variables)
    variables = formula_variables(formula)
    unknown = sorted(variables - set(data) - {name})
    if name not in data and name not in FAMILIES:
        unknown.append(name)
    if unknown:
        raise UsageError(
            f"{start} there is no column {', '.join(unknown)} in the group table. Choose from "
            f"{suggest_names(unknown, list(data.columns))}; before ~ also from "
            f"{', '.join(sorted(FAMILIES))}.",
            code="formula-column-unknown",
        )
    # C(name) says that the numbers of a column are categories, so only bare names are checked.
    bare = {str(factor) for term in parsed.rhs for factor in term.factors}
    bare = bare.union(*(block.slopes for block in split_random_effects(formula).random))
    for variable in sorted(bare & set(data)):
        if wrong := mistyped_numbers(data[variable]):
            raise UsageError(
                f"{start} most values of {variable} are numbers, but not "
                f"{join_names(map(repr, wrong))}. Correct the table, or write "
                f"C({variable}) if it is a category.",
                code="formula-number-mistyped",
            )
    if name in data:
        if not pd.api.types.is_numeric_dtype(data[name]):
            raise UsageError(
                f"{start} the column {name} before ~ does not contain numbers. Name a measure or "
                "another column of numbers there.",
                code="formula-outcome-text",
            )
        return name, [name]
    measures = volume_columns(data, FAMILIES[name])
    if not measures:
        raise UsageError(
            f"{start} the group table has no columns of {name}. Name another measure before ~.",
            code="formula-measure-missing",
        )
    return name, measures


def _parse(formula: str) -> Any:
    from formulaic import Formula
    from formulaic.errors import FormulaicError

    try:
        parsed = Formula(split_random_effects(formula).fixed)
    except (FormulaicError, SyntaxError) as error:
        # formulaic marks the position with the colors of a terminal.
        text = " ".join(re.sub(r"\x1b\[[\d;]*m|[⧛⧚]", "", str(error)).split())
        raise UsageError(
            f"--model '{formula}': the formula cannot be understood. {text}", code="formula-syntax"
        ) from error
    if not hasattr(parsed, "lhs") or len(parsed.lhs.required_variables) != 1:
        raise UsageError(
            f"--model '{formula}': write exactly one name before ~, as in "
            "'volume ~ age + sex + icv'.",
            code="formula-outcome-count",
        )
    return parsed
