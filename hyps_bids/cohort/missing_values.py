"""Recognize how people write that a value is missing, and doubt what may mean that."""

from __future__ import annotations

import re
from collections.abc import Collection

import numpy as np
import pandas as pd

from hyps_bids.outputs.columns import ColumnDescription

#: Spellings of a missing value in any column, in lower case, beside n/a.
_SPELLINGS = {
    "n/a",
    "na",
    "nan",
    "null",
    "<na>",
    "nat",
    ".",
    "?",
    "missing",
    "n.a.",
    "not available",
}
#: Errors of spreadsheets, and numbers that did not fit into their cells.
_SPREADSHEET = re.compile(r"#+|#(?:n/?a|null!|value!|div/0!|ref!|name\?|num!)", re.IGNORECASE)
#: Words that are missing among numbers, but may be a level among words.
_AMONG_NUMBERS = {"none", "unknown", "unk", "-", "--", "---", "n.d.", "nd", "not done", "refused"}
#: Meanings in a sidecar that say that a value is missing.
_MEANING = re.compile(
    r"(?:value |data )?(?:missing|unknown|refused|not available|not reported|not recorded|not done|"
    r"not assessed|not administered|no data|no answer|don'?t know|n/?a)(?: .*)?",
    re.IGNORECASE,
)
_NOT_APPLICABLE = re.compile(r"not applicable.*", re.IGNORECASE)
#: Numbers that often mean a missing value
_CODE = re.compile(r"-?(?:7+|8+|9+)|-[1-6]")
#: Number of other values from which a number can be said to be far.
_FEWEST = 3
#: Number of whole numbers in a row that are a scale.
_SHORT_SCALE = 6


def missing_values(values: Collection[str], description: ColumnDescription) -> set[str]:
    """Find the values of a column of text that mean a missing value.

    Words such as `unknown` do so only if all other values contain digits, and a value that the
    sidecar lists among its Levels only if its meaning there says so.

    Examples
    --------
    >>> sorted(missing_values(["29", "unknown", ".", "-4"], {"Levels": {"-4": "Missing"}}))
    ['-4', '.', 'unknown']
    >>> missing_values(["SSRI", "none", "#N/A"], {})
    {'#N/A'}
    """
    levels = description.get("Levels")
    meanings = {str(k): str(v) for k, v in levels.items()} if isinstance(levels, dict) else {}
    listed = {str(level) for level in levels} if isinstance(levels, dict | list) else set()
    spelled = {v for v in values if v.casefold() in _SPELLINGS or _SPREADSHEET.fullmatch(v)}
    words = {v for v in values if v.casefold() in _AMONG_NUMBERS}
    rest = {*values} - spelled - words
    if rest and all(any(map(str.isdigit, value)) for value in rest):
        spelled |= words
    # A numeric scale lists only its special values, which are then all no numbers.
    is_scale = bool({value.removesuffix(".0") for value in rest} - listed)
    said = {
        level
        for level, meaning in meanings.items()
        if _MEANING.fullmatch(meaning) or (is_scale and _NOT_APPLICABLE.fullmatch(meaning))
    }
    return {
        value
        for value in values
        for names in [{value, value.removesuffix(".0")}]
        if names & said or (value in spelled and not names & listed)
    }


def doubtful_numbers(values: pd.Series) -> list[float]:
    """List the numbers of a column that look like codes of a missing value.

    They are -1 to -9, -99 and the like where no other value is negative, unless they continue a
    short scale such as -1, 0, 1; and 9, 99, 999 and the like (also of 7 and 8) that are farther
    above all other values than those are apart.

    Examples
    --------
    >>> doubtful_numbers(pd.Series([29.0, -4.0, 27.0, 30.0]))
    [-4.0]
    >>> doubtful_numbers(pd.Series([61.0, 999.0, 75.0, 82.0]))
    [999.0]
    >>> doubtful_numbers(pd.Series([70.0, 99.0, 61.0])), doubtful_numbers(pd.Series([-1, 0, 1]))
    ([], [])
    """
    known = values.dropna().to_numpy(dtype=float)
    codes = [v for v in np.unique(known).tolist() if _CODE.fullmatch(f"{v:g}")]
    others = known[~np.isin(known, codes)]
    negative = [] if (others < 0).any() else [v for v in codes if v < 0]
    rest = known[~np.isin(known, negative)]
    levels = np.unique([*rest, *negative])
    if len(levels) <= _SHORT_SCALE and (np.diff(levels) == 1).all():
        return []
    doubtful = negative if len(rest) >= _FEWEST else []
    highest = others.max(initial=0.0)
    for code in (v for v in codes if v > highest):
        below = rest[rest < code]
        if len(below) >= _FEWEST and code - below.max() > np.ptp(below):
            doubtful = [*doubtful, code]
            rest = rest[rest != code]
    return doubtful


def doubtful_words(levels: Collection[str]) -> list[str]:
    """List the levels of a column of words that may mean a missing value.

    Examples
    --------
    >>> doubtful_words(["AD", "CN", "-4", "Unknown"]), doubtful_words(["+", "-"])
    (['-4', 'Unknown'], [])
    """
    codes = {level for level in levels if _CODE.fullmatch(level)}
    # Among other numbers, or words that contain some, a number is a level.
    others = {*levels} - codes
    if not others or any(any(map(str.isdigit, level)) for level in others):
        codes = set()
    words = {level for level in others if level.casefold() in _AMONG_NUMBERS - {"none"}}
    if any(level and not level.strip("+") for level in levels):
        # Status may be written as + and -.
        words = {level for level in words if level.strip("-")}
    return sorted(codes | words)
