"""Division of subjects into those to train on, to validate on and to test on."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from hyps_bids.adaptation.crops import Crops
from hyps_bids.errors import UsageError
from hyps_bids.labels.msd import split_every_fifth, validation_subjects

_LOG = logging.getLogger("hyps_bids")

#: Share and largest number of a fold's training subjects that only tell when to stop.
_INNER_SHARE, _INNER_MOST = 0.15, 8
#: Number of distinct values above which a numeric column is cut into groups of equal size.
_MOST_LEVELS = 5


@dataclass(frozen=True)
class Fold:
    """One division of the subjects; no subject is in two of the parts."""

    training: tuple[str, ...]
    #: Subjects that tell when to stop; empty if there are too few.
    validation: tuple[str, ...]
    #: Subjects that the fold's metrics come from.
    test: tuple[str, ...]


def split_by_subject(
    subjects: Iterable[str], count: int, *, strata: Mapping[str, str] | None = None, seed: int = 0
) -> list[Fold]:
    """Divide subjects into folds.

    All sessions, runs and sides of a subject stay together, and each subject is in the test part
    of exactly one fold. The levels of the subjects in `strata` are spread evenly over the folds.
    With fewer subjects than folds there are fewer folds; a single subject or fold is an error.

    Examples
    --------
    >>> [fold.test for fold in split_by_subject(["b", "a", "b", "c"], 3)]
    [('c',), ('b',), ('a',)]
    """
    # scikit-learn takes half a second to import, which only training should pay.
    from sklearn.model_selection import KFold, StratifiedKFold

    ordered = sorted(set(subjects))
    if count < 2:
        raise UsageError(
            f"--folds {count}: cross-validation needs at least two folds", code="too-few-folds"
        )
    if len(ordered) < 2:
        raise UsageError(
            f"All labeled scans are of one participant ({', '.join(ordered)}); cross-validation "
            "needs at least two participants",
            code="one-subject",
        )
    if (most := len(ordered)) < count:
        _LOG.warning("with %d participants there are %d folds instead of %d", most, most, count)
        count = most
    groups = _large_enough([strata[s] for s in ordered], count) if strata else None
    splitter = StratifiedKFold if groups else KFold
    with warnings.catch_warnings():
        # Levels with few subjects were already reported above.
        warnings.simplefilter("ignore", UserWarning)
        pairs = list(splitter(count, shuffle=True, random_state=seed).split(ordered, groups))
    folds = []
    for number, (rest, test) in enumerate(pairs):
        training, validation = _hold_back([ordered[i] for i in rest], seed + number)
        folds.append(Fold(training, validation, tuple(ordered[i] for i in test)))
    return folds


def levels(column: pd.Series) -> dict[str, str]:
    """Turn a column, indexed by subject, into the level of each subject.

    Numbers with many values become three groups of equal size; missing values the level ``n/a``.

    Examples
    --------
    >>> levels(pd.Series({"01": "F", "02": None}))
    {'01': 'F', '02': 'n/a'}
    """
    if pd.api.types.is_numeric_dtype(column) and column.nunique() > _MOST_LEVELS:
        thirds = np.ceil(3 * column.rank(method="first", pct=True))
        column = thirds.map("third {:.0f}".format, na_action="ignore")
    return {
        str(subject): str(value) for subject, value in column.astype("object").fillna("n/a").items()
    }


def split_crops(
    crops: Crops,
    subject_of: Callable[[str], int | str],
    *,
    fixed_test: bool,
    count: int | None,
    validation: float | None,
) -> tuple[Crops, Crops]:
    """Split crops by subject into those to train on and those to validate on.

    Parameters
    ----------
    crops : Crops
        All crops.
    subject_of : callable
        Returns the subject of a crop, given its name.
    fixed_test : bool
        Leave out every fifth subject, the test set of all published metrics.
    count : int or None
        Train on so many crops at most, the first ones; validation is then on other subjects.
    validation : float or None
        Fraction of the subjects to validate on if below 1; otherwise every n-th subject. None
        means every tenth, or with `fixed_test` and all crops
        :func:`~hyps_bids.labels.msd.validation_subjects`, by which adapters are compared.
    """
    order = list(dict.fromkeys(sorted(subject_of(name) for name in crops.ids)))
    fixed: set[int | str] = set()
    if fixed_test:
        numbers = [int(subject) for subject in order]
        fixed = {*validation_subjects(numbers)} if validation is None and count is None else fixed
        kept, _ = split_every_fifth(numbers)
        order = [subject for subject in order if subject in kept]
    names = [name for subject in order for name in crops.ids if subject_of(name) == subject]
    first = set(names[:count])
    used = {subject_of(name) for name in first} if count else set()
    free = [subject for subject in order if subject not in used]
    validation = 10 if validation is None else validation
    every = round(1 / validation) if 0 < validation < 1 else round(validation)
    held_out = fixed or (set(free[every - 1 :: every] or free[-1:]) if every >= 1 else set())
    validating = crops.select(lambda name: subject_of(name) in held_out)
    training = crops.select(lambda name: name in first and subject_of(name) not in held_out)
    if not len(training) or not len(validating):
        raise UsageError(
            "--validation and --crops leave no crop to train on or none to validate on",
            code="no-crop-left",
        )
    return training, validating


def splits_table(folds: Sequence[Fold]) -> pd.DataFrame:
    """List the participants of each part of each fold; folds are counted from 1."""
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
            "--stratify: the levels %s have fewer than %d participants each and are taken as one",
            ", ".join(map(str, small)),
            count,
        )
    merged = ["(other)" if level in small else level for level in strata]
    sizes = pd.Series(merged).value_counts()
    if len(sizes) < 2 or sizes.max() < count:
        _LOG.warning(
            "--stratify: the levels have too few participants, so the folds are not stratified"
        )
        return None
    return merged
