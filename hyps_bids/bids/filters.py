"""The filter file: a query of pybids that narrows the selection of T1w images."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from bids.layout import BIDSLayout, Query
from sqlalchemy.exc import SQLAlchemyError

from hyps_bids.bids.layouts import T1W, query_images
from hyps_bids.errors import MissingInput, UsageError
from hyps_bids.outputs.reading import read_json_object

_LOG = logging.getLogger("hyps_bids")
#: Name of the query in the file, as in fMRIPrep.
_QUERY = "t1w"
#: Arguments of pybids' query that are no entities and would change what it returns.
_ARGUMENTS = {"absolute_paths", "invalid_filters", "return_type", "scope", "target"}
_WORDS = {
    None: Query.NONE,
    "*": Query.ANY,
    "Query.NONE": Query.NONE,
    "Query.ANY": Query.ANY,
    "Query.OPTIONAL": Query.OPTIONAL,
    "Query.REQUIRED": Query.REQUIRED,
}


def read_filters(path: Path) -> dict[str, Any]:
    """Read a filter file: entity → value or list of values, in pybids' terms.

    Raises
    ------
    MissingInput
        If the file cannot be read.
    UsageError
        If it does not hold a query for T1w images.
    """
    content = read_json_object(path, error=UsageError, unreadable=MissingInput)
    query = content.get(_QUERY)
    if not isinstance(query, dict):
        raise UsageError(
            f"{path}: must hold a query '{_QUERY}': {{entity: value, …}}", code="filter-query"
        )
    ignored = sorted(set(content) - {_QUERY})
    if ignored:
        _LOG.warning(
            "%s: the queries %s are not used here, only '%s' is", path, ", ".join(ignored), _QUERY
        )
    nested = {
        key
        for key, value in query.items()
        for item in (value if isinstance(value, list) else [value])
        if isinstance(item, dict | list)
    }
    fixed = {key for key in set(query) & set(T1W) if not _within(query[key], T1W[key])}
    for names, why, code in (
        (
            fixed,
            "cannot be set to other values than those of T1w images "
            f"({', '.join(f'{key}: {T1W[key]}' for key in sorted(fixed))})",
            "filter-fixed",
        ),
        (set(query) & _ARGUMENTS, "is not an entity", "filter-argument"),
        (nested, "must be a value or a list of values", "filter-value"),
    ):
        if names:
            raise UsageError(f"{path}: {', '.join(sorted(names))} {why}.", code=code)
    return {key: _translate(value) for key, value in query.items()}


def _within(value: Any, allowed: str | list[str]) -> bool:
    """Tell whether a filter asks for nothing but what is selected anyway; it may ask for less."""
    values = value if isinstance(value, list) else [value]
    known = {word.lstrip(".") for word in ([allowed] if isinstance(allowed, str) else allowed)}
    return bool(values) and all(isinstance(v, str) and v.lstrip(".") in known for v in values)


def _translate(value: Any) -> Any:
    """Turn null, "*" and "Query.…" into what pybids wants."""
    if isinstance(value, list):
        return [_translate(item) for item in value]
    return _WORDS.get(value, value)


def filtered_paths(layout: BIDSLayout, filters: dict[str, Any], path: Path) -> set[Path]:
    """Return the images that pass the filters of the file `path`, relative to the dataset.

    Raises
    ------
    UsageError
        If pybids does not accept the filters.
    """
    try:
        images = query_images(layout, T1W | filters | {"invalid_filters": "error"})
    except (ValueError, AttributeError, TypeError, SQLAlchemyError) as error:
        raise UsageError(f"{path}: {error}", code="filter-not-accepted") from error
    return set(map(Path, images))
