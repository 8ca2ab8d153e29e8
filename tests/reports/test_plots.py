"""Charts drawn as SVG have their marks where the axes say that they are."""

from __future__ import annotations

import re

import numpy as np
import pytest

from hyps_bids.reports.plots import Axis, Band, Line, Points, nice_ticks, plot


def _numbers(pattern: str, svg: str) -> list[list[float]]:
    return [[float(n) for n in found] for found in re.findall(pattern, svg)]


def _at(svg: str, axis: str) -> dict[str, float]:
    """Find the place of each tick of an axis by its label."""
    anchor = {"x": "middle", "y": "end"}[axis]
    found = re.findall(rf'<text x="(\S+)" y="(\S+)" text-anchor="{anchor}">([\d.,−]+)<', svg)
    return {label: float(x if axis == "x" else y) for x, y, label in found}


def test_points_stand_where_the_ticks_say() -> None:
    marks = [Points([0, 2], [2500, 2400], "red")]
    svg = plot(marks, Axis("years"), Axis("mm³"), "Chart")
    (x0, y0), (x1, y1) = _numbers(r'cx="(\S+)" cy="(\S+)"', svg)
    across, up = _at(svg, "x"), _at(svg, "y")
    assert (across["0"], across["2"]) == pytest.approx((x0, x1), abs=0.2)
    # Letters stand 4 units above their base line.
    assert (up["2,500"] - 4, up["2,400"] - 4) == pytest.approx((y0, y1), abs=0.2)
    assert y0 < y1, "more is further up"


def test_what_is_not_finite_is_left_out_and_interrupts_a_curve() -> None:
    values = [1.0, np.nan, 2.0, 3.0]
    marks = [
        Line(range(4), values, "blue"),
        Points(range(4), values, "red", low=[0.5, np.nan, np.nan, 2], high=[2, np.nan, 3, 4]),
    ]
    svg = plot(marks, Axis("x"), Axis("y"), "Chart")
    assert svg.count("<circle") == 3
    assert svg.count('class="whisker"') == 2
    (path,) = re.findall(r'class="line solid" stroke="blue" d="([^"]+)"', svg)
    assert path.count("M") == 2
    assert "nan" not in svg


def test_intervals_and_bands_are_within_the_axes() -> None:
    marks = [
        Band([0, 1], [-50, -60], [80, 90], "gray"),
        Points([0.5], [10], "red", low=[-200], high=[200]),
    ]
    svg = plot(marks, Axis("x"), Axis("y"), "Chart")
    ((_, top, bottom),) = _numbers(r'class="whisker" stroke="red" d="M(\S+) (\S+)V(\S+)"', svg)
    assert 0 < bottom < top < 250


def test_names_of_visits_and_texts_are_escaped() -> None:
    svg = plot(
        [Points([1], [1], "red", tips=["<b>&"])],
        Axis("visit", (0, 2), {1: "ses-<1>"}),
        Axis("mm³"),
        'a "chart"',
    )
    assert "ses-&lt;1&gt;" in svg
    assert "<title>&lt;b&gt;&amp;</title>" in svg
    assert "&#34;chart&#34;" in svg


def test_without_values_there_are_axes() -> None:
    assert "<circle" not in plot([Points([], [], "red")], Axis("x"), Axis("y"), "Empty")


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.2, 4.9), (2400, 2400.5), (18, 95), (0, 1e5)])
def test_ticks_are_round_and_within_the_range(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert 3 <= len(ticks) <= 9
    assert low <= ticks[0] < ticks[-1] <= high
    steps = np.diff(ticks)
    assert np.allclose(steps, steps[0])
