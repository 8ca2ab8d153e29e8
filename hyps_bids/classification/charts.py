"""Drawings of a classifier's tables: ROC, calibration, confusion and importance."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hyps_bids.outputs.writing import write_bytes

_BLUE, _GRAY = "#2b6ca3", "#888888"


def draw_charts(folder: Path, title: str, tables: Mapping[str, pd.DataFrame]) -> None:
    """Draw the tables ``roc``, ``calibration``, ``confusion`` and ``importance``.

    Each is written as SVG and PNG. The group report draws the same tables as they are stored.
    """
    # Matplotlib takes long to import, and only this needs it.
    from matplotlib.figure import Figure

    drawings: dict[str, Callable[[Any, pd.DataFrame], None]] = {
        "roc": _draw_roc,
        "calibration": _draw_calibration,
        "confusion": _draw_confusion,
        "importance": _draw_importance,
    }
    for name, make in drawings.items():
        table = tables[name]
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
    axes.plot([0, 1], [0, 1], color=_GRAY, linestyle=":", linewidth=1)
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", aspect="equal")
    axes.legend(title="positive: thin repeats, thick mean", fontsize=7, title_fontsize=7)


def _draw_calibration(axes: Any, table: pd.DataFrame) -> None:
    axes.plot([0, 1], [0, 1], color=_GRAY, linestyle=":", linewidth=1)
    for name, rows in table.groupby("class", sort=False):
        axes.plot(rows["predicted"], rows["observed"], marker="o", markersize=4, label=str(name))
    axes.set(xlabel="predicted probability", ylabel="observed share", aspect="equal")
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    axes.legend(fontsize=7)


def _draw_confusion(axes: Any, table: pd.DataFrame) -> None:
    classes = table.iloc[:, 0]
    counts = table[list(classes)].to_numpy()
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-12)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        color = "white" if share[row, column] > 0.5 else "black"
        text = f"{count:.4g}\n{share[row, column]:.0%}"
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
    axes.set_xticks(range(len(table)), classes, fontsize=8)
    axes.set_yticks(range(len(table)), classes, fontsize=8)
    axes.set(xlabel="called", ylabel="true")


def _draw_importance(axes: Any, table: pd.DataFrame) -> None:
    rows = table.sort_values("auc_fall", kind="stable")
    axes.barh(rows["column"], rows["auc_fall"], xerr=rows["sd"], color=_BLUE, ecolor=_GRAY)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.tick_params(labelsize=7)
    axes.set_xlabel("fall of the AUC when shuffled (bar: SD over folds)", fontsize=8)
