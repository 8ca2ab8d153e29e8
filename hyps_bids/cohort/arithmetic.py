"""Find what looks like arithmetic in a formula, but means something else there."""

from __future__ import annotations

from typing import Any, NamedTuple

from hyps_bids.errors import UsageError

_PRODUCTS = {"*", "/", ":", "in", "%in%"}


class Reading(NamedTuple):
    """What a formula means where it looks like arithmetic.

    Attributes
    ----------
    warnings : tuple of str
        Sentences about terms that mean something else than arithmetic.
    ratios : tuple of (str, str)
        The names around each ``/``, which nests one in the other instead of dividing numbers.
    """

    warnings: tuple[str, ...]
    ratios: tuple[tuple[str, str], ...]


def read_arithmetic(tree: Any, start: str) -> Reading:
    """Refuse numbers within terms, and explain operators that do nothing.

    In formulas, ``+ - * / ** ^ :`` join sets of terms (Wilkinson and Rogers 1973); arithmetic is
    written in braces or ``I()``.

    Parameters
    ----------
    tree : ASTNode
        The formula as formulaic parses it.
    start : str
        The beginning of error messages.

    Raises
    ------
    UsageError
        If a number stands where only 0 or 1 have a meaning.
    """
    warnings: list[str] = []
    ratios: list[tuple[str, str]] = []
    for node in _nodes(tree):
        operator, arguments = str(node.operator.symbol), node.args
        if len(arguments) != 2:
            continue
        left, right = arguments
        if number := _misplaced_number(operator, left, right):
            raise UsageError(
                f"{start} the number {number} beside {operator} is not calculated with, because "
                f"{operator} joins terms here. Write arithmetic in braces, as in {{age / 10}}.",
                code="formula-arithmetic",
            )
        if sentence := _without_effect(operator, left, right):
            warnings.append(sentence)
        if operator == "/" and all(_is_token(argument, "name") for argument in arguments):
            ratios.append((left.token, right.token))
    return Reading(tuple(warnings), tuple(ratios))


def nesting_warning(left: str, right: str) -> str:
    """Explain what the division of two columns of numbers means in a formula."""
    return (
        f"{left}/{right} means {left} + {left}:{right} in formulas; for the ratio, write "
        f"{{{left}/{right}}}"
    )


def _nodes(tree: Any) -> list[Any]:
    """List the nodes of operators, those on the outside first."""
    if not hasattr(tree, "operator"):
        return []
    return [tree, *(node for argument in tree.args for node in _nodes(argument))]


def _is_token(node: Any, kind: str) -> bool:
    return hasattr(node, "kind") and node.kind.value == kind


def _misplaced_number(operator: str, left: Any, right: Any) -> str | None:
    # An exponent is a number, but 2**age has one in the wrong place.
    places = (left,) if operator in ("**", "^") else (left, right)
    for side in places:
        if not _is_token(side, "value") or side.token[0] in "'\"":
            continue
        if operator in (*_PRODUCTS, "**", "^") or side.token not in ("0", "1"):
            return str(side.token)
    return None


def _without_effect(operator: str, left: Any, right: Any) -> str | None:
    if operator in ("**", "^"):
        return _power_of_one_term(operator, _terms(left), right)
    if operator in ("*", ":"):
        first, second = _terms(left), _terms(right)
        if first == second and len(first) == 1:
            return (
                f"{first[0]}{operator}{first[0]} means {first[0]} in formulas; for the square, "
                f"write I({first[0]}**2)"
            )
    if operator == "-":
        present = _terms(left)
        if absent := [str(term) for term in _terms(right) if term != "1" and term not in present]:
            names = " and ".join(absent)
            return (
                f"- {names} means 'without the term {names}' in formulas, which has no effect "
                f"here; to subtract numbers, write arithmetic in braces, as in {{-{absent[0]}}}"
            )
    return None


def _power_of_one_term(operator: str, terms: list[Any], power: Any) -> str | None:
    if len(terms) != 1:
        return None
    base = str(terms[0])
    alternative = f" or poly({base}, {power})" if base.isidentifier() else ""
    return (
        f"{base}{operator}{power} means {base} in formulas; for a power, write "
        f"I({base}**{power}){alternative}"
    )


def _terms(side: Any) -> list[Any]:
    return list(side.to_terms(context={}))
