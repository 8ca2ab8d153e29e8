"""Contrasts, and the labeled subjects of one contrast."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import chi2_contingency
from scipy.stats.contingency import association

from hyps_bids.classification.features import levels_of, text_levels
from hyps_bids.cohort.visits import scan_order
from hyps_bids.errors import BadData, UsageError
from hyps_bids.messages import format_count

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Contrast:
    """Classes to tell apart; the first of two is the positive class.

    Examples
    --------
    >>> Contrast.parse("AD+LMCI:CN")
    Contrast(classes={'AD+LMCI': ('AD', 'LMCI'), 'CN': ('CN',)})
    """

    #: Name of each class → levels of the target that belong to it
    classes: dict[str, tuple[str, ...]]

    @classmethod
    def parse(cls, text: str) -> Contrast:
        """Read ``A:B``, ``A+B:C`` or ``A:B:C``."""
        groups = [[level.strip() for level in part.split("+")] for part in text.split(":")]
        levels = [level for group in groups for level in group]
        if len(groups) < 2 or not all(levels):
            raise UsageError(
                f"--contrast {text}: write levels of --target as A:B, A+B:C or A:B:C; the first "
                "class is the positive one",
                code="contrast-syntax",
            )
        for level in levels:
            if levels.count(level) > 1:
                raise UsageError(
                    f"--contrast {text}: '{level}' is named more than once",
                    code="contrast-level-repeated",
                )
        return cls({"+".join(group): tuple(group) for group in groups})

    @property
    def name(self) -> str:
        """Name for folders."""
        return re.sub(r"[^A-Za-z0-9+._-]+", "_", "-vs-".join(self.classes))

    @property
    def text(self) -> str:
        """The contrast as on the command line."""
        return ":".join(self.classes)

    @property
    def levels(self) -> list[str]:
        """Levels of the target that belong to any class."""
        return [level for levels in self.classes.values() for level in levels]


@dataclass(frozen=True)
class LabeledSubjects:
    """The subjects of a contrast with their classes and their scans, as arrays."""

    #: (scans, columns), from :meth:`hyps_bids.classification.features.Schema.matrix`
    matrix: Array
    #: (scans,): the subject of each scan, as a position in `ids`
    subject: Ints
    #: (subjects,): the class of each subject, as a position in `classes`
    label: Ints
    ids: tuple[str, ...]
    #: The first of two classes is the positive one.
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check that the arrays belong together."""
        if len(self.matrix) != len(self.subject) or len(self.label) != len(self.ids):
            raise ValueError("scans or subjects differ in number")
        if set(np.unique(self.subject)) != set(range(len(self.ids))):
            raise ValueError("every subject needs a scan, and every scan a subject")

    @property
    def everybody(self) -> Ints:
        """Positions of all subjects."""
        return np.arange(len(self.ids))

    @property
    def counts(self) -> dict[str, int]:
        """Number of subjects by class."""
        counts = np.bincount(self.label, minlength=len(self.classes)).tolist()
        return dict(zip(self.classes, counts, strict=True))

    def scans_of(self, subjects: Ints) -> Ints:
        """List the scans of some subjects."""
        return np.flatnonzero(np.isin(self.subject, subjects))


def mean_by_subject(values: Array, subject: Ints, subjects: int) -> Array:
    """Average the values of scans over each of some subjects; NaN for those without a scan.

    Examples
    --------
    >>> mean_by_subject(np.array([1.0, 3.0]), np.array([0, 0]), 2)
    array([ 2., nan])
    """
    total = np.zeros((subjects, *values.shape[1:]))
    np.add.at(total, subject, values)
    count = np.bincount(subject, minlength=subjects).astype(float)
    count[count == 0] = np.nan
    return np.asarray(total / count.reshape(-1, *[1] * (values.ndim - 1)))


def label_scans(frame: pd.DataFrame, target: str, contrast: Contrast) -> pd.Series:
    """Give each scan the class of its subject.

    The class at the first scan of the contrast is what is predicted: a subject whose class changes
    between sessions keeps the scans with the first class and loses the others. Which scan is the
    first is told by :func:`~hyps_bids.cohort.visits.order_scans`. The result has numbers of classes
    (Int64), and NA for scans of no class.
    """
    text = text_levels(frame[target])
    absent = [level for level in contrast.levels if level not in set(text.dropna())]
    if absent:
        raise BadData(
            f"contrast {contrast.text}: no scan with {target} = {', '.join(absent)}; "
            f"there are: {', '.join(levels_of(frame[target])) or 'none'}",
            code="contrast-level-absent",
        )
    number = {lv: i for i, levels in enumerate(contrast.classes.values()) for lv in levels}
    label = text.map(number).astype("Int64")
    known = label.dropna().index
    number = scan_order(frame).loc[known, "scan_number"].sort_values(kind="stable")
    first = label[number.index].groupby(frame["participant_id"]).first()
    label = label.where(label == frame["participant_id"].map(first))
    for i, name in enumerate(contrast.classes):
        count = frame.loc[(label == i).fillna(False), "participant_id"].nunique()
        if count < 2:
            raise BadData(
                f"contrast {contrast.text}: class {name} has scans of "
                f"{format_count(count, 'subject')}; at least 2 are needed",
                code="class-too-small",
            )
    return label


def site_association(label: Ints, site: Sequence[str]) -> tuple[float, float, bool]:
    """Measure how much the site of subjects says about their class.

    Returns Cramér's V without bias correction, the p-value of the chi-squared test, and whether
    every site has one class only.
    """
    table = pd.crosstab(np.asarray(site), label).to_numpy()
    if min(table.shape) < 2:
        return 0.0, 1.0, False
    one_class_each = ((table > 0).sum(axis=1) == 1).all()
    p = chi2_contingency(table, correction=False).pvalue
    return float(association(table, method="cramer")), float(p), bool(one_class_each)
