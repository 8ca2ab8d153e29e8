"""What the group report says of models: linear models, classifiers and adapters."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from hyps_bids.classification.card import headline
from hyps_bids.outputs.reading import read_table
from hyps_bids.reports import charts

__all__ = ["Formula", "Trained", "describe_formulas", "read_adapters", "read_classifiers"]

Chart = Callable[[pd.DataFrame], dict[str, Any]]

_LOG = logging.getLogger("hyps_bids")

_SIDES = {"L": "left", "R": "right", "bilateral": "both sides"}


@dataclass(frozen=True)
class Formula:
    """A linear model of the group level.

    Attributes
    ----------
    text : str
        The formula.
    method : str
        ols or mixed.
    rows : list of dict
        Rows of its table, formatted.
    forests : dict of str to dict
        Coefficient → chart of its effect sizes.
    """

    text: str
    method: str
    rows: list[dict[str, str]]
    forests: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Trained:
    """A folder of ``models/``.

    Attributes
    ----------
    name : str
        Name of the folder.
    href : str
        Address relative to the report.
    card : str or None
        Address of its card.
    headline : str
        One line.
    caveats : list of str
        What to know before believing it.
    tables : list of dict
        caption, head, rows, all text.
    charts : list of dict
        title, caption, spec.
    problems : list of str
        What could not be read.
    """

    name: str
    href: str
    card: str | None = None
    headline: str = ""
    caveats: list[str] = field(default_factory=list)
    tables: list[dict[str, Any]] = field(default_factory=list)
    charts: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def describe_formulas(table: pd.DataFrame) -> list[Formula]:
    """Make the table of linear models readable.

    Parameters
    ----------
    table : pandas.DataFrame
        ``group_seg-hippocampus_desc-models_morph.tsv``.
    """
    found = []
    for text, rows in table.groupby("model", sort=False):
        shown = rows[rows["coefficient"] != "Intercept"]
        sized = shown[shown["effect_kind"].isin(["d", "d_per_sd"])]
        records = sized.to_dict("records")
        sized = sized.assign(
            label=[_region(row) for row in records], title=[_coefficient(row) for row in records]
        )
        found.append(
            Formula(
                str(text),
                ", ".join(map(str, rows["method"].dropna().unique())),
                [_formula_row(row) for row in shown.to_dict("records")],
                {
                    str(name): charts.forest_chart(of_one)
                    for name, of_one in sized.groupby("title", sort=False)
                },
            )
        )
    return found


def read_classifiers(output_dir: Path) -> list[Trained]:
    """Read all folders ``models/classifier-*``; what is damaged is said, not raised."""
    return [_classifier(folder) for folder in _folders(output_dir, "classifier-")]


def read_adapters(output_dir: Path) -> list[Trained]:
    """Read all folders ``models/adapter-*``; what is damaged is said, not raised."""
    return [_adapter(folder) for folder in _folders(output_dir, "adapter-")]


def _folders(output_dir: Path, start: str) -> list[Path]:
    return sorted(p for p in (output_dir / "models").glob(f"{start}*") if p.is_dir())


def _start(folder: Path, card: str) -> Trained:
    href = f"models/{quote(folder.name)}/"
    return Trained(folder.name, href, href + card if (folder / card).is_file() else None)


def _attempt(trained: Trained, path: Path, use: Callable[[Path], None]) -> None:
    """Use a file; one that is missing or damaged costs its own part of the report only."""
    try:
        use(path)
    except FileNotFoundError:
        trained.problems.append(f"{path.name} is not there.")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        trained.problems.append(f"{path.name} cannot be shown ({type(error).__name__}: {error}).")
        _LOG.warning("%s: cannot be shown in the group report (%s)", path, error)


def _classifier(folder: Path) -> Trained:
    trained = _start(folder, "README.md")

    def card(path: Path) -> None:
        content = json.loads(path.read_text(encoding="utf-8"))
        trained.caveats.extend(map(str, content["Warnings"]))
        trained.tables.append(_card_table(content))

    def figures(path: Path) -> None:
        table = read_table(path)
        selected = table[table["estimator"] == "selected"]
        rows = [
            [str(validation), str(features), headline(one)]
            for (validation, features), one in selected.groupby(
                ["validation", "features"], sort=False
            )
        ]
        trained.tables.append(
            {
                "caption": "Figures of the selected estimator, with 95 % intervals.",
                "head": ["validation", "features", "figures"],
                "rows": rows,
            }
        )
        areas = selected[selected["figure"] == "auc"]
        areas = areas.assign(
            low=areas[["low", "score_low"]].min(axis=1),
            high=areas[["high", "score_high"]].max(axis=1),
        )
        chart(
            "Sets of features",
            "AUC with the wider of bootstrap and score interval. Line: chance.",
            charts.comparison_chart(areas),
        )

    def comparisons(path: Path) -> None:
        table = read_table(path)
        trained.tables.append(
            {
                "caption": "What adds what: differences of the AUC, with 95 % intervals.",
                "head": ["validation", "AUC of", "minus that of", "difference", "p"],
                "rows": [
                    [
                        str(row["validation"]),
                        str(row["first"]),
                        str(row["second"]),
                        f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]",
                        f"{row['p']:.3g}",
                    ]
                    for row in table[table["figure"] == "auc"].to_dict("records")
                ],
            }
        )

    def chart(title: str, caption: str, spec: dict[str, Any]) -> None:
        trained.charts.append({"title": title, "caption": caption, "spec": spec})

    def drawing(title: str, caption: str, make: Chart, path: Path) -> None:
        chart(title, caption, make(_text_classes(path)))

    _attempt(trained, folder / "classifier.json", card)
    _attempt(trained, folder / "figures.tsv", figures)
    pairs = folder / "comparisons.tsv"
    # empty where there is one set of features only
    if pairs.is_file() and pairs.read_text(encoding="utf-8").strip():
        _attempt(trained, pairs, comparisons)
    drawn: dict[str, tuple[str, str, Chart]] = {
        "roc": (
            "ROC",
            "Out-of-fold predictions: each repeat thin, their mean thick. Dotted: chance.",
            charts.roc_chart,
        ),
        "calibration": (
            "Calibration",
            "On the diagonal, probabilities come true as often as they say.",
            charts.calibration_chart,
        ),
        "confusion": (
            "Confusion matrix",
            "Subjects, mean over repeats; shares of the true class.",
            charts.confusion_chart,
        ),
        "importance": (
            "Permutation importance",
            "What the classifier uses, not what the disease does; of correlated columns each "
            "looks unimportant.",
            charts.importance_chart,
        ),
    }
    for name, (title, caption, make) in drawn.items():
        _attempt(trained, folder / f"{name}.tsv", partial(drawing, title, caption, make))
    main: list[list[str]] = next(
        (t["rows"] for t in trained.tables if t["head"][:1] == ["validation"]), []
    )
    line = next((row[2] for row in main if row[1] == "both"), main[0][2] if main else "")
    return replace(trained, headline=line)


def _text_classes(path: Path) -> pd.DataFrame:
    """Read a table whose classes stay text."""
    frame = read_table(path)
    return frame.astype({name: str for name in ("class", "true", "column") if name in frame})


def _card_table(card: dict[str, Any]) -> dict[str, Any]:
    subjects = ", ".join(f"{n} {name}" for name, n in card["Cohort"]["Subjects"].items())
    held = card["Cohort"].get("HeldOutSubjects") or 0
    validation = card["Validation"]
    folds = f"{validation['Folds']} folds, {validation['Repeats']} repeats"
    rows = [
        ["Contrast", f"{card['Contrast']} (column {card['Target']})"],
        ["Subjects", subjects + (f"; {held} more held out" if held else "")],
        ["Estimator", f"{card['Estimator']}, chosen by inner cross-validation"],
        ["Covariates", ", ".join(card["Covariates"]) or "none"],
        ["ICV adjustment", card["IcvAdjustment"]],
        ["Harmonization", card["Harmonization"]],
        ["Validation", f"{folds}, by {validation['Unit']}"],
    ]
    for name, test in card["PermutationTest"].items():
        rows.append(
            [
                f"Permutation test, {name}",
                f"p = {test['P']:.3g} of {test['Permutations']} shuffles "
                f"({test['Estimator']}, AUC {test['AUC']:.2f})",
            ]
        )
    return {"caption": "How it was made.", "head": [], "rows": rows}


def _adapter(folder: Path) -> Trained:
    trained = _start(folder, "adapter.md")
    summary: dict[str, Any] = {}

    def card(path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        for title in ("Data", "Use and limits"):
            section = re.search(rf"(?ms)^## {title}\n\n(.*?)(?=^## |\Z)", text)
            if section:
                trained.caveats.extend(filter(None, section[1].strip().split("\n\n")))

    def figures(path: Path) -> None:
        summary.update(json.loads(path.read_text(encoding="utf-8")))
        trained.tables.append(
            {
                "caption": "Cross-validation by participant: scans that the fold's adapter was "
                "not trained on, mean ± SD.",
                "head": [
                    "part",
                    "hippocampi",
                    "not found",
                    "Dice",
                    "HD95, mm",
                    "surface distance, mm",
                    "volume: correlation",
                    "volume: difference, mm³ (limits of agreement)",
                ],
                "rows": [_part_row(part, one) for part, one in summary.items()],
            }
        )

    def scans(path: Path) -> None:
        table = read_table(path)
        parts = [str(part) for part in table["part"].unique()]
        parts.sort(key=lambda part: part != "whole")
        chart(
            "Dice by scan",
            "Each side of each scan, by the fold that had not seen the participant.",
            charts.dice_chart(table, parts[0]),
        )
        for part in parts:
            limits = summary.get(part, {}).get("volume", {}).get("bland_altman_mm3", {})
            chart(
                f"Bland–Altman, {part}",
                "Thick: mean difference; dashed: 95 % limits of agreement.",
                charts.agreement_chart(table, part, limits),
            )

    def chart(title: str, caption: str, spec: dict[str, Any]) -> None:
        trained.charts.append({"title": title, "caption": caption, "spec": spec})

    _attempt(trained, folder / "adapter.md", card)
    _attempt(trained, folder / "summary.json", figures)
    logs: dict[str, pd.DataFrame] = {}
    for path in sorted((folder / "logs").glob("*.csv")):
        _attempt(trained, path, lambda p: logs.update({p.stem: pd.read_csv(p)}))
    _attempt(trained, folder / "logs", lambda _: _learning(logs, chart))
    _attempt(trained, folder / "scans.tsv", scans)
    whole = summary.get("whole", {})
    dice = whole.get("dice", {})
    line = ""
    if dice.get("mean") is not None:
        line = (
            f"Dice {dice['mean']:.3f} (lowest {dice['min']:.3f}), whole hippocampus, "
            f"{whole['hippocampi']} hippocampi of {whole['participants']} participants"
        )
    return replace(trained, headline=line)


def _learning(logs: dict[str, pd.DataFrame], chart: Callable[..., None]) -> None:
    if not logs:
        raise FileNotFoundError
    chart("Learning curves, loss", "Mean since the last step.", charts.learning_chart(logs, "loss"))
    if any((table["metric"] == "dice_whole").any() for table in logs.values()):
        chart(
            "Learning curves, Dice",
            "Whole hippocampus, crops of the inner validation.",
            charts.learning_chart(logs, "dice_whole"),
        )


def _part_row(part: str, one: dict[str, Any]) -> list[str]:
    limits = one["volume"]["bland_altman_mm3"]
    agreement = [limits[name] for name in ("mean_difference", "lower_limit", "upper_limit")]
    words = [_number(value, ",.0f") for value in agreement]
    return [
        part,
        str(one["hippocampi"]),
        str(one["not_found"]),
        *(
            f"{_number(one[name]['mean'], '.3f')} ± {_number(one[name]['sd'], '.3f')}"
            for name in ("dice", "hd95_mm", "asd_mm")
        ),
        _number(one["volume"]["correlation"], ".2f"),
        f"{words[0]} ({words[1]} to {words[2]})",
    ]


def _formula_row(row: dict[str, Any]) -> dict[str, str]:
    unit = {"d": "d", "d_per_sd": "d per SD", "partial_eta2": "partial η²"}
    kind = unit.get(row["effect_kind"], "")
    return {
        "measure": _region(row),
        "coefficient": _coefficient(row),
        "estimate": _interval(row, "estimate", "ci_low", "ci_high"),
        "p": _number(row["p"], ".2g"),
        "p_fdr": _number(row["p_fdr"], ".2g"),
        "effect": " ".join(
            filter(None, [_interval(row, "effect", "effect_low", "effect_high"), kind])
        ),
        "n": f"{row['n_subjects']:.0f} ({row['n_scans']:.0f})" if pd.notna(row["n_scans"]) else "",
        "warnings": str(row["warnings"]) if pd.notna(row["warnings"]) else "",
        "sure": "yes" if row["p_fdr"] < 0.05 else "",
    }


def _coefficient(row: dict[str, Any]) -> str:
    """Say which coefficient it is: ``group[T.AD]`` against CN is ``group: AD against CN``."""
    if pd.isna(row["coefficient"]):
        # a model that could not be fitted
        return ""
    level = re.sub(r"^(.*)\[T\.(.*)\]$", r"\1: \2", str(row["coefficient"]))
    return f"{level} against {row['reference']}" if pd.notna(row["reference"]) else level


def _region(row: dict[str, Any]) -> str:
    names = [_SIDES.get(row["side"], row["side"]), row["part"]]
    words = " ".join(str(name) for name in names if pd.notna(name) and name)
    return words or str(row["measure"])


def _interval(row: dict[str, Any], value: str, low: str, high: str) -> str:
    if pd.isna(row[value]):
        return ""
    digits = ",.0f" if abs(row[value]) >= 100 else ".3g"
    text = format(row[value], digits)
    if pd.isna(row[low]):
        return text
    return f"{text} [{row[low]:{digits}}, {row[high]:{digits}}]"


def _number(value: float | None, spec: str) -> str:
    return "n/a" if value is None or not np.isfinite(value) else format(value, spec)
