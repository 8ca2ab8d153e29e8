"""Charts of all scans in the group report, as templates for ``group.js``.

A placeholder ``{"$": name}`` stands for a choice of the reader. The script fills it, and takes the
data from the page's single copy of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from hyps_bids.reports.vega import Spec, category, chart, layer, line_at, number

__all__ = ["change_chart", "distribution_chart", "quality_chart", "relation_chart"]

_DATA = {"name": "rows"}
_ROW = category("i")


def distribution_chart(bounds: Sequence[float] = ()) -> Spec:
    """Show a measure by group: quartiles, every scan as a point, and bounds.

    Rows have ``i`` (number of the scan), ``value``, ``x`` (near the place of the group), ``color``
    and ``ringed``. Boxes have ``from``, ``to``, ``low``, ``middle`` and ``high``.
    """
    # The places of groups are numbers, so that points can be scattered around them.
    places = {
        "values": _slot("places"),
        "labelExpr": "levels[datum.value]",
        "labelAngle": _slot("angle"),
        "labelLimit": 110,
        "labelOverlap": False,
        "grid": False,
        "ticks": False,
    }
    scale = {"domain": _slot("sides"), "nice": False}
    x = number("x", title=_slot("group_title"), axis=places, scale=scale)
    y = _value()
    box = {"x": x | {"field": "from"}, "x2": {"field": "to"}}
    box_mark, middle_mark = ({"type": "rect", "style": "box"}, {"type": "rule", "style": "middle"})
    low, high = y | {"field": "low"}, {"field": "high"}
    return chart(
        _slot("description"),
        [
            layer(box_mark, _slot("boxes"), **box, y=low, y2=high),
            _points(x, y),
            _rings(x, y),
            layer(middle_mark, _slot("boxes"), **box, y=y | {"field": "middle"}),
            *(line_at("y", bound, "bound") for bound in bounds),
        ],
        data=_DATA,
        height=300,
        params=[{"name": "levels", "value": _slot("groups")}],
    )


def relation_chart() -> Spec:
    """Show a measure against a number such as age, with a line per group.

    Rows have ``i``, ``x``, ``value``, ``color`` and ``ringed``.
    """
    x, y = _chosen_x(), _value()
    lines = layer(
        {"type": "line", "strokeWidth": 2.5, "clip": True}, x=x, y=y, color=_colors()["color"]
    )
    lines["transform"] = [
        {"filter": {"field": "color", "oneOf": _slot("lines")}},
        {"regression": "value", "on": "x", "groupby": ["color"]},
    ]
    layers = [_points(x, y), _rings(x, y), lines]
    return chart(_slot("description"), layers, data=_DATA, height=300)


def quality_chart() -> Spec:
    """Show two quality measures, with the bounds beyond which a scan is flagged.

    Rows have ``i``, ``x``, ``value`` and ``state``.
    """
    domain = {"domain": ["no flag", "flagged"]}
    shapes = domain | {"range": ["circle", "triangle-up"]}
    points = layer(
        _POINT,
        x=_chosen_x(),
        y=_value(),
        tooltip=_ROW,
        color=category("state", title=None, scale=domain),
        shape=category("state", title=None, scale=shapes),
    )
    bounds = [
        layer(
            {"type": "rule", "style": "bound"}, _slot(f"{axis}_bounds"), **{axis: number("bound")}
        )
        for axis in "xy"
    ]
    return chart(_slot("description"), [points, *bounds], data=_DATA, height=320)


def change_chart() -> Spec:
    """Show a measure over time, with a line per subject.

    Rows have ``i``, ``x`` (years since the first scan), ``value``, ``subject`` and ``color``.
    """
    x, y = number("x", title="years since the first scan"), _value()
    mark = {"type": "line", "strokeWidth": 1, "opacity": 0.45}
    lines = layer(mark, x=x, y=y, detail={"field": "subject"}, color=_colors()["color"])
    return chart(_slot("description"), [lines, _points(x, y)], data=_DATA, height=300)


def _slot(name: str) -> Spec:
    """Return a placeholder that ``group.js`` fills."""
    return {"$": name}


_POINT = {"type": "point", "filled": True, "size": _slot("size"), "opacity": _slot("opacity")}


def _value() -> Spec:
    scale = {"zero": False, "domain": _slot("domain")}
    return number("value", title=_slot("value_title"), scale=scale)


def _chosen_x() -> Spec:
    scale = {"zero": False, "domain": _slot("x_domain")}
    return number("x", title=_slot("x_title"), scale=scale)


def _colors() -> Spec:
    """Color and shape say the same, so that no reader needs both."""
    scale = {"domain": _slot("colors")}
    channel = category("color", title=_slot("color_title"), scale=scale, legend=_slot("legend"))
    return {"color": channel, "shape": channel}


def _points(x: Spec, y: Spec) -> Spec:
    return layer(_POINT, x=x, y=y, tooltip=_ROW, **_colors())


def _rings(x: Spec, y: Spec) -> Spec:
    """Draw rings around flagged scans and outliers, thinner ones where there are many."""
    style = {name: _slot(f"ring_{name}") for name in ("size", "opacity", "strokeWidth")}
    rings = layer(
        {"type": "point", "style": "ring", "filled": False, **style}, x=x, y=y, tooltip=_ROW
    )
    return rings | {"transform": [{"filter": "datum.ringed"}]}
