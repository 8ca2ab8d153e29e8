"""What a stored classifier remembers of its training set: the ranges of values."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from hyps_bids.classification.contrast import LabeledSubjects
from hyps_bids.classification.features import Schema
from hyps_bids.messages import format_count

#: Share of the range of training by which a value may be outside of it without a remark.
_MARGIN = 0.1

Ranges = dict[str, list[float]]


def value_ranges(data: LabeledSubjects, schema: Schema) -> Ranges:
    """Return the smallest and the largest value of each column of numbers that is used."""
    icv = [schema.icv] if schema.icv else []
    names = [*schema.features, *icv, *schema.numeric]
    values = {name: data.matrix[:, schema.columns.index(name)] for name in names}
    return {
        name: [float(np.nanmin(column)), float(np.nanmax(column))]
        for name, column in values.items()
        if np.isfinite(column).any()
    }


def far_outside(column: pd.Series, low: float, high: float) -> pd.Series:
    """Tell which values are outside of a range by more than a tenth of it.

    Examples
    --------
    >>> far_outside(pd.Series([20.0, 54.0, 70.0, 91.0, None]), 55, 90).tolist()
    [True, False, False, False, False]
    """
    values = pd.to_numeric(column, errors="coerce")
    margin = _MARGIN * (high - low)
    return (values < low - margin) | (values > high + margin)


def describe_outside(outside: Mapping[str, pd.DataFrame], ranges: Ranges) -> list[str]:
    """Say for each column how many subjects are outside of the range of training, and how far.

    `outside` has, by column, participant_id and ``value`` of the scans that are outside.
    """
    texts = []
    for name, rows in outside.items():
        low, high = ranges[name]
        values = " to ".join(f"{v:g}" for v in dict.fromkeys([rows.value.min(), rows.value.max()]))
        count = format_count(rows["participant_id"].nunique(), "subject")
        texts.append(f"{name} of {count} ({values}; trained on {low:g} to {high:g})")
    return texts
