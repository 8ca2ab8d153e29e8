"""Charts of linear models, classifiers and adapters, each from the table that was stored for it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from hyps_bids.outputs.labels import SIDE_NAMES
from hyps_bids.reports import vega
from hyps_bids.reports.vega import SHARES, TIP, Spec, category, layer, line_at, number

__all__ = [
    "agreement_chart",
    "calibration_chart",
    "comparison_chart",
    "confusion_chart",
    "dice_chart",
    "forest_chart",
    "importance_chart",
    "learning_chart",
    "roc_chart",
]

#: number of points above which nobody sees a difference in a curve
_CURVE = 200
#: number of scans up to which each scan has a line of its own
_FEW = 40
_DIAGONAL: Spec = {
    "data": {"values": [{"x": 0, "y": 0}, {"x": 1, "y": 1}]},
    "mark": {"type": "line", "style": "reference"},
    "encoding": {"x": number("x"), "y": number("y")},
}
_SURE = ("FDR p < 0.05", "FDR p ≥ 0.05")
_INTERVAL: Spec = {"type": "rule", "strokeWidth": 1.5}


def forest_chart(rows: pd.DataFrame) -> Spec:
    """Show the effect sizes of one coefficient over regions.

    The rows are those of the table of linear models, with the region as ``label``.
    """
    values = vega.records(
        rows.assign(sure=np.where(rows["p_fdr"] < 0.05, *_SURE)),
        lambda row: (
            f"{row['label']}: {vega.with_interval(row, 'effect', 'effect_low', 'effect_high')}"
            f"\nFDR p = {row['p_fdr']:.2g}"
        ),
        label="label",
        effect="effect",
        low="effect_low",
        high="effect_high",
        sure="sure",
    )
    y = category("label", sort=None, title=None)
    title = "effect size, 95 % interval"
    kinds = {"domain": [*_SURE]}
    shapes = kinds | {"range": ["square", "circle"]}
    color = category("sure", title=None, scale=kinds)
    return vega.chart(
        vega.in_words("Effect sizes", (v["tip"].replace("\n", ", ") for v in values)),
        [
            line_at("x", 0),
            layer(_INTERVAL, y=y, x=number("low", title=title), x2={"field": "high"}, color=color),
            layer(
                vega.filled_point(70),
                y=y,
                x=number("effect", title=title),
                tooltip=TIP,
                color=color,
                shape=category("sure", title=None, scale=shapes),
            ),
        ],
        data={"values": values},
        height=60 + 22 * len(values),
    )


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
            thin += [
                {
                    "class": str(name),
                    "curve": f"{name} {repeat}",
                    "x": vega.rounded(a),
                    "y": vega.rounded(b),
                }
                for a, b in zip(x, y, strict=True)
            ]
        thick += [
            {
                "class": str(name),
                "x": vega.rounded(a),
                "y": vega.rounded(b),
                "tip": f"{name}: sensitivity {b:.2f} at specificity {1 - a:.2f}",
            }
            for a, b in zip(grid, np.mean(sampled, axis=0), strict=True)
        ]
    axes = {
        "x": number("x", title="1 − specificity", scale=SHARES),
        "y": number("y", title="sensitivity", scale=SHARES),
        "color": category("class", title="positive class", sort=None),
    }
    at_80_percent = {v["class"]: v["tip"] for v in thick if v["x"] <= 0.2}
    mean = {"type": "line", "strokeWidth": 3, "point": {"opacity": 0, "size": 120}}
    return vega.chart(
        vega.in_words("ROC curves, mean of the repeats", at_80_percent.values()),
        [
            _DIAGONAL,
            layer(
                {"type": "line", "opacity": 0.3, "strokeWidth": 1},
                thin,
                **axes,
                detail={"field": "curve"},
                # Several points have the same x.
                order=number("y"),
            ),
            layer(mean, thick, **axes, tooltip=TIP),
        ],
        height=300,
    )


def calibration_chart(table: pd.DataFrame) -> Spec:
    """Draw ``calibration.tsv``: predicted probabilities against observed shares."""
    values = vega.records(
        table,
        lambda row: (
            f"{row['class']}: predicted {row['predicted']:.2f}, observed {row['observed']:.2f} "
            f"among {row['n']:.0f} subjects"
        ),
        **{"class": "class", "x": "predicted", "y": "observed"},
    )
    return vega.chart(
        vega.in_words("Calibration", (v["tip"] for v in values)),
        [
            _DIAGONAL,
            layer(
                {"type": "line", "point": {"size": 70, "opacity": 1}},
                values,
                x=number("x", title="predicted probability", scale=SHARES),
                y=number("y", title="observed share", scale=SHARES),
                color=category("class", title="class", sort=None),
                tooltip=TIP,
            ),
        ],
        height=300,
    )


def confusion_chart(table: pd.DataFrame) -> Spec:
    """Draw ``confusion.tsv``: true classes in rows against predicted ones in columns."""
    counts = table.set_index("true")
    values: list[Spec] = []
    for true, row in counts.iterrows():
        total = row.sum()
        for predicted, count in row.items():
            share = count / total if total else 0.0
            values.append(
                {
                    "true": str(true),
                    "predicted": str(predicted),
                    "share": vega.rounded(share),
                    "text": f"{count:.4g} ({share:.0%})",
                    "tip": f"{true}, predicted {predicted}: {count:.4g} of {total:.4g} "
                    f"({share:.0%})",
                }
            )
    x, y = (category("predicted", sort=None, axis={"labelAngle": 0}), category("true", sort=None))
    blues = {"domain": [0, 1], "range": ["#e8f1fa", "#0b4f8a"]}
    # White or black, whichever can be read on the color.
    ink = {"condition": {"test": "datum.share > 0.45", "value": "#fff"}, "value": "#000"}
    color = number("share", legend=None, scale=blues)
    return vega.chart(
        vega.in_words("Confusion matrix", (v["tip"] for v in values)),
        [
            layer({"type": "rect"}, x=x, y=y, tooltip=TIP, color=color),
            layer({"type": "text", "fontSize": 13}, x=x, y=y, text=category("text"), color=ink),
        ],
        data={"values": values},
        height=max(160, 60 * len(counts)),
    )


def importance_chart(table: pd.DataFrame) -> Spec:
    """Draw ``importance.tsv``: how much the AUC falls when a column is shuffled."""
    rows = table.sort_values("auc_fall", ascending=False, kind="stable")
    values = vega.records(
        rows.assign(low=rows["auc_fall"] - rows["sd"], high=rows["auc_fall"] + rows["sd"]),
        lambda row: f"{row['column']}: AUC falls by {row['auc_fall']:.3f} ± {row['sd']:.3f}",
        column="column",
        fall="auc_fall",
        low="low",
        high="high",
    )
    y = category("column", sort=None, title=None, axis={"labelLimit": 220})
    # Without a smallest domain there is no scale where nothing falls.
    scale = {"domain": {"unionWith": [0, 0.05]}}
    x = number("fall", title="fall of the AUC when shuffled, ± SD over folds", scale=scale)
    whisker = {"type": "rule", "style": "whisker"}
    return vega.chart(
        vega.in_words("Importance", (v["tip"] for v in values)),
        [
            layer({"type": "bar", "style": "fill"}, y=y, tooltip=TIP, x=x),
            layer(whisker, y=y, x=number("low"), x2={"field": "high"}),
        ],
        data={"values": values},
        height=60 + 20 * len(values),
    )


def comparison_chart(areas: pd.DataFrame) -> Spec:
    """Compare the AUC of the sets of features, from rows of ``figures.tsv``.

    The columns ``low`` and ``high`` are the ends of the interval to draw.
    """
    values = vega.records(
        areas,
        lambda row: (
            f"{row['features']}, {row['validation']}: AUC "
            f"{vega.with_interval(row, 'value', 'low', 'high')}"
        ),
        **{name: name for name in ("features", "validation", "value", "low", "high")},
    )
    y = category("features", sort=None, title=None)
    offset = {"field": "validation", "sort": None}
    kind = category("validation", sort=None, title=None)
    title = "AUC, 95 % interval"
    low, high = number("low", title=title, scale=SHARES), {"field": "high"}
    value = number("value", title=title)
    return vega.chart(
        vega.in_words("AUC by set of features", (v["tip"] for v in values)),
        [
            line_at("x", 0.5),
            layer(_INTERVAL, y=y, yOffset=offset, x=low, x2=high, color=kind),
            layer(
                vega.filled_point(80),
                y=y,
                yOffset=offset,
                x=value,
                color=kind,
                shape=kind,
                tooltip=TIP,
            ),
        ],
        data={"values": values},
        height=70 + 26 * len(values),
    )


def learning_chart(logs: Mapping[str, pd.DataFrame], kind: str) -> Spec:
    """Draw the logs of all fits of an adapter: the loss, or a metric such as ``dice_whole``."""
    column = "loss" if kind == "loss" else "value"
    values: list[Spec] = []
    for name, table in logs.items():
        rows = table.drop_duplicates("step") if kind == "loss" else table[table["metric"] == kind]
        thinned = rows.iloc[:: max(1, -(-len(rows) // _CURVE))]
        values += vega.records(
            thinned.assign(fit=name),
            lambda row: f"{row['fit']}, step {row['step']:.0f}: {row[column]:.3f}",
            fit="fit",
            x="step",
            y=column,
        )
    fit = category("fit", sort=None, title=None)
    title = "loss" if kind == "loss" else "Dice, inner validation"
    last = {v["fit"]: v["tip"] for v in values}
    curve = layer(
        {"type": "line", "point": {"size": 25}},
        x=number("x", title="step"),
        y=number("y", title=title, scale={"zero": False}),
        color=fit,
        strokeDash=fit,
        tooltip=TIP,
    )
    words = vega.in_words(f"Learning curves, {title}, at the last step", last.values())
    return vega.chart(words, [curve], data={"values": values}, height=260)


def dice_chart(table: pd.DataFrame, part: str) -> Spec:
    """Draw ``scans.tsv`` of an adapter: the Dice of a part on each side of each scan."""
    rows = table[table["part"] == part].sort_values(["dice", "scan", "hemi"], kind="stable")
    sides = rows["hemi"].map(lambda hemi: SIDE_NAMES.get(hemi, hemi))
    values = vega.records(
        rows.assign(side=sides, rank=range(1, len(rows) + 1)),
        lambda row: (
            f"{row['scan']}, {row['side']}: Dice {row['dice']:.3f}"
            + ("" if row["status"] == "ok" else f" ({row['status']})")
        ),
        **{name: name for name in ("scan", "rank", "side", "dice")},
    )
    few = rows["scan"].nunique() <= _FEW
    y = category("scan", sort=None, title=None)
    if not few:
        scale = {"reverse": True, "zero": False}
        y = number("rank", title="hippocampi, worst first", scale=scale)
    x = number("dice", title=f"Dice, {part} (line: mean)", scale={"zero": False})
    return vega.chart(
        f"Dice of {len(rows)} hippocampi ({part}): median {rows['dice'].median():.3f}, "
        f"lowest {rows['dice'].min():.3f}.",
        [
            line_at("x", vega.finite(rows["dice"].mean())),
            layer(vega.filled_point(60, 0.9), y=y, x=x, tooltip=TIP, **_side_colors()),
        ],
        data={"values": values},
        height=70 + 18 * rows["scan"].nunique() if few else 320,
    )


def agreement_chart(table: pd.DataFrame, part: str, limits: Mapping[str, float | None]) -> Spec:
    """Draw the Bland–Altman chart of ``scans.tsv``: an adapter's volumes and the manual ones.

    The limits are ``mean_difference``, ``lower_limit`` and ``upper_limit`` of the part, mm³.
    """
    rows = table[table["part"] == part].dropna(subset=["volume_mm3", "reference_mm3"])
    ours, theirs = rows["volume_mm3"], rows["reference_mm3"]
    sides = rows["hemi"].map(lambda hemi: SIDE_NAMES.get(hemi, hemi))
    values = vega.records(
        rows.assign(x=((ours + theirs) / 2).round(1), y=(ours - theirs).round(1), side=sides),
        lambda row: (
            f"{row['scan']}, {row['side']}: {row['volume_mm3']:,.0f} mm³, "
            f"manual {row['reference_mm3']:,.0f} mm³"
        ),
        **{name: name for name in ("x", "y", "side")},
    )
    known = {name: value for name, value in limits.items() if value is not None}
    styles = {"mean_difference": "middle", "lower_limit": "bound", "upper_limit": "bound"}
    lines = [line_at("y", known[name], style) for name, style in styles.items() if name in known]
    words = ", ".join(f"{n.replace('_', ' ')} {v:,.0f} mm³" for n, v in known.items() if n != "sd")
    x = number("x", title="mean of both volumes, mm³", scale={"zero": False})
    y = number("y", title="adapter − manual, mm³")
    points = layer(vega.filled_point(60, 0.9), values, x=x, y=y, tooltip=TIP, **_side_colors())
    return vega.chart(
        f"Bland–Altman chart of {len(values)} hippocampi ({part}): {words}.",
        [line_at("y", 0), *lines, points],
        height=280,
    )


def _side_colors() -> Spec:
    side = category("side", title=None, scale={"domain": ["left", "right"]})
    return {"color": side, "shape": side}
