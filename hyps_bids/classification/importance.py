"""Shuffle columns to measure how much the classifier uses them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from joblib import delayed
from sklearn.pipeline import Pipeline

from hyps_bids.classification.contrast import Array, Bools, LabeledSubjects
from hyps_bids.classification.cross_validation import (
    Predictions,
    Search,
    fit_each,
    predict_subjects,
)
from hyps_bids.classification.features import Schema
from hyps_bids.classification.metrics import metrics
from hyps_bids.classification.processes import ONE_PROCESS, Computing, run_tasks

#: Number of shuffles of each column in each fold.
_SHUFFLES = 5


def importance(
    data: LabeledSubjects,
    schema: Schema,
    predictions: Predictions,
    computing: Computing = ONE_PROCESS,
) -> pd.DataFrame:
    """Measure by how much the AUC falls when a column is shuffled in the test folds.

    Folds and selections are those of the first repeat. The table has the mean fall and its SD
    over folds for each column that is used, and for the ICV if volumes are adjusted for it.
    Values are NaN if no fold has an AUC.
    """
    folds = predictions.folds[0]
    names = [*schema.used]
    if schema.icv and set(schema.used) & set(schema.volumes):
        names.append(schema.icv)
    # A covariate may be the ICV or the site too; what the classifier sees comes last.
    position = {name: i for i, name in enumerate(schema.columns)}
    columns = [position[name] for name in schema.used]
    columns += [schema.columns.index(name) for name in names[len(columns) :]]
    preprocessing = schema.preprocessing()
    tasks = [
        delayed(_falls)(data, preprocessing, one, folds == fold, columns, computing.seed)
        for (repeat, fold), one in predictions.selections.items()
        if repeat == 0
    ]
    falls = np.array(run_tasks(tasks, "folds for importance", computing))
    falls = falls[np.isfinite(falls).all(axis=1)]
    nothing = np.full(len(names), np.nan)
    mean = falls.mean(axis=0) if len(falls) else nothing
    spread = falls.std(axis=0, ddof=1) if len(falls) > 1 else nothing
    return pd.DataFrame({"column": names, "auc_fall": mean, "sd": spread})


def _falls(
    data: LabeledSubjects,
    preprocessing: Pipeline,
    selection: Search,
    test: Bools,
    columns: Sequence[int],
    seed: int,
) -> list[float]:
    """Refit the selected estimator of a fold, and predict its test set with shuffled columns."""
    rng = np.random.default_rng(seed)
    (fitted,) = fit_each(data, preprocessing, [selection], np.flatnonzero(~test), seed)
    model = fitted.model
    subjects = np.flatnonzero(test)
    label, fold = data.label[subjects], np.zeros(len(subjects), dtype=np.int64)
    rows = data.scans_of(subjects)

    def auc(matrix: Array) -> float:
        probability = predict_subjects(replace(data, matrix=matrix), model, subjects)
        return float(metrics(label, probability, fold)["auc"][0])

    def auc_shuffled(column: int) -> float:
        matrix = data.matrix.copy()
        matrix[rows, column] = matrix[rng.permutation(rows), column]
        return auc(matrix)

    whole = auc(data.matrix)
    return [
        float(np.mean([whole - auc_shuffled(column) for _ in range(_SHUFFLES)]))
        for column in columns
    ]
