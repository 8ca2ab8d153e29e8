"""Nested cross-validation in which nothing is fitted on the subjects that it is tested on.

Folds are made of subjects, so all scans of a subject are on one side. Within each training set an
inner cross-validation, again of subjects, chooses the settings of every estimator, and then the
estimator: "selected" is, in each fold, the estimator with the best inner AUC. Its figures are the
honest ones; those of the single estimators are beside them.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import Pipeline
from threadpoolctl import ThreadpoolController

from hyps_bids.classification.charts import figures
from hyps_bids.classification.contrast import Cohort
from hyps_bids.classification.estimators import ESTIMATORS, Estimator, Params, Split
from hyps_bids.classification.features import Schema

__all__ = [
    "SELECTED",
    "Predictions",
    "Search",
    "choose",
    "group_folds",
    "importance",
    "make_folds",
    "nested_cv",
    "permutation_test",
    "predict_subjects",
    "run_tasks",
    "search",
    "search_all",
]

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

#: the estimator that the inner cross-validation chooses
SELECTED = "selected"
_INNER_FOLDS = 5
#: what the search may not choose
_NO_CANDIDATE = ("dummy",)


@dataclass(frozen=True)
class Search:
    """What the inner cross-validation of one estimator found.

    Attributes
    ----------
    estimator : str
        Name.
    params : dict
        The best settings.
    score : float
        Their inner AUC; NaN if there were too few subjects for inner folds.
    model : Pipeline
        Preprocessing and classifier, fitted on the whole training set.
    """

    estimator: str
    params: Params
    score: float
    model: Pipeline


@dataclass(frozen=True)
class Predictions:
    """Out-of-fold predictions of one set of features.

    Attributes
    ----------
    probability : dict of str to ndarray of shape (repeats, subjects, classes)
        By estimator, :data:`SELECTED` included. NaN: the subject could not be predicted.
    folds : ndarray of shape (repeats, subjects)
        In which fold each subject was predicted; -1 for never.
    chosen : list of dict
        Per repeat and fold: the selected estimator, its settings and its inner AUC.
    """

    probability: dict[str, Array]
    folds: Ints
    chosen: list[dict[str, Any]]


def make_folds(label: Ints, folds: int, repeats: int, seed: int) -> Ints:
    """Deal subjects to stratified folds.

    Parameters
    ----------
    label : ndarray of shape (subjects,)
        Classes.
    folds : int
        Number of folds; reduced to the size of the smallest class.
    repeats : int
        Number of times.
    seed : int
        Of the random numbers.

    Returns
    -------
    ndarray of shape (repeats, subjects)
        Folds.

    Examples
    --------
    >>> make_folds(np.array([0, 0, 1, 1, 1, 1]), 5, 1, 0).max() + 1
    np.int64(2)
    """
    count = min(folds, int(np.bincount(label).min()))
    out = np.empty((repeats, len(label)), dtype=np.int64)
    for repeat in range(repeats):
        splitter = StratifiedKFold(count, shuffle=True, random_state=seed + repeat)
        for fold, (_, test) in enumerate(splitter.split(label, label)):
            out[repeat, test] = fold
    return out


def group_folds(label: Ints, group: Sequence[str]) -> Ints:
    """Make one fold per group of subjects, for leave-one-site-out.

    A group without which a class would be left with fewer than 2 subjects is never tested: -1.

    Returns
    -------
    ndarray of shape (1, subjects)
        Folds.
    """
    _, which = np.unique(np.asarray(group), return_inverse=True)
    classes = label.max() + 1
    for fold in range(which.max() + 1):
        if np.bincount(label[which != fold], minlength=classes).min() < 2:
            which = np.where(which == fold, -1, which)
    return which[None].astype(np.int64)


def search(
    cohort: Cohort, preprocessing: Pipeline, estimator: Estimator, train: Ints, seed: int
) -> Search:
    """Choose an estimator's settings by cross-validation within a training set, and fit it.

    Parameters
    ----------
    cohort : Cohort
        Data.
    preprocessing : Pipeline
        The steps before the classifier; fitted anew in every inner fold.
    estimator : Estimator
        Kind of classifier and its grid.
    train : ndarray of int
        Subjects to train with, as positions.
    seed : int
        Of folds and classifiers.
    """
    splits = _inner_splits(cohort, train, seed)
    rows = cohort.scans_of(train)
    y = cohort.label[cohort.subject[rows]]
    score, params = float("nan"), estimator.grid[0]
    with _light():
        if splits and estimator.name not in _NO_CANDIDATE:
            scores = _grid_scores(cohort, preprocessing, estimator, rows, y, splits, seed)
            best = int(np.nanargmax(scores)) if np.isfinite(scores).any() else 0
            score, params = float(scores[best]), estimator.grid[best]
        classifier = estimator.final(params, seed, splits)
        model = Pipeline([("prepare", clone(preprocessing)), ("classify", classifier)])
        _fit(model, cohort.matrix[rows], y)
    if estimator.calibrated:
        # positions of training scans have no business in a stored model
        classifier.cv = None
    return Search(estimator.name, params, score, model)


def search_all(
    cohort: Cohort,
    schemas: dict[str, Schema],
    *,
    estimators: Sequence[str] = tuple(ESTIMATORS),
    seed: int = 0,
    nprocs: int = 1,
    progress: Callable[[str], None] | None = None,
) -> dict[str, dict[str, Search]]:
    """Fit the final model of every estimator and set of features on all subjects.

    The parameters are those of :func:`nested_cv`.

    Returns
    -------
    dict of str to dict of str to Search
        By set of features and estimator; :func:`choose` takes one.
    """
    everybody = np.arange(len(cohort.ids))
    keys = [(name, estimator) for name in schemas for estimator in estimators]
    tasks = [
        delayed(search)(
            cohort, schemas[name].preprocessing(), ESTIMATORS[estimator], everybody, seed
        )
        for name, estimator in keys
    ]
    found = dict(zip(keys, run_tasks(tasks, nprocs, "final fits", progress), strict=True))
    return {name: {e: found[name, e] for e in estimators} for name in schemas}


def choose(searches: Iterable[Search]) -> Search:
    """Take the search with the best inner AUC; the first of equals, and never the dummy."""
    candidates = [s for s in searches if s.estimator not in _NO_CANDIDATE]
    return max(candidates, key=lambda s: -1.0 if np.isnan(s.score) else s.score)


def predict_subjects(cohort: Cohort, model: Pipeline, subjects: Ints) -> Array:
    """Predict subjects: mean of the probabilities of their scans.

    Returns
    -------
    ndarray of shape (subjects, classes)
        In the order of `subjects`.
    """
    rows = cohort.scans_of(subjects)
    with _light():
        probability = model.predict_proba(cohort.matrix[rows])
    return cohort.mean_by_subject(probability, rows)[subjects]


def nested_cv(
    cohort: Cohort,
    schemas: dict[str, Schema],
    folds: Ints,
    *,
    estimators: Sequence[str] = tuple(ESTIMATORS),
    seed: int = 0,
    nprocs: int = 1,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Predictions]:
    """Cross-validate all estimators on all sets of features, in the same folds.

    Parameters
    ----------
    cohort : Cohort
        Data.
    schemas : dict of str to Schema
        Sets of features by name; they share the columns of the cohort's matrix.
    folds : ndarray of shape (repeats, subjects)
        From :func:`make_folds` or :func:`group_folds`; subjects with -1 are trained with only.
    estimators : sequence of str
        Names in :data:`~hyps_bids.classification.estimators.ESTIMATORS`.
    seed : int
        Of inner folds and classifiers.
    nprocs : int
        Processes.
    progress : callable, optional
        Told a line of text now and then.

    Returns
    -------
    dict of str to Predictions
        By set of features.
    """
    keys = [
        (name, repeat, int(fold), estimator)
        for repeat in range(len(folds))
        for fold in np.unique(folds[repeat])
        if fold >= 0
        for name in schemas
        for estimator in estimators
    ]
    preprocessing = {name: schema.preprocessing() for name, schema in schemas.items()}
    tasks = [
        delayed(_one_fold)(cohort, preprocessing[name], estimator, folds[repeat] == fold, seed)
        for name, repeat, fold, estimator in keys
    ]
    results = dict(zip(keys, run_tasks(tasks, nprocs, "fits", progress), strict=True))
    shape = (*folds.shape, len(cohort.classes))
    out = {}
    for name in schemas:
        probability = {e: np.full(shape, np.nan) for e in (SELECTED, *estimators)}
        chosen = []
        for repeat in range(len(folds)):
            for fold in sorted({key[2] for key in keys if key[1] == repeat}):
                test = folds[repeat] == fold
                found = {e: results[name, repeat, fold, e] for e in estimators}
                for e in estimators:
                    probability[e][repeat, test] = found[e][1]
                best = choose(s for s, _ in found.values())
                probability[SELECTED][repeat, test] = found[best.estimator][1]
                chosen.append(
                    {
                        "repeat": repeat,
                        "fold": fold,
                        "estimator": best.estimator,
                        "inner_auc": best.score,
                        "settings": best.params,
                    }
                )
        out[name] = Predictions(probability, folds, chosen)
    return out


def permutation_test(
    cohort: Cohort,
    schema: Schema,
    *,
    estimator: str,
    permutations: int,
    folds: int = 5,
    control: NDArray[np.bool_] | None = None,
    seed: int = 0,
    nprocs: int = 1,
    progress: Callable[[str], None] | None = None,
) -> tuple[float, float, Array]:
    """Ask how often shuffled labels give as high an AUC, through the whole pipeline.

    The statistic is the nested cross-validated AUC of one estimator, not repeated. Labels are
    shuffled between subjects, scans stay with their subject, and everything is done again: folds,
    inner search, imputation, harmonization, selection. So the test is exact.

    Parameters
    ----------
    cohort, schema : Cohort, Schema
        Data and its columns.
    estimator : str
        Which classifier.
    permutations : int
        Number of shuffles.
    folds : int
        Outer folds.
    control : ndarray of shape (subjects,), optional
        Who the controls are, where the column that is predicted tells: it moves with the labels.
    seed, nprocs, progress
        As in :func:`nested_cv`.

    Returns
    -------
    p : float
        ``(1 + shuffles as good) / (1 + shuffles)``.
    observed : float
        AUC of the true labels.
    null : ndarray of shape (permutations,)
        AUC of each shuffle.
    """
    rng = np.random.default_rng(seed)
    preprocessing = schema.preprocessing()
    everybody = np.arange(len(cohort.ids))
    cohorts = []
    for order in [everybody, *(rng.permutation(everybody) for _ in range(permutations))]:
        matrix = cohort.matrix
        if control is not None:
            matrix = matrix.copy()
            matrix[:, schema.columns.index("(control)")] = control[order][cohort.subject]
        cohorts.append(replace(cohort, label=cohort.label[order], matrix=matrix))
    tasks = [delayed(_cv_auc)(one, preprocessing, estimator, folds, seed) for one in cohorts]
    values = np.array(run_tasks(tasks, nprocs, "shuffles", progress))
    observed, null = values[0], values[1:]
    p = float((1 + np.sum(null >= observed - 1e-12)) / (1 + permutations))
    return p, float(observed), null


def importance(
    cohort: Cohort,
    schema: Schema,
    folds: Ints,
    chosen: Sequence[dict[str, Any]],
    *,
    seed: int = 0,
    shuffles: int = 5,
    nprocs: int = 1,
    progress: Callable[[str], None] | None = None,
) -> dict[str, tuple[float, float]]:
    """Measure by how much AUC falls when a column is shuffled in the test folds.

    Parameters
    ----------
    cohort, schema : Cohort, Schema
        Data and its columns.
    folds : ndarray of shape (subjects,)
        One set of folds.
    chosen : sequence of dict
        What was selected in each fold, from :class:`Predictions`.
    seed, nprocs, progress
        As in :func:`nested_cv`.
    shuffles : int
        Per column and fold.

    Returns
    -------
    dict of str to tuple of (float, float)
        Column → mean fall, and its SD over folds.
    """
    names = [schema.icv] if schema.icv and set(schema.used) & set(schema.volumes) else []
    names = [*schema.used, *names]
    columns = [schema.columns.index(name) for name in names]
    preprocessing = schema.preprocessing()
    tasks = [
        delayed(_falls)(cohort, preprocessing, one, folds == one["fold"], columns, shuffles, seed)
        for one in chosen
    ]
    falls = np.array(run_tasks(tasks, nprocs, "folds for importance", progress))
    falls = falls[np.isfinite(falls).all(axis=1)]
    if not len(falls):
        return {name: (float("nan"), float("nan")) for name in names}
    spread = falls.std(axis=0, ddof=1) if len(falls) > 1 else np.full(len(names), np.nan)
    return {
        name: (float(m), float(s))
        for name, m, s in zip(names, falls.mean(axis=0), spread, strict=True)
    }


def run_tasks(
    tasks: Sequence[Any], nprocs: int, unit: str, progress: Callable[[str], None] | None = None
) -> list[Any]:
    """Run delayed calls in some processes; report at most four times a minute."""
    began = told = time.monotonic()
    results = []
    pool = Parallel(n_jobs=min(nprocs, max(1, len(tasks))), return_as="generator")
    for result in pool(tasks):
        results.append(result)
        now = time.monotonic()
        if progress is not None and now - told > 15:
            told = now
            left = (now - began) / len(results) * (len(tasks) - len(results))
            progress(f"{len(results)} of {len(tasks)} {unit}, about {left:.0f} s left")
    return results


@cache
def _threads() -> ThreadpoolController:
    # finding the libraries takes longer than a small fit: once per process
    return ThreadpoolController()


@contextmanager
def _light() -> Iterator[None]:
    """Save what small fits spend most time on: threads that wait, and repeated checks."""
    limited = _threads().limit(limits=1)
    with limited, config_context(skip_parameter_validation=True, assume_finite=True):
        yield


def _one_fold(
    cohort: Cohort, preprocessing: Pipeline, estimator: str, test: NDArray[np.bool_], seed: int
) -> tuple[Search, Array]:
    train = np.flatnonzero(~test)
    found = search(cohort, preprocessing, ESTIMATORS[estimator], train, seed)
    probability = predict_subjects(cohort, found.model, np.flatnonzero(test))
    return replace(found, model=None), probability


def _cv_auc(
    cohort: Cohort, preprocessing: Pipeline, estimator: str, folds: int, seed: int
) -> float:
    fold = make_folds(cohort.label, folds, 1, seed)[0]
    probability = np.full((len(cohort.ids), len(cohort.classes)), np.nan)
    for k in np.unique(fold):
        probability[fold == k] = _one_fold(cohort, preprocessing, estimator, fold == k, seed)[1]
    return float(figures(cohort.label, probability, fold)["auc"][0])


def _falls(
    cohort: Cohort,
    preprocessing: Pipeline,
    chosen: dict[str, Any],
    test: NDArray[np.bool_],
    columns: Sequence[int],
    shuffles: int,
    seed: int,
) -> list[float]:
    """Refit what was selected in a fold, and predict its test set with shuffled columns."""
    rng = np.random.default_rng(seed)
    estimator = replace(ESTIMATORS[chosen["estimator"]], grid=(chosen["settings"],))
    model = search(cohort, preprocessing, estimator, np.flatnonzero(~test), seed).model
    subjects = np.flatnonzero(test)
    label, fold = cohort.label[subjects], np.zeros(len(subjects), dtype=np.int64)
    rows = cohort.scans_of(subjects)

    def auc(matrix: Array) -> float:
        probability = predict_subjects(replace(cohort, matrix=matrix), model, subjects)
        return float(figures(label, probability, fold)["auc"][0])

    whole = auc(cohort.matrix)
    falls = []
    for column in columns:
        values = []
        for _ in range(shuffles):
            matrix = cohort.matrix.copy()
            matrix[rows, column] = matrix[rng.permutation(rows), column]
            values.append(whole - auc(matrix))
        falls.append(float(np.mean(values)))
    return falls


def _grid_scores(
    cohort: Cohort,
    preprocessing: Pipeline,
    estimator: Estimator,
    rows: Ints,
    y: Ints,
    splits: Sequence[Split],
    seed: int,
) -> Array:
    """Score every point of the grid: AUC of out-of-fold scores, averaged by subject."""
    classes = len(cohort.classes)
    scores = np.full((len(estimator.grid), len(rows), classes), np.nan)
    fold = np.zeros(len(cohort.ids), dtype=np.int64)
    for number, (train, test) in enumerate(splits):
        prepare = clone(preprocessing)
        known = prepare.fit_transform(cohort.matrix[rows[train]], y[train])
        new = prepare.transform(cohort.matrix[rows[test]])
        fold[cohort.subject[rows[test]]] = number
        for point, params in enumerate(estimator.grid):
            model = estimator.scorer(params, seed)
            _fit(model, known, y[train])
            scores[point, test] = _class_scores(model, new)
    return np.array(
        [figures(cohort.label, cohort.mean_by_subject(one, rows), fold)["auc"][0] for one in scores]
    )


def _class_scores(model: Pipeline, X: Array) -> Array:
    if hasattr(model, "predict_proba"):
        return np.asarray(model.predict_proba(X))
    scores = np.asarray(model.decision_function(X))
    return np.column_stack([-scores, scores]) if scores.ndim == 1 else scores


def _fit(model: Pipeline, X: Array, y: Ints) -> None:
    with warnings.catch_warnings():
        # a weak grid point that has not converged loses in the search
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(X, y)


def _inner_splits(cohort: Cohort, train: Ints, seed: int) -> list[Split]:
    """Split a training set by subjects; positions are within its scans. None if too small."""
    label = cohort.label[train]
    smallest = int(np.bincount(label, minlength=len(cohort.classes)).min())
    if smallest < 2:
        return []
    fold = make_folds(label, _INNER_FOLDS, 1, seed)[0]
    of_subject = np.full(len(cohort.ids), -1)
    of_subject[train] = fold
    of_scan = of_subject[cohort.subject[cohort.scans_of(train)]]
    return [
        (np.flatnonzero(of_scan != k), np.flatnonzero(of_scan == k)) for k in range(fold.max() + 1)
    ]
