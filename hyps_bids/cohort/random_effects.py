"""Random effects of subjects in formulas, in the notation of lme4."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from hyps_bids.errors import UsageError

#: Names of the participant after the bar.
_SUBJECT = ("subject", "participant_id")


@dataclass(frozen=True)
class Block:
    """Random effects of a subject that covary freely; those of different blocks are independent.

    Attributes
    ----------
    intercept : bool
        Whether subjects differ in level.
    slopes : tuple of str
        Columns of numbers whose effect differs between subjects.
    """

    intercept: bool
    slopes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"({' + '.join([str(int(self.intercept)), *self.slopes])} | subject)"


class SplitFormula(NamedTuple):
    """A formula and the random effects that it asked for.

    Attributes
    ----------
    fixed : str
        The formula without its random effects, as formulaic understands it.
    random : tuple of Block
        Empty if the formula does not name any.
    """

    fixed: str
    random: tuple[Block, ...]


def split_random_effects(formula: str) -> SplitFormula:
    """Separate the random effects of subjects from the rest of a formula.

    ``(time | subject)`` has an intercept and a slope of time that may covary, ``(1 | subject)`` an
    intercept only, and ``(0 + time | subject)`` a slope only. ``(time || subject)`` is
    ``(1 | subject) + (0 + time | subject)``: the two are independent. After the bar, ``subject``
    and ``participant_id`` mean the same. A formula that cannot be read is returned as it is, so
    that formulaic explains what is wrong with it.

    Parameters
    ----------
    formula : str
        The text given to ``--model``.

    Returns
    -------
    SplitFormula
        The fixed part and the random effects.

    Raises
    ------
    UsageError
        If a random effect is of anything but the subject, or of anything but columns.

    Examples
    --------
    >>> split_random_effects("volume ~ dx*time + (time | subject)")
    SplitFormula(fixed='volume ~ dx*time', random=(Block(intercept=True, slopes=('time',)),))
    >>> split_random_effects("volume ~ (time || participant_id) + dx").fixed
    'volume ~ 1 + dx'
    """
    from formulaic.errors import FormulaicError
    from formulaic.parser.algos.tokenize import tokenize

    try:
        tokens = list(tokenize(formula))
    except FormulaicError:
        return SplitFormula(formula, ())
    fixed, kept_until, blocks = "", 0, list[Block]()
    for first, last in _groups_with_bar(tokens):
        begin, end = tokens[first].source_start, tokens[last].source_end + 1
        bar = formula[begin:end]
        before = str(tokens[first - 1].token) if first else ""
        after = str(tokens[last + 1].token) if last + 1 < len(tokens) else "+"
        if before not in ("~", "+") or after not in ("+", "-"):
            raise _wrong(formula, bar, "must be a term of its own, as in '... + (1 | subject)'.")
        blocks += _read_bar(formula, bar, tokens[first + 1 : last])
        # The plus before the bar goes with it; right after the tilde, 1 takes its place.
        stop = tokens[first - 1].source_start if before == "+" else begin
        fixed += formula[kept_until:stop].rstrip() + (" 1" if before == "~" else "")
        kept_until = end
    effects = [effect for block in blocks for effect in (block.intercept * ("1",) + block.slopes)]
    if twice := next((effect for effect in effects if effects.count(effect) > 1), None):
        raise _wrong(formula, twice, "is a random effect twice. Leave one of them out.")
    return SplitFormula(fixed + formula[kept_until:], tuple(blocks))


def _groups_with_bar(tokens: list[Any]) -> Iterator[tuple[int, int]]:
    """Find the parentheses, not within others, that contain a bar of their own."""
    depth, start, bar = 0, 0, False
    for i, token in enumerate(tokens):
        text, is_bracket = str(token.token), token.kind.name == "CONTEXT"
        if is_bracket and text == "(":
            depth += 1
            if depth == 1:
                start, bar = i, False
        elif is_bracket and text == ")":
            depth -= 1
            if depth == 0 and bar:
                yield start, i
        elif depth == 1 and token.kind.name == "OPERATOR" and text in ("|", "||"):
            bar = True


def _read_bar(formula: str, bar: str, tokens: list[Any]) -> list[Block]:
    """Read what is inside the parentheses of one bar."""
    texts = [str(token.token) for token in tokens]
    where = next(i for i, text in enumerate(texts) if text in ("|", "||"))
    effects, group = tokens[:where], texts[where + 1 :]
    if len(group) != 1 or group[0] not in _SUBJECT:
        name = "".join(group)
        raise _wrong(
            formula,
            bar,
            f"groups by {name or 'nothing'}; random effects are those of the subject, as in "
            "'(1 | subject)'."
            + (f" Add {name} as an ordinary term instead: '+ {name}'." if len(group) == 1 else ""),
        )
    intercept, slopes, sign = True, list[str](), "+"
    for token in effects:
        kind, text = token.kind.name, str(token.token)
        if kind == "OPERATOR" and text in ("+", "-"):
            sign = text
        elif kind == "VALUE" and (text == "0" or (text == "1" and sign in "+-")):
            intercept = text == "1" and sign == "+"
        elif kind == "NAME" and sign == "+":
            slopes.append(text)
        else:
            raise _wrong(
                formula,
                bar,
                f"has {text} before the bar. Write 1, 0 and names of columns there, joined by +. "
                "To use a transformed variable, add it to sessions.tsv as a column.",
            )
    if not effects or not (intercept or slopes):
        raise _wrong(formula, bar, "has no random effect. Leave it out.")
    if texts[where] == "||":
        parts = [Block(True)] if intercept else []
        return parts + [Block(False, (name,)) for name in slopes]
    return [Block(intercept, tuple(slopes))]


def _wrong(formula: str, part: str, why: str) -> UsageError:
    return UsageError(f"--model '{formula}': {part} {why}", code="formula-random-effect")
