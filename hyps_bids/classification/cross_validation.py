"""Nested cross-validation in which nothing is fitted on the subjects that it is tested on.

Folds are made of subjects, so that all scans of a subject are on one side. Within each training
set an inner cross-validation, again of subjects, chooses the settings of every estimator, and then
the estimator: "selected" is, in each fold, the estimator with the best inner AUC. Its metrics are
the honest ones; those of the single estimators are beside them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from joblib import delayed
from sklearn import config_context
from sklearn.base import ClassifierMixin, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import Pipeline
from threadpoolctl import ThreadpoolController

from hyps_bids.classification.contrast import Array, Bools, Ints, LabeledSubjects, mean_by_subject
from hyps_bids.classification.estimators import ESTIMATORS, Estimator, Params, Split
from hyps_bids.classification.features import COUNT_SUBJECTS, Schema
from hyps_bids.classification.metrics import metrics
from hyps_bids.classification.processes import ONE_PROCESS, Computing, run_tasks
from hyps_bids.classification.threshold import Rule, call_classes, choose_cuts
from hyps_bids.classification.weights import equal_rows

#: Name of the estimator that the inner cross-validation chooses.
SELECTED = "selected"
_INNER_FOLDS = 5
#: Scans of each class that the inner cross-validation trains on, at most. In simulations with 3,000
#: subjects the estimator that was selected was as good as with a search on all of them.
_INNER_SCANS = 500
#: The search never chooses the dummy, which is there for comparison.
_DUMMY = "dummy"


@dataclass(frozen=True)
class Search:
    """The best settings of an estimator, and its model fitted on the whole training set.

    The score is the inner AUC of these settings; NaN if there were too few subjects for inner
    folds. The model includes the preprocessing; it is None before it is fitted, and where it
    would only be copied between processes. The cuts decide which class is called; they are chosen
    when the model is fitted.
    """

    estimator: str
    params: Params
    score: float
    model: Pipeline | None
    cuts: Array | None = None

    def call(self, probability: Array) -> Ints:
        """Call the classes of subjects; see :func:`call_classes`."""
        if self.cuts is None:
            raise ValueError("the classifier has not been fitted")
        return call_classes(probability, self.cuts)


@dataclass(frozen=True)
class Predictions:
    """Out-of-fold predictions of one set of features."""

    #: (repeats, subjects, classes) by estimator, :data:`SELECTED` included; NaN: not predicted.
    probability: dict[str, Array]
    #: (repeats, subjects) by estimator: class that each subject is called; -1: not predicted.
    called: dict[str, Ints]
    #: (repeats, subjects): fold in which each subject was predicted; -1 if in none.
    folds: Ints
    #: The search that was selected, by repeat and fold.
    selections: dict[tuple[int, int], Search]


def stratified_folds(
    label: Ints, folds: int, repeats: int, seed: int, sites: Sequence[str] | None = None
) -> Ints:
    """Assign subjects to folds with the same share of each class: (repeats, subjects).

    There are at most as many folds as the smallest class has subjects. The seed grows by 1 from
    repeat to repeat. With `sites`, each fold also has about the same share of each site's classes.
    """
    count = min(folds, int(np.bincount(label).min()))
    strata, order = label, np.arange(len(label))
    if sites is not None:
        _, site = np.unique(np.asarray(sites), return_inverse=True)
        # StratifiedKFold deals the strata in their order of appearance, one after the other. In
        # the order of classes, the sites of a class continue each other, so that classes are dealt
        # as evenly as without sites.
        order = np.lexsort((site, label))
        strata = label * (site.max() + 1) + site
    out = np.empty((repeats, len(label)), dtype=np.int64)
    for repeat in range(repeats):
        splitter = StratifiedKFold(count, shuffle=True, random_state=seed + repeat)
        with warnings.catch_warnings():
            # A site may have fewer subjects of a class than there are folds.
            warnings.filterwarnings("ignore", "The least populated class", UserWarning)
            for fold, (_, test) in enumerate(splitter.split(strata, strata[order])):
                out[repeat, order[test]] = fold
    return out


def site_folds(label: Ints, site: Sequence[str]) -> Ints:
    """Make one fold per site, for leave-one-site-out: (1, subjects).

    A site is never tested (-1) if a class would have fewer than 2 subjects without it.
    """
    _, which = np.unique(np.asarray(site), return_inverse=True)
    classes = label.max() + 1
    for fold in range(which.max() + 1):
        if np.bincount(label[which != fold], minlength=classes).min() < 2:
            which = np.where(which == fold, -1, which)
    return which[None].astype(np.int64)


def search(
    data: LabeledSubjects,
    preprocessing: Pipeline,
    estimator: Estimator,
    train: Ints,
    seed: int,
    rule: Rule = "prevalence",
) -> Search:
    """Choose an estimator's settings by cross-validation within a training set, and fit it.

    The preprocessing is fitted anew in every inner fold. `train` has positions of subjects, and
    `rule` says how the cuts are chosen.
    """
    return search_each(data, preprocessing, [estimator], train, seed, rule)[0]


def search_each(
    data: LabeledSubjects,
    preprocessing: Pipeline,
    estimators: Sequence[Estimator],
    train: Ints,
    seed: int,
    rule: Rule = "prevalence",
) -> list[Search]:
    """Do :func:`search` for several estimators, which share the prepared inner folds."""
    tuned = tune(data, preprocessing, estimators, train, seed)
    return fit_each(data, preprocessing, tuned, train, seed, rule)


def tune(
    data: LabeledSubjects,
    preprocessing: Pipeline,
    estimators: Sequence[Estimator],
    train: Ints,
    seed: int,
) -> list[Search]:
    """Choose the settings of each estimator within a training set; the results have no model."""
    splits = _inner_splits(data, train, seed)
    if not splits:
        return [Search(one.name, one.grid[0], float("nan"), None) for one in estimators]
    rows = data.scans_of(train)
    out = []
    with _single_threaded():
        folds = _prepared_folds(data, preprocessing, rows, splits)
        for estimator in estimators:
            score, params = float("nan"), estimator.grid[0]
            if estimator.name != _DUMMY:
                scores = [
                    _inner_auc(data, estimator, point, rows, folds, seed)
                    for point in estimator.grid
                ]
                best = int(np.nanargmax(scores)) if np.isfinite(scores).any() else 0
                score, params = float(scores[best]), estimator.grid[best]
            out.append(Search(estimator.name, params, score, None))
    return out


def fit_each(
    data: LabeledSubjects,
    preprocessing: Pipeline,
    tuned: Sequence[Search],
    train: Ints,
    seed: int,
    rule: Rule = "prevalence",
) -> list[Search]:
    """Fit estimators with the settings that were chosen for them on a whole training set."""
    splits = _inner_splits(data, train, seed)
    rows = data.scans_of(train)
    subject = data.subject[rows]
    y = data.label[subject]
    out = []
    with _single_threaded():
        folds = _prepared_folds(data, preprocessing, rows, splits) if rule == "youden" else []
        prepare = _prepare(preprocessing, data.matrix[rows], subject)
        known = prepare.transform(data.matrix[rows])
        for one in tuned:
            estimator = ESTIMATORS[one.estimator]
            classifier = estimator.final(one.params, seed, splits)
            _fit(estimator, classifier, known, y, subject)
            if estimator.calibrated:
                # A stored model must not hold the positions of its training scans.
                classifier.cv = None
            model = Pipeline([("prepare", prepare), ("classify", classifier)])
            scores = None
            if folds and estimator.name != _DUMMY and len(data.classes) == 2:
                scores = _out_of_fold(data, estimator, one.params, rows, folds, seed)
                scores = estimator.probability(classifier, scores)
                scores = mean_by_subject(scores, subject, len(data.ids))[train]
            cuts = choose_cuts(rule, data.label[train], scores, len(data.classes))
            out.append(replace(one, model=model, cuts=cuts))
    return out


def search_all(
    data: LabeledSubjects,
    sets: dict[str, Schema],
    estimators: Sequence[str] = tuple(ESTIMATORS),
    computing: Computing = ONE_PROCESS,
    rule: Rule = "prevalence",
) -> dict[str, dict[str, Search]]:
    """Fit every estimator on every set of features, with all subjects.

    The result is by set of features and estimator; :func:`choose` takes one of them.
    """
    kinds, seed = [ESTIMATORS[name] for name in estimators], computing.seed
    tasks = [
        delayed(search_each)(data, schema.preprocessing(), kinds, data.everybody, seed, rule)
        for schema in sets.values()
    ]
    found = dict(zip(sets, run_tasks(tasks, "final fits", computing), strict=True))
    return {name: dict(zip(estimators, each, strict=True)) for name, each in found.items()}


def choose(searches: Iterable[Search]) -> Search:
    """Take the search with the best inner AUC, the first of equals; never the dummy."""
    candidates = [s for s in searches if s.estimator != _DUMMY]
    return max(candidates, key=lambda s: -1.0 if np.isnan(s.score) else s.score)


def predict_scans(model: Pipeline, matrix: Array) -> Array:
    """Predict the probabilities of each scan."""
    with _single_threaded():
        return np.asarray(model.predict_proba(matrix))


def predict_subjects(data: LabeledSubjects, model: Pipeline, subjects: Ints) -> Array:
    """Predict subjects, in their order, by the mean of the probabilities of their scans."""
    rows = data.scans_of(subjects)
    probability = predict_scans(model, data.matrix[rows])
    return mean_by_subject(probability, data.subject[rows], len(data.ids))[subjects]


def predict_fold(
    data: LabeledSubjects,
    preprocessing: Pipeline,
    estimators: Sequence[str],
    test: Bools,
    seed: int,
    rule: Rule = "prevalence",
) -> list[tuple[Search, Array]]:
    """Search and fit on all subjects except those of `test`, and predict these, per estimator.

    The returned searches have no models, which would only be copied between processes.
    """
    kinds = [ESTIMATORS[name] for name in estimators]
    found = search_each(data, preprocessing, kinds, np.flatnonzero(~test), seed, rule)
    subjects = np.flatnonzero(test)
    return [(replace(s, model=None), predict_subjects(data, s.model, subjects)) for s in found]


def predict_selected(
    data: LabeledSubjects,
    preprocessing: Pipeline,
    estimators: Sequence[str],
    test: Bools,
    seed: int,
) -> Array:
    """Predict the subjects of `test` as :data:`SELECTED` does; no other estimator is fitted."""
    train = np.flatnonzero(~test)
    kinds = [ESTIMATORS[name] for name in estimators]
    best = choose(tune(data, preprocessing, kinds, train, seed))
    (fitted,) = fit_each(data, preprocessing, [best], train, seed)
    return predict_subjects(data, fitted.model, np.flatnonzero(test))


def nested_cv(
    data: LabeledSubjects,
    sets: dict[str, Schema],
    folds: Ints,
    estimators: Sequence[str] = tuple(ESTIMATORS),
    computing: Computing = ONE_PROCESS,
    rule: Rule = "prevalence",
) -> dict[str, Predictions]:
    """Cross-validate all estimators on all sets of features, in the same folds.

    The sets share the columns of the matrix. Subjects with fold -1 are never tested.
    """
    places = [(r, int(k)) for r in range(len(folds)) for k in np.unique(folds[r]) if k >= 0]
    keys = [(*place, name) for place in places for name in sets]
    steps, seed = {name: schema.preprocessing() for name, schema in sets.items()}, computing.seed
    tasks = [
        delayed(predict_fold)(data, steps[name], estimators, folds[r] == k, seed, rule)
        for r, k, name in keys
    ]
    results = dict(zip(keys, run_tasks(tasks, "fits", computing), strict=True))
    shape = (*folds.shape, len(data.classes))
    out = {}
    for name in sets:
        probability = {e: np.full(shape, np.nan) for e in (SELECTED, *estimators)}
        called = {e: np.full(folds.shape, -1) for e in probability}
        selections = {}
        for r, k in places:
            test = folds[r] == k
            found = results[r, k, name]
            for e, (one, predicted) in zip(estimators, found, strict=True):
                probability[e][r, test] = predicted
                called[e][r, test] = one.call(predicted)
            best = choose(one for one, _ in found)
            for values in (probability, called):
                values[SELECTED][r, test] = values[best.estimator][r, test]
            selections[r, k] = best
        out[name] = Predictions(probability, called, folds, selections)
    return out


@cache
def _threads() -> ThreadpoolController:
    # Finding the libraries takes longer than a small fit, so it is done once per process.
    return ThreadpoolController()


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Avoid what small fits spend most time on: threads that wait, and repeated checks."""
    limited = _threads().limit(limits=1)
    with limited, config_context(skip_parameter_validation=True, assume_finite=True):
        yield


@dataclass(frozen=True)
class _PreparedFold:
    """The arrays of one inner fold after the preprocessing; `test` has positions of scans."""

    known: Array
    label: Ints
    subject: Ints
    new: Array
    test: Ints


def _prepared_folds(
    data: LabeledSubjects, preprocessing: Pipeline, rows: Ints, splits: Sequence[Split]
) -> list[_PreparedFold]:
    matrix, subject = data.matrix[rows], data.subject[rows]
    y = data.label[subject]
    out = []
    for train, test in splits:
        prepare = _prepare(preprocessing, matrix[train], subject[train])
        known, new = prepare.transform(matrix[train]), prepare.transform(matrix[test])
        out.append(_PreparedFold(known, y[train], subject[train], new, test))
    return out


def _prepare(preprocessing: Pipeline, matrix: Array, subject: Ints) -> Pipeline:
    """Fit the preprocessing to scans so that each subject weighs the same."""
    rows, each = equal_rows(subject)
    steps = clone(preprocessing)
    counting = [name for name in COUNT_SUBJECTS if name in steps.named_steps]
    return steps.fit(matrix[rows], **{f"{name}__per_subject": each for name in counting})


def _inner_auc(
    data: LabeledSubjects,
    estimator: Estimator,
    params: Params,
    rows: Ints,
    folds: Sequence[_PreparedFold],
    seed: int,
) -> float:
    """Score settings by the AUC of out-of-fold scores, averaged by subject."""
    scores = _out_of_fold(data, estimator, params, rows, folds, seed)
    number_of = np.zeros(len(data.ids), dtype=np.int64)
    for number, fold in enumerate(folds):
        number_of[data.subject[rows[fold.test]]] = number
    mean = mean_by_subject(scores, data.subject[rows], len(data.ids))
    return float(metrics(data.label, mean, number_of)["auc"][0])


def _out_of_fold(
    data: LabeledSubjects,
    estimator: Estimator,
    params: Params,
    rows: Ints,
    folds: Sequence[_PreparedFold],
    seed: int,
) -> Array:
    """Return scores of the scans (rows, classes) by models that did not see their subjects."""
    scores = np.full((len(rows), len(data.classes)), np.nan)
    for fold in folds:
        model = estimator.scorer(params, seed)
        _fit(estimator, model, fold.known, fold.label, fold.subject)
        scores[fold.test] = _class_scores(model, fold.new)
    return scores


def _class_scores(model: Pipeline, X: Array) -> Array:
    if hasattr(model, "predict_proba"):
        return np.asarray(model.predict_proba(X))
    scores = np.asarray(model.decision_function(X))
    return np.column_stack([-scores, scores]) if scores.ndim == 1 else scores


def _fit(
    estimator: Estimator, classifier: ClassifierMixin, X: Array, y: Ints, subject: Ints
) -> None:
    with warnings.catch_warnings():
        # A poor point of the grid that does not converge loses in the search.
        warnings.simplefilter("ignore", ConvergenceWarning)
        estimator.fit(classifier, X, y, subject)


def _inner_splits(data: LabeledSubjects, train: Ints, seed: int) -> list[Split]:
    """Split a training set by subjects; positions are within its scans. Empty if too small.

    All subjects are tested, but in a large cohort only some of them train: settings are chosen as
    well, and the time of the search no longer grows with the square of the number of subjects.
    """
    label = data.label[train]
    if np.bincount(label, minlength=len(data.classes)).min() < 2:
        return []
    of_subject = np.full(len(data.ids), -1)
    of_subject[train] = stratified_folds(label, _INNER_FOLDS, 1, seed)[0]
    trains = np.zeros(len(data.ids), dtype=bool)
    scans = np.bincount(data.subject)
    rng = np.random.default_rng(seed)
    for k in range(len(data.classes)):
        members = rng.permutation(train[label == k])
        trains[members[np.cumsum(scans[members]) <= _INNER_SCANS]] = True
    subject = data.subject[data.scans_of(train)]
    of_scan = of_subject[subject]
    return [
        (np.flatnonzero((of_scan != k) & trains[subject]), np.flatnonzero(of_scan == k))
        for k in range(of_scan.max() + 1)
    ]
