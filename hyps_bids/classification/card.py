"""The card of a classifier: its content, and its text for readers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import pandas as pd

from hyps_bids.classification.recalibration import calibration_sentence
from hyps_bids.messages import format_count
from hyps_bids.outputs.writing import write_template

#: Names of the validations in all tables and cards; every classifier has the first.
CROSS_VALIDATION, LEAVE_ONE_SITE_OUT = "cross-validation", "leave-one-site-out"
HELD_OUT = "held-out"
#: An AUC among subjects of the same site says nothing with fewer pairs than this.
FEWEST_PAIRS = 20
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
    ImageContrast: NotRequired[str]
    Adapter: str
    SoftwareVersion: str
    Models: str
    Cohort: dict[str, Any]
    Validation: dict[str, Any]
    AUCWithinSites: dict[str, float]
    PairsWithinSites: NotRequired[dict[str, float]]
    PermutationTest: dict[str, dict[str, Any]]
    Warnings: list[str]
    Model: NotRequired[dict[str, Any]]


def sizes(counts: Mapping[str, int]) -> str:
    """List the number of subjects in each class."""
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def headline(metrics: pd.DataFrame) -> str:
    """Put AUC, accuracy and their intervals in one line, from rows of ``figures.tsv``.

    Accuracy comes with that of calling everybody the most frequent class. What is not defined has
    the reason instead, and so has an AUC of leave-one-site-out from few pairs.

    Examples
    --------
    >>> rows = pd.DataFrame({"figure": ["accuracy"], "value": [0.8], "low": [0.7], "high": [0.9],
    ...     "baseline": [0.6]})
    >>> headline(rows)
    'accuracy 0.80 [0.70-0.90] (majority class 0.60)'
    >>> rows = pd.DataFrame({"figure": ["auc"], "value": [0.8], "low": [0.7], "high": [0.9],
    ...     "validation": ["leave-one-site-out"], "pairs": [30.0], "folds_with_pairs": [2.0]})
    >>> headline(rows), headline(rows.assign(pairs=16, folds_with_pairs=1))
    ('AUC 0.80 [0.70-0.90] (30 pairs at 2 sites)', 'AUC n/a (only 16 pairs at 1 site)')
    """
    names = {"auc": "AUC", "balanced_accuracy": "balanced accuracy", "accuracy": "accuracy"}
    rows = {str(row["figure"]): row for row in metrics.to_dict("records")}
    area = rows.get("auc", {})
    why = "one class only" if area.get("pairs") == 0 else "a class without subjects"
    texts = []
    for name, text in names.items():
        if name in rows:
            value, low, high = (float(rows[name][key]) for key in ("value", "low", "high"))
            shown = f"{value:.2f} [{low:.2f}-{high:.2f}]" if np.isfinite(value) else f"n/a ({why})"
            texts.append(f"{text} {shown}")
    # Tables of earlier versions have no pairs and no baseline.
    if area.get("validation") == LEAVE_ONE_SITE_OUT and "pairs" in area:
        pairs, sites = int(area["pairs"]), int(area["folds_with_pairs"])
        count = f"{format_count(pairs, 'pair')} at {format_count(sites, 'site')}"
        texts[0] = f"AUC n/a (only {count})" if pairs < FEWEST_PAIRS else f"{texts[0]} ({count})"
    if "baseline" in rows.get("accuracy", {}):
        texts[-1] += f" (majority class {rows['accuracy']['baseline']:.2f})"
    return ", ".join(texts)


def headlines(metrics: pd.DataFrame) -> list[list[str]]:
    """List validation, set of features and headline of the selected estimators."""
    selected = metrics[metrics["estimator"] == "selected"]
    groups = selected.groupby(["validation", "features"], sort=False)
    return [[str(v), str(features), headline(rows)] for (v, features), rows in groups]


def comparison_rows(comparisons: pd.DataFrame) -> list[list[str]]:
    """List validation, both sets of features, the difference of their AUC, and p.

    The last two are n/a where the AUC is not defined or, in leave-one-site-out, from few pairs.
    """
    rows = []
    for row in comparisons[comparisons["figure"] == "auc"].to_dict("records"):
        few = (
            row["validation"] == LEAVE_ONE_SITE_OUT
            and row.get("pairs", FEWEST_PAIRS) < FEWEST_PAIRS
        )
        result = [
            f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]",
            f"{row['p']:.3g}",
        ]
        unknown = few or not np.isfinite(row["difference"])
        sets = [str(row[name]) for name in ("validation", "first", "second")]
        rows.append([*sets, *(["n/a", "n/a"] if unknown else result)])
    return rows


def uncertainty(
    features: str, counts: Mapping[str, int], low: float, high: float, p: float | None = None
) -> list[str]:
    """Warn if the AUC, from its interval, is very uncertain or cannot be told from chance.

    `features` is the set of features, and `p` that of its permutation test, if there was one.

    Examples
    --------
    >>> uncertainty("both", {"AD": 100, "CN": 120}, 0.8, 0.9)
    []
    >>> uncertainty("both", {"AD": 90, "CN": 120}, 0.45, 0.7)
    ['both: the interval of the AUC reaches 0.5: the classifier may be no better than chance']
    >>> uncertainty("both", {"AD": 90, "CN": 120}, 0.45, 0.7, 0.025)
    ['both: the interval of the AUC reaches 0.5 although the permutation test gives p = 0.025: the \
interval is wide by design']
    """
    texts = []
    if min(counts.values()) < _FEW or high - low > _WIDE:
        texts.append(
            f"{features}: very uncertain: with {sizes(counts)} the AUC may be anywhere from "
            f"{low:.2f} to {high:.2f}"
        )
    if low <= 0.5:
        texts.append(
            f"{features}: the interval of the AUC reaches 0.5"
            + (
                f" although the permutation test gives p = {p:.3g}: the interval is wide by design"
                if p is not None and p < 0.05
                else ": the classifier may be no better than chance"
            )
        )
    return texts


def test_lines(tests: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say in one line per permutation test what was tested and what came out.

    Examples
    --------
    >>> test = {"AUC": 0.83, "P": 0.05, "Permutations": 19, "Planned": 19, "AsGood": 0,
    ...     "EndsAt": 10, "NullMean": 0.51, "WithinSites": True, "Statistic": "AUC in one repeat"}
    >>> test_lines({"both": test})
    ['both: AUC 0.83, p = 0.05 (the smallest possible) from 19 shuffles within sites, of which 0 \
were as good; their mean AUC is 0.51. Tested: AUC in one repeat.']
    >>> test_lines({"both": test | {"P": 10 / 14, "Permutations": 14, "AsGood": 10}})[0][:76]
    'both: AUC 0.83, p = 0.714 = 10 / 14: the test ended after 14 of 19 shuffles '
    """
    return [f"{name}: {_test_line(test)}" for name, test in tests.items()]


def _test_line(test: Mapping[str, Any]) -> str:
    drawn, good, sites = test["Permutations"], test.get("AsGood"), test.get("WithinSites")
    # Cards of version 0.1 have no more than the estimator.
    tested = test.get("Statistic", f"AUC of {test.get('Estimator')}")
    within = " within sites" if sites else ""
    mean = f"{'its' if drawn == 1 else 'their mean'} AUC is {test['NullMean']:.2f}"
    text = f"AUC {test['AUC']:.2f}, p = {test['P']:.3g}"
    if good is None:
        text += f" from {format_count(drawn, 'shuffle')}{within}"
    elif good >= test["EndsAt"]:
        text += (
            f" = {good} / {drawn}: the test ended after {drawn} of {test['Planned']} shuffles"
            f"{within}, because {good} were as good"
        )
    else:
        least = " (the smallest possible)" if good == 0 else ""
        text += (
            f"{least} from {format_count(drawn, 'shuffle')}{within}, of which {good:,} "
            f"{'was' if good == 1 else 'were'} as good"
        )
    return f"{text}; {mean}. Tested: {tested}."


def write_card(path: Path, card: Card, tables: Mapping[str, pd.DataFrame], full_set: str) -> None:
    """Write the card in Markdown.

    `tables` are those of :func:`hyps_bids.classification.tables.result_tables`. Calibration is
    described for `full_set`, the set of features of the final model.
    """
    comparisons, rows = tables["comparisons"], tables["recalibration"]
    rows = rows[rows["features"] == full_set]
    brier = _brier_sentences(tables["figures"], full_set)
    cohort, counted = card["Cohort"], card["Validation"]["FoldsWithoutInner"][CROSS_VALIDATION]
    values = {
        "card": card,
        "scans": f"{cohort['Scans']} ({sizes(cohort['ScansByClass'])})",
        "converters": sizes(cohort["Converters"]),
        "held_out": sizes(cohort["HeldOutByClass"]),
        "reduced": "both_reduced" in set(tables["figures"]["features"]),
        "nested": counted[0] < counted[1],
        "subjects": sizes(card["Cohort"]["Subjects"]),
        "headlines": headlines(tables["figures"]),
        "tests": test_lines(card["PermutationTest"]),
        "comparisons": comparison_rows(comparisons) if len(comparisons) else [],
        "validations": list(tables["figures"]["validation"].unique()),
        "full_set": full_set,
        "within_sites": _within_sites(card),
        "fewest_pairs": FEWEST_PAIRS,
        "brier": brier,
        "calibration": [
            (validation, "; ".join(map(calibration_sentence, of_classes.to_dict("records"))))
            for validation, of_classes in rows.groupby("validation", sort=False)
        ],
    }
    write_template(path, "hyps_bids.classification", "card.md.jinja", values)


def _brier_sentences(metrics: pd.DataFrame, full_set: str) -> dict[str, str]:
    """Write the Brier score of the selected estimators by validation, and what it is without."""
    rows = metrics[
        (metrics["estimator"] == "selected")
        & (metrics["features"] == full_set)
        & (metrics["figure"] == "brier")
    ]
    return {
        str(row["validation"]): (
            f"the Brier score is {row['value']:.2f} [{row['low']:.2f}-{row['high']:.2f}], and "
            f"{row['baseline']:.2f} if one knows only how frequent the classes are"
        )
        for row in rows.to_dict("records")
    }


def _within_sites(card: Card) -> str | None:
    """Say what the AUC among subjects of the same site is, and on how many pairs it rests."""
    facts = card.get("PairsWithinSites")
    if not facts:
        return None
    count = format_count(round(facts["Pairs"]), "pair")
    rests = f"{count} in each repeat, at {facts['Sites']:g} of {facts['AllSites']:g} sites"
    if not card["AUCWithinSites"]:
        few = facts["Pairs"] < FEWEST_PAIRS
        why = f"it would rest on {rests}" if few else "a class shares no site with another class"
        return (
            "The AUC among pairs of subjects from the same site, where the site itself cannot "
            f"help, is not shown, because {why}."
        )
    areas = ", ".join(f"{value:.2f} ({name})" for name, value in card["AUCWithinSites"].items())
    return (
        "Among pairs of subjects from the same site, where the site itself cannot help, the "
        f"cross-validated AUC is {areas}. It rests on {rests}."
    )
