"""Turn columns that were read as text into numbers and categories."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import pandas as pd

from hyps_bids.messages import join_names
from hyps_bids.outputs.columns import ColumnDescription

_LOG = logging.getLogger("hyps_bids")
#: Spellings of a missing value other than n/a.
_MISSING = {"N/A", "NA", "NaN", "nan", "NULL", "null", "None", "none"}
#: A number without leading zeros, because 01 is a label.
_NUMBER = r"[+-]?(?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"


def mistyped_numbers(column: pd.Series) -> list[str]:
    """List the values of a column of text that are no numbers, if most of its values are.

    One mistyped value turns such a column into text, and each of its numbers into a category.

    Examples
    --------
    >>> mistyped_numbers(pd.Series(["70", "71,5", "68", None]))
    ['71,5']
    >>> mistyped_numbers(pd.Series(["F", "M", "1"]))
    []
    """
    if pd.api.types.is_numeric_dtype(column) or isinstance(column.dtype, pd.CategoricalDtype):
        return []
    values = column.dropna().astype("str")
    is_number = values.str.fullmatch(_NUMBER)
    return sorted(set(values[~is_number])) if is_number.sum() > len(values) / 2 else []


def infer_types(
    frame: pd.DataFrame, columns: Mapping[str, ColumnDescription], source: str
) -> pd.DataFrame:
    """Turn columns of text into floats and categories where their values or sidecar say so.

    ``Levels`` in the sidecar make a column categorical, in their order, with unlisted values last.
    A column with the ``Format`` ``string`` stays text. Other spellings of n/a, such as NA, are
    missing unless they are levels. Warnings name the `source` of the columns.

    Examples
    --------
    >>> frame = pd.DataFrame({"age": ["70", "89+", "NA"], "sex": ["2", "1", "2.0"],
    ...     "site": ["01", "02", None]})
    >>> sex = {"Levels": {"1": "male", "2": "female"}}
    >>> infer_types(frame, {"sex": sex}, "x.tsv").to_dict("list")
    {'age': [70.0, 89.0, nan], 'sex': ['2', '1', '2'], 'site': ['01', '02', nan]}
    """
    result: dict[str, pd.Series] = {}
    with_other_spelling = []
    for name, column in frame.items():
        description = columns.get(name, {})
        levels = _listed_levels(description)
        values = column.astype("str")
        missing = values.isin(_MISSING - set(levels))
        if missing.any():
            with_other_spelling.append(name)
        if name == "age":
            # BIDS hides the exact age of very old participants as "89+".
            values = values.str.removesuffix("+")
        is_text = description.get("Format") == "string"
        result[name] = _infer_type(values.mask(missing), levels, is_text, f"{source}: {name}")
    if with_other_spelling:
        _LOG.warning(
            "%s: values such as NA or NaN were taken as missing in the columns %s; BIDS spells a "
            "missing value n/a",
            source,
            join_names(with_other_spelling),
        )
    return pd.DataFrame(result, index=frame.index)


def _listed_levels(description: ColumnDescription) -> list[str]:
    levels = description.get("Levels")
    return [str(level) for level in levels] if isinstance(levels, dict | list) else []


def _infer_type(values: pd.Series, levels: list[str], is_text: bool, where: str) -> pd.Series:
    # pandas writes the integers of a column with missing values as 1.0.
    plain = values.str.removesuffix(".0")
    values = values.mask(plain.isin(levels), plain)
    numeric = bool(values.dropna().str.fullmatch(_NUMBER).all())
    unlisted = sorted(set(values.dropna()) - set(levels))
    # A numeric scale may list only its special values, such as 999 for "refused".
    if levels and not (numeric and unlisted):
        if unlisted:
            _LOG.warning(
                "%s has values that the JSON sidecar does not list among its Levels: %s; they were "
                "added as further levels, so please check their spelling",
                where,
                join_names(unlisted),
            )
        return values.astype(pd.CategoricalDtype([*levels, *unlisted]))
    if is_text:
        return values
    if numeric and values.notna().any():
        return values.astype("float64")
    if wrong := mistyped_numbers(values):
        _LOG.warning(
            "%s is taken as text, because these of its values are not numbers: %s; correct them, "
            "or write n/a",
            where,
            join_names(map(repr, wrong)),
        )
    return values
