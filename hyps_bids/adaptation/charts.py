"""Charts of a trained adapter as images: learning curves, Dice by scan, Bland–Altman."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from hyps_bids.adaptation.assess import bland_altman
from hyps_bids.outputs.labels import HEMISPHERES, WHOLE

# Okabe & Ito: distinct for color-blind readers too
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def learning_curves(logs: Mapping[str, Path]) -> Figure:
    """Plot loss and validation Dice of each fit, given its ``log.csv``, against the step."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, (name, path) in enumerate(logs.items()):
        table = pd.read_csv(path)
        style = {"color": "black" if name == "final" else _COLORS[i % len(_COLORS)], "label": name}
        losses = table.drop_duplicates("step")
        left.plot(losses["step"], losses["loss"], **style)
        whole = table[table["metric"] == f"dice_{WHOLE}"]
        if len(whole):
            right.plot(whole["step"], whole["value"], marker="o", markersize=3, **style)
    if not right.lines:
        right.text(0.5, 0.5, "no inner validation: too few participants", ha="center")
    left.set(xlabel="step", ylabel="loss, mean of 50 steps")
    right.set(xlabel="step", ylabel="Dice, whole, inner validation crops")
    left.legend(frameon=False, fontsize="small")
    return figure


def dice_chart(table: pd.DataFrame) -> Figure:
    """Plot the Dice of every side of every scan in a table of scans, parts in columns."""
    parts = table["part"].unique()
    scans = sorted(table["scan"].unique())
    figure = Figure(
        figsize=(1.5 + 2.8 * len(parts), max(2.5, 1.2 + 0.22 * len(scans))), layout="constrained"
    )
    panels = np.atleast_1d(figure.subplots(1, len(parts), sharey=True))
    for panel, part in zip(panels, parts, strict=True):
        for color, marker, hemi in zip(_COLORS, "<>", HEMISPHERES, strict=False):
            rows = table[(table["part"] == part) & (table["hemi"] == hemi)]
            heights = [scans.index(scan) for scan in rows["scan"]]
            panel.scatter(rows["dice"], heights, color=color, marker=marker, label=hemi, s=18)
        mean = table.loc[table["part"] == part, "dice"].mean()
        panel.axvline(mean, color="gray", linewidth=0.8)
        panel.set(title=f"{part}: mean {mean:.3f}", xlabel="Dice")
        panel.grid(axis="y", linewidth=0.3)
    panels[0].set_yticks(range(len(scans)), scans, fontsize="x-small")
    panels[0].invert_yaxis()
    panels[0].legend(frameon=False, fontsize="small")
    return figure


def bland_altman_chart(table: pd.DataFrame) -> Figure:
    """Plot differences of volumes against means, with the 95 % limits of agreement."""
    parts = table["part"].unique()
    figure = Figure(figsize=(1 + 3.4 * len(parts), 3.4), layout="constrained")
    for panel, part in zip(np.atleast_1d(figure.subplots(1, len(parts))), parts, strict=True):
        rows = table[table["part"] == part].dropna(subset=["volume_mm3"])
        ours, theirs = rows["volume_mm3"], rows["reference_mm3"]
        for color, hemi in zip(_COLORS, HEMISPHERES, strict=False):
            side = rows["hemi"] == hemi
            panel.scatter(
                ((ours + theirs) / 2)[side], (ours - theirs)[side], color=color, label=hemi, s=18
            )
        limits = bland_altman(ours, theirs)
        panel.axhline(limits["mean_difference"], color="black", linewidth=0.9)
        for name in ("lower_limit", "upper_limit"):
            if np.isfinite(limits[name]):
                panel.axhline(limits[name], color="gray", linewidth=0.9, linestyle="--")
        panel.set(
            title=part, xlabel="mean of both volumes, mm³", ylabel="adapter − manual labels, mm³"
        )
        panel.legend(frameon=False, fontsize="small")
    return figure


def save_chart(figure: Figure, path: Path) -> Path:
    """Write a chart; the extension gives the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path
