"""Facts of the group report about classifiers and adapters."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from hyps_bids.classification.card import Card, comparison_rows, headlines, sizes, test_lines
from hyps_bids.messages import format_count
from hyps_bids.outputs.labels import WHOLE
from hyps_bids.outputs.names import T1W_ALONE
from hyps_bids.outputs.reading import load_json, read_table
from hyps_bids.outputs.scan import DEFAULT_SUFFIX
from hyps_bids.reports import charts
from hyps_bids.reports.charts import Spec

_LOG = logging.getLogger("hyps_bids")
#: Charts of a classifier: table → title, caption and how to draw it
_CLASSIFIER_CHARTS: dict[str, tuple[str, str, Callable[[pd.DataFrame], Spec]]] = {
    "roc": (
        "ROC",
        "Out-of-fold predictions. Thin: each repeat; thick: their mean; dotted: chance. A curve "
        "joins subjects of all folds, but the AUC in the table compares subjects of the same fold.",
        charts.roc_chart,
    ),
    "calibration": (
        "Calibration",
        "On the diagonal, the predicted probabilities equal the observed shares.",
        charts.calibration_chart,
    ),
    "confusion": (
        "Confusion matrix",
        "Subjects, mean over repeats, and their share of the true class.",
        charts.confusion_chart,
    ),
    "importance": (
        "Permutation importance",
        "This shows what the classifier uses, not what the disease does. Each of several "
        "correlated columns may look unimportant.",
        charts.importance_chart,
    ),
}


@dataclass(frozen=True)
class ModelTable:
    """A table to show; all cells are text."""

    caption: str
    head: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class ModelChart:
    """A chart to show."""

    title: str
    caption: str
    spec: Spec


@dataclass
class TrainedModel:
    """A folder of ``models/``.

    The addresses of the folder and of its card are relative to the report. Caveats are what to know
    before relying on the model; problems are what could not be read.
    """

    name: str
    href: str
    card: str | None = None
    headline: str = ""
    caveats: list[str] = field(default_factory=list)
    tables: list[ModelTable] = field(default_factory=list)
    charts: list[ModelChart] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    #: Whether a classifier has covariates that may tell the diagnosis themselves.
    doubtful: bool = False

    @classmethod
    def of_folder(cls, folder: Path, card: str) -> TrainedModel:
        """Start with the addresses of a folder and its card."""
        href = f"models/{quote(folder.name)}/"
        return cls(folder.name, href, href + card if (folder / card).is_file() else None)

    def read(self, path: Path, use: Callable[[TrainedModel, Path], None]) -> None:
        """Use a file; one that is missing or damaged costs only its own part of the report."""
        try:
            use(self, path)
        except FileNotFoundError:
            self.problems.append(f"{path.name} is not there.")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self.problems.append(f"{path.name} cannot be shown ({type(error).__name__}: {error}).")
            _LOG.warning("%s: cannot be shown in the group report (%s)", path, error)


def read_classifiers(output_dir: Path, suffixes: Collection[str] = T1W_ALONE) -> list[TrainedModel]:
    """Read the folders ``models/classifier-*``; what is damaged becomes a problem of its model.

    Those of images with other suffixes are left out.
    """
    folders = model_folders(output_dir, "classifier-")
    return [_read_classifier(folder) for folder in folders if is_about(folder, suffixes)]


def is_about(classifier: Path, suffixes: Collection[str]) -> bool:
    """Tell whether a classifier is of images with these suffixes; a damaged one may be."""
    try:
        contrast = load_json(classifier / "classifier.json").get("ImageContrast", DEFAULT_SUFFIX)
        return str(contrast).rpartition("_")[2] in suffixes
    except (OSError, ValueError, AttributeError):
        return True


def read_adapters(output_dir: Path) -> list[TrainedModel]:
    """Read all folders ``models/adapter-*``; what is damaged becomes a problem of its model."""
    return [_read_adapter(folder) for folder in model_folders(output_dir, "adapter-")]


def model_folders(output_dir: Path, start: str) -> list[Path]:
    """List the folders of ``models/`` whose names begin so."""
    return sorted(p for p in (output_dir / "models").glob(f"{start}*") if p.is_dir())


def _read_classifier(folder: Path) -> TrainedModel:
    model = TrainedModel.of_folder(folder, "README.md")
    model.read(folder / "classifier.json", _add_classifier_card)
    model.read(folder / "figures.tsv", _add_metrics)
    comparisons = folder / "comparisons.tsv"
    # The table is empty where there is only one set of features.
    if comparisons.is_file() and comparisons.read_text(encoding="utf-8").strip():
        model.read(comparisons, _add_comparisons)
    recalibration = folder / "recalibration.tsv"
    # Folders of earlier versions do not have it.
    if recalibration.is_file():
        model.read(recalibration, _add_recalibration)
    for name in _CLASSIFIER_CHARTS:
        model.read(folder / f"{name}.tsv", _add_classifier_chart)
    return model


def _add_classifier_card(model: TrainedModel, path: Path) -> None:
    card: Card = load_json(path)
    model.caveats += map(str, card["Warnings"])
    model.doubtful = bool(card.get("DoubtfulCovariates"))
    subjects = sizes(card["Cohort"]["Subjects"])
    held_out = card["Cohort"].get("HeldOutSubjects") or 0
    validation = card["Validation"]
    folds = (
        f"{format_count(validation['Folds'], 'fold')}, "
        f"{format_count(validation['Repeats'], 'repeat')}"
    )
    rows = [
        ["Contrast", f"{card['Contrast']} (column {card['Target']})"],
        ["Images", card.get("ImageContrast", DEFAULT_SUFFIX)],
        ["Subjects", subjects + (f"; {held_out} more held out" if held_out else "")],
        [
            "Estimator",
            f"{card['Estimator']}; {card.get('Selection', 'chosen by inner cross-validation')}",
        ],
        ["Covariates", ", ".join(card["Covariates"]) or "none"],
        ["ICV adjustment", card["IcvAdjustment"]],
        ["Harmonization", card["Harmonization"]],
        ["Validation", f"{folds}, by {validation['Unit']}"],
    ]
    # Cards of version 0.1 have neither cuts nor areas within sites.
    if threshold := card.get("Threshold"):
        cuts = ", ".join(f"{cut:.3g} ({name})" for name, cut in threshold["Cuts"].items())
        rows.append(
            ["Called class", f"largest ratio of probability to {cuts}; rule: {threshold['Rule']}"]
        )
    if within := card.get("AUCWithinSites"):
        areas = ", ".join(f"{area:.2f} ({name})" for name, area in within.items())
        rows.append(["AUC among subjects of the same site", areas])
    rows += [["Permutation test", text] for text in test_lines(card["PermutationTest"])]
    model.tables.append(ModelTable("How the classifier was made.", [], rows))


def _add_metrics(model: TrainedModel, path: Path) -> None:
    table = read_table(path)
    rows = headlines(table)
    head = ["validation", "features", "metrics"]
    caption = "Metrics of the selected estimator, with 95 % intervals."
    model.tables.append(ModelTable(caption, head, rows))
    # Where covariates may tell the diagnosis, the set without them is what to look at first.
    by_set = {features: text for _, features, text in reversed(rows)}
    # If all covariates may, there is no reduced set.
    whole = () if model.doubtful else ("both",)
    names = [name for name in ("both_reduced", *whole, "volumes") if name in by_set]
    model.headline = f"{by_set[names[0]]}; features: {names[0]}" if names else ""
    areas = table[(table["estimator"] == "selected") & (table["figure"] == "auc")]
    caption = "AUC with 95 % intervals. Line: chance."
    chart = charts.comparison_chart(areas)
    model.charts.append(ModelChart("Sets of features", caption, chart))


def _add_comparisons(model: TrainedModel, path: Path) -> None:
    rows = comparison_rows(read_table(path))
    caption = "Gain by sets of features: differences of the AUC, with 95 % intervals."
    head = ["validation", "AUC of", "minus AUC of", "difference", "p"]
    model.tables.append(ModelTable(caption, head, rows))


def _add_recalibration(model: TrainedModel, path: Path) -> None:
    head = ["validation", "features", "class", "slope", "intercept"]
    rows = [
        [
            *(str(row[name]) for name in head[:3]),
            *(
                f"{_number(row[name], '.2f')} [{_number(row[f'{name}_low'], '.2f')}, "
                f"{_number(row[f'{name}_high'], '.2f')}]"
                for name in head[3:]
            ),
        ]
        for row in read_table(path).to_dict("records")
    ]
    caption = (
        "Calibration, with 95 % intervals: if the slope is below 1, probabilities are too extreme; "
        "if the intercept is above 0, they are too low on average."
    )
    model.tables.append(ModelTable(caption, head, rows))


def _add_classifier_chart(model: TrainedModel, path: Path) -> None:
    title, caption, draw = _CLASSIFIER_CHARTS[path.stem]
    table = read_table(path)
    # Classes stay text even if they are numbers.
    labels = ("class", "true" if "true class" not in table else "true class", "column")
    table = table.astype({name: str for name in labels if name in table})
    model.charts.append(ModelChart(title, caption, draw(table)))


def _read_adapter(folder: Path) -> TrainedModel:
    model = TrainedModel.of_folder(folder, "adapter.md")
    model.read(folder / "adapter.md", _add_adapter_card)
    model.read(folder / "summary.json", _add_summary)
    model.read(folder / "logs", _add_learning_curves)
    model.read(folder / "scans.tsv", _add_scans)
    return model


def _add_adapter_card(model: TrainedModel, path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for title in ("Data", "Use and limits"):
        section = re.search(rf"(?ms)^## {title}\n\n(.*?)(?=^## |\Z)", text)
        if section:
            model.caveats += filter(None, section[1].strip().split("\n\n"))


def _add_summary(model: TrainedModel, path: Path) -> None:
    summary: dict[str, Any] = load_json(path)
    head = ["part", "hippocampi", "not found", "Dice", "HD95, mm", "surface distance, mm"]
    head += ["volume: correlation", "volume: difference, mm³ (limits of agreement)"]
    caption = (
        "Cross-validation by participant: mean ± SD over scans that the fold's adapter was not "
        "trained on."
    )
    rows = [_summary_row(part, one) for part, one in summary.items()]
    model.tables.append(ModelTable(caption, head, rows))
    whole = summary.get(WHOLE, {})
    dice = whole.get("dice", {})
    if dice.get("mean") is not None:
        model.headline = (
            f"Dice {dice['mean']:.3f} (lowest {dice['min']:.3f}), whole hippocampus, "
            f"{whole['hippocampi']} hippocampi of {whole['participants']} participants"
        )


def _summary_row(part: str, one: Mapping[str, Any]) -> list[str]:
    limits = one["volume"]["bland_altman_mm3"]
    names = ("mean_difference", "lower_limit", "upper_limit")
    mean, low, high = (_number(limits[name], ",.0f") for name in names)
    return [
        part,
        str(one["hippocampi"]),
        str(one["not_found"]),
        *(
            f"{_number(one[name]['mean'], '.3f')} ± {_number(one[name]['sd'], '.3f')}"
            for name in ("dice", "hd95_mm", "asd_mm")
        ),
        _number(one["volume"]["correlation"], ".2f"),
        f"{mean} ({low} to {high})",
    ]


def _add_learning_curves(model: TrainedModel, folder: Path) -> None:
    logs: dict[str, pd.DataFrame] = {}
    for path in sorted(folder.glob("*.csv")):
        model.read(path, lambda _, path: logs.update({path.stem: pd.read_csv(path)}))
    if not logs:
        raise FileNotFoundError(folder)
    chart = charts.learning_chart(logs, "loss")
    model.charts.append(ModelChart("Learning curves, loss", "Mean since the last step.", chart))
    if any((table["metric"] == "dice_whole").any() for table in logs.values()):
        caption = "Whole hippocampus, crops of the inner validation."
        chart = charts.learning_chart(logs, "dice_whole")
        model.charts.append(ModelChart("Learning curves, Dice", caption, chart))


def _add_scans(model: TrainedModel, path: Path) -> None:
    table = read_table(path)
    parts = sorted(map(str, table["part"].unique()), key=lambda part: part != WHOLE)
    caption = "Each side of each scan, by the fold that was not trained on the participant."
    chart = charts.dice_chart(table, parts[0])
    model.charts.append(ModelChart("Dice by scan", caption, chart))
    try:
        summary = load_json(path.with_name("summary.json"))
    except (OSError, ValueError):
        # The missing summary is a problem already. The charts come without limits.
        summary = {}
    for part in parts:
        limits = summary.get(part, {}).get("volume", {}).get("bland_altman_mm3", {})
        caption = "Thick: mean difference; dashed: 95 % limits of agreement."
        chart = charts.agreement_chart(table, part, limits)
        model.charts.append(ModelChart(f"Bland–Altman, {part}", caption, chart))


def _number(value: float | None, spec: str) -> str:
    return "n/a" if value is None or not np.isfinite(value) else format(value, spec)
