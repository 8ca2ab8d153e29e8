"""Counts and lists in messages and reports."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["counted", "listed"]

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
