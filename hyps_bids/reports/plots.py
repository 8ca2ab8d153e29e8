"""Small charts of one person as SVG, which need no script and no library: curves, bands, points.

Lengths are in units of the picture, which is about as wide as a phone in pixels. Colors of axes and
letters come from the style sheet of the page, so that charts follow its light or dark colors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from markupsafe import Markup

#: Size of a chart, and its margins: left, right, top, bottom.
_WIDTH, _HEIGHT = 380, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 44
#: Number of ticks that an axis has at least.
_TICKS = 4
_Values = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Line:
    """A curve; its label stands at its last point. Points that are not finite interrupt it."""

    x: _Values
    y: _Values
    color: str
    style: Literal["solid", "dashed", "thin"] = "solid"
    label: str = ""


@dataclass(frozen=True)
class Band:
    """The area between two curves."""

    x: _Values
    low: _Values
    high: _Values
    color: str


@dataclass(frozen=True)
class Points:
    """Single values, with their intervals if known; points that are not finite are left out.

    The tips, one for each point, are shown under the pointer and read by screen readers.
    """

    x: _Values
    y: _Values
    color: str
    style: Literal["dot", "faint", "diamond"] = "dot"
    low: _Values = ()
    high: _Values = ()
    tips: Sequence[str] = ()


Mark = Line | Band | Points


@dataclass(frozen=True)
class Axis:
    """Title of an axis, and its range and ticks where they shall not follow from the marks.

    The ticks are places and their labels.
    """

    title: str
    range: tuple[float, float] | None = None
    ticks: Mapping[float, str] = field(default_factory=dict)


def plot(marks: Sequence[Mark], x: Axis, y: Axis, description: str) -> Markup:
    """Draw marks in the order given, and two axes.

    Parameters
    ----------
    marks : sequence of Line, Band and Points
        What to draw, in units of the axes. Colors are those of CSS.
    x, y : Axis
        The axes.
    description : str
        The chart in words, for those who cannot see it.

    Returns
    -------
    markupsafe.Markup
        An ``svg`` as wide as its place; ``plots.css`` has the style of its class ``line-chart``.

    Examples
    --------
    >>> svg = plot([Points([0, 1], [5, 7], "red")], Axis("years"), Axis("mm³"), "Two points")
    >>> svg.count("<circle"), "5.5" in svg
    (2, True)
    """
    across = _Scale.of(x, _values(marks, "x"), _LEFT, _WIDTH - _RIGHT)
    up = _Scale.of(y, _values(marks, "y"), _HEIGHT - _BOTTOM, _TOP)
    drawn = [*_axes(across, up, x, y)]
    for mark in marks:
        if isinstance(mark, Line):
            drawn += _line(mark, across, up)
        elif isinstance(mark, Band):
            drawn += _band(mark, across, up)
        else:
            drawn += _points(mark, across, up)
    return Markup(
        '<svg class="line-chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
    ).format(_WIDTH, _HEIGHT, description, Markup("").join(drawn))


def symbol(mark: Mark) -> Markup:
    """Draw what a legend shows of a mark.

    Examples
    --------
    >>> "<circle" in symbol(Points([], [], "red"))
    True
    """
    middle, ends = _Scale((0, 1), {}, 2, 28), _Scale((0, 1), {}, 14, 2)
    drawn: Iterator[Markup]
    if isinstance(mark, Line):
        drawn = _line(Line([0, 1], [0.5, 0.5], mark.color, mark.style), middle, ends)
    elif isinstance(mark, Band):
        drawn = _band(Band([0, 1], [0, 0], [1, 1], mark.color), middle, ends)
    else:
        low, high = ([0], [1]) if len(mark.low) else ((), ())
        drawn = _points(Points([0.5], [0.5], mark.color, mark.style, low, high), middle, ends)
    return Markup('<svg class="symbol" viewBox="0 0 30 16" aria-hidden="true">{}</svg>').format(
        Markup("").join(drawn)
    )


def nice_ticks(low: float, high: float, count: int = _TICKS) -> list[float]:
    """Choose round numbers within a range, at least `count` - 1 of them.

    Examples
    --------
    >>> nice_ticks(0, 3.1), nice_ticks(2411, 2689)
    ([0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0], [2450.0, 2500.0, 2550.0, 2600.0, 2650.0])
    """
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = max(factor * power for factor in (1, 2, 2.5, 5) if factor * power <= rough * 1.0001)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(k * step, 10) + 0.0 for k in range(first, last + 1)]


@dataclass(frozen=True)
class _Scale:
    """Range of the data and the places of its ends in the picture."""

    range: tuple[float, float]
    ticks: Mapping[float, str]
    start: float
    end: float

    @classmethod
    def of(cls, axis: Axis, values: np.ndarray, start: float, end: float) -> _Scale:
        found = values[np.isfinite(values)]
        low, high = axis.range or ((found.min(), found.max()) if found.size else (0.0, 1.0))
        if axis.range is None:
            # One value, or many equal ones, stand in the middle.
            margin = 0.06 * (high - low) or max(abs(low) * 0.05, 0.5)
            low, high = float(low - margin), float(high + margin)
        ticks = axis.ticks or {tick: _number(tick) for tick in nice_ticks(low, high)}
        return cls((low, high), ticks, start, end)

    def __call__(self, value: float) -> float:
        low, high = self.range
        return round(self.start + (value - low) / (high - low) * (self.end - self.start), 1)


def _number(value: float) -> str:
    return f"{value:,.10g}".replace("-", "−")


def _values(marks: Sequence[Mark], axis: str) -> np.ndarray:
    """Collect what the marks have on an axis."""
    names = ("x",) if axis == "x" else ("y", "low", "high")
    found = [np.asarray(getattr(m, n), float) for m in marks for n in names if hasattr(m, n)]
    return np.concatenate(found) if found else np.array([])


def _axes(across: _Scale, up: _Scale, x: Axis, y: Axis) -> Iterator[Markup]:
    left, right, bottom = _LEFT, _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    for value, label in up.ticks.items():
        yield Markup('<path class="grid" d="M{} {}H{}"/>').format(left, up(value), right)
        yield _text(left - 6, up(value) + 4, label, "end")
    for value, label in across.ticks.items():
        yield Markup('<path class="tick" d="M{} {}v4"/>').format(across(value), bottom)
        yield _text(across(value), bottom + 17, label, "middle")
    yield Markup('<path class="axis" d="M{} {}H{}"/>').format(left, bottom, right)
    yield _text((left + right) / 2, _HEIGHT - 7, x.title, "middle")
    middle = (_TOP + bottom) / 2
    yield Markup('<g transform="rotate(-90 12 {0})">{1}</g>').format(
        middle, _text(12, middle, y.title, "middle")
    )


def _line(line: Line, across: _Scale, up: _Scale) -> Iterator[Markup]:
    known = [(a, b) for a, b in zip(line.x, line.y, strict=True)]
    path, pen = "", "M"
    for a, b in known:
        if not (math.isfinite(a) and math.isfinite(b)):
            pen = "M"
            continue
        path += f"{pen}{across(a):g} {up(b):g}"
        pen = "L"
    if not path:
        return
    yield Markup('<path class="line {}" stroke="{}" d="{}"/>').format(line.style, line.color, path)
    a, b = known[-1]
    if line.label and math.isfinite(b):
        yield _text(across(a) - 2, up(b) - 4, line.label, "end")


def _band(band: Band, across: _Scale, up: _Scale) -> Iterator[Markup]:
    upper = [(across(a), up(b)) for a, b in zip(band.x, band.high, strict=True)]
    lower = [(across(a), up(b)) for a, b in zip(band.x, band.low, strict=True)]
    corners = " ".join(f"{a:g},{b:g}" for a, b in upper + lower[::-1])
    yield Markup('<polygon class="band" fill="{}" points="{}"/>').format(band.color, corners)


def _points(points: Points, across: _Scale, up: _Scale) -> Iterator[Markup]:
    for i, (a, b) in enumerate(zip(points.x, points.y, strict=True)):
        if not (math.isfinite(a) and math.isfinite(b)):
            continue
        x, y = across(a), up(b)
        drawn = Markup("")
        if len(points.low) and math.isfinite(points.low[i]) and math.isfinite(points.high[i]):
            drawn += Markup('<path class="whisker" stroke="{}" d="M{} {}V{}"/>').format(
                points.color, x, up(points.low[i]), up(points.high[i])
            )
        if points.style == "diamond":
            drawn += Markup('<path class="diamond" stroke="{}" d="M{} {}l5 5l-5 5l-5-5z"/>').format(
                points.color, x, y - 5
            )
        else:
            drawn += Markup('<circle class="{}" fill="{}" cx="{}" cy="{}" r="4"/>').format(
                points.style, points.color, x, y
            )
        tip = Markup("<title>{}</title>").format(points.tips[i]) if points.tips else ""
        yield Markup("<g>{}{}</g>").format(tip, drawn)


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{:g}" y="{:g}" text-anchor="{}">{}</text>').format(x, y, anchor, text)
