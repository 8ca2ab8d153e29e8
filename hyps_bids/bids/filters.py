"""The filter file: queries of pybids that narrow the selection of images, one per contrast."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bids.layout import BIDSLayout, Query
from sqlalchemy.exc import SQLAlchemyError

from hyps_bids.bids.layouts import image_query, query_images
from hyps_bids.errors import MissingInput, UsageError
from hyps_bids.messages import join_alternatives
from hyps_bids.outputs.reading import read_json_object

_LOG = logging.getLogger("hyps_bids")
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


#: Suffix → filters of its images: entity → value or list of values, in pybids' terms.
Filters = Mapping[str, Mapping[str, Any]]


def read_filters(path: Path, suffixes: Sequence[str]) -> Filters:
    """Read from a filter file the queries for the images with these suffixes.

    Queries are called by the suffix in lower case, as in fMRIPrep: ``t1w``, ``t2w``, ``flair``.

    Raises
    ------
    MissingInput
        If the file cannot be read.
    UsageError
        If it does not hold a query for any of these images.
    """
    content = read_json_object(path, error=UsageError, unreadable=MissingInput)
    names = {suffix: suffix.lower() for suffix in suffixes}
    lacking = [suffix for suffix, name in names.items() if name not in content]
    if len(lacking) == len(names):
        raise UsageError(
            f"{path}: must hold a query {_quoted(names.values())}: {{entity: value, …}}, because "
            f"--suffix selects {join_alternatives(suffixes)} images.",
            code="filter-query",
        )
    for suffix in lacking:
        _LOG.warning(
            "%s: has no query '%s', so it leaves out no %s image", path, names[suffix], suffix
        )
    used = [name for name in names.values() if name in content]
    ignored = sorted(set(content).difference(used))
    if ignored:
        _LOG.warning(
            "%s: the queries %s are not used here, only %s is",
            *(path, ", ".join(ignored), _quoted(used)),
        )
    return {
        suffix: _read_query(path, name, content[name], image_query([suffix]))
        for suffix, name in names.items()
        if name in content
    }


def _quoted(names: Iterable[str]) -> str:
    return join_alternatives(f"'{name}'" for name in names)


def _read_query(
    path: Path, name: str, query: Any, selection: Mapping[str, str | list[str]]
) -> dict[str, Any]:
    """Check the query with this name, which narrows the selection."""
    if not isinstance(query, dict):
        raise UsageError(
            f"{path}: the query '{name}' must be {{entity: value, …}}", code="filter-query"
        )
    nested = {
        key
        for key, value in query.items()
        for item in (value if isinstance(value, list) else [value])
        if isinstance(item, dict | list)
    }
    fixed = {key for key in set(query) & set(selection) if not _within(query[key], selection[key])}
    for names, why, code in (
        (
            fixed,
            f"cannot be set to other values in the query '{name}' than "
            f"{', '.join(f'{key}: {selection[key]}' for key in sorted(fixed))}; images of other "
            "contrasts are selected by --suffix",
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


def filtered_paths(
    layout: BIDSLayout, suffixes: Iterable[str], filters: Filters, path: Path
) -> set[Path]:
    """Return the images of these contrasts that pass the filters of the file `path`.

    Paths are relative to the dataset.

    Raises
    ------
    UsageError
        If pybids does not accept the filters.
    """
    try:
        images = [
            image
            for suffix in suffixes
            for image in query_images(
                layout,
                {**image_query([suffix]), **filters.get(suffix, {}), "invalid_filters": "error"},
            )
        ]
    except (ValueError, AttributeError, TypeError, SQLAlchemyError) as error:
        raise UsageError(f"{path}: {error}", code="filter-not-accepted") from error
    return set(map(Path, images))
