"""Each subject weighs the same in fitting, whatever the number of scans.

Estimators that take weights are given ``1 / scans of the subject`` for each scan, so that weights
sum to the number of subjects, and a regularization means the same with one scan and with many.
What counts rows (medians, leaves of trees, draws of a forest) is fitted on a table in which each
subject has the same number of rows instead. With one scan per subject, both change nothing.
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
