"""Building blocks of Vega-Lite specifications.

Fields have names of ours, so that Vega can take no name of a column or level for an expression.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

__all__ = [
    *("SHARES", "TIP", "Spec", "category", "chart", "filled_point", "finite", "in_words", "layer"),
    *("line_at", "number", "records", "rounded", "with_interval"),
]

Spec = dict[str, Any]

#: channel of the text that is shown at a point
TIP: Spec = {"field": "tip", "type": "nominal"}
#: scale of shares
SHARES: Spec = {"domain": [0, 1]}
#: number of items that a description in words names
_NAMED = 12


def chart(description: str | Spec, layers: Sequence[Spec], *, height: int, **more: Any) -> Spec:
    """Make a chart of layers, as wide as its place in the page."""
    return {
        "description": description,
        "width": "container",
        "height": height,
        "layer": [*layers],
        **more,
    }


def layer(mark: Spec, values: Sequence[Spec] | Spec | None = None, **channels: Spec) -> Spec:
    """Make a layer: a mark, the data if they are not those of the chart, and the channels."""
    data = {} if values is None else {"data": {"values": values}}
    if "tooltip" not in channels:
        mark = mark | {"tooltip": False}
    return {**data, "mark": mark, "encoding": channels}


def number(field: str, **more: Any) -> Spec:
    """Make a channel of numbers."""
    return {"field": field, "type": "quantitative", **more}


def category(field: str, **more: Any) -> Spec:
    """Make a channel of names, with the title of its field unless another one is given."""
    return {"field": field, "type": "nominal", **more}


def filled_point(size: int, opacity: float = 1) -> Spec:
    """Make a mark of filled points."""
    return {"type": "point", "filled": True, "size": size, "opacity": opacity}


def line_at(axis: str, value: float | None, style: str = "reference") -> Spec:
    """Draw a straight line across the chart."""
    return layer({"type": "rule", "style": style}, [{"at": value}], **{axis: number("at")})


def records(
    rows: pd.DataFrame, tip: Callable[[Mapping[str, Any]], str], **columns: str
) -> list[Spec]:
    """Make the data of a chart from a table: field → column, and a text for each point."""
    return [
        {
            name: finite(value) if isinstance(value := row[column], float) else value
            for name, column in columns.items()
        }
        | {"tip": tip(row)}
        for row in rows.to_dict("records")
    ]


def with_interval(row: Mapping[str, Any], value: str, low: str, high: str) -> str:
    """Write a value with its interval."""
    return f"{row[value]:.2f} [{row[low]:.2f}, {row[high]:.2f}]"


def in_words(title: str, texts: Iterable[str]) -> str:
    """Describe a chart for those who cannot see it: the first few items, and how many more."""
    listed = list(texts)
    more = f"; and {len(listed) - _NAMED} more." if len(listed) > _NAMED else "."
    return f"{title}: {'; '.join(listed[:_NAMED])}{more}"


def rounded(value: float, digits: int = 4) -> float:
    """Round a number to what can be seen."""
    return round(float(value), digits)


def finite(value: float) -> float | None:
    """Round a number; None for what JSON cannot hold."""
    return rounded(value) if math.isfinite(value) else None
