"""Cross-validation by subject: who is trained on, who stops the training, who is tested."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from hyps_bids.errors import UsageError

__all__ = ["Fold", "levels", "make_folds", "splits_table"]

_LOG = logging.getLogger("hyps_bids")

#: share of a fold's training subjects, and at most how many, that only stop the training
_INNER_SHARE, _INNER_MOST = 0.15, 8
#: distinct numbers above which a column is cut into groups of equal size
_MOST_LEVELS = 5


@dataclass(frozen=True)
class Fold:
    """One division of the subjects; no subject is in two of the parts.

    Attributes
    ----------
    training : tuple of str
        Subjects whose crops are trained on.
    validation : tuple of str
        Subjects that tell when to stop; empty if there are too few.
    test : tuple of str
        Subjects that the fold's figures come from.
    """

    training: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def make_folds(
    subjects: Iterable[str], count: int, *, strata: Mapping[str, str] | None = None, seed: int = 0
) -> list[Fold]:
    """Divide subjects into folds.

    Subjects, not scans, are dealt out: all sessions, runs and sides of one stay together.

    Parameters
    ----------
    subjects : iterable of str
        Labels; repetitions count once.
    count : int
        Number of folds wanted; fewer, with a warning, if there are fewer subjects.
    strata : mapping of str to str, optional
        Level of each subject, to be spread evenly over the folds.
    seed : int
        Of the order in which subjects are dealt out.

    Returns
    -------
    list of Fold
        Each subject is in the test part of exactly one.

    Raises
    ------
    UsageError
        If there is only one subject, or fewer than two folds are asked for.

    Examples
    --------
    >>> [fold.test for fold in make_folds(["b", "a", "b", "c"], 3)]
    [('c',), ('b',), ('a',)]
    >>> make_folds(["a", "a"], 5)
    Traceback (most recent call last):
    hyps_bids.errors.UsageError: labeled scans of one subject only (a): cross-validation needs two
    """
    # sklearn takes half a second to import, which only training should pay
    from sklearn.model_selection import KFold, StratifiedKFold

    ordered = sorted(set(subjects))
    if count < 2:
        raise UsageError(f"--folds {count}: cross-validation needs at least 2")
    if len(ordered) < 2:
        raise UsageError(
            f"labeled scans of one subject only ({', '.join(ordered)}): cross-validation needs two"
        )
    if len(ordered) < count:
        _LOG.warning("%d subjects: %d folds instead of %d", len(ordered), len(ordered), count)
        count = len(ordered)
    groups = _large_enough([strata[s] for s in ordered], count) if strata else None
    splitter = StratifiedKFold if groups else KFold
    with warnings.catch_warnings():
        # of small levels, which we have spoken of
        warnings.simplefilter("ignore", UserWarning)
        pairs = list(splitter(count, shuffle=True, random_state=seed).split(ordered, groups))
    folds = []
    for number, (rest, test) in enumerate(pairs):
        training, validation = _hold_back([ordered[i] for i in rest], seed + number)
        folds.append(Fold(training, validation, tuple(ordered[i] for i in test)))
    return folds


def levels(column: pd.Series) -> dict[str, str]:
    """Turn a column into strata: numbers with many values into three groups of equal size.

    Parameters
    ----------
    column : pandas.Series
        Values, indexed by subject.

    Returns
    -------
    dict of str to str
        Level by subject; missing values are the level ``n/a``.

    Examples
    --------
    >>> levels(pd.Series({"01": "F", "02": None}))
    {'01': 'F', '02': 'n/a'}
    >>> levels(pd.Series({str(age): age for age in (20, 30, 40, 50, 60, 70)})).values()
    dict_values(['third 1', 'third 1', 'third 2', 'third 2', 'third 3', 'third 3'])
    """
    if pd.api.types.is_numeric_dtype(column) and column.nunique() > _MOST_LEVELS:
        ranks = column.rank(method="first", pct=True)
        thirds = np.ceil(ranks * 3)
        return {
            str(subject): "n/a" if pd.isna(third) else f"third {int(third)}"
            for subject, third in thirds.items()
        }
    return {
        str(subject): "n/a" if pd.isna(value) else str(value) for subject, value in column.items()
    }


def splits_table(folds: Sequence[Fold]) -> pd.DataFrame:
    """List who was in which part of which fold.

    Returns
    -------
    pandas.DataFrame
        Columns participant_id, fold (from 1), part (training, validation or test).
    """
    rows = [
        (f"sub-{subject}", number, part)
        for number, fold in enumerate(folds, start=1)
        for part in ("training", "validation", "test")
        for subject in getattr(fold, part)
    ]
    return pd.DataFrame(rows, columns=["participant_id", "fold", "part"])


def _hold_back(subjects: list[str], seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split training subjects into those trained on and the inner validation set."""
    count = 0
    if len(subjects) > 2:
        count = min(_INNER_MOST, max(1, round(_INNER_SHARE * len(subjects))))
    held = set(np.random.default_rng(seed).permutation(len(subjects))[:count].tolist())
    training = tuple(s for i, s in enumerate(subjects) if i not in held)
    return training, tuple(s for i, s in enumerate(subjects) if i in held)


def _large_enough(strata: list[str], count: int) -> list[str] | None:
    """Put levels with fewer subjects than folds together; None if nothing is left to spread."""
    sizes = pd.Series(strata).value_counts()
    small = sorted(sizes.index[sizes < count])
    if small:
        _LOG.warning(
            "--stratify: fewer than %d subjects of %s: taken as one level",
            count,
            ", ".join(map(str, small)),
        )
    merged = ["(other)" if level in small else level for level in strata]
    sizes = pd.Series(merged).value_counts()
    if len(sizes) < 2 or sizes.max() < count:
        _LOG.warning("--stratify: too few subjects of each level; folds are not stratified")
        return None
    return merged
