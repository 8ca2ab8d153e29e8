"""Each subject weighs the same in fitting, whatever the number of scans.

Estimators that take weights are given ``1 / scans of the subject`` for each scan, so that weights
sum to the number of subjects, and a regularization means the same with one scan and with many.
The preprocessing, which counts rows for medians, is fitted on a table in which each subject has the
same number of rows. Trees are fitted on one scan of each subject: even with weights, several scans
of a subject fill more leaves than one does, which would favor their class. With one scan per
subject nothing changes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

#: Most rows of a subject; of subjects with more scans, only some are taken where rows count.
_MOST_ROWS = 12


def scan_weights(subject: Ints) -> NDArray[np.float64] | None:
    """Return ``1 / scans of the subject`` for each scan; None if every subject has one scan.

    Examples
    --------
    >>> scan_weights(np.array([0, 1, 1]))
    array([1. , 0.5, 0.5])
    >>> scan_weights(np.array([0, 1]))
    """
    _, which, counts = np.unique(subject, return_inverse=True, return_counts=True)
    return None if counts.max() == 1 else 1 / counts[which]


def one_scan_each(subject: Ints) -> Ints:
    """Draw one scan of each subject, always the same; positions in the order of subjects.

    Examples
    --------
    >>> one_scan_each(np.array([5, 3, 5, 5])).tolist() in ([1, 0], [1, 2], [1, 3])
    True
    """
    order = np.random.default_rng(0).permutation(len(subject))
    return np.asarray(order[np.unique(subject[order], return_index=True)[1]])


def equal_rows(subject: Ints) -> tuple[Ints, int]:
    """Choose rows so that each subject has the same number of them.

    The number is that of the subject with the most scans, 12 at most. Scans of other subjects are
    repeated as evenly as possible.

    Returns
    -------
    rows : ndarray of int
        Positions in `subject`, sorted.
    each : int
        Number of rows of each subject.

    Examples
    --------
    >>> equal_rows(np.array([7, 7, 7, 8, 9, 9]))
    (array([0, 1, 2, 3, 3, 3, 4, 4, 5]), 3)
    """
    _, counts = np.unique(subject, return_counts=True)
    each = min(int(counts.max()), _MOST_ROWS)
    order = np.argsort(subject, kind="stable")
    first = np.cumsum(counts) - counts
    place = np.arange(each) * counts[:, None] // each
    return np.sort(order[first[:, None] + place].ravel()), each
