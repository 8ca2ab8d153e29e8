"""Who was among the people that a stored model was made from.

Participants are stored as salted hashes of their labels, and nothing else of them. A hash tells
whether a label is among them; labels that can be guessed can be tried, as with every such list.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from hyps_bids.cohort.keys import plain_label


def hash_labels(labels: Iterable[str], salt: str) -> list[str]:
    """Hash labels of participants, however they are spelled; sorted, so that their order is lost.

    Examples
    --------
    >>> hash_labels(["sub-01"], "x") == hash_labels(["1"], "x") != hash_labels(["sub-01"], "y")
    True
    """
    return sorted({_hash(label, salt) for label in labels})


def known_labels(labels: Sequence[str], hashes: Iterable[str], salt: str) -> set[str]:
    """Return the labels that are among the hashed ones."""
    known = set(hashes)
    return {label for label in labels if _hash(label, salt) in known}


def _hash(label: str, salt: str) -> str:
    return hashlib.sha256(f"{salt} {plain_label(label)}".encode()).hexdigest()[:16]
