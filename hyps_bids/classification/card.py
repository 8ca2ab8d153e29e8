"""What a person should know about a classifier, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

__all__ = ["card_text", "headline", "uncertainty"]

_FEW = 20
_WIDE = 0.3


def headline(rows: pd.DataFrame) -> str:
    """Put AUC, accuracy and their intervals in one line.

    Parameters
    ----------
    rows : DataFrame
        The figures of one estimator: ``figure``, ``value``, and both intervals, of which the
        wider counts: in small groups a bootstrap alone promises too much.

    Examples
    --------
    >>> rows = pd.DataFrame({"figure": ["auc"], "value": [0.8], "low": [0.7], "high": [0.9],
    ...     "score_low": [0.6], "score_high": [0.88]})
    >>> headline(rows)
    'AUC 0.80 [0.60-0.90]'
    """
    names = {"auc": "AUC", "balanced_accuracy": "balanced accuracy", "accuracy": "accuracy"}
    found = rows.set_index("figure")
    found = found.assign(
        low=found[["low", "score_low"]].min(axis=1), high=found[["high", "score_high"]].max(axis=1)
    )
    return ", ".join(
        f"{text} {found.loc[name, 'value']:.2f} "
        f"[{found.loc[name, 'low']:.2f}-{found.loc[name, 'high']:.2f}]"
        for name, text in names.items()
        if name in found.index
    )


def uncertainty(counts: Mapping[str, int], low: float, high: float) -> list[str]:
    """Say how little is known, if it is little.

    Parameters
    ----------
    counts : mapping
        Class → subjects.
    low, high : float
        Interval of the AUC.

    Examples
    --------
    >>> uncertainty({"AD": 100, "CN": 120}, 0.8, 0.9)
    []
    >>> uncertainty({"AD": 9, "CN": 12}, 0.45, 0.9)[1]
    'the interval of the AUC includes 0.5: these subjects do not tell it from chance'
    """
    texts = []
    sizes = ", ".join(f"{n} {name}" for name, n in counts.items())
    if min(counts.values()) < _FEW or high - low > _WIDE:
        texts.append(
            f"very uncertain: with {sizes} the AUC may be anywhere from {low:.2f} to {high:.2f}"
        )
    if low <= 0.5 <= high:
        texts.append(
            "the interval of the AUC includes 0.5: these subjects do not tell it from chance"
        )
    return texts


def card_text(card: Mapping[str, Any], figures: pd.DataFrame, comparisons: pd.DataFrame) -> str:
    """Write the model card in Markdown.

    Parameters
    ----------
    card : mapping
        The content of ``classifier.json``.
    figures, comparisons : DataFrame
        The tables of the same folder.
    """
    classes = list(card["Classes"])
    positive = f"; positive: {classes[0]}" if len(classes) == 2 else ""
    facts = {
        "Classes": ", ".join(classes) + positive,
        "Target": card["Target"],
        "Estimator": f"{card['Estimator']} ({_settings(card['Settings'])}), "
        "chosen by inner cross-validation",
        "Subjects": ", ".join(f"{n} {name}" for name, n in card["Cohort"]["Subjects"].items()),
        "Scans": card["Cohort"]["Scans"],
        "Features": ", ".join(f"{n} ({f['Units']})" for n, f in card["Features"].items()),
        "Covariates": ", ".join(card["Covariates"]) or "none",
        "ICV adjustment": card["IcvAdjustment"],
        "Harmonization": card["Harmonization"],
        "Made from volumes of": f"{card['Adapter']}, HyPS-BIDS {card['SoftwareVersion']}",
        "Weights": f"`{card['Models']}`",
    }
    sections = [
        f"# Classifier {card['Contrast']}",
        _table(("", ""), [*facts.items()]),
    ]
    if card["Warnings"]:
        sections.append("## Warnings\n\n" + "\n".join(f"- {text}" for text in card["Warnings"]))
    selected = figures[figures["estimator"] == "selected"]
    sections += [
        "## Figures\n\n"
        "Nested cross-validation, grouped by subject: settings and estimator are chosen, and "
        "everything is fitted, within the training folds. Intervals are 95 %: the wider of a "
        "bootstrap over subjects and, where there is one, a score interval. They "
        "do not hold for another population. All estimators: `figures.tsv`.\n\n"
        + _table(
            ("validation", "features", "figures"),
            [
                (validation, features, headline(rows))
                for (validation, features), rows in selected.groupby(
                    ["validation", "features"], sort=False
                )
            ],
        )
    ]
    for name, test in card["PermutationTest"].items():
        sections.append(
            f"Permutation test ({name}): AUC of {test['Estimator']} {test['AUC']:.2f}, "
            f"p = {test['P']:.3g} of {test['Permutations']} shuffles through the whole pipeline."
        )
    if len(comparisons):
        rows = comparisons[comparisons["figure"] == "auc"]
        sections.append(
            "## What adds what\n\n"
            + _table(
                ("validation", "AUC of", "minus that of", "difference [95 %]", "p"),
                [
                    (
                        row["validation"],
                        row["first"],
                        row["second"],
                        f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]",
                        f"{row['p']:.3g}",
                    )
                    for _, row in rows.iterrows()
                ],
            )
        )
    sections.append(
        "## Use and limits\n\n"
        "Research only, not a medical device. The unit is the subject: probabilities of a "
        "subject's scans are averaged. The probabilities hold for groups as frequent as those "
        "trained with. Apply it with `hyps-bids BIDS_DIR OUT_DIR group --apply-classifier "
        "THIS_FOLDER` to volumes made with the same weights; others are refused. "
        "Importance says what the classifier uses, not what the disease does; of correlated "
        "columns each looks unimportant."
    )
    return "\n\n".join(sections) + "\n"


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items()) or "no settings"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)
