"""Shuffle labels to test the AUC.

The statistic is the AUC that is reported: that of the whole procedure, in which each fold chooses
settings and estimator by its inner cross-validation, in one repeat. For each shuffle everything is
done again, folds and choices included, so that the test is exact (Ojala and Garriga 2010).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from joblib import delayed
from scipy.stats import rankdata

from hyps_bids.classification.contrast import Array, Bools, Ints, LabeledSubjects
from hyps_bids.classification.cross_validation import (
    predict_selected,
)
from hyps_bids.classification.features import Schema
from hyps_bids.classification.metrics import metrics, positive
from hyps_bids.classification.processes import ONE_PROCESS, Computing, run_tasks
from hyps_bids.progress import Progress

#: A test ends early when this many shuffles were as good as the true labels.
ENOUGH = 10
#: Shuffles of held-out labels, which need no fit.
_HELD_OUT_SHUFFLES = 1999
#: Shuffles that differ by rounding only count as equal.
_ROUNDING = 1e-12
#: Fits in a batch of shuffles, so that no process waits long for the last one.
_TASKS_PER_PROCESS = 16


@dataclass(frozen=True)
class PermutationTest:
    """AUC of the true labels, and the AUC of each shuffle that was done, in their order."""

    auc: float
    null: Array
    #: Number of shuffles after which the test would have ended in any case.
    planned: int
    within_sites: bool = False
    #: The test ends when this many shuffles were as good as the true labels.
    enough: int = ENOUGH

    @property
    def stopped_early(self) -> bool:
        """Whether the test ended because enough shuffles were as good as the true labels."""
        return len(self.null) < self.planned

    @property
    def as_good(self) -> int:
        """Number of shuffles that were as good as the true labels."""
        return _as_good(self.auc, self.null)

    @property
    def p(self) -> float:
        """The p-value, see :func:`sequential_p`."""
        return sequential_p(self.auc, self.null, self.planned, self.enough)


def sequential_p(observed: float, null: Array, planned: int, enough: int = ENOUGH) -> float:
    """Compute the p-value of a test that may have ended early.

    With fewer than `enough` values that are as large as the observed one, p is (1 + such values) /
    (1 + planned). Otherwise the test ended with the last of them, and p is `enough` / values drawn.
    Either way the probability of p ≤ α is at most α under the null hypothesis (Besag and Clifford
    1991, section 2).

    Examples
    --------
    >>> sequential_p(0.7, np.array([0.5, 0.8, 0.6]), 3)
    0.5
    >>> sequential_p(0.7, np.array([0.8, 0.6, 0.7]), 19, enough=2)
    0.6666666666666666
    """
    as_good = _as_good(observed, null)
    return enough / len(null) if as_good >= enough else (1 + as_good) / (1 + planned)


def _as_good(observed: float, null: Array | Sequence[float]) -> int:
    # A shuffle without an AUC counts as good, which is on the safe side.
    return int(np.sum(~(np.asarray(null) < observed - _ROUNDING)))


def shuffle_orders(
    subjects: int, sites: Sequence[str] | None, rng: np.random.Generator
) -> Iterator[Ints]:
    """Draw random orders of subjects without end; with sites, subjects stay at their site."""
    members = [np.arange(subjects)]
    if sites is not None:
        _, site = np.unique(np.asarray(sites), return_inverse=True)
        members = [np.flatnonzero(site == s) for s in range(site.max() + 1)]
    while True:
        order = np.empty(subjects, dtype=np.int64)
        for places in members:
            order[places] = rng.permutation(places)
        yield order


def sites_with_one_class(label: Ints, sites: Sequence[str]) -> tuple[list[str], bool]:
    """List the sites whose subjects are all of one class, and tell whether all sites are so.

    Shuffles within such sites change nothing.
    """
    names = np.asarray(sites)
    alike = [str(s) for s in np.unique(names) if len(np.unique(label[names == s])) == 1]
    return alike, len(alike) == len(np.unique(names))


@dataclass(frozen=True)
class Shuffling:
    """How labels are shuffled: number of shuffles, sites to stay within, and who is a control."""

    planned: int
    sites: tuple[str, ...] | None = None
    #: One flag per subject if the target defines the controls: they move along with the labels.
    control: Bools | None = None
    #: A set is done when this many shuffles were as good as the true labels.
    enough: int = ENOUGH


def permutation_tests(
    data: LabeledSubjects,
    sets: Mapping[str, Schema],
    observed: Mapping[str, float],
    estimators: Sequence[str],
    make_folds: Callable[[Ints], Ints],
    shuffling: Shuffling,
    computing: Computing = ONE_PROCESS,
) -> dict[str, PermutationTest]:
    """Test the AUC of the selected estimators for each set of features.

    Parameters
    ----------
    data, sets, estimators
        As in :func:`hyps_bids.classification.cross_validation.nested_cv`.
    observed : mapping
        AUC of the true labels by set of features, in the folds that `make_folds` gives for them.
    make_folds : callable
        Makes the fold of each subject (−1: never tested) from the labels.
    shuffling, computing
        All sets share the shuffles, and each ends on its own.
    """
    orders = shuffle_orders(len(data.ids), shuffling.sites, np.random.default_rng(computing.seed))
    orders = islice(orders, shuffling.planned)
    quiet = replace(computing, title=None)
    null: dict[str, list[float]] = {name: [] for name in sets}
    going = list(sets)
    # The sets share the columns of the matrix.
    columns = next(iter(sets.values())).columns
    unit, is_shown = "shuffles of labels", computing.title is not None
    with Progress({unit: shuffling.planned}, computing.title or "", is_shown=is_shown) as progress:
        while going and (batch := list(islice(orders, _batch_size(len(going), computing.nprocs)))):
            progress.note = ", ".join(going)
            shuffled = [_shuffled(data, columns, order, shuffling.control) for order in batch]
            values = _aucs(shuffled, {n: sets[n] for n in going}, estimators, make_folds, quiet)
            for name in list(going):
                for value in values[name]:
                    null[name].append(value)
                    if _as_good(observed[name], null[name]) >= shuffling.enough:
                        going.remove(name)
                        break
            progress.advance(unit, len(batch))
    how = (shuffling.planned, shuffling.sites is not None, shuffling.enough)
    return {name: PermutationTest(observed[name], np.array(null[name]), *how) for name in sets}


def held_out_test(
    label: Ints, probability: Array, sites: Sequence[str] | None, seed: int
) -> PermutationTest:
    """Test the AUC of held-out subjects, whose predictions do not depend on their labels.

    `probability` has shape (subjects, classes). Only the labels are shuffled, within sites if
    they are given; nothing is fitted again.
    """
    orders = shuffle_orders(len(label), sites, np.random.default_rng(seed))
    drawn = [label, *(label[order] for order in islice(orders, _HELD_OUT_SHUFFLES))]
    areas = []
    for k in positive(probability.shape[1]):
        # The AUC follows from the sum of ranks (Mann and Whitney 1947).
        mine = np.array(drawn) == k
        n = int(mine[0].sum())
        ranks = mine @ rankdata(probability[:, k]) - n * (n + 1) / 2
        areas.append(ranks / (n * (len(label) - n)))
    observed, *null = np.mean(areas, axis=0)
    never = _HELD_OUT_SHUFFLES + 1
    return PermutationTest(
        float(observed), np.array(null), _HELD_OUT_SHUFFLES, sites is not None, enough=never
    )


def _aucs(
    shuffled: Sequence[LabeledSubjects],
    sets: Mapping[str, Schema],
    estimators: Sequence[str],
    make_folds: Callable[[Ints], Ints],
    computing: Computing,
) -> dict[str, list[float]]:
    """Compute the AUC of each shuffle by set of features; folds are spread over the processes."""
    folds = [make_folds(one.label) for one in shuffled]
    keys = [
        (number, name, int(k))
        for number, fold in enumerate(folds)
        for name in sets
        for k in np.unique(fold[fold >= 0])
    ]
    steps = {name: schema.preprocessing() for name, schema in sets.items()}
    tasks = [
        delayed(predict_selected)(
            shuffled[i], steps[name], estimators, folds[i] == k, computing.seed
        )
        for i, name, k in keys
    ]
    shape = (len(shuffled[0].ids), len(shuffled[0].classes))
    probability = {name: [np.full(shape, np.nan) for _ in shuffled] for name in sets}
    found = run_tasks(tasks, "fits of shuffles", computing)
    for (i, name, k), predicted in zip(keys, found, strict=True):
        probability[name][i][folds[i] == k] = predicted
    return {
        name: [
            float(metrics(one.label, values, fold)["auc"][0])
            for one, values, fold in zip(shuffled, probability[name], folds, strict=True)
        ]
        for name in sets
    }


def _batch_size(sets: int, nprocs: int) -> int:
    """Take enough shuffles at a time for all processes; a test may only end between batches."""
    return -(-_TASKS_PER_PROCESS * nprocs // (sets * 5))


def _shuffled(
    data: LabeledSubjects, columns: Sequence[str], order: Ints, control: Bools | None
) -> LabeledSubjects:
    matrix = data.matrix
    if control is not None:
        matrix = matrix.copy()
        matrix[:, columns.index("(control)")] = control[order][data.subject]
    return replace(data, label=data.label[order], matrix=matrix)
