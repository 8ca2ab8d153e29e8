"""Format counts and lists of names for messages and reports."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

#: Most names that are shown of a list.
_SHOWN = 20


def format_count(number: int, noun: str) -> str:
    """Write a number with its noun, in the plural unless the number is 1.

    Examples
    --------
    >>> format_count(1, "scan"), format_count(1200, "scan")
    ('1 scan', '1,200 scans')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def is_unicode(text: str) -> bool:
    r"""Tell whether a text can be written in UTF-8; names of files need not be.

    Examples
    --------
    >>> is_unicode("Köln"), is_unicode(b"K\xf6ln".decode(errors="surrogateescape"))
    (True, False)
    """
    return not any("\ud800" <= character <= "\udfff" for character in text)


def printable(text: str) -> str:
    r"""Write control characters, and bytes that are not UTF-8, as escapes.

    Examples
    --------
    >>> print(printable("01\r"), printable("caf\udce9"), printable("café"))
    01\r caf\udce9 café
    """
    return "".join(
        character if character.isprintable() else repr(character)[1:-1] for character in text
    )


def join_names(names: Iterable[str]) -> str:
    """Join names by commas; of many names, show the first 20 and count the others.

    Examples
    --------
    >>> join_names("abc"), join_names(map(str, range(22)))[-13:]
    ('a, b, c', '19 and 2 more')
    """
    every = [printable(name) for name in names]
    more = f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
    return ", ".join(every[:_SHOWN]) + more


def join_alternatives(names: Iterable[str]) -> str:
    """Join alternatives by commas and, before the last one, "or".

    Examples
    --------
    >>> join_alternatives(["T1w"]), join_alternatives(["T1w", "T2w", "FLAIR"])
    ('T1w', 'T1w, T2w or FLAIR')
    """
    *others, last = names
    return " or ".join([", ".join(others), last] if others else [last])


def suggest_names(names: Iterable[str], known: Collection[str]) -> str:
    """Join the known names by commas, beginning with those that are most similar to `names`.

    Examples
    --------
    >>> suggest_names(["Age"], ["sex", "diagnosis", "age"])
    'age, sex, diagnosis'
    """
    folded = {name.casefold(): name for name in reversed(list(known))}
    close = [
        folded[match]
        for name in names
        for match in difflib.get_close_matches(name.casefold(), folded, cutoff=0.5)
    ]
    return join_names(dict.fromkeys([*close, *known]))


def format_duration(seconds: float) -> str:
    """Write a duration as people do.

    Examples
    --------
    >>> [format_duration(seconds) for seconds in (4.2, 42, 150, 5500, 400_000)]
    ['4 s', '42 s', '2 min', '1.5 h', '4.6 days']
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
