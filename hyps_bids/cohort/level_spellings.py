"""Levels of a column that are written in several ways."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence

import pandas as pd

#: Columns with more levels are lists of names.
_MOST_LEVELS = 100
#: Length from which words in lower case, upper case and with a capital are the same word; in
#: genotypes AA, Aa and aa are not.
_SHORTEST_WORD = 3
_SEX = re.compile(r"(?i)sex|gender|m/f")
_SEXES = {"m": "m", "male": "m", "man": "m", "f": "f", "female": "f", "woman": "f"}


def join_spellings(
    values: pd.Series, name: str, listed: Sequence[str] = ()
) -> tuple[pd.Series, dict[str, str], list[list[str]]]:
    """Join the levels that differ in spelling only, where that cannot be wrong.

    These are words that differ in case or spaces, levels that differ in case from one that the
    sidecar lists, and M, m and male in a column of sexes. They take the spelling that is listed,
    or else the most frequent one.

    Parameters
    ----------
    values : pandas.Series
        Texts and missing values.
    name : str
        Name of the column.
    listed : sequence of str
        Levels that the sidecar lists.

    Returns
    -------
    pandas.Series
        The values with joined spellings.
    dict of str to str
        Spelling → spelling that it was joined to.
    list of list of str
        Levels that may be the same and were not joined.

    Examples
    --------
    >>> join_spellings(pd.Series(["Control", "Control", "control", "AD", "ad"]), "dx")[1:]
    ({'control': 'Control'}, [['AD', 'ad']])
    >>> join_spellings(pd.Series(["M", "male", "F", "M"]), "sex")[1:]
    ({'male': 'M'}, [])
    """
    counts = values.value_counts()
    if len(counts) > _MOST_LEVELS:
        return values, {}, []
    # The sort is stable, so that of equally frequent levels the first one counts.
    levels = sorted(map(str, counts.index), key=lambda level: (level not in listed, -counts[level]))
    is_sex = bool(_SEX.fullmatch(name)) and all(level.casefold() in _SEXES for level in levels)
    joined: dict[str, str] = {}
    for group in _groups(levels, _sex if is_sex else _folded):
        first, *others = group
        for level in others:
            same = _spaced(level) == _spaced(first)
            if level not in listed and (
                is_sex or same or first in listed or (_is_word(first) and _is_word(level))
            ):
                joined[level] = first
    kept = [level for level in levels if level not in joined]
    alike = [group for group in _groups(kept, _loose) if len(group) > 1]
    doubtful = [group for group in alike if not set(group) <= set(listed)]
    initials = _initials(kept) if not listed else []
    return values.replace(joined), joined, doubtful + initials


def sex_of_level(level: str) -> str:
    """Return F or M for a level that names a sex, in whatever spelling, and else an empty text.

    Examples
    --------
    >>> [sex_of_level(level) for level in ("female", "M", "man", "2")]
    ['F', 'M', 'M', '']
    """
    return _SEXES.get(_folded(level), "").upper()


def _groups(levels: Sequence[str], key: Callable[[str], str]) -> list[list[str]]:
    found = defaultdict(list)
    for level in levels:
        found[key(level)].append(level)
    return list(found.values())


def _spaced(level: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", level).split())


def _folded(level: str) -> str:
    return _spaced(level).casefold()


def _sex(level: str) -> str:
    return _SEXES[level.casefold()]


def _loose(level: str) -> str:
    """Leave out separators and zeros in front too: site-1, Site 01."""
    return re.sub(r"(?<!\d)0+(?=\d)", "", re.sub(r"[\s_-]+(?=\w)", "", _folded(level)))


def _is_word(level: str) -> bool:
    letters = re.sub(r"[\W\d_]", "", level)
    return len(letters) >= _SHORTEST_WORD and any(
        (level.islower(), level.isupper(), level.istitle(), level == level.capitalize())
    )


def _initials(levels: Sequence[str]) -> list[list[str]]:
    """Find letters beside the only word that begins with them."""
    found = []
    for letter in (level for level in levels if len(level) == 1 and level.isalpha()):
        words = [w for w in levels if len(w) > 2 and w.casefold().startswith(letter.casefold())]
        if len(words) == 1 and words[0].isalpha():
            found.append([letter, words[0]])
    return found
