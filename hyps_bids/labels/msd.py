"""The subjects and the fixed test split of the Medical Segmentation Decathlon's Task04."""

from __future__ import annotations

from collections.abc import Sequence


def msd_subject(name: str) -> int:
    """Subject of an MSD Task04 crop: ids 2k-1 and 2k are the two sides of one.

    Examples
    --------
    >>> [msd_subject(f"hippocampus_{i:03d}") for i in (1, 2, 3)]
    [1, 1, 2]
    """
    return (int(name.rpartition("_")[2]) + 1) // 2


def split_every_fifth(subjects: Sequence[int]) -> tuple[set[int], set[int]]:
    """Split subjects into training and the fixed test set (index 4, 9, 14 … when sorted).

    Examples
    --------
    >>> split_every_fifth([3, 1, 2, 7, 5, 9])
    ({1, 2, 3, 5, 9}, {7})
    """
    ordered = sorted(set(subjects))
    test = set(ordered[4::5])
    return set(ordered) - test, test


def validation_subjects(subjects: Sequence[int], every: int = 13) -> set[int]:
    """Choose the subjects that tell which weights are better: every 13th outside the test set.

    The first one is the eighth. The shipped weights have never been trained on these subjects.

    Examples
    --------
    >>> sorted(validation_subjects(range(1, 40)))
    [9, 26]
    """
    kept, _ = split_every_fifth(subjects)
    return set(sorted(kept)[every // 2 + 1 :: every])
