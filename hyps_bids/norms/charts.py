"""Drawings of norms: centile curves by age, and how well centiles of the controls are spread."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hyps_bids.norms.folder import Card
from hyps_bids.norms.measures import is_shown, title
from hyps_bids.norms.norm import Norm
from hyps_bids.outputs.writing import write_bytes

#: Centiles that are drawn as curves.
CENTILES = (5.0, 25.0, 50.0, 75.0, 95.0)
_GRAY = "#888888"
_COLORS = {"F": "#b3512a", "M": "#2b6ca3"}
_SEXES = {"F": "women", "M": "men"}
_COLUMNS = 3


def draw_charts(
    folder: Path, norms: Mapping[str, Norm], histograms: Mapping[str, pd.DataFrame], card: Card
) -> None:
    """Draw ``centiles`` and ``calibration``, each as SVG and PNG, of whole hippocampi."""
    # Matplotlib takes long to import, and only this needs it.
    from matplotlib.figure import Figure

    # Parts of the hippocampus would make the charts long; the tables have them.
    norms = {name: norm for name, norm in norms.items() if is_shown(name)} or norms
    for name in ("centiles", "calibration"):
        lines = math.ceil(len(norms) / _COLUMNS)
        figure = Figure(figsize=(10, 2.6 * lines + 0.5), layout="constrained")
        axes = figure.subplots(lines, _COLUMNS, squeeze=False).ravel()
        for place, (measure, norm) in zip(axes, norms.items(), strict=False):
            if name == "centiles":
                _draw_centiles(place, norm, card)
            else:
                _draw_histogram(place, histograms[measure])
            place.set_title(title(measure), fontsize=8)
            place.tick_params(labelsize=7)
        for place in axes[len(norms) :]:
            place.set_visible(False)
        words = {
            "centiles": "Centiles 5, 25, 50, 75 and 95 by age, at the median head size",
            "calibration": "Centiles of the controls, from folds that did not see them",
        }
        n = card["Cohort"]["Participants"]
        figure.suptitle(f"{card['Name']}: {words[name]} ({n} controls)", fontsize=9)
        for extension in ("svg", "png"):
            stream = io.BytesIO()
            metadata = {"Date": None} if extension == "svg" else None
            figure.savefig(stream, format=extension, dpi=120, metadata=metadata)
            write_bytes(folder / f"{name}.{extension}", stream.getvalue())


def age_grid(ages: Sequence[float], points: int = 41) -> np.ndarray:
    """Return ages at which curves are drawn; one age if all controls have the same."""
    low, high = ages
    return np.linspace(low, high, points if high > low else 1)


def _draw_centiles(axes: Any, norm: Norm, card: Card) -> None:
    # A curve that begins exactly at the youngest control is not cut off by rounding.
    ages = age_grid(norm.facts["Ages"])
    for sex in card["Cohort"]["Sexes"]:
        curves = norm.curves(ages, sex, math.nan, "", CENTILES)
        for number, centile in enumerate(CENTILES):
            axes.plot(
                ages,
                curves[:, number],
                color=_COLORS[sex],
                linewidth=1.6 if centile == 50 else 0.8,
                marker="o" if len(ages) == 1 else None,
                label=_SEXES[sex] if centile == 50 else None,
            )
    axes.set_xlabel("age, years", fontsize=7)
    axes.legend(fontsize=6)


def _draw_histogram(axes: Any, table: pd.DataFrame) -> None:
    width = table["high"] - table["low"]
    axes.bar(table["low"], table["n"], width=width, align="edge", color="#2b6ca3", edgecolor="w")
    expected = table["expected"].iloc[0]
    # About 95 % of bins of a flat histogram are between the dotted lines.
    for height, style in (
        (expected, "-"),
        *((expected + k * 2 * expected**0.5, ":") for k in (-1, 1)),
    ):
        axes.axhline(max(height, 0), color=_GRAY, linestyle=style, linewidth=1)
    axes.set_xlabel("centile", fontsize=7)
    axes.set_ylabel("scans", fontsize=7)
