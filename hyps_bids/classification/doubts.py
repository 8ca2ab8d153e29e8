"""Doubtful columns: they may tell the diagnosis whatever the brain looks like.

A column is doubtful if diagnoses are made from such tests (by its name), if it tells the classes
apart alone, or if the class can be recognized by where it is missing. The results are shown with
and without the doubtful covariates. Everything is by subject.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_auc_score

from hyps_bids.classification.contrast import Array, Bools, Ints, LabeledSubjects
from hyps_bids.classification.features import Schema, circular
from hyps_bids.classification.weights import one_scan_each
from hyps_bids.messages import join_names

#: AUC, or share of subjects, from which on a single column is suspicious.
_TOO_GOOD = 0.98
#: Subjects below which a column that tells the classes apart is no evidence.
_FEWEST = 20
#: Chance of a false alarm for single columns with missing values, and for patterns of several.
_ALARM_COLUMNS, _ALARM_PATTERNS = 0.04, 0.01
_SHUFFLES = 1999
#: Columns whose pairs are tested, and patterns that are tested, at most: the most frequent ones.
_MOST_COLUMNS, _MOST_PATTERNS = 40, 100


@dataclass(frozen=True)
class Doubts:
    """What is doubtful about the columns of a classifier."""

    #: Covariates that the reduced sets of features leave out.
    covariates: tuple[str, ...]
    #: One text for each kind of doubt, for the card and the log.
    warnings: tuple[str, ...]


def find_doubts(data: LabeledSubjects, schema: Schema) -> Doubts:
    """Find the doubtful columns of a schema among the subjects of a classifier."""
    tests = circular(schema.covariates)
    alone = _tell_apart_alone(data, schema, set(tests))
    missing = MissingValues.of(data, schema)
    single = missing.single_columns()
    joint = missing.joint_columns(single)
    found = {*tests, *alone, *single, *joint}
    doubtful = tuple(name for name in schema.covariates if name in found)
    texts = []
    if tests:
        texts.append(
            f"circular: the diagnosis may have been made from {join_names(tests)}; if so, the "
            "classifier predicts it whatever the brain looks like"
        )
    texts += [
        f"suspicious: {name} alone tells the classes apart almost perfectly; check whether it was "
        "made from the diagnosis"
        for name in alone
    ]
    if single:
        shares = (f"{name} ({missing.shares(name)})" for name in single)
        texts.append(
            "missing values go with the class, so that the classifier may recognize who has a "
            f"value instead of the disease; missing: {join_names(shares)}"
        )
    if joint:
        texts.append(
            "the pattern of missing values goes with the class, so that the classifier may "
            "recognize it instead of the disease; it is made of the missing values of "
            f"{join_names(joint)}"
        )
    if doubtful:
        texts.append(_advice(schema, doubtful))
    return Doubts(doubtful, tuple(texts))


def _advice(schema: Schema, doubtful: tuple[str, ...]) -> str:
    names = join_names(doubtful)
    if len(doubtful) == len(schema.covariates):
        return f"doubtful: {names}; no covariate is left without doubt, so read the volumes alone"
    return f"doubtful: {names}; the sets metadata_reduced and both_reduced leave them out"


@dataclass(frozen=True)
class MissingValues:
    """Where values are missing at one scan of each subject, and what that says about the class.

    The scan of a subject is drawn at random, so that neither the number of scans nor their order
    goes with the class by itself, and permutations of subjects are exact.
    """

    #: Columns that are missing at some of the scans, but not at all.
    names: tuple[str, ...]
    #: (subjects, columns)
    missing: Bools
    label: Ints
    classes: tuple[str, ...]
    #: (classes, columns): share of scans without a value, each subject weighing the same.
    share: Array

    @classmethod
    def of(cls, data: LabeledSubjects, schema: Schema) -> MissingValues:
        """Look at features, intracranial volume and covariates."""
        wanted = [*schema.features, *([schema.icv] if schema.icv else []), *schema.covariates]
        place = {name: schema.columns.index(name) for name in dict.fromkeys(wanted)}
        everywhere = np.isnan(data.matrix[:, list(place.values())])
        one = everywhere[one_scan_each(data.subject)]
        kept = np.flatnonzero(one.any(axis=0) & ~one.all(axis=0))
        weight = 1 / np.bincount(data.subject)[data.subject]
        of_class = data.label[data.subject] == np.arange(len(data.classes))[:, None]
        share = (of_class * weight) @ everywhere / (of_class @ weight)[:, None]
        names = tuple(np.array(list(place), dtype=object)[kept])
        return cls(names, one[:, kept], data.label, data.classes, share[:, kept])

    def shares(self, name: str) -> str:
        """Write the share of missing values in each class."""
        of_class = self.share[:, self.names.index(name)]
        pairs = zip(self.classes, of_class, strict=True)
        return ", ".join(f"{100 * share:.0f} % of {level}" for level, share in pairs)

    def single_columns(self) -> list[str]:
        """Find columns that are missing in one class more often than in another."""
        p = _family_p(self.missing.astype(float), self.label)
        return [name for name, one in zip(self.names, p, strict=True) if one <= _ALARM_COLUMNS]

    def joint_columns(self, known: list[str]) -> list[str]:
        """Find columns that tell the class together; those that are `known` are left out.

        Tested are pairs of columns, whole patterns, and the number of missing values.
        """
        others = [i for i, name in enumerate(self.names) if name not in known]
        missing = self.missing[:, others]
        # Columns that are always missing together are one.
        distinct, member = np.unique(missing, axis=1, return_inverse=True)
        if distinct.shape[1] < 2:
            return []
        candidates = list(_patterns(distinct))
        p = _family_p(np.column_stack([values for values, _ in candidates]), self.label)
        guilty = {
            i
            for one, (_, columns) in zip(p, candidates, strict=True)
            if one <= _ALARM_PATTERNS
            for i in columns
        }
        named = [self.names[i] for i in others]
        return [name for name, i in zip(named, member.ravel(), strict=True) if i in guilty]


def _patterns(missing: Bools) -> Iterator[tuple[Array, list[int]]]:
    """Make the candidates of joint patterns, as numbers per subject, and name their columns."""
    columns = range(missing.shape[1])
    yield missing.sum(axis=1).astype(float), list(columns)
    frequent = np.argsort(-missing.sum(axis=0), kind="stable")[:_MOST_COLUMNS]
    for i, j in itertools.combinations(frequent.tolist(), 2):
        a, b = missing[:, i], missing[:, j]
        for both in (a & b, a & ~b, ~a & b, a ^ b):
            if both.any():
                yield both.astype(float), [i, j]
    patterns, member, counts = np.unique(missing, axis=0, return_inverse=True, return_counts=True)
    for k in np.argsort(-counts, kind="stable")[:_MOST_PATTERNS]:
        if counts[k] > 1 and patterns[k].any():
            yield (member.ravel() == k).astype(float), np.flatnonzero(patterns[k]).tolist()


def _family_p(values: Array, label: Ints) -> Array:
    """Test whether the means of columns differ between classes, with permutations of subjects.

    The statistic is the share of variance between classes. A p-value is that of the largest
    statistic of all columns under shuffled labels (Westfall and Young 1993, single-step maxT), so
    that the chance of any false alarm is as stated.
    """
    spread = values.std(axis=0)
    varying = spread > 0
    if not varying.any():
        return np.ones(values.shape[1])
    scaled = ((values - values.mean(axis=0))[:, varying] / spread[varying]).astype(np.float32)
    rng = np.random.default_rng(0)
    orders = [label, *(rng.permutation(label) for _ in range(_SHUFFLES))]
    statistic = np.zeros((len(orders), int(varying.sum())), dtype=np.float32)
    for k, count in enumerate(np.bincount(label)):
        of_class = np.array([order == k for order in orders], dtype=np.float32)
        statistic += (of_class @ scaled) ** 2 / count
    largest = statistic[1:].max(axis=1)
    # The tolerance counts shuffles as equal that differ by rounding only.
    as_large = (largest[:, None] >= statistic[0] * (1 - 1e-4)).sum(axis=0)
    p = np.ones(values.shape[1])
    p[varying] = (1 + as_large) / (1 + _SHUFFLES)
    return p


def _tell_apart_alone(data: LabeledSubjects, schema: Schema, known: set[str]) -> list[str]:
    scans = one_scan_each(data.subject)
    values = dict(zip(schema.columns, data.matrix[scans].T, strict=True))
    levels = schema.categories or {}
    return [
        name
        for name in schema.features + schema.covariates
        if name not in known and _tells_apart(values[name], data.label, name in levels)
    ]


def _tells_apart(values: Array, label: Ints, are_levels: bool) -> bool:
    """Check whether a column alone separates the classes; few subjects are no evidence."""
    known = np.isfinite(values)
    values, label = values[known], label[known]
    if len(np.unique(label)) < 2 or len(label) < _FEWEST:
        return False
    if are_levels:
        _, level = np.unique(values, return_inverse=True)
        table = np.zeros((level.max() + 1, label.max() + 1))
        np.add.at(table, (level, label), 1)
        return bool(table.max(axis=1).sum() >= _TOO_GOOD * len(label) and len(table) < _FEWEST)
    areas = [roc_auc_score(label == k, values) for k in np.unique(label)]
    return all(max(area, 1 - area) >= _TOO_GOOD for area in areas)
