"""Counts and lists in messages and reports."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

__all__ = ["counted", "listed", "similar"]

#: names to show of a longer list
_SHOWN = 20


def counted(number: int, noun: str) -> str:
    """Say how many there are.

    Examples
    --------
    >>> counted(1, "scan"), counted(1200, "scan")
    ('1 scan', '1,200 scans')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def listed(names: Iterable[str]) -> str:
    """List names, or the first of many.

    Examples
    --------
    >>> listed("abc"), listed(map(str, range(22)))[-13:]
    ('a, b, c', '19 and 2 more')
    """
    every = list(names)
    more = f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
    return ", ".join(every[:_SHOWN]) + more


def similar(names: Iterable[str], known: Collection[str]) -> str:
    """List the known names, those first that were probably meant.

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
