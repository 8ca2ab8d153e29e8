"""Who is compared with whom: contrasts, and the subjects of one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hyps_bids.classification.features import levels_of, text_levels
from hyps_bids.errors import BadData, UsageError

__all__ = ["Cohort", "Contrast", "label_scans", "site_association"]

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Contrast:
    """Classes to tell apart; the first of two is the positive one.

    Attributes
    ----------
    classes : dict of str to tuple of str
        Name of each class → levels of the target that belong to it.

    Examples
    --------
    >>> Contrast.parse("AD+LMCI:CN")
    Contrast(classes={'AD+LMCI': ('AD', 'LMCI'), 'CN': ('CN',)})
    >>> Contrast.parse("AD:CN").name
    'AD-vs-CN'
    >>> Contrast.parse("AD:AD+CN")
    Traceback (most recent call last):
    ...
    hyps_bids.errors.UsageError: --contrast AD:AD+CN: 'AD' is in more than one class
    """

    classes: dict[str, tuple[str, ...]]

    @classmethod
    def parse(cls, text: str) -> Contrast:
        """Read ``A:B``, ``A+B:C`` or ``A:B:C``.

        Raises
        ------
        UsageError
            If there are fewer than two classes, an empty one, or a level twice.
        """
        groups = [[level.strip() for level in part.split("+")] for part in text.split(":")]
        levels = [level for group in groups for level in group]
        if len(groups) < 2 or not all(levels):
            raise UsageError(
                f"--contrast {text}: write levels of --target as A:B, A+B:C or A:B:C, A positive"
            )
        for level in levels:
            if levels.count(level) > 1:
                raise UsageError(f"--contrast {text}: '{level}' is in more than one class")
        return cls({"+".join(group): tuple(group) for group in groups})

    @property
    def name(self) -> str:
        """Name for folders."""
        return re.sub(r"[^A-Za-z0-9+._-]+", "_", "-vs-".join(self.classes))

    @property
    def text(self) -> str:
        """As on the command line."""
        return ":".join(self.classes)


@dataclass(frozen=True)
class Cohort:
    """The scans and subjects of a contrast as arrays.

    Attributes
    ----------
    matrix : ndarray of shape (scans, columns)
        From :meth:`hyps_bids.classification.features.Schema.matrix`.
    subject : ndarray of shape (scans,)
        The subject of each scan, as position in `ids`.
    label : ndarray of shape (subjects,)
        The class of each subject, as position in `classes`.
    ids : tuple of str
        Subjects.
    classes : tuple of str
        Classes; the first of two is positive.
    """

    matrix: NDArray[np.float64]
    subject: Ints
    label: Ints
    ids: tuple[str, ...]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check that the arrays belong together."""
        if len(self.matrix) != len(self.subject) or len(self.label) != len(self.ids):
            raise ValueError("scans or subjects differ in number")
        if set(np.unique(self.subject)) != set(range(len(self.ids))):
            raise ValueError("every subject needs a scan, and every scan a subject")

    @property
    def counts(self) -> tuple[int, ...]:
        """Subjects per class."""
        return tuple(int(n) for n in np.bincount(self.label, minlength=len(self.classes)))

    def scans_of(self, subjects: Ints) -> Ints:
        """List the scans of some subjects."""
        return np.flatnonzero(np.isin(self.subject, subjects))

    def mean_by_subject(self, values: NDArray[np.float64], scans: Ints) -> NDArray[np.float64]:
        """Average values of scans over each subject; NaN for subjects without one of `scans`."""
        total = np.zeros((len(self.ids), *values.shape[1:]))
        np.add.at(total, self.subject[scans], values)
        count = np.bincount(self.subject[scans], minlength=len(self.ids)).astype(float)
        count[count == 0] = np.nan
        return np.asarray(total / count.reshape(-1, *[1] * (values.ndim - 1)))


def label_scans(frame: pd.DataFrame, target: str, contrast: Contrast) -> pd.Series:
    """Give each scan the class of its subject, as a number; NA for scans of no class.

    A subject whose class changes between sessions keeps that of the first one, and loses the
    scans with another: the diagnosis at the first scan is what is predicted.

    Parameters
    ----------
    frame : DataFrame
        One row per scan with ``participant_id``, ``session_id`` and `target`.
    target : str
        Column of the diagnosis.
    contrast : Contrast
        Classes.

    Returns
    -------
    Series
        Classes (Int64) with the index of `frame`.

    Raises
    ------
    BadData
        If a level does not occur, or a class has fewer than two subjects.

    Examples
    --------
    >>> frame = pd.DataFrame({"participant_id": ["sub-1", "sub-2", "sub-3"], "dx": list("AAB")})
    >>> label_scans(frame, "dx", Contrast.parse("A:B"))
    Traceback (most recent call last):
    ...
    hyps_bids.errors.BadData: contrast A:B: only 1 subject with a scan in class B; 2 are the least
    """
    text = text_levels(frame[target])
    wanted = [level for levels in contrast.classes.values() for level in levels]
    absent = [level for level in wanted if level not in set(text.dropna())]
    if absent:
        raise BadData(
            f"contrast {contrast.text}: no scan with {target} = {', '.join(absent)}; "
            f"there are: {', '.join(levels_of(frame[target])) or 'none'}"
        )
    number = {lv: i for i, levels in enumerate(contrast.classes.values()) for lv in levels}
    label = text.map(number).astype("Int64")
    order = ["participant_id"] + [c for c in ("session_id", "scan") if c in frame]
    known = frame[order].assign(label=label).dropna(subset=["label"])
    first = known.sort_values(order, kind="stable", key=_by_number).drop_duplicates(
        "participant_id"
    )
    own = frame["participant_id"].map(first.set_index("participant_id")["label"])
    label = label.where(label == own)
    for i, name in enumerate(contrast.classes):
        count = frame.loc[(label == i).fillna(False), "participant_id"].nunique()
        if count < 2:
            raise BadData(
                f"contrast {contrast.text}: only {count} subject with a scan in class {name}; "
                "2 are the least"
            )
    return label


def _by_number(names: pd.Series) -> pd.Series:
    """Let ses-2 come before ses-10."""
    return names.astype("str").str.replace(r"\d+", lambda n: n[0].zfill(12), regex=True)


def site_association(label: Ints, site: Sequence[str]) -> tuple[float, bool]:
    """Measure how much the site says about the class.

    Parameters
    ----------
    label : ndarray of shape (subjects,)
        Classes.
    site : sequence of str of length subjects
        Sites.

    Returns
    -------
    tuple of (float, bool)
        Cramér's V without bias correction, 0–1; whether every site has one class only.

    Examples
    --------
    >>> site_association(np.array([0, 0, 1, 1]), ["a", "a", "b", "b"])
    (1.0, True)
    >>> site_association(np.array([0, 1, 0, 1]), ["a", "a", "b", "b"])
    (0.0, False)
    """
    table = pd.crosstab(np.asarray(site), label).to_numpy()
    if min(table.shape) < 2:
        return 0.0, False
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
    chi2 = ((table - expected) ** 2 / expected).sum()
    value = np.sqrt(chi2 / table.sum() / (min(table.shape) - 1))
    return float(value), bool(((table > 0).sum(axis=1) == 1).all())
