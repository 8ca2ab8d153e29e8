"""Levels of categorical columns, and the one that marks the reference group."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

#: Names of columns that mark groups, whatever their numbers are.
_GROUP_NAME = re.compile(
    r"dx|diag|group|arm|site|scanner|cent(er|re)|sex|gender|cohort|class|type|race|ethnic|protocol",
    re.IGNORECASE,
)
#: Most codes of a column whose name says nothing.
_MOST_CODES = 10


def equals_level(values: pd.Series, level: str) -> pd.Series:
    """Tell which values are the level that a user has written on the command line.

    Numbers are compared as numbers, and booleans without regard to case.

    Examples
    --------
    >>> equals_level(pd.Series([1.0, 2.0]), "2").tolist()
    [False, True]
    >>> equals_level(pd.Series(["01", "1"]), "1").tolist()
    [False, True]
    """
    kind = values.cat.categories if isinstance(values.dtype, pd.CategoricalDtype) else values
    if pd.api.types.is_bool_dtype(kind):
        return values.astype("str").str.casefold() == level.casefold()
    if pd.api.types.is_numeric_dtype(kind):
        return values.astype("float64") == pd.to_numeric(level, errors="coerce")
    return values == level


def as_categories(column: pd.Series, reference: str | None = None) -> pd.Series:
    """Make a column categorical, without levels that do not occur.

    Parameters
    ----------
    column : pandas.Series
        Text, numbers, booleans or categories, without missing values.
    reference : str, optional
        The level that becomes the first one, if it occurs; the others keep their order.

    Examples
    --------
    >>> as_categories(pd.Series([1.0, 2.0, 0.5]), "2.0").cat.categories.tolist()
    [2.0, 0.5, 1.0]
    >>> as_categories(pd.Series([1.0, 2.0])).cat.categories.tolist()
    [1, 2]
    """
    if pd.api.types.is_float_dtype(column) and np.array_equal(column, np.round(column)):
        # Codes are shown as they were written: 2 instead of 2.0.
        column = column.astype("int64")
    column = column.astype("category").cat.remove_unused_categories()
    levels = pd.Series(column.cat.categories)
    if reference is not None:
        is_first = equals_level(levels, reference)
        levels = pd.concat([levels[is_first], levels[~is_first]])
    return column.cat.reorder_categories(levels.tolist())


def looks_like_codes(values: pd.Series, subjects: pd.Series) -> bool:
    """Tell whether whole numbers are likely codes of three or more groups, not quantities.

    Codes begin with 0 or 1 and hardly leave a number out, or the name of the column says that it
    marks groups. Numbers that change between most subjects' visits are no codes.

    Examples
    --------
    >>> subjects = pd.Series(range(6))
    >>> looks_like_codes(pd.Series([1, 2, 3, 1, 2, 3], name="status"), subjects)
    True
    >>> looks_like_codes(pd.Series([12, 13, 16, 12, 18, 12], name="education"), subjects)
    False
    """
    values = values.dropna()
    codes = values.unique()
    if not 3 <= len(codes) <= len(values) / 2 or not np.array_equal(codes, np.round(codes)):
        return False
    visits = values.groupby(subjects.loc[values.index]).nunique()
    repeated = subjects.loc[values.index].value_counts() > 1
    if repeated.any() and (visits[repeated[repeated].index] > 1).mean() > 1 / 2:
        return False
    is_dense = codes.min() in (0, 1) and codes.max() <= len(codes) + 1
    is_named = _GROUP_NAME.search(str(values.name)) is not None
    return is_named or (is_dense and len(codes) <= _MOST_CODES)
