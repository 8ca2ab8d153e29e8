"""Data and drawings of ROC, calibration, confusion and importance."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from hyps_bids.outputs.writing import write_bytes

__all__ = ["calibration_table", "draw", "roc_table"]

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

_BLUE, _GREY = "#2b6ca3", "#888888"


def roc_table(label: Ints, probability: Array, classes: tuple[str, ...]) -> pd.DataFrame:
    """List the points of the ROC curve of each repeat.

    Parameters
    ----------
    label : ndarray of shape (subjects,)
        True classes.
    probability : ndarray of shape (repeats, subjects, classes)
        Out-of-fold probabilities.
    classes : tuple of str
        Names; of two only the first, the positive one, has a curve.

    Returns
    -------
    DataFrame
        ``class``, ``repeat``, ``threshold``, ``false_positive_rate``, ``sensitivity``. Unlike the
        AUC of the tables, a curve compares subjects of different folds.
    """
    tables = []
    for k in [0] if len(classes) == 2 else range(len(classes)):
        for repeat, one in enumerate(probability):
            known = np.isfinite(one[:, k])
            false, true, threshold = roc_curve(label[known] == k, one[known, k])
            tables.append(
                pd.DataFrame(
                    {
                        "class": classes[k],
                        "repeat": repeat + 1,
                        # the first point has nobody above its threshold
                        "threshold": np.where(np.isfinite(threshold), threshold, np.nan),
                        "false_positive_rate": false,
                        "sensitivity": true,
                    }
                )
            )
    return pd.concat(tables, ignore_index=True)


def calibration_table(label: Ints, probability: Array, classes: tuple[str, ...]) -> pd.DataFrame:
    """Compare predicted probabilities with how often they came true.

    Subjects are sorted by the mean of their probability over repeats and cut in up to ten bins of
    equal size, of 10 subjects at least.

    Returns
    -------
    DataFrame
        ``class``, ``predicted`` and ``observed`` (means of the bin), ``n``.
    """
    mean = probability.mean(axis=0)
    known = np.isfinite(mean).all(axis=1)
    rows = []
    for k in [0] if len(classes) == 2 else range(len(classes)):
        score, truth = mean[known, k], label[known] == k
        order = np.argsort(score, kind="stable")
        for members in np.array_split(order, int(np.clip(len(order) // 10, 1, 10))):
            rows.append(
                {
                    "class": classes[k],
                    "predicted": score[members].mean(),
                    "observed": truth[members].mean(),
                    "n": len(members),
                }
            )
    return pd.DataFrame(rows)


def draw(
    folder: Path,
    *,
    title: str,
    roc: pd.DataFrame,
    calibration: pd.DataFrame,
    confusion: pd.DataFrame,
    importance: pd.DataFrame,
) -> None:
    """Draw the four tables as ``roc``, ``calibration``, ``confusion``, ``importance``.

    Each is written as SVG and PNG. `title` says what was cross-validated. `confusion` has true
    classes as index and called classes as columns; `importance` has ``column``, ``auc_fall`` and
    ``sd``.
    """
    drawings: dict[str, tuple[Callable[..., None], pd.DataFrame]] = {
        "roc": (_draw_roc, roc),
        "calibration": (_draw_calibration, calibration),
        "confusion": (_draw_confusion, confusion),
        "importance": (_draw_importance, importance),
    }
    from matplotlib.figure import Figure

    for name, (make, table) in drawings.items():
        height = 3.6 if name != "importance" else max(2.0, 1.2 + 0.28 * len(table))
        figure = Figure(figsize=(4.6, height), layout="constrained")
        axes = figure.subplots()
        make(axes, table)
        axes.set_title(title, fontsize=8, color="#333333", wrap=True)
        for extension in ("svg", "png"):
            stream = io.BytesIO()
            metadata = {"Date": None} if extension == "svg" else None
            figure.savefig(stream, format=extension, dpi=150, metadata=metadata)
            write_bytes(folder / f"{name}.{extension}", stream.getvalue())


def _draw_roc(axes: Any, table: pd.DataFrame) -> None:
    grid = np.linspace(0, 1, 201)
    for number, (name, curves) in enumerate(table.groupby("class", sort=False)):
        color = f"C{number}"
        sampled = []
        for _, curve in curves.groupby("repeat"):
            x, y = curve["false_positive_rate"], curve["sensitivity"]
            axes.plot(x, y, color=color, alpha=0.25, linewidth=0.8)
            sampled.append(np.interp(grid, x, y))
        axes.plot(grid, np.mean(sampled, axis=0), color=color, linewidth=2, label=str(name))
    axes.plot([0, 1], [0, 1], color=_GREY, linestyle=":", linewidth=1)
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", aspect="equal")
    axes.legend(title="positive: thin repeats, thick mean", fontsize=7, title_fontsize=7)


def _draw_calibration(axes: Any, table: pd.DataFrame) -> None:
    axes.plot([0, 1], [0, 1], color=_GREY, linestyle=":", linewidth=1)
    for name, rows in table.groupby("class", sort=False):
        axes.plot(rows["predicted"], rows["observed"], marker="o", markersize=4, label=str(name))
    axes.set(xlabel="predicted probability", ylabel="observed share", aspect="equal")
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    axes.legend(fontsize=7)


def _draw_confusion(axes: Any, table: pd.DataFrame) -> None:
    counts = table.to_numpy()
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-12)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        color = "white" if share[row, column] > 0.5 else "black"
        text = f"{count:.4g}\n{share[row, column]:.0%}"
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
    axes.set_xticks(range(len(table)), table.columns, fontsize=8)
    axes.set_yticks(range(len(table)), table.index, fontsize=8)
    axes.set(xlabel="called", ylabel="true")


def _draw_importance(axes: Any, table: pd.DataFrame) -> None:
    rows = table.sort_values("auc_fall", kind="stable")
    axes.barh(rows["column"], rows["auc_fall"], xerr=rows["sd"], color=_BLUE, ecolor=_GREY)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.tick_params(labelsize=7)
    axes.set_xlabel("fall of the AUC when shuffled (bar: SD over folds)", fontsize=8)
