"""Format counts and lists of names for messages and reports."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

__all__ = ["counted", "listed", "similar"]

#: Most names that are shown of a list.
_SHOWN = 20


def counted(number: int, noun: str) -> str:
    """Write a number with its noun, in the plural unless the number is 1.

    Examples
    --------
    >>> counted(1, "scan"), counted(1200, "scan")
    ('1 scan', '1,200 scans')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def listed(names: Iterable[str]) -> str:
    """Join names by commas; of many names, show the first 20 and count the others.

    Examples
    --------
    >>> listed("abc"), listed(map(str, range(22)))[-13:]
    ('a, b, c', '19 and 2 more')
    """
    every = list(names)
    more = f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
    return ", ".join(every[:_SHOWN]) + more


def similar(names: Iterable[str], known: Collection[str]) -> str:
    """Join the known names by commas, beginning with those that are most similar to `names`.

    Examples
    --------
    >>> similar(["Age"], ["sex", "diagnosis", "age"])
    'age, sex, diagnosis'
    """
    folded = {name.casefold(): name for name in reversed(list(known))}
    close = [
        folded[match]
        for name in names
        for match in difflib.get_close_matches(name.casefold(), folded, cutoff=0.5)
    ]
    return listed(dict.fromkeys([*close, *known]))
