"""Levels of categorical columns, and the one that marks the reference group."""

from __future__ import annotations

import numpy as np
import pandas as pd


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
