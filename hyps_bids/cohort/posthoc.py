"""Marginal means, slopes and their pairwise comparisons after a linear model, as in R's emmeans.

A *reference grid* has all combinations of the levels of categorical variables, and of variables
with two values, with other numbers at their mean. A marginal mean is the average of the predictions
on this grid, so each level of the other variables has the same weight (Searle, Speed and Milliken
1980, The American Statistician 34:216, https://doi.org/10.1080/00031305.1980.10483031). A slope is
the difference of such predictions near the mean of a number, per unit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
import pandas as pd

from hyps_bids.cohort.design import CannotFit, Design
from hyps_bids.cohort.effects import LEAST_SQUARES, LEVEL, Row, standardized
from hyps_bids.cohort.models import Fit
from hyps_bids.errors import UsageError
from hyps_bids.messages import suggest_names

ALL = "all"
#: Combinations of levels above which the reference grid would not fit into memory.
_LARGEST_GRID = 200_000
#: Part of the range of a number over which its slope is measured, as in emmeans.
_STEP = 0.001
#: Matches where an even number of backquotes follows, so outside of names in backquotes.
_OUTSIDE_NAMES = r"(?=(?:[^`]*`[^`]*`)*[^`]*$)"


@dataclass(frozen=True)
class Comparison:
    """What to compare after a model.

    Attributes
    ----------
    text : str
        As the user wrote it, such as ``diagnosis:sex``.
    variables : tuple of str
        Their levels are compared; a number among them asks for slopes.
    by : tuple of str
        Comparisons stay within each level of these.
    """

    text: str
    variables: tuple[str, ...]
    by: tuple[str, ...] = ()


def parse_comparison(text: str) -> Comparison:
    """Read a value of ``--posthoc``; names that have a colon or a bar are in backquotes.

    Raises
    ------
    UsageError
        If a name is missing.

    Examples
    --------
    >>> parse_comparison("diagnosis:time | sex")
    Comparison(text='diagnosis:time | sex', variables=('diagnosis', 'time'), by=('sex',))
    """
    sides = re.split(rf"\|{_OUTSIDE_NAMES}", text, maxsplit=1)
    names = [
        tuple(name.strip(" `") for name in re.split(f":{_OUTSIDE_NAMES}", side)) for side in sides
    ]
    if not all(map(all, names)):
        raise UsageError(
            f"--posthoc {text}: write names of variables joined by a colon, such as diagnosis:sex, "
            "and after a bar those within whose levels to compare, such as diagnosis|sex.",
            code="posthoc-syntax",
        )
    return Comparison(text, *names)


def find_comparisons(
    design: Design, wanted: Sequence[str], exclude: str | None = None
) -> tuple[list[Comparison], list[str]]:
    """Choose the comparisons that a model allows; `wanted` is known to be well-formed.

    ``all`` stands for each categorical variable, and for each interaction of categorical variables
    with each other or with one number. The variable to `exclude` cannot be compared.

    Returns
    -------
    list of Comparison
        Those that are possible.
    list of str
        Reasons why others are not.
    """
    found: list[Comparison] = []
    reasons: list[str] = []
    if wanted and not _is_function_of_rows(design):
        return [], [
            "--posthoc: a function in the formula depends on the other scans, as age.mean() does. "
            "Write center(NAME), scale(NAME) or poly(NAME, 2), which remember their values."
        ]
    for text in wanted:
        if text == ALL:
            every = _every_comparison(design)
            found += [one for one in every if exclude not in one.variables]
            continue
        comparison = parse_comparison(text)
        if reason := _impossible(comparison, design, exclude):
            reasons.append(f"--posthoc {text}: {reason}")
        else:
            found.append(comparison)
    return list(dict.fromkeys(found)), reasons


def _is_function_of_rows(design: Design) -> bool:
    """Check that each row of the matrix can be computed from its own variables alone."""
    rows = [0, len(design.matrix) - 1]
    alone = [design.matrix_at(design.variables.iloc[[row]])[0] for row in rows]
    return np.allclose(alone / design.scales, design.matrix[rows] / design.scales)


def _every_comparison(design: Design) -> list[Comparison]:
    assert design.parsed is not None
    names: list[tuple[str, ...]]
    names = [(str(name),) for name in design.variables if _is_categorical(design, str(name))]
    for term in design.parsed.formula.rhs:
        variables = design.parsed.variables_of(*term.factors)
        numbers = [name for name in variables if not _is_categorical(design, name)]
        if len(variables) == len(term.factors) > 1 and len(numbers) <= 1:
            names.append(tuple(variables))
    return [Comparison(":".join(map(_quoted, variables)), variables) for variables in names]


def _quoted(name: str) -> str:
    return f"`{name}`" if set(name) & {*":|"} else name


def _impossible(comparison: Comparison, design: Design, exclude: str | None) -> str | None:
    names = (*comparison.variables, *comparison.by)
    known = [str(name) for name in design.variables if name != exclude]
    unknown = [name for name in names if name not in known]
    if unknown:
        return (
            f"{', '.join(unknown)} is no variable after ~ of this formula. Choose from "
            f"{suggest_names(unknown, list(map(_quoted, known)))}."
        )
    if len(set(names)) < len(names):
        return "a variable is named twice."
    numbers = [name for name in names if not _is_categorical(design, name)]
    if set(numbers) & set(comparison.by):
        return f"{numbers[0]} is a number and has no levels. Write C({numbers[0]}) in the formula."
    if len(numbers) > 1:
        return (
            f"{' and '.join(numbers)} are numbers; name one of them for its slopes, or write "
            f"C({numbers[0]}) in the formula."
        )
    return None


def _is_categorical(design: Design, name: str) -> bool:
    return isinstance(design.variables[name].dtype, pd.CategoricalDtype)


def comparison_rows(design: Design, fit: Fit, comparison: Comparison) -> Iterator[Row]:
    """Estimate the means or slopes of a comparison, and all differences between two of them.

    Parameters
    ----------
    design : Design
        As it was fitted.
    fit : Fit
        Estimates with their covariance.
    comparison : Comparison
        One of those that :func:`find_comparisons` has found.

    Yields
    ------
    dict
        Values of some of the columns :data:`~hyps_bids.outputs.columns.POSTHOC_COLUMNS`.
    """
    numbers = [name for name in comparison.variables if not _is_categorical(design, name)]
    slope_of = numbers[0] if numbers else None
    kind = "slope" if slope_of else "mean"
    groups = [*comparison.by, *(name for name in comparison.variables if name != slope_of)]
    weights = _weights(design, groups, slope_of)
    if len(weights) > 1 and np.allclose(list(weights.values()), next(iter(weights.values()))):
        raise CannotFit(
            f"--posthoc {comparison.text}: all {kind}s are the same, because the formula has no "
            f"term of {' and '.join(comparison.variables)} that lets them differ"
        )
    families: dict[tuple[str, ...], dict[str, np.ndarray]] = {}
    for levels, weight in weights.items():
        outer, inner = levels[: len(comparison.by)], levels[len(comparison.by) :]
        families.setdefault(outer, {})[":".join(inner) or str(slope_of)] = weight
    for outer, family in families.items():
        by = ", ".join(f"{name}={level}" for name, level in zip(comparison.by, outer, strict=True))
        about: Row = {
            "posthoc": comparison.text,
            "by": by or None,
            "interacts_with": _interacting(design, comparison) or None,
            "n_compared": len(family),
        }
        for name, row in zip(family, _tests(np.array([*family.values()]), fit), strict=True):
            # Whether a mean volume is zero is no question.
            tests = row if slope_of else row | {"statistic": None, "p": None}
            yield about | {"kind": kind, "contrast": name} | tests
        for row in _differences(family, fit):
            spread = float(design.variables[slope_of].std(ddof=1)) if slope_of else 1.0
            effect = standardized(row, fit, row["df"], spread)
            effect |= {"effect_kind": "d_per_sd" if slope_of else "d"}
            yield about | {"kind": f"{kind}_difference"} | row | effect


def _interacting(design: Design, comparison: Comparison) -> str:
    """Name the variables that interact with the compared ones, but are not compared."""
    assert design.parsed is not None
    named = {*comparison.variables, *comparison.by}
    terms = [design.parsed.variables_of(*term.factors) for term in design.parsed.formula.rhs]
    others = [name for term in terms if named & {*term} for name in term if name not in named]
    return ", ".join(dict.fromkeys(others))


def _weights(
    design: Design, groups: Sequence[str], slope_of: str | None
) -> dict[tuple[str, ...], np.ndarray]:
    """Return the weight of each coefficient in the mean or slope of each combination of levels."""
    values: dict[str, list[object]] = {}
    for name, column in design.variables.items():
        distinct = sorted(column.unique()) if not _is_categorical(design, str(name)) else []
        if _is_categorical(design, str(name)):
            values[str(name)] = list(column.cat.categories)
        elif len(distinct) == 2 and name != slope_of:
            values[str(name)] = distinct
        else:
            values[str(name)] = [float(column.mean())]
    if math.prod(map(len, values.values())) > _LARGEST_GRID:
        raise CannotFit("--posthoc: the variables have too many combinations of levels")
    grid = pd.DataFrame(list(product(*values.values())), columns=list(values))
    for name in grid:
        grid[name] = grid[name].astype(design.variables[name].dtype)
    if slope_of is None:
        rows = design.matrix_at(grid)
    else:
        step = _STEP * float(np.ptp(design.variables[slope_of]))
        center = grid[slope_of].astype("float64")
        after = design.matrix_at(grid.assign(**{slope_of: center + step / 2}))
        before = design.matrix_at(grid.assign(**{slope_of: center - step / 2}))
        rows = (after - before) / step
    # Without groups, pandas 3.0 would iterate over no rows.
    keys = [tuple(map(str, key)) for key in grid[list(groups)].to_numpy(dtype=object)]
    return {key: rows[[other == key for other in keys]].mean(axis=0) for key in dict.fromkeys(keys)}


def _tests(contrasts: np.ndarray, fit: Fit) -> list[Row]:
    """Estimate contrasts, the rows of (contrasts, coefficients), with t-tests against zero."""
    from scipy import stats

    estimates, df = contrasts @ fit.estimate, fit.freedom(contrasts)
    errors = np.sqrt(fit.variances(contrasts))
    with np.errstate(invalid="ignore", divide="ignore"):
        statistics = estimates / errors
    width = stats.t.ppf((1 + LEVEL) / 2, df) * errors
    return pd.DataFrame(
        {
            "estimate": estimates,
            "se": errors,
            "ci_low": estimates - width,
            "ci_high": estimates + width,
            "statistic": statistics,
            "df": df,
            "p": 2 * stats.t.sf(np.abs(statistics), df),
        }
    ).to_dict("records")


def _differences(family: dict[str, np.ndarray], fit: Fit) -> list[Row]:
    """Compare all pairs of a family, and adjust the p-values for their number.

    Tukey's method, with the studentized range, is exact for independent groups of the same size
    and conservative for others (Hayter 1984, Annals of Statistics 12:61). It needs errors that
    share one residual variance; with robust errors, only Holm's method is used, which holds always.
    """
    from scipy.stats import studentized_range

    pairs = list(combinations(family, 2))
    if not pairs:
        return []
    rows = _tests(np.array([family[a] - family[b] for a, b in pairs]), fit)
    statistic, df, p = (np.array([row[key] for row in rows]) for key in ("statistic", "df", "p"))
    adjusted = holm = _holm(p)
    by_tukey = fit.method in (*LEAST_SQUARES, "mixed") and np.isfinite(p).all()
    if by_tukey:
        adjusted = studentized_range.sf(np.sqrt(2) * np.abs(statistic), len(family), df)
    return [
        {"contrast": f"{a} - {b}", "adjustment": "tukey" if by_tukey else "holm"}
        | row
        | {"p_adjusted": adjusted[i], "p_holm": holm[i]}
        for i, ((a, b), row) in enumerate(zip(pairs, rows, strict=True))
    ]


def _holm(p: np.ndarray) -> np.ndarray:
    """Adjust p-values (Holm 1979, Scandinavian Journal of Statistics 6:65).

    The function of statsmodels is not used, because it collects all garbage at each call, which
    takes longer than the models.
    """
    order = np.argsort(p)
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted
