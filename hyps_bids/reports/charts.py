"""Charts of the group report, as Vega-Lite specifications.

Charts of the cohort are templates: what the reader chooses is a placeholder ``{"$": name}`` that
``group.js`` fills, and the data come from the page's one copy. Fields have names of ours, so that
no name of a column or level can be taken for an expression. All other charts hold their own data.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from hyps_bids.reports.flags import HEMISPHERES

__all__ = [
    "agreement_chart",
    "calibration_chart",
    "change_chart",
    "comparison_chart",
    "confusion_chart",
    "dice_chart",
    "distribution_chart",
    "forest_chart",
    "importance_chart",
    "learning_chart",
    "quality_chart",
    "relation_chart",
    "roc_chart",
]

Spec = dict[str, Any]

#: points of a curve beyond which nobody sees a difference
_CURVE = 200
#: scans that still fit below each other
_FEW = 40
_TIP = {"field": "tip", "type": "nominal"}
_TEXT = {"field": "text", "type": "nominal"}
_ROW = {"field": "i", "type": "nominal"}
_COHORT = {"name": "rows"}
_NO_TITLE = {"title": None}
_UNIT = {"domain": [0, 1]}
_RULE = {"type": "rule", "style": "bound", "tooltip": False}
_DIAGONAL = {
    "data": {"values": [{"x": 0, "y": 0}, {"x": 1, "y": 1}]},
    "mark": {"type": "line", "style": "reference"},
    "encoding": {
        "x": {"field": "x", "type": "quantitative"},
        "y": {"field": "y", "type": "quantitative"},
    },
}


def distribution_chart(bounds: Sequence[float] = ()) -> Spec:
    """Show a measure by group: quartiles, and every scan as a point.

    Parameters
    ----------
    bounds : sequence of float
        Thresholds to draw.

    Returns
    -------
    dict
        Template; rows have ``i`` (number of the scan), ``value``, ``x`` (about the place of the
        group), ``color`` and ``ringed``; boxes have ``from``, ``to``, ``low``, ``middle`` and
        ``high``.
    """
    # places are numbers, so that points can be scattered about them
    places = {
        "values": {"$": "places"},
        "labelExpr": "levels[datum.value]",
        "labelAngle": {"$": "angle"},
        "labelLimit": 110,
        "labelOverlap": False,
        "grid": False,
        "ticks": False,
    }
    x = _number("x", "group_title")
    x |= {"axis": places, "scale": {"domain": {"$": "sides"}, "nice": False}}
    y = _number("value", "value_title") | {"scale": {"zero": False, "domain": {"$": "domain"}}}
    box = {"x": x | {"field": "from"}, "x2": {"field": "to"}}
    return _chart(
        {"$": "description"},
        [
            {
                "data": {"values": {"$": "boxes"}},
                "mark": {"type": "rect", "style": "box", "tooltip": False},
                "encoding": {**box, "y": y | {"field": "low"}, "y2": {"field": "high"}},
            },
            {"mark": _points(), "encoding": {"x": x, "y": y, "tooltip": _ROW, **_colors()}},
            {
                "transform": [{"filter": "datum.ringed"}],
                "mark": _ring(),
                "encoding": {"x": x, "y": y, "tooltip": _ROW},
            },
            {
                "data": {"values": {"$": "boxes"}},
                "mark": {"type": "rule", "style": "middle", "tooltip": False},
                "encoding": {**box, "y": y | {"field": "middle"}},
            },
            *_bounds("y", bounds),
        ],
        data=_COHORT,
        height=300,
        params=[{"name": "levels", "value": {"$": "groups"}}],
    )


def relation_chart() -> Spec:
    """Show a measure against a number such as age, with a line per group.

    Returns
    -------
    dict
        Template; rows have ``i``, ``x``, ``value``, ``color`` and ``ringed``.
    """
    x = _number("x", "x_title") | {"scale": {"zero": False, "domain": {"$": "x_domain"}}}
    y = _number("value", "value_title") | {"scale": {"zero": False, "domain": {"$": "domain"}}}
    line = {"regression": "value", "on": "x", "groupby": ["color"]}
    return _chart(
        {"$": "description"},
        [
            {
                "mark": _points(),
                "encoding": {"x": x, "y": y, "tooltip": _ROW, **_colors()},
            },
            {
                "transform": [{"filter": "datum.ringed"}],
                "mark": _ring(),
                "encoding": {"x": x, "y": y, "tooltip": _ROW},
            },
            {
                "transform": [{"filter": {"field": "color", "oneOf": {"$": "lines"}}}, line],
                "mark": {"type": "line", "strokeWidth": 2.5, "clip": True, "tooltip": False},
                "encoding": {"x": x, "y": y, "color": _colors()["color"]},
            },
        ],
        data=_COHORT,
        height=300,
    )


def quality_chart() -> Spec:
    """Show two figures of quality, with the bounds beyond which a scan is flagged.

    Returns
    -------
    dict
        Template; rows have ``i``, ``x``, ``value`` and ``state``.
    """
    x = _number("x", "x_title") | {"scale": {"zero": False, "domain": {"$": "x_domain"}}}
    y = _number("value", "value_title") | {"scale": {"zero": False, "domain": {"$": "domain"}}}
    state = {"field": "state", "type": "nominal", "title": None}
    states = {"domain": ["no flag", "flagged"]}
    rules = [
        {
            "data": {"values": {"$": f"{axis}_bounds"}},
            "mark": _RULE,
            "encoding": {axis: {"field": "bound", "type": "quantitative"}},
        }
        for axis in "xy"
    ]
    points = {
        "mark": _points(),
        "encoding": {
            "x": x,
            "y": y,
            "tooltip": _ROW,
            "color": state | {"scale": states},
            "shape": state | {"scale": states | {"range": ["circle", "triangle-up"]}},
        },
    }
    return _chart({"$": "description"}, [points, *rules], data=_COHORT, height=320)


def change_chart() -> Spec:
    """Show a measure over time, a line per subject.

    Returns
    -------
    dict
        Template; rows have ``i``, ``x`` (years since the first scan), ``value``, ``subject`` and
        ``color``.
    """
    x = {"field": "x", "type": "quantitative", "title": "years since the first scan"}
    y = _number("value", "value_title") | {"scale": {"zero": False, "domain": {"$": "domain"}}}
    colors = _colors()
    return _chart(
        {"$": "description"},
        [
            {
                "mark": {"type": "line", "strokeWidth": 1, "opacity": 0.45, "tooltip": False},
                "encoding": {
                    "x": x,
                    "y": y,
                    "detail": {"field": "subject"},
                    "color": colors["color"],
                },
            },
            {"mark": _points(), "encoding": {"x": x, "y": y, "tooltip": _ROW, **colors}},
        ],
        data=_COHORT,
        height=300,
    )


def forest_chart(rows: pd.DataFrame) -> Spec:
    """Show the effect sizes of one coefficient over regions.

    Parameters
    ----------
    rows : pandas.DataFrame
        Rows of the models' table with columns ``label`` (the region), ``effect``,
        ``effect_low``, ``effect_high`` and ``p_fdr``.
    """
    values: list[Spec] = [
        {
            "label": row["label"],
            "effect": _finite(row["effect"]),
            "low": _finite(row["effect_low"]),
            "high": _finite(row["effect_high"]),
            "sure": "FDR p < 0.05" if row["p_fdr"] < 0.05 else "FDR p ≥ 0.05",
            "tip": f"{row['label']}: {_with_interval(row, 'effect', 'effect_low', 'effect_high')}"
            f"\nFDR p = {row['p_fdr']:.2g}",
        }
        for row in rows.to_dict("records")
    ]
    y = {"field": "label", "type": "nominal", "sort": None, **_NO_TITLE}
    effect = {"type": "quantitative", "title": "effect size, 95 % interval"}
    kinds = {"domain": ["FDR p < 0.05", "FDR p ≥ 0.05"]}
    sure = {"field": "sure", "type": "nominal", "title": None}
    return _chart(
        _in_words("Effect sizes", (v["tip"].replace("\n", ", ") for v in values)),
        [
            _line_at("x", 0),
            {
                "mark": {"type": "rule", "strokeWidth": 1.5, "tooltip": False},
                "encoding": {
                    "y": y,
                    "x": {"field": "low", **effect},
                    "x2": {"field": "high"},
                    "color": sure | {"scale": kinds},
                },
            },
            {
                "mark": {"type": "point", "filled": True, "opacity": 1, "size": 70},
                "encoding": {
                    "y": y,
                    "x": {"field": "effect", **effect},
                    "tooltip": _TIP,
                    "color": sure | {"scale": kinds},
                    "shape": sure | {"scale": kinds | {"range": ["square", "circle"]}},
                },
            },
        ],
        data={"values": values},
        height=60 + 22 * len(values),
    )


def roc_chart(table: pd.DataFrame) -> Spec:
    """Draw the ROC curve of each repeat, thin, and their mean, thick.

    Parameters
    ----------
    table : pandas.DataFrame
        ``roc.tsv`` of a classifier.
    """
    grid = np.linspace(0, 1, 101)
    thin: list[Spec] = []
    thick: list[Spec] = []
    for name, curves in table.groupby("class", sort=False):
        sampled = []
        for repeat, curve in curves.groupby("repeat"):
            x = curve["false_positive_rate"].to_numpy()
            y = curve["sensitivity"].to_numpy()
            sampled.append(np.interp(grid, x, y))
            if len(x) > _CURVE:
                x, y = grid, sampled[-1]
            thin += [
                {"class": str(name), "curve": f"{name} {repeat}", "x": _round(a), "y": _round(b)}
                for a, b in zip(x, y, strict=True)
            ]
        thick += [
            {
                "class": str(name),
                "x": _round(a),
                "y": _round(b),
                "tip": f"{name}: sensitivity {b:.2f} at specificity {1 - a:.2f}",
            }
            for a, b in zip(grid, np.mean(sampled, axis=0), strict=True)
        ]
    x = {"field": "x", "type": "quantitative", "title": "1 − specificity", "scale": _UNIT}
    y = {"field": "y", "type": "quantitative", "title": "sensitivity", "scale": _UNIT}
    color = {"field": "class", "type": "nominal", "title": "positive class", "sort": None}
    halves = {v["class"]: v["tip"] for v in thick if v["x"] <= 0.2}
    return _chart(
        _in_words("ROC curves, mean of the repeats", halves.values()),
        [
            _DIAGONAL,
            {
                "data": {"values": thin},
                "mark": {"type": "line", "opacity": 0.3, "strokeWidth": 1, "tooltip": False},
                "encoding": {"x": x, "y": y, "color": color, "detail": {"field": "curve"}}
                # several points have the same x
                | {"order": {"field": "y", "type": "quantitative"}},
            },
            {
                "data": {"values": thick},
                "mark": {"type": "line", "strokeWidth": 3, "point": {"opacity": 0, "size": 120}},
                "encoding": {"x": x, "y": y, "color": color, "tooltip": _TIP},
            },
        ],
        height=300,
    )


def calibration_chart(table: pd.DataFrame) -> Spec:
    """Compare predicted probabilities with what came true.

    Parameters
    ----------
    table : pandas.DataFrame
        ``calibration.tsv`` of a classifier.
    """
    values: list[Spec] = [
        {
            "class": str(row["class"]),
            "x": _round(row["predicted"]),
            "y": _round(row["observed"]),
            "tip": f"{row['class']}: predicted {row['predicted']:.2f}, came true "
            f"{row['observed']:.2f} of {row['n']:.0f} subjects",
        }
        for row in table.to_dict("records")
    ]
    color = {"field": "class", "type": "nominal", "title": "class", "sort": None}
    return _chart(
        _in_words("Calibration", (v["tip"] for v in values)),
        [
            _DIAGONAL,
            {
                "data": {"values": values},
                "mark": {"type": "line", "point": {"size": 70, "opacity": 1}},
                "encoding": {
                    "x": {
                        "field": "x",
                        "type": "quantitative",
                        "title": "predicted probability",
                        "scale": _UNIT,
                    },
                    "y": {
                        "field": "y",
                        "type": "quantitative",
                        "title": "observed share",
                        "scale": _UNIT,
                    },
                    "color": color,
                    "tooltip": _TIP,
                },
            },
        ],
        height=300,
    )


def confusion_chart(table: pd.DataFrame) -> Spec:
    """Count true against called classes.

    Parameters
    ----------
    table : pandas.DataFrame
        ``confusion.tsv`` of a classifier: ``true``, then a column per called class.
    """
    counts = table.set_index("true")
    values: list[Spec] = []
    for true, row in counts.iterrows():
        total = row.sum()
        for called, count in row.items():
            share = count / total if total else 0.0
            values.append(
                {
                    "true": str(true),
                    "called": str(called),
                    "share": _round(share),
                    "text": f"{count:.4g} ({share:.0%})",
                    "tip": f"{true}, called {called}: {count:.4g} of {total:.4g} ({share:.0%})",
                }
            )
    x = {"field": "called", "type": "nominal", "sort": None, "axis": {"labelAngle": 0}}
    y = {"field": "true", "type": "nominal", "sort": None}
    # white or black, whichever can be read on the color
    ink = {"condition": {"test": "datum.share > 0.45", "value": "#fff"}, "value": "#000"}
    return _chart(
        _in_words("Confusion matrix", (v["tip"] for v in values)),
        [
            {
                "mark": {"type": "rect"},
                "encoding": {
                    "x": x,
                    "y": y,
                    "tooltip": _TIP,
                    "color": {
                        "field": "share",
                        "type": "quantitative",
                        "legend": None,
                        "scale": {"domain": [0, 1], "range": ["#e8f1fa", "#0b4f8a"]},
                    },
                },
            },
            {
                "mark": {"type": "text", "fontSize": 13, "tooltip": False},
                "encoding": {"x": x, "y": y, "text": _TEXT, "color": ink},
            },
        ],
        data={"values": values},
        height=max(160, 60 * len(counts)),
    )


def importance_chart(table: pd.DataFrame) -> Spec:
    """Show how much the AUC falls when a column is shuffled.

    Parameters
    ----------
    table : pandas.DataFrame
        ``importance.tsv`` of a classifier.
    """
    values: list[Spec] = [
        {
            "column": str(row["column"]),
            "fall": _finite(row["auc_fall"]),
            "low": _finite(row["auc_fall"] - row["sd"]),
            "high": _finite(row["auc_fall"] + row["sd"]),
            "tip": f"{row['column']}: AUC falls by {row['auc_fall']:.3f} ± {row['sd']:.3f}",
        }
        for row in table.sort_values("auc_fall", ascending=False, kind="stable").to_dict("records")
    ]
    y: Spec = {"field": "column", "type": "nominal", "sort": None, **_NO_TITLE}
    y |= {"axis": {"labelLimit": 220}}
    return _chart(
        _in_words("Importance", (v["tip"] for v in values)),
        [
            {
                "mark": {"type": "bar", "style": "fill"},
                "encoding": {
                    "y": y,
                    "tooltip": _TIP,
                    "x": {
                        "field": "fall",
                        "type": "quantitative",
                        "title": "fall of the AUC when shuffled, ± SD over folds",
                        # where nothing falls, there is no scale otherwise
                        "scale": {"domain": {"unionWith": [0, 0.05]}},
                    },
                },
            },
            {
                "mark": {"type": "rule", "style": "whisker", "tooltip": False},
                "encoding": {
                    "y": y,
                    "x": {"field": "low", "type": "quantitative"},
                    "x2": {"field": "high"},
                },
            },
        ],
        data={"values": values},
        height=60 + 20 * len(values),
    )


def comparison_chart(figures: pd.DataFrame) -> Spec:
    """Compare the AUC of the sets of features, with the wider of the two intervals.

    Parameters
    ----------
    figures : pandas.DataFrame
        Rows of ``figures.tsv`` with figure ``auc`` of the selected estimator; ``low`` and
        ``high`` are the ends to draw.
    """
    values: list[Spec] = [
        {
            "features": str(row["features"]),
            "validation": str(row["validation"]),
            "value": _finite(row["value"]),
            "low": _finite(row["low"]),
            "high": _finite(row["high"]),
            "tip": f"{row['features']}, {row['validation']}: AUC "
            f"{_with_interval(row, 'value', 'low', 'high')}",
        }
        for row in figures.to_dict("records")
    ]
    y = {"field": "features", "type": "nominal", "sort": None, **_NO_TITLE}
    kind = {"field": "validation", "type": "nominal", "sort": None, "title": None}
    offset = {"field": "validation", "sort": None}
    title = "AUC, 95 % interval"
    return _chart(
        _in_words("AUC by set of features", (v["tip"] for v in values)),
        [
            _line_at("x", 0.5),
            {
                "mark": {"type": "rule", "strokeWidth": 1.5, "tooltip": False},
                "encoding": {
                    "y": y,
                    "yOffset": offset,
                    "x": {"field": "low", "type": "quantitative", "title": title, "scale": _UNIT},
                    "x2": {"field": "high"},
                    "color": kind,
                },
            },
            {
                "mark": {"type": "point", "filled": True, "opacity": 1, "size": 80},
                "encoding": {
                    "y": y,
                    "yOffset": offset,
                    "x": {"field": "value", "type": "quantitative", "title": title},
                    "color": kind,
                    "shape": kind,
                    "tooltip": _TIP,
                },
            },
        ],
        data={"values": values},
        height=70 + 26 * len(values),
    )


def learning_chart(logs: Mapping[str, pd.DataFrame], kind: str) -> Spec:
    """Draw the learning curves of all fits of an adapter.

    Parameters
    ----------
    logs : mapping of str to pandas.DataFrame
        Name of the fit → its log: ``step``, ``loss``, ``metric``, ``value``.
    kind : str
        ``loss``, or the name of a metric such as ``dice_whole``.
    """
    values: list[Spec] = []
    for name, table in logs.items():
        rows = table.drop_duplicates("step") if kind == "loss" else table[table["metric"] == kind]
        column = "loss" if kind == "loss" else "value"
        values += [
            {
                "fit": name,
                "x": int(row["step"]),
                "y": _finite(row[column]),
                "tip": f"{name}, step {row['step']:.0f}: {row[column]:.3f}",
            }
            for row in _thinned(rows).to_dict("records")
        ]
    fit = {"field": "fit", "type": "nominal", "sort": None, "title": None}
    title = "loss" if kind == "loss" else "Dice, inner validation"
    last = {v["fit"]: v["tip"] for v in values}
    return _chart(
        _in_words(f"Learning curves, {title}, at the last step", last.values()),
        [
            {
                "mark": {"type": "line", "point": {"size": 25}},
                "encoding": {
                    "x": {"field": "x", "type": "quantitative", "title": "step"},
                    "y": {
                        "field": "y",
                        "type": "quantitative",
                        "title": title,
                        "scale": {"zero": False},
                    },
                    "color": fit,
                    "strokeDash": fit,
                    "tooltip": _TIP,
                },
            }
        ],
        data={"values": values},
        height=260,
    )


def dice_chart(table: pd.DataFrame, part: str) -> Spec:
    """Show the Dice of every side of every scan.

    Parameters
    ----------
    table : pandas.DataFrame
        ``scans.tsv`` of an adapter.
    part : str
        Which part.
    """
    rows = table[table["part"] == part].sort_values(["dice", "scan", "hemi"], kind="stable")
    values: list[Spec] = [
        {
            "scan": str(row["scan"]),
            "rank": rank + 1,
            "side": HEMISPHERES.get(row["hemi"], str(row["hemi"])),
            "dice": _finite(row["dice"]),
            "tip": f"{row['scan']}, {HEMISPHERES.get(row['hemi'], row['hemi'])}: Dice "
            f"{row['dice']:.3f}" + ("" if row["status"] == "ok" else f" ({row['status']})"),
        }
        for rank, row in enumerate(rows.to_dict("records"))
    ]
    few = rows["scan"].nunique() <= _FEW
    y: Spec = {"field": "scan", "type": "nominal", "sort": None, **_NO_TITLE}
    if not few:
        y = {"field": "rank", "type": "quantitative", "title": "hippocampi, worst first"}
        y |= {"scale": {"reverse": True, "zero": False}}
    return _chart(
        f"Dice of {len(rows)} hippocampi ({part}): median {rows['dice'].median():.3f}, "
        f"lowest {rows['dice'].min():.3f}.",
        [
            _line_at("x", _finite(rows["dice"].mean())),
            {
                "mark": {"type": "point", "filled": True, "size": 60, "opacity": 0.9},
                "encoding": {
                    "y": y,
                    "x": {
                        "field": "dice",
                        "type": "quantitative",
                        "title": f"Dice, {part} (line: mean)",
                        "scale": {"zero": False},
                    },
                    "tooltip": _TIP,
                    **_side_colors(),
                },
            },
        ],
        data={"values": values},
        height=70 + 18 * rows["scan"].nunique() if few else 320,
    )


def agreement_chart(table: pd.DataFrame, part: str, limits: Mapping[str, float | None]) -> Spec:
    """Draw the Bland–Altman chart of an adapter's volumes and the manual ones.

    Parameters
    ----------
    table : pandas.DataFrame
        ``scans.tsv`` of an adapter.
    part : str
        Which part.
    limits : mapping
        ``mean_difference``, ``lower_limit``, ``upper_limit``, mm³, of this part.
    """
    rows = table[table["part"] == part].dropna(subset=["volume_mm3", "reference_mm3"])
    values: list[Spec] = []
    for row in rows.to_dict("records"):
        ours, theirs = row["volume_mm3"], row["reference_mm3"]
        side = HEMISPHERES.get(row["hemi"], str(row["hemi"]))
        values.append(
            {
                "x": _round((ours + theirs) / 2, 1),
                "y": _round(ours - theirs, 1),
                "side": side,
                "tip": f"{row['scan']}, {side}: {ours:,.0f} mm³, manual {theirs:,.0f} mm³",
            }
        )
    known = {name: value for name, value in limits.items() if value is not None}
    lines: list[Spec] = [_line_at("y", 0)]
    for name, style in (
        ("mean_difference", "middle"),
        ("lower_limit", "bound"),
        ("upper_limit", "bound"),
    ):
        if name in known:
            lines.append(_line_at("y", known[name], style))
    words = ", ".join(f"{n.replace('_', ' ')} {v:,.0f} mm³" for n, v in known.items() if n != "sd")
    return _chart(
        f"Bland–Altman chart of {len(values)} hippocampi ({part}): {words}.",
        [
            *lines,
            {
                "data": {"values": values},
                "mark": {"type": "point", "filled": True, "size": 60, "opacity": 0.9},
                "encoding": {
                    "x": {
                        "field": "x",
                        "type": "quantitative",
                        "title": "mean of both volumes, mm³",
                        "scale": {"zero": False},
                    },
                    "y": {
                        "field": "y",
                        "type": "quantitative",
                        "title": "adapter − manual, mm³",
                    },
                    "tooltip": _TIP,
                    **_side_colors(),
                },
            },
        ],
        height=280,
    )


def _chart(description: str | Spec, layers: list[Spec], *, height: int, **more: Any) -> Spec:
    return {
        "description": description,
        "width": "container",
        "height": height,
        "layer": layers,
        **more,
    }


def _number(field: str, title: str) -> Spec:
    return {"field": field, "type": "quantitative", "title": {"$": title}}


def _colors() -> Spec:
    """Color and shape say the same, so that neither is needed."""
    of: Spec = {"field": "color", "type": "nominal", "title": {"$": "color_title"}}
    of |= {"scale": {"domain": {"$": "colors"}}, "legend": {"$": "legend"}}
    return {"color": of, "shape": of}


def _side_colors() -> Spec:
    side: Spec = {"field": "side", "type": "nominal", "title": None}
    side["scale"] = {"domain": ["left", "right"]}
    return {"color": side, "shape": side}


def _points() -> Spec:
    return {"type": "point", "filled": True, "size": {"$": "size"}, "opacity": {"$": "opacity"}}


def _ring() -> Spec:
    # thin where they are many
    thin = {name: {"$": f"ring_{name}"} for name in ("size", "opacity", "strokeWidth")}
    return {"type": "point", "style": "ring", "filled": False, **thin}


def _bounds(axis: str, bounds: Iterable[float]) -> list[Spec]:
    return [_line_at(axis, bound, "bound") for bound in bounds]


def _line_at(axis: str, value: float | None, style: str = "reference") -> Spec:
    return {
        "data": {"values": [{"at": value}]},
        "mark": {"type": "rule", "style": style, "tooltip": False},
        "encoding": {axis: {"field": "at", "type": "quantitative"}},
    }


def _thinned(rows: pd.DataFrame) -> pd.DataFrame:
    step = -(-len(rows) // _CURVE)
    return rows.iloc[:: step or 1]


def _with_interval(row: Mapping[str, Any], value: str, low: str, high: str) -> str:
    return f"{row[value]:.2f} [{row[low]:.2f}, {row[high]:.2f}]"


def _in_words(title: str, texts: Iterable[str]) -> str:
    listed = list(texts)
    shown = "; ".join(listed[:12])
    return f"{title}: {shown}" + (f"; and {len(listed) - 12} more." if len(listed) > 12 else ".")


def _round(value: float, digits: int = 4) -> float:
    return round(float(value), digits)


def _finite(value: float) -> float | None:
    return _round(value) if math.isfinite(value) else None
