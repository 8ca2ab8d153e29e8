"""Contrasts of the images behind the rows of a table, which are not mixed without being told."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable

import pandas as pd

from hyps_bids.errors import UsageError
from hyps_bids.messages import format_count
from hyps_bids.outputs.scan import CONTRAST_ENTITIES, DEFAULT_SUFFIX

#: Columns of the wide table that tell contrasts apart; the second one tells nothing of contrast
#: agents and echoes.
CONTRAST, SUFFIX = "image_contrast", "suffix"


def contrasts_of(frame: pd.DataFrame) -> pd.Series:
    """Return the contrast of each row; tables of earlier versions are of T1w images alone."""
    if CONTRAST in frame:
        return frame[CONTRAST].astype("str")
    return pd.Series(DEFAULT_SUFFIX, index=frame.index, dtype="str")


def count_contrasts(frame: pd.DataFrame) -> dict[str, int]:
    """Count the scans of each contrast, T1w first and the others sorted."""
    counts = contrasts_of(frame).value_counts().to_dict()
    return {
        str(name): int(counts[name])
        for name in sorted(counts, key=lambda name: (name != DEFAULT_SUFFIX, name))
    }


def series_of(frame: pd.DataFrame) -> pd.Series:
    """Return the number of each scan's series, which is one participant's and of one contrast.

    Scans of different contrasts are no repetitions of each other: a T2w image of a session is no
    second point in time beside its T1w image.
    """
    return frame["participant_id"].groupby([frame["participant_id"], contrasts_of(frame)]).ngroup()


def refuse_several(
    frame: pd.DataFrame, what: str, named: Collection[str] = (), remedy: str = ""
) -> None:
    """Refuse to pool scans of several contrasts, unless the named columns tell them apart.

    Parameters
    ----------
    frame : pandas.DataFrame
        The scans that would be used.
    what : str
        The option and what it would do, for the message.
    named : collection of str
        Columns that the user has named as variables.
    remedy : str
        What else the user can do, as the end of a sentence that begins with "Please".

    Raises
    ------
    UsageError
        With the code ``contrasts-pooled``.
    """
    counts = count_contrasts(frame)
    telling = [name for name in (CONTRAST, SUFFIX) if name in named and name in frame]
    if len(counts) < 2 or any(_tells_apart(frame, name) for name in telling):
        return
    found = ", ".join(f"{name} ({format_count(n, 'scan')})" for name, n in counts.items())
    one = next(iter(counts))
    raise UsageError(
        f"{what} would mix images of {len(counts)} contrasts, whose volumes are not comparable: "
        f"{found}. Please choose one of them, such as {one} by {how_to_select(one, counts)}"
        f"{f', or {remedy}' if remedy else ''}.",
        code="contrasts-pooled",
    )


def _tells_apart(frame: pd.DataFrame, column: str) -> bool:
    return bool((contrasts_of(frame).groupby(frame[column]).nunique() == 1).all())


def how_to_select(kept: str, found: Iterable[str]) -> str:
    """Say by which options the images of one contrast are used, and none of the others found.

    Examples
    --------
    >>> how_to_select("T1w", ["T1w", "T2w"])
    '--suffix T1w'
    >>> how_to_select("ce-gd_T1w", ["T1w", "ce-gd_T1w", "echo-1_T2w"])
    '--suffix T1w and {"t1w": {"ceagent": "gd"}} in --bids-filter-file'
    """
    suffix, own = _split(kept)
    of_suffix = [entities for name in found for end, entities in [_split(name)] if end == suffix]
    query = {CONTRAST_ENTITIES[key]: own.get(key) for entities in of_suffix for key in entities}
    options = f"--suffix {suffix}"
    if query:
        options += f" and {json.dumps({suffix.lower(): query})} in --bids-filter-file"
    return options


def _split(contrast: str) -> tuple[str, dict[str, str]]:
    """Split the name of a contrast into suffix and entities."""
    *parts, suffix = contrast.split("_")
    return suffix, {key: value for key, _, value in (part.partition("-") for part in parts)}
