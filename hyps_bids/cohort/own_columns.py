"""Tell the columns of the wide table that are ours from those of the dataset."""

from __future__ import annotations

from collections.abc import Iterable

from hyps_bids.cohort.derived import is_measure
from hyps_bids.outputs.columns import CONTRAST_COLUMN, KEYS, SERIES_COLUMNS, VISIT_COLUMNS

#: Columns that the group level adds, besides the measures and the entities of scans.
OWN_COLUMNS = frozenset(
    {
        *(*KEYS, *CONTRAST_COLUMN, *VISIT_COLUMNS, *SERIES_COLUMNS, "icv_longitudinal_mm3"),
        *("status", "reason", "review", "reasons", "flags", "remarks"),
        *("software_version", "adapter", "models", "icv_mm3"),
    }
)


def users_first(names: Iterable[str]) -> list[str]:
    """Put the columns of the dataset before ours, for lists in messages.

    Examples
    --------
    >>> users_first(["scan", "volume_mm3_L_whole", "icv_mm3", "age", "sex"])
    ['age', 'sex', 'scan', 'volume_mm3_L_whole', 'icv_mm3']
    """
    return sorted(map(str, names), key=lambda name: name in OWN_COLUMNS or is_measure(name))
