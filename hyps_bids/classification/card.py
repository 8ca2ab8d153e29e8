"""The card of a classifier: its content, and its text for readers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

import pandas as pd

_FEW = 20
_WIDE = 0.3
_INTRODUCTION = """\
Cross-validation is nested and grouped by subject: estimator and settings are chosen, and everything
is fitted, within the training folds. Held-out subjects, if any, are predicted by the final models.
Intervals are 95 % intervals: the wider of a bootstrap over subjects and, where there is one, a
score interval. They do not hold for another population. The metrics of all estimators are in
`figures.tsv`."""
_LIMITS = """\
This classifier is for research only; it is not a medical device. The unit is the subject: the
probabilities of a subject's scans are averaged. The probabilities hold where the classes are as
frequent as among the subjects of training. Apply the classifier with
`hyps-bids BIDS_DIR OUT_DIR group --apply-classifier THIS_FOLDER` to volumes made with the same
weights; other volumes are refused. Importance shows which columns the classifier uses, not what the
disease does. Each of several correlated columns looks unimportant."""


class Card(TypedDict):
    """Content of ``classifier.json``."""

    Name: str
    Contrast: str
    Target: str
    Classes: dict[str, list[str]]
    Estimator: str
    Settings: dict[str, Any]
    Features: dict[str, dict[str, str]]
    Covariates: dict[str, dict[str, Any]]
    IcvAdjustment: str
    Harmonization: str
    Schema: dict[str, Any]
    Adapter: str
    SoftwareVersion: str
    Models: str
    Cohort: dict[str, Any]
    Validation: dict[str, Any]
    PermutationTest: dict[str, dict[str, Any]]
    Warnings: list[str]
    Model: NotRequired[dict[str, Any]]


def sizes(counts: Mapping[str, int]) -> str:
    """List the number of subjects in each class."""
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def widest_intervals(metrics: pd.DataFrame) -> pd.DataFrame:
    """Replace ``low`` and ``high`` by the wider of bootstrap and score interval.

    In small groups a bootstrap alone is too narrow.
    """
    return metrics.assign(
        low=metrics[["low", "score_low"]].min(axis=1),
        high=metrics[["high", "score_high"]].max(axis=1),
    )


def headline(metrics: pd.DataFrame) -> str:
    """Put AUC, accuracy and their intervals in one line, from rows of ``figures.tsv``.

    Examples
    --------
    >>> rows = pd.DataFrame({"figure": ["auc"], "value": [0.8], "low": [0.7], "high": [0.9],
    ...     "score_low": [0.6], "score_high": [0.88]})
    >>> headline(rows)
    'AUC 0.80 [0.60-0.90]'
    """
    names = {"auc": "AUC", "balanced_accuracy": "balanced accuracy", "accuracy": "accuracy"}
    rows = widest_intervals(metrics).set_index("figure")
    texts = []
    for name, text in names.items():
        if name in rows.index:
            value, low, high = rows.loc[name, ["value", "low", "high"]]
            texts.append(f"{text} {value:.2f} [{low:.2f}-{high:.2f}]")
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
    'the interval of the AUC includes 0.5: the classifier may be no better than chance'
    """
    texts = []
    if min(counts.values()) < _FEW or high - low > _WIDE:
        texts.append(
            f"very uncertain: with {sizes(counts)} the AUC may be anywhere from {low:.2f} to "
            f"{high:.2f}"
        )
    if low <= 0.5 <= high:
        texts.append(
            "the interval of the AUC includes 0.5: the classifier may be no better than chance"
        )
    return texts


def card_text(card: Card, metrics: pd.DataFrame, comparisons: pd.DataFrame) -> str:
    """Write the card in Markdown, with the content of ``figures.tsv`` and ``comparisons.tsv``."""
    sections = [f"# Classifier {card['Contrast']}", _table(("", ""), [*_facts(card).items()])]
    if card["Warnings"]:
        sections.append("## Warnings\n\n" + "\n".join(f"- {text}" for text in card["Warnings"]))
    sections += [
        f"## Metrics\n\n{_one_line(_INTRODUCTION)}",
        _table(("validation", "features", "metrics"), headlines(metrics)),
    ]
    sections += [
        f"Permutation test ({features}): the AUC of {test['Estimator']} is {test['AUC']:.2f}, "
        f"p = {test['P']:.3g} from {test['Permutations']} shuffles of the labels through the whole "
        "pipeline."
        for features, test in card["PermutationTest"].items()
    ]
    if len(comparisons):
        head = ("validation", "AUC of", "minus that of", "difference [95 %]", "p")
        sections.append(
            "## What each set of features adds\n\n" + _table(head, comparison_rows(comparisons))
        )
    sections.append(f"## Use and limits\n\n{_one_line(_LIMITS)}")
    return "\n\n".join(sections) + "\n"


def _facts(card: Card) -> dict[str, str]:
    classes = list(card["Classes"])
    settings = ", ".join(f"{key} {value}" for key, value in card["Settings"].items())
    return {
        "Classes": ", ".join(classes) + (f"; positive: {classes[0]}" if len(classes) == 2 else ""),
        "Target": card["Target"],
        "Estimator": f"{card['Estimator']} ({settings or 'no settings'}), "
        "chosen by inner cross-validation",
        "Subjects": sizes(card["Cohort"]["Subjects"]),
        "Scans": card["Cohort"]["Scans"],
        "Features": ", ".join(f"{n} ({f['Units']})" for n, f in card["Features"].items()),
        "Covariates": ", ".join(card["Covariates"]) or "none",
        "ICV adjustment": card["IcvAdjustment"],
        "Harmonization": card["Harmonization"],
        "Volumes made by": f"{card['Adapter']}, HyPS-BIDS {card['SoftwareVersion']}",
        "Weights": f"`{card['Models']}`",
    }


def _one_line(paragraph: str) -> str:
    return paragraph.replace("\n", " ")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)
