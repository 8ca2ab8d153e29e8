"""The tables in a classifier's folder: the one source of its card, its charts and the report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix, roc_curve

from hyps_bids.classification.card import CROSS_VALIDATION, HELD_OUT
from hyps_bids.classification.contrast import Array, Ints, LabeledSubjects
from hyps_bids.classification.cross_validation import SELECTED, Predictions
from hyps_bids.classification.plan import Plan
from hyps_bids.classification.recalibration import recalibration_rows
from hyps_bids.classification.validate import Results
from hyps_bids.outputs.columns import described
from hyps_bids.outputs.names import sidecar_path
from hyps_bids.outputs.writing import write_json, write_table

#: Descriptions of columns, for the sidecars: those of all tables, and some of one table.
_COLUMNS = json.loads((files("hyps_bids.classification") / "columns.json").read_text("utf-8"))


def result_tables(plan: Plan, results: Results) -> dict[str, pd.DataFrame]:
    """Make all tables of a classifier; the keys are the names of their files."""
    data = plan.subjects
    main = results.predictions[CROSS_VALIDATION][plan.full_set]
    probability = main.probability[SELECTED]
    predictions = [
        _prediction_table(data, one, validation, features)
        for validation, sets in results.predictions.items()
        for features, one in sets.items()
    ]
    if plan.held_out is not None and results.held_out is not None:
        predictions.append(
            _prediction_table(plan.held_out, results.held_out, HELD_OUT, plan.full_set)
        )
    return {
        "figures": results.metrics,
        "comparisons": results.comparisons,
        "predictions": pd.concat(predictions, ignore_index=True),
        "chosen": _chosen_table(results),
        "confusion": confusion_table(data.label, main.called[SELECTED], data.classes),
        "roc": roc_table(data.label, probability, data.classes),
        "recalibration": _recalibration_table(plan, results),
        "calibration": calibration_table(data.label, probability, data.classes),
        "importance": results.importance,
    }


def write_tables(
    folder: Path, tables: Mapping[str, pd.DataFrame], classes: tuple[str, ...]
) -> None:
    """Write tables as TSV, each with a sidecar that describes its columns."""
    counts = {name: f"Subjects called {name}, mean over repeats." for name in classes}
    of_class = {f"p_{name}": f"Probability of {name}." for name in classes}
    for name, table in tables.items():
        texts = of_class | _COLUMNS["all"] | _COLUMNS.get(name, {})
        texts |= counts if name == "confusion" else {}
        path = folder / f"{name}.tsv"
        write_table(path, table)
        write_json(sidecar_path(path), described({column: texts[column] for column in table}))


def roc_table(label: Ints, probability: Array, classes: tuple[str, ...]) -> pd.DataFrame:
    """List the points of the ROC curve of each repeat; of two classes only the first has a curve.

    Unlike the AUC of the metrics, a curve compares subjects of different folds.
    """
    tables = []
    for k in _positive(classes):
        for repeat, one in enumerate(probability):
            known = np.isfinite(one[:, k])
            false, true, threshold = roc_curve(label[known] == k, one[known, k])
            tables.append(
                pd.DataFrame(
                    {
                        "class": classes[k],
                        "repeat": repeat + 1,
                        # Nobody is above the threshold of the first point, which is infinite.
                        "threshold": np.where(np.isfinite(threshold), threshold, np.nan),
                        "false_positive_rate": false,
                        "sensitivity": true,
                    }
                )
            )
    return pd.concat(tables, ignore_index=True)


def calibration_table(label: Ints, probability: Array, classes: tuple[str, ...]) -> pd.DataFrame:
    """Compare predicted probabilities with how often they came true.

    Subjects are sorted by the mean of their probability over repeats and divided into up to ten
    bins of equal size, with at least 10 subjects each.
    """
    mean = probability.mean(axis=0)
    known = np.isfinite(mean).all(axis=1)
    rows = []
    for k in _positive(classes):
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


def confusion_table(label: Ints, called: Ints, classes: tuple[str, ...]) -> pd.DataFrame:
    """Count true (rows) against called classes (columns), mean over repeats.

    `called` has shape (repeats, subjects). Subjects without a prediction (-1) are left out.
    """
    counts = np.zeros((len(classes), len(classes)))
    for one in called:
        known = one >= 0
        counts += confusion_matrix(label[known], one[known], labels=range(len(classes)))
    table = pd.DataFrame(counts / len(called), columns=classes)
    # A class may be named "true" itself.
    table.insert(0, "true" if "true" not in classes else "true class", classes)
    return table


def _positive(classes: tuple[str, ...]) -> range:
    """Return the classes that count as positive in turn: the first of two, or each of more."""
    return range(1 if len(classes) == 2 else len(classes))


def _recalibration_table(plan: Plan, results: Results) -> pd.DataFrame:
    """Make one row per validation, set of features and positive class."""
    tested = [
        (validation, features, plan.subjects, one)
        for validation, sets in results.predictions.items()
        for features, one in sets.items()
    ]
    if plan.held_out is not None and results.held_out is not None:
        tested.append((HELD_OUT, plan.full_set, plan.held_out, results.held_out))
    return pd.DataFrame(
        [
            {"validation": validation, "features": features, **row}
            for validation, features, data, one in tested
            for row in recalibration_rows(
                data.label,
                one.probability[SELECTED],
                data.classes,
                trained_on=validation != HELD_OUT,
            )
        ]
    )


def _chosen_table(results: Results) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "validation": validation,
                "features": features,
                "repeat": repeat + 1,
                "fold": fold + 1,
                "estimator": one.estimator,
                "inner_auc": one.score,
                "settings": ", ".join(f"{k} {v}" for k, v in one.params.items()) or None,
            }
            for validation, sets in results.predictions.items()
            for features, predictions in sets.items()
            for (repeat, fold), one in predictions.selections.items()
        ]
    )


def _prediction_table(
    data: LabeledSubjects, predictions: Predictions, validation: str, features: str
) -> pd.DataFrame:
    """Make one row per subject and repeat, with the probabilities of the selected estimator."""
    classes = np.array(data.classes)
    tables = []
    for repeat, one in enumerate(predictions.probability[SELECTED]):
        calls = predictions.called[SELECTED][repeat]
        known = calls >= 0
        called = np.where(known, classes[calls], None)
        tables.append(
            pd.DataFrame(
                {
                    "participant_id": data.ids,
                    "validation": validation,
                    "features": features,
                    "repeat": repeat + 1,
                    "fold": np.where(known, predictions.folds[repeat] + 1, 0),
                    "true": classes[data.label],
                    "predicted": called,
                    **{f"p_{name}": one[:, k] for k, name in enumerate(classes)},
                }
            )
        )
    return pd.concat(tables, ignore_index=True)
