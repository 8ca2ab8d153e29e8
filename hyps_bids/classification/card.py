"""The card of a classifier: its content, and its text for readers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import pandas as pd

from hyps_bids.classification.recalibration import calibration_sentence
from hyps_bids.outputs.writing import write_template

_FEW = 20
_WIDE = 0.3


class Card(TypedDict):
    """Content of ``classifier.json``."""

    Name: str
    Contrast: str
    Target: str
    Classes: dict[str, list[str]]
    Estimator: str
    Settings: dict[str, Any]
    Selection: NotRequired[str]
    Features: dict[str, dict[str, str]]
    Covariates: dict[str, dict[str, Any]]
    DoubtfulCovariates: NotRequired[list[str]]
    IcvAdjustment: str
    Harmonization: str
    Schema: dict[str, Any]
    Threshold: NotRequired[dict[str, Any]]
    Ranges: NotRequired[dict[str, list[float]]]
    Adapter: str
    SoftwareVersion: str
    Models: str
    Cohort: dict[str, Any]
    Validation: dict[str, Any]
    AUCWithinSites: dict[str, float]
    PermutationTest: dict[str, dict[str, Any]]
    Warnings: list[str]
    Model: NotRequired[dict[str, Any]]


def sizes(counts: Mapping[str, int]) -> str:
    """List the number of subjects in each class."""
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def headline(metrics: pd.DataFrame) -> str:
    """Put AUC, accuracy and their intervals in one line, from rows of ``figures.tsv``.

    Accuracy comes with that of calling everybody the most frequent class.

    Examples
    --------
    >>> rows = pd.DataFrame({"figure": ["accuracy"], "value": [0.8], "low": [0.7], "high": [0.9],
    ...     "baseline": [0.6]})
    >>> headline(rows)
    'accuracy 0.80 [0.70-0.90] (majority class 0.60)'
    """
    names = {"auc": "AUC", "balanced_accuracy": "balanced accuracy", "accuracy": "accuracy"}
    rows = metrics.set_index("figure")
    texts = []
    for name, text in names.items():
        if name in rows.index:
            value, low, high = rows.loc[name, ["value", "low", "high"]]
            texts.append(f"{text} {value:.2f} [{low:.2f}-{high:.2f}]")
    # Tables of earlier versions have no baseline.
    if "accuracy" in rows.index and "baseline" in rows:
        texts[-1] += f" (majority class {rows.loc['accuracy', 'baseline']:.2f})"
    return ", ".join(texts)


def headlines(metrics: pd.DataFrame) -> list[list[str]]:
    """List validation, set of features and headline of the selected estimators."""
    selected = metrics[metrics["estimator"] == "selected"]
    groups = selected.groupby(["validation", "features"], sort=False)
    return [[str(v), str(features), headline(rows)] for (v, features), rows in groups]


def comparison_rows(comparisons: pd.DataFrame) -> list[list[str]]:
    """List validation, both sets of features, the difference of their AUC, and p."""
    return [
        [
            str(row["validation"]),
            str(row["first"]),
            str(row["second"]),
            f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]",
            f"{row['p']:.3g}",
        ]
        for row in comparisons[comparisons["figure"] == "auc"].to_dict("records")
    ]


def uncertainty(counts: Mapping[str, int], low: float, high: float) -> list[str]:
    """Warn if the AUC, from its interval, is very uncertain or cannot be told from chance.

    Examples
    --------
    >>> uncertainty({"AD": 100, "CN": 120}, 0.8, 0.9)
    []
    >>> uncertainty({"AD": 9, "CN": 12}, 0.45, 0.9)[1]
    'the interval of the AUC is not above 0.5: the classifier may be no better than chance'
    """
    texts = []
    if min(counts.values()) < _FEW or high - low > _WIDE:
        texts.append(
            f"very uncertain: with {sizes(counts)} the AUC may be anywhere from {low:.2f} to "
            f"{high:.2f}"
        )
    if low <= 0.5:
        texts.append(
            "the interval of the AUC is not above 0.5: the classifier may be no better than chance"
        )
    return texts


def test_lines(tests: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say in one line per permutation test what was tested and what came out.

    Examples
    --------
    >>> test_lines({"both": {"AUC": 0.83, "P": 0.05, "Permutations": 19, "NullMean": 0.51,
    ...     "WithinSites": True, "Statistic": "AUC in one repeat"}})
    ['both: AUC 0.83, p = 0.05 from 19 shuffles within sites (their mean 0.51). Tested: AUC in one \
repeat.']
    """
    lines = []
    for name, test in tests.items():
        # Cards of version 0.1 have no more than the estimator.
        tested = test.get("Statistic", f"AUC of {test.get('Estimator')}")
        early = test.get("StoppedEarly", False)
        number = f"{test['Permutations']} of {test['Planned']}" if early else test["Permutations"]
        lines.append(
            f"{name}: AUC {test['AUC']:.2f}, p = {test['P']:.3g} from {number} shuffles"
            f"{' within sites' if test.get('WithinSites') else ''}"
            f"{', which ended early because ten were as good' if early else ''}"
            f" (their mean {test['NullMean']:.2f}). Tested: {tested}."
        )
    return lines


def write_card(path: Path, card: Card, tables: Mapping[str, pd.DataFrame], full_set: str) -> None:
    """Write the card in Markdown.

    `tables` are those of :func:`hyps_bids.classification.tables.result_tables`. Calibration is
    described for `full_set`, the set of features of the final model.
    """
    comparisons, rows = tables["comparisons"], tables["recalibration"]
    rows = rows[rows["features"] == full_set]
    values = {
        "card": card,
        "subjects": sizes(card["Cohort"]["Subjects"]),
        "headlines": headlines(tables["figures"]),
        "tests": test_lines(card["PermutationTest"]),
        "comparisons": comparison_rows(comparisons) if len(comparisons) else [],
        "validations": list(tables["figures"]["validation"].unique()),
        "full_set": full_set,
        "calibration": [
            (row["validation"], calibration_sentence(row)) for row in rows.to_dict("records")
        ],
    }
    write_template(path, "hyps_bids.classification", "card.md.jinja", values)
