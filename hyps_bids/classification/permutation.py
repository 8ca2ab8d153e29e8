"""Shuffle labels to test the AUC, and shuffle columns to measure their importance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from joblib import delayed
from sklearn.pipeline import Pipeline

from hyps_bids.classification.contrast import Array, Bools, Ints, LabeledSubjects
from hyps_bids.classification.cross_validation import (
    ONE_PROCESS,
    Computing,
    Predictions,
    Search,
    fit_each,
    predict_fold,
    predict_subjects,
    run_tasks,
    stratified_folds,
)
from hyps_bids.classification.features import Schema
from hyps_bids.classification.metrics import metrics

#: Number of shuffles of each column in each fold.
_SHUFFLES = 5


@dataclass(frozen=True)
class PermutationTest:
    """AUC of the true labels and of each shuffle; p is (1 + shuffles as good) / (1 + shuffles)."""

    estimator: str
    p: float
    auc: float
    null: Array


def permutation_test(
    data: LabeledSubjects,
    schema: Schema,
    estimator: str,
    *,
    permutations: int,
    folds: int = 5,
    control: Bools | None = None,
    computing: Computing = ONE_PROCESS,
) -> PermutationTest:
    """Test how often shuffled labels give as high an AUC, through the whole pipeline.

    The statistic is the nested cross-validated AUC of one estimator, not repeated. Labels are
    shuffled between subjects, and everything is done again: folds, inner search, imputation,
    harmonization, selection. So the test is exact. Controls are given (one flag per subject) if
    the predicted column defines them: they are shuffled along with the labels.
    """
    rng = np.random.default_rng(computing.seed)
    orders = [data.everybody, *(rng.permutation(data.everybody) for _ in range(permutations))]
    shuffled = [_shuffled(data, schema, order, control) for order in orders]
    steps = schema.preprocessing()
    tasks = [delayed(_cv_auc)(one, steps, estimator, folds, computing.seed) for one in shuffled]
    observed, *null = run_tasks(tasks, "shuffles", computing)
    # The tolerance counts shuffles as equal that differ by rounding only.
    as_good = np.sum(np.array(null) >= observed - 1e-12)
    p = float((1 + as_good) / (1 + permutations))
    return PermutationTest(estimator, p, observed, np.array(null))


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
    columns = [schema.columns.index(name) for name in names]
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


def _shuffled(
    data: LabeledSubjects, schema: Schema, order: Ints, control: Bools | None
) -> LabeledSubjects:
    matrix = data.matrix
    if control is not None:
        matrix = matrix.copy()
        matrix[:, schema.columns.index("(control)")] = control[order][data.subject]
    return replace(data, label=data.label[order], matrix=matrix)


def _cv_auc(
    data: LabeledSubjects, preprocessing: Pipeline, estimator: str, folds: int, seed: int
) -> float:
    fold = stratified_folds(data.label, folds, 1, seed)[0]
    probability = np.full((len(data.ids), len(data.classes)), np.nan)
    for k in np.unique(fold):
        ((_, probability[fold == k]),) = predict_fold(
            data, preprocessing, [estimator], fold == k, seed
        )
    return float(metrics(data.label, probability, fold)["auc"][0])


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
