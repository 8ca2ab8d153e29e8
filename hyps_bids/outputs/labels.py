"""The hemispheres and parts of the hippocampus, and their numbers in a dseg image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

#: Values of the BIDS entity ``hemi``, in the order of the localizer's classes.
HEMISPHERES = ("L", "R")
#: Value of ``hemi`` → the side in words
SIDE_NAMES = {"L": "left", "R": "right"}
#: Name of the part that is the whole hippocampus, in the tables that we write.
WHOLE = "whole"
#: Column of the table of labels → description
LABEL_COLUMNS = {
    "index": "Label in the segmentation.",
    "name": "Name of the structure.",
    "hemi": "Hemisphere: L left, R right.",
    "part": "Part of the hippocampus.",
    "color": "Color for display, RGB in hexadecimal.",
}

_SIDE = {"L": "Left", "R": "Right"}
# Distinct for color-blind readers too (Okabe & Ito), left darker than right
_COLORS = {
    "L": ("#D55E00", "#0072B2", "#009E73", "#CC79A7"),
    "R": ("#E69F00", "#56B4E9", "#66C2A5", "#E7B8D3"),
}


def label_table(parts: Sequence[str]) -> pd.DataFrame:
    """Give numbers to the parts of both hippocampi, left ones first.

    Parameters
    ----------
    parts : sequence of str
        The adapter's classes in order, background left out.

    Returns
    -------
    pandas.DataFrame
        Columns index, name, hemi, part, color.

    Examples
    --------
    >>> label_table(["anterior", "posterior"])["name"].tolist()[1:3]
    ['Left posterior hippocampus', 'Right anterior hippocampus']
    >>> label_table(["hippocampus"])["name"].tolist()
    ['Left hippocampus', 'Right hippocampus']
    """
    # Most users of this module need no tables, and pandas takes a while to import.
    import pandas as pd

    return pd.DataFrame(label_rows(parts), columns=list(LABEL_COLUMNS))


def label_rows(parts: Sequence[str]) -> list[tuple[int, str, str, str, str]]:
    """Return the rows of :func:`label_table`."""
    rows: list[tuple[int, str, str, str, str]] = []
    for hemi in HEMISPHERES:
        for i, part in enumerate(parts):
            words = [_SIDE[hemi], part] + ([] if "hippocampus" in part else ["hippocampus"])
            color = _COLORS[hemi][i % len(_COLORS[hemi])]
            rows.append((len(rows) + 1, " ".join(words), hemi, part, color))
    return rows
