"""The charts of the group report: Vega-Lite templates, filled with the tables that were stored.

A placeholder ``{"$": name}`` in ``templates/charts`` stands for a value. Fields have names of ours,
so that Vega can take no name of a column or level for an expression.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd

from hyps_bids.outputs.labels import SIDE_NAMES
from hyps_bids.outputs.quality import quality_bounds

Spec = dict[str, Any]

#: Number of points above which nobody sees a difference in a curve.
_CURVE = 200
#: Number of scans up to which each scan has a line of its own.
_FEW = 40
#: Number of items that a description in words names.
_NAMED = 12


def scan_charts() -> dict[str, Spec]:
    """Return the charts of all scans, which ``group.js`` fills by the reader's choices."""
    asymmetry = _chart("distribution")
    bounds = quality_bounds()["asymmetry"]
    asymmetry["layer"] += [_level(100 * bounds[end], "bound") for end in ("low", "high")]
    names = ("distribution", "relation", "quality", "change", "annual")
    return {name: _chart(name) for name in names} | {"asymmetry": asymmetry}


def forest_chart(rows: pd.DataFrame) -> Spec:
    """Show the effect sizes of one coefficient over regions.

    The rows are those of the table of linear models, with the region as ``label``.
    """
    values = _records(
        rows.assign(sure=np.where(rows["p_fdr"] < 0.05, "FDR p < 0.05", "FDR p ≥ 0.05")),
        lambda row: (
            f"{row['label']}: {_with_interval(row, 'effect', 'effect_low', 'effect_high')}"
            f"\nFDR p = {row['p_fdr']:.2g}"
        ),
        label="label",
        effect="effect",
        low="effect_low",
        high="effect_high",
        sure="sure",
    )
    tips = (v["tip"].replace("\n", ", ") for v in values)
    words = _in_words("Effect sizes", tips)
    return _chart("forest", values=values, description=words, height=60 + 22 * len(values))


def roc_chart(table: pd.DataFrame) -> Spec:
    """Draw ``roc.tsv``: the curve of each repeat as a thin line, their mean as a thick one."""
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
            own = {"class": str(name), "curve": f"{name} {repeat}"}
            thin += [own | {"x": _finite(a), "y": _finite(b)} for a, b in zip(x, y, strict=True)]
        thick += [
            {
                "class": str(name),
                "x": _finite(a),
                "y": _finite(b),
                "tip": f"{name}: sensitivity {b:.2f} at specificity {1 - a:.2f}",
            }
            for a, b in zip(grid, np.mean(sampled, axis=0), strict=True)
        ]
    at_80_percent = {v["class"]: v["tip"] for v in thick if v["x"] <= 0.2}
    words = _in_words("ROC curves, mean of the repeats", at_80_percent.values())
    return _chart("roc", description=words, repeats=thin, mean=thick)


def calibration_chart(table: pd.DataFrame) -> Spec:
    """Draw ``calibration.tsv``: predicted probabilities against observed shares."""
    values = _records(
        table,
        lambda row: (
            f"{row['class']}: predicted {row['predicted']:.2f}, observed {row['observed']:.2f} "
            f"among {row['n']:.0f} subjects"
        ),
        **{"class": "class", "x": "predicted", "y": "observed"},
    )
    words = _in_words("Calibration", (v["tip"] for v in values))
    return _chart(
        "calibration",
        values=values,
        description=words,
        x_title="predicted probability",
        y_title="observed share",
        class_title="class",
    )


def norm_calibration_chart(table: pd.DataFrame, titles: Mapping[str, str]) -> Spec:
    """Draw ``histogram.tsv`` of norms: centiles against the share of controls below them.

    `titles` has the measures to draw, and what they are called.
    """
    values: list[Spec] = []
    for measure, title in titles.items():
        rows = table[table["measure"] == measure]
        share = rows["n"].cumsum() / max(1, rows["n"].sum())
        # The last point, at 100 %, says nothing.
        points = zip(rows["high"].iloc[:-1] / 100, share.iloc[:-1], strict=True)
        values += [
            {
                "class": title,
                "x": _finite(x),
                "y": _finite(y),
                "tip": f"{title}: {y:.1%} of the controls are below centile {100 * x:.0f}",
            }
            for x, y in points
        ]
    words = _in_words("Calibration of centiles", (v["tip"] for v in values))
    return _chart(
        "calibration",
        values=values,
        description=words,
        x_title="centile / 100",
        y_title="share of controls below it",
        class_title=None,
    )


def norm_groups_chart(table: pd.DataFrame) -> Spec:
    """Show how z is spread in each group, one line per measure and group.

    The columns of the table are ``group``, ``measure`` (its title), ``n`` and the quantiles ``q5``,
    ``q25``, ``q50``, ``q75`` and ``q95``.
    """
    values = _records(
        table.assign(label=table["measure"] + ", " + table["group"]),
        lambda row: (
            f"{row['label']}: median z {row['q50']:+.2f}, middle half {row['q25']:+.2f} to "
            f"{row['q75']:+.2f}, {row['n']} scans"
        ),
        **{name: name for name in ("label", "group", "q5", "q25", "q50", "q75", "q95")},
    )
    words = _in_words("z by group", (v["tip"] for v in values))
    return _chart("norms", values=values, description=words, height=60 + 24 * len(values))


def confusion_chart(table: pd.DataFrame) -> Spec:
    """Draw ``confusion.tsv``: true classes in rows against predicted ones in columns."""
    counts = table.set_index(table.columns[0])
    values: list[Spec] = []
    for true, row in counts.iterrows():
        total = row.sum()
        for predicted, count in row.items():
            share = count / total if total else 0.0
            text = f"{count:.4g} of {total:.4g} ({share:.0%})"
            values.append(
                {
                    "true": str(true),
                    "predicted": str(predicted),
                    "share": _finite(share),
                    "text": f"{count:.4g} ({share:.0%})",
                    "tip": f"{true}, predicted {predicted}: {text}",
                }
            )
    words = _in_words("Confusion matrix", (v["tip"] for v in values))
    height = max(160, 60 * len(counts))
    return _chart("confusion", values=values, description=words, height=height)


def importance_chart(table: pd.DataFrame) -> Spec:
    """Draw ``importance.tsv``: how much the AUC falls when a column is shuffled."""
    rows = table.sort_values("auc_fall", ascending=False, kind="stable")
    values = _records(
        rows.assign(low=rows["auc_fall"] - rows["sd"], high=rows["auc_fall"] + rows["sd"]),
        lambda row: f"{row['column']}: AUC falls by {row['auc_fall']:.3f} ± {row['sd']:.3f}",
        column="column",
        fall="auc_fall",
        low="low",
        high="high",
    )
    words = _in_words("Importance", (v["tip"] for v in values))
    return _chart("importance", values=values, description=words, height=60 + 20 * len(values))


def comparison_chart(areas: pd.DataFrame) -> Spec:
    """Compare the AUC of the sets of features, from rows of ``figures.tsv``.

    The columns ``low`` and ``high`` are the ends of the interval to draw.
    """
    values = _records(
        areas,
        lambda row: (
            f"{row['features']}, {row['validation']}: AUC "
            f"{_with_interval(row, 'value', 'low', 'high')}"
        ),
        **{name: name for name in ("features", "validation", "value", "low", "high")},
    )
    words = _in_words("AUC by set of features", (v["tip"] for v in values))
    return _chart("comparison", values=values, description=words, height=70 + 26 * len(values))


def learning_chart(logs: Mapping[str, pd.DataFrame], kind: str) -> Spec:
    """Draw the logs of all fits of an adapter: the loss, or a metric such as ``dice_whole``."""
    column = "loss" if kind == "loss" else "value"
    values: list[Spec] = []
    for name, table in logs.items():
        rows = table.drop_duplicates("step") if kind == "loss" else table[table["metric"] == kind]
        thinned = rows.iloc[:: max(1, -(-len(rows) // _CURVE))]
        values += _records(
            thinned.assign(fit=name),
            lambda row: f"{row['fit']}, step {row['step']:.0f}: {row[column]:.3f}",
            fit="fit",
            x="step",
            y=column,
        )
    title = "loss" if kind == "loss" else "Dice, inner validation"
    last = {v["fit"]: v["tip"] for v in values}
    words = _in_words(f"Learning curves, {title}, at the last step", last.values())
    return _chart("learning", values=values, description=words, title=title)


def dice_chart(table: pd.DataFrame, part: str) -> Spec:
    """Draw ``scans.tsv`` of an adapter: the Dice of a part on each side of each scan."""
    rows = table[table["part"] == part].sort_values(["dice", "scan", "hemi"], kind="stable")
    values = _records(
        rows.assign(side=_sides(rows), rank=range(1, len(rows) + 1)),
        lambda row: (
            f"{row['scan']}, {row['side']}: Dice {row['dice']:.3f}"
            + ("" if row["status"] == "ok" else f" ({row['status']})")
        ),
        **{name: name for name in ("scan", "rank", "side", "dice")},
    )
    scans = rows["scan"].nunique()
    by_name = {"field": "scan", "type": "nominal", "sort": None, "title": None}
    by_rank = {
        "field": "rank",
        "type": "quantitative",
        "title": "hippocampi, worst first",
        "scale": {"reverse": True, "zero": False},
    }
    return _chart(
        "dice",
        values=values,
        description=f"Dice of {len(rows)} hippocampi ({part}): median {rows['dice'].median():.3f}, "
        f"lowest {rows['dice'].min():.3f}.",
        height=70 + 18 * scans if scans <= _FEW else 320,
        mean=_finite(rows["dice"].mean()),
        title=f"Dice, {part} (line: mean)",
        y=by_name if scans <= _FEW else by_rank,
    )


def agreement_chart(table: pd.DataFrame, part: str, limits: Mapping[str, float | None]) -> Spec:
    """Draw the Bland–Altman chart of ``scans.tsv``: an adapter's volumes and the manual ones.

    The limits are ``mean_difference``, ``lower_limit`` and ``upper_limit`` of the part, mm³.
    """
    rows = table[table["part"] == part].dropna(subset=["volume_mm3", "reference_mm3"])
    ours, theirs = rows["volume_mm3"], rows["reference_mm3"]
    values = _records(
        rows.assign(
            x=((ours + theirs) / 2).round(1), y=(ours - theirs).round(1), side=_sides(rows)
        ),
        lambda row: (
            f"{row['scan']}, {row['side']}: {row['volume_mm3']:,.0f} mm³, "
            f"manual {row['reference_mm3']:,.0f} mm³"
        ),
        **{name: name for name in ("x", "y", "side")},
    )
    known = {name: value for name, value in limits.items() if value is not None}
    words = ", ".join(f"{n.replace('_', ' ')} {v:,.0f} mm³" for n, v in known.items() if n != "sd")
    description = f"Bland–Altman chart of {len(values)} hippocampi ({part}): {words}."
    spec = _chart("agreement", values=values, description=description)
    styles = {"mean_difference": "middle", "lower_limit": "bound", "upper_limit": "bound"}
    # The points are drawn last, over the lines.
    spec["layer"][-1:-1] = [_level(known[n], style) for n, style in styles.items() if n in known]
    return spec


def _chart(template: str, **values: Any) -> Spec:
    """Fill the placeholders of a template that have a value here."""

    def fill(found: Spec) -> Any:
        return values.get(found["$"], found) if "$" in found else found

    spec: Spec = json.loads(_template(template), object_hook=fill)
    return spec


@cache
def _template(name: str) -> str:
    folder = files("hyps_bids") / "reports" / "templates" / "charts"
    return (folder / f"{name}.json").read_text(encoding="utf-8")


def _level(value: float, style: str) -> Spec:
    """Draw a horizontal line, which takes neither place nor scale from other layers."""
    return {
        "data": {"values": [{"at": value}]},
        "mark": {"type": "rule", "style": style, "tooltip": False},
        "encoding": {"x": None, "y": {"field": "at", "type": "quantitative", "scale": {}}},
    }


def _records(
    rows: pd.DataFrame, tip: Callable[[Mapping[str, Any]], str], **columns: str
) -> list[Spec]:
    """Make the data of a chart from a table: field → column, and a text for each point."""
    return [
        {
            name: _finite(value) if isinstance(value := row[column], float) else value
            for name, column in columns.items()
        }
        | {"tip": tip(row)}
        for row in rows.to_dict("records")
    ]


def _sides(rows: pd.DataFrame) -> pd.Series:
    return rows["hemi"].map(lambda hemi: SIDE_NAMES.get(hemi, hemi))


def _with_interval(row: Mapping[str, Any], value: str, low: str, high: str) -> str:
    return f"{row[value]:.2f} [{row[low]:.2f}, {row[high]:.2f}]"


def _in_words(title: str, texts: Iterable[str]) -> str:
    """Describe a chart for those who cannot see it: the first few items, and how many more."""
    listed = list(texts)
    more = f"; and {len(listed) - _NAMED} more." if len(listed) > _NAMED else "."
    return f"{title}: {'; '.join(listed[:_NAMED])}{more}"


def _finite(value: float) -> float | None:
    """Round a number to what can be seen; None for what JSON cannot hold."""
    return round(float(value), 4) if math.isfinite(value) else None
