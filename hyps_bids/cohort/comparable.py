"""Which volumes may be compared: those that the same weights and the same version made."""

from __future__ import annotations

import pandas as pd

from hyps_bids.errors import BadData
from hyps_bids.messages import format_count


def refuse_mixed_weights(rows: pd.DataFrame) -> None:
    """Refuse volumes of different weights or versions: they are not comparable.

    Parameters
    ----------
    rows : pandas.DataFrame
        The columns software_version and models of the scans that would be used.

    Raises
    ------
    BadData
        With the code ``volumes-not-comparable``.
    """
    kinds = rows.groupby(["software_version", "models"], dropna=False).size()
    if len(kinds) > 1:
        texts = [
            f"{format_count(n, 'scan')} by {version} with {models}"
            for (version, models), n in kinds.items()
        ]
        raise BadData(
            "volumes were made by different versions or weights and cannot be mixed: "
            f"{'; '.join(texts)}; process them again, or leave participants out with "
            "--exclude-participant-label",
            code="volumes-not-comparable",
        )
