"""Formulas of linear models: parse them, and find the columns they mean."""

from __future__ import annotations

import ast
import keyword
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import pandas as pd

from hyps_bids.cohort.arithmetic import nesting_warning, read_arithmetic
from hyps_bids.cohort.column_types import mistyped_numbers, too_many_levels
from hyps_bids.cohort.derived import LONGITUDINAL, MEASURES, volume_columns
from hyps_bids.cohort.own_columns import users_first
from hyps_bids.cohort.random_effects import split_random_effects
from hyps_bids.errors import UsageError
from hyps_bids.messages import join_names, suggest_names

#: Name in a formula → the measure whose columns it stands for, one after the other
FAMILIES = {measure.removesuffix("_mm3"): measure for measure in MEASURES}
#: Texts in quotation marks, and names in backquotes, of which the name is the group.
_QUOTED = re.compile(r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"|`([^`]+)`")
#: Our own names for columns whose names Python or formulaic would misunderstand.
_SAFE = re.compile(r"hyps_(?:column|groups)_(\d+)_")
_MODULES = ("np", "contr")
#: Function that formulas do not have, or that would mislead → what to do instead
_ADVICE = {
    "lag": "the previous row of the group table is another participant or session",
    "hashed": "it would join levels at random; write C(NAME)",
    "factor": "write C(NAME)",
    "as.factor": "write C(NAME)",
    "relevel": "write C(NAME, contr.treatment(base='LEVEL')), or name the level with --controls",
    "ns": "write cr(NAME, df=3, constraints='center')",
    "s": "write bs(NAME, df=4) or cr(NAME, df=3, constraints='center')",
    "te": "write bs(NAME, df=4) or cr(NAME, df=3, constraints='center')",
    "offset": "subtract it before ~, as in {volume - NAME} ~ …",
    "open": "a formula reads columns of the group table only",
}
#: Character → what a formula that has it may have meant
_HINTS = {
    "<>=!&%@": "Comparisons and arithmetic are written in braces, as in {age > 70}.",
    "'\"": "Write the name of a column without quotation marks, or in backquotes if it has spaces "
    "or signs, as in `my column`.",
}


@dataclass(frozen=True)
class ParsedFormula:
    """A formula in names that formulaic and Python can read.

    Attributes
    ----------
    formula : formulaic.Formula
        With the names of `columns`.
    columns : dict of str to str
        Name in `formula` → column of the wide table.
    groups : frozenset of str
        Those names in `formula` that ``C()`` marks as categories.
    outcome : tuple of str
        Columns before ``~``.
    predictors : frozenset of str
        Names in `formula` that stand after ``~``.
    plain : frozenset of str
        Columns that are terms, or parts of an interaction, without any function.
    slopes : tuple of str
        Columns of the random slopes.
    warnings : tuple of str
        Sentences about what looks like arithmetic, but means something else.
    ratios : tuple of (str, str)
        Columns around each ``/``.
    """

    formula: Any
    columns: dict[str, str]
    groups: frozenset[str]
    outcome: tuple[str, ...]
    predictors: frozenset[str]
    plain: frozenset[str]
    slopes: tuple[str, ...]
    warnings: tuple[str, ...]
    ratios: tuple[tuple[str, str], ...]

    def restored(self, text: str) -> str:
        """Put the user's names of columns back into a text that formulaic has made."""
        return _restore(text, list(self.columns.values()))

    def variables_of(self, *factors: Any) -> list[str]:
        """Name the columns of some formulaic factors, in order and each once."""
        names = [name for factor in factors for name in names_in(factor)]
        return list(dict.fromkeys(self.columns[name] for name in names if name in self.columns))


def formula_variables(formula: str, known: Collection[str] = ()) -> set[str]:
    """Name the variables of a formula, those of its random slopes included.

    Columns that are named like a function, such as ``log``, are recognized inside of functions if
    they are `known`.

    Examples
    --------
    >>> sorted(formula_variables("volume ~ bs(age, df=4) + C(`ICD-10`) + (time | subject)"))
    ['ICD-10', 'age', 'time', 'volume']
    """
    parsed = parse_formula(formula, frozenset(known))
    return {*parsed.columns.values(), *parsed.slopes}


@dataclass
class _Names:
    """The names of a formula, as they are found one after the other."""

    known: frozenset[str]
    safe: dict[str, str] = field(default_factory=dict)  # safe name → column
    groups: set[str] = field(default_factory=set)  # safe names inside of C()

    def add(self, name: str, *, as_groups: bool = False) -> str:
        """Return the safe name of a column, or of a safe name that stands for one."""
        from formulaic.transforms import TRANSFORMS

        column = self.safe.get(name, name)
        is_safe = column.isidentifier() and not keyword.iskeyword(column)
        is_safe = is_safe and column not in TRANSFORMS and not as_groups
        kind = "groups" if as_groups else "column"
        found = [
            safe
            for safe, other in self.safe.items()
            if other == column and (safe in self.groups) == as_groups
        ]
        safe = found[0] if found else column if is_safe else f"hyps_{kind}_{len(self.safe)}_"
        self.safe[safe] = column
        if as_groups:
            self.groups.add(safe)
        return safe


class _Rename(ast.NodeTransformer):
    """Put safe names for columns into an expression, and refuse functions that it cannot have."""

    def __init__(self, names: _Names) -> None:
        self.names = names

    def visit_Name(self, node: ast.Name) -> ast.AST:
        from formulaic.transforms import TRANSFORMS

        # Sum in C(x, Sum) is no column, unless there is one of that name.
        if node.id in TRANSFORMS and node.id not in self.names.known:
            return node
        return ast.Name(self.names.add(node.id), ast.Load())

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        text = ast.unparse(node)
        if text in self.names.known:
            return ast.Name(self.names.add(text), ast.Load())
        is_of_module = re.fullmatch(rf"({'|'.join(_MODULES)})(\.\w+)+", text)
        return node if is_of_module else self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        function = ast.unparse(node.func)
        arguments = node.args
        if function == "Q" and len(arguments) == 1 and isinstance(arguments[0], ast.Constant):
            return ast.Name(self.names.add(str(arguments[0].value)), ast.Load())
        _check_function(node.func, function)
        if isinstance(node.func, ast.Attribute):
            node.func = self.visit(node.func)
        if function != "C":
            node.args = [self.visit(argument) for argument in arguments]
            node.keywords = [self.visit(keyword) for keyword in node.keywords]
        elif arguments:
            # The other arguments of C() describe levels and never are columns.
            first = arguments[0]
            node.args[0] = (
                ast.Name(self.names.add(first.id, as_groups=True), ast.Load())
                if isinstance(first, ast.Name)
                else self.visit(first)
            )
        return node


def _check_function(node: ast.expr, name: str) -> None:
    import numpy as np
    from formulaic.transforms import TRANSFORMS

    is_random = name.startswith("np.random")
    if name not in _ADVICE and not is_random:
        if isinstance(node, ast.Attribute) or name in TRANSFORMS:
            return
        advice = f"write np.{name}(…)" if hasattr(np, name) else "there is no such function"
    else:
        advice = _ADVICE.get(name, "each run would give another result")
    known = ", ".join(sorted({*TRANSFORMS} - {*_ADVICE, *_MODULES}))
    raise UsageError(
        f"{name}() cannot be used in a formula: {advice}. There are {known}, and the functions of "
        "NumPy, such as np.sqrt.",
        code="formula-function-unknown",
    )


@lru_cache(maxsize=256)
def parse_formula(formula: str, known: frozenset[str] = frozenset()) -> ParsedFormula:
    """Parse a formula and check its structure, without looking at data.

    Parameters
    ----------
    formula : str
        As given to ``--model``.
    known : frozenset of str
        Columns of the table, if known. They decide about names that could also be functions.

    Raises
    ------
    UsageError
        If the formula cannot be understood or has a structure that linear models do not have.
    """
    from formulaic.parser import DefaultFormulaParser
    from formulaic.parser.types import Factor, Term

    start = f"--model '{formula}':"
    names = _Names(known)

    def replace_quoted(match: re.Match[str]) -> str:
        return f" {names.add(match[1])} " if match[1] else match[0]

    split = split_random_effects(formula)
    text = _QUOTED.sub(replace_quoted, split.fixed)
    try:
        parser = DefaultFormulaParser()
        _check_structure(list(parser.get_tokens(text)), start)
        tree = parser.get_ast(text)
        _check_sides(tree, start)
        reading = read_arithmetic(tree, start)
        sides = parser.get_terms(text)
    except UsageError as error:
        raise UsageError(_restore(str(error), [*names.safe.values()]), code=error.code) from None
    except Exception as error:  # formulaic fails in many ways on what it cannot parse.
        raise _not_understood(start, formula, error, names) from error

    plain = set()

    def renamed(factor: Factor) -> Factor:
        if factor.eval_method.value == "literal":
            return factor
        if factor.eval_method.value == "lookup":
            plain.add(names.safe.get(factor.expr, factor.expr))
            return Factor(names.add(factor.expr), eval_method="lookup")
        tree = _Rename(names).visit(ast.parse(factor.expr, mode="eval"))
        is_name = isinstance(tree.body, ast.Name)
        return Factor(ast.unparse(tree), eval_method="lookup" if is_name else "python")

    try:
        left, right = (
            [Term([renamed(factor) for factor in term.factors]) for term in side]
            for side in (sides.lhs, sides.rhs)
        )
    except UsageError as error:
        raise UsageError(f"{start} {error}", code=error.code) from None
    from formulaic import Formula

    before, after = (
        [name for term in side for factor in term.factors for name in names_in(factor)]
        for side in (left, right)
    )
    outcome = tuple(dict.fromkeys(names.safe[name] for name in before if name in names.safe))
    if not outcome:
        raise _wrong_outcome(start)
    if not right:
        raise UsageError(
            f"{start} there is nothing after ~ to estimate. Write 1 for the mean.",
            code="formula-no-terms",
        )
    columns = [*names.safe.values()]
    return ParsedFormula(
        formula=Formula(lhs=left, rhs=right),
        columns=dict(names.safe),
        groups=frozenset(names.groups),
        outcome=outcome,
        predictors=frozenset(after) & set(names.safe),
        plain=frozenset(plain),
        slopes=tuple(name for block in split.random for name in block.slopes),
        warnings=tuple(_restore(sentence, columns) for sentence in reading.warnings),
        ratios=tuple(
            (names.safe.get(first, first), names.safe.get(second, second))
            for first, second in reading.ratios
        ),
    )


def _restore(text: str, columns: list[str]) -> str:
    def name_of(match: re.Match[str]) -> str:
        name = columns[int(match[1])]
        before, after = text[: match.start()], text[match.end() :]
        is_alone = before[-1:] in ("", ":") and after[:1] in ("", ":", "[")
        return name if is_alone or name.isidentifier() else f"`{name}`"

    return _SAFE.sub(name_of, text)


def names_in(factor: Any) -> list[str]:
    """List the names in a formulaic factor, those of functions among them."""
    if factor.eval_method.value == "literal":
        return []
    nodes = ast.walk(ast.parse(factor.expr, mode="eval"))
    return [node.id for node in nodes if isinstance(node, ast.Name)]


def _check_structure(tokens: list[Any], start: str) -> None:
    symbols = {str(token.token) for token in tokens if token.kind.value == "operator"}
    if "|" in symbols:
        raise UsageError(
            f"{start} a bar without parentheses has no meaning for these models. Write random "
            "effects of participants in parentheses, as in 'volume ~ group * time + (time | "
            "subject)', and another grouping, such as the site, as a term, as in '+ C(site)'.",
            code="formula-bar",
        )
    if "." in symbols:
        raise UsageError(
            f"{start} the point stands for all columns of the group table, the measures and the "
            "names of scans among them. Name the columns instead.",
            code="formula-point",
        )
    if sum(str(token.token) == "~" for token in tokens) > 1:
        raise UsageError(
            f"{start} there is more than one ~; models of several stages, such as instrumental "
            "variables, cannot be fitted.",
            code="formula-stages",
        )


def _check_sides(tree: Any, start: str) -> None:
    """Refuse formulas with no ~ or with anything but one name or function before it."""
    if not hasattr(tree, "operator") or tree.operator.symbol != "~" or len(tree.args) != 2:
        raise _wrong_outcome(start)
    if hasattr(tree.args[0], "operator"):
        raise _wrong_outcome(start)


def _wrong_outcome(start: str) -> UsageError:
    return UsageError(
        f"{start} write exactly one name before ~, as in 'volume ~ age + sex + icv', or arithmetic "
        "in braces, as in '{volume / icv} ~ age'. Give --model again for another outcome.",
        code="formula-outcome-count",
    )


def _not_understood(start: str, formula: str, error: Exception, names: _Names) -> UsageError:
    # formulaic marks the position with the colors of a terminal.
    text = " ".join(re.sub(r"\x1b\[[\d;]*m|[⧛⧚]", "", str(error)).split())
    text = _restore(text, [*names.safe.values()])
    bare = re.sub(r"\(.*?\)|\{.*?\}", "", formula)
    if "integer" in text:
        # Only whole powers of sets of terms have a meaning.
        bare += "="
    hints = [hint for marks, hint in _HINTS.items() if set(marks) & set(bare)]
    return UsageError(
        " ".join([f"{start} the formula cannot be understood.", text, *hints[:1]]),
        code="formula-syntax",
    )


def find_measures(formula: str, data: pd.DataFrame) -> tuple[str, list[str]]:
    """Return the name before ``~`` and the columns of the wide table that it stands for.

    The formula and all columns that it uses are checked.
    """
    parsed = parse_formula(formula, frozenset(data))
    start = f"--model '{formula}':"
    families = [name for name in parsed.outcome if name in FAMILIES and name not in data]
    name = families[0] if families else parsed.outcome[0]
    variables = {*parsed.columns.values(), *parsed.slopes}
    unknown = sorted(variables - set(data) - {name})
    if name not in data and name not in FAMILIES:
        unknown.append(name)
    if unknown:
        raise UsageError(
            f"{start} there is no column {', '.join(unknown)} in the group table. Choose from "
            f"{suggest_names(unknown, users_first(data))}; before ~ also from "
            f"{', '.join(sorted(FAMILIES))}.",
            code="formula-column-unknown",
        )
    if name in {parsed.columns[safe] for safe in parsed.predictors}:
        raise UsageError(
            f"{start} {name} is on both sides of ~, so it would explain itself. Remove it from one "
            "of them.",
            code="formula-outcome-repeated",
        )
    _check_columns(parsed, data, start)
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
        remedy = (
            "Run the participant level with --longitudinal for participants with several scans"
            if FAMILIES[name] in LONGITUDINAL
            else "Name another measure before ~"
        )
        raise UsageError(
            f"{start} the group table has no columns of {name}. {remedy}.",
            code="formula-measure-missing",
        )
    return name, measures


def _check_columns(parsed: ParsedFormula, data: pd.DataFrame, start: str) -> None:
    # C(name) says that the numbers of a column are categories, so only bare names are checked.
    for variable in sorted({*parsed.plain, *parsed.slopes} & set(data)):
        if wrong := mistyped_numbers(data[variable]):
            raise UsageError(
                f"{start} most values of {variable} are numbers, but not "
                f"{join_names(map(repr, wrong))}. Correct the table, or write "
                f"C({variable}) if it is a category.",
                code="formula-number-mistyped",
            )
    for safe in sorted(parsed.predictors):
        variable = parsed.columns[safe]
        if variable == "participant_id" or variable not in data:
            continue
        column = data[variable]
        is_number = pd.api.types.is_numeric_dtype(column)
        if safe in parsed.groups:
            column = column.astype("category")
        if why := too_many_levels(column, data["participant_id"]):
            advice = (
                f"Write {variable} without C()"
                if is_number
                else "Correct the column if it should have numbers"
            )
            raise UsageError(
                f"{start} {variable} can hardly be a category: {why}. {advice}, or leave it out.",
                code="formula-levels-too-many",
            )


def formula_warnings(formula: str, data: pd.DataFrame) -> list[str]:
    """List what a formula means where it looks like arithmetic, given the types of its columns."""
    parsed = parse_formula(formula, frozenset(data))
    nested = [
        nesting_warning(*names)
        for names in parsed.ratios
        if all(name in data and pd.api.types.is_numeric_dtype(data[name]) for name in names)
    ]
    return [*parsed.warnings, *nested]
