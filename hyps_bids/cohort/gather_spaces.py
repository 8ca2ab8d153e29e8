"""Collect how scans were brought to the spaces of templates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from hyps_bids.cohort.gather import scan_keys
from hyps_bids.cohort.stacking import concat
from hyps_bids.outputs.columns import KEYS, SPACE_QC_COLUMNS
from hyps_bids.outputs.names import sidecar_path
from hyps_bids.outputs.reading import load_json, read_table
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.spaces import space_paths, spaces_of
from hyps_bids.resources import read_many

_STALE = (
    "The scan was processed again since, or this was interrupted. Run the participant level with "
    "--output-spaces {space}."
)


def gather_spaces(fingerprints: Mapping[str, str], output: Path) -> pd.DataFrame:
    """Stack the QC tables of scans in the spaces of templates.

    Parameters
    ----------
    fingerprints : mapping of str to str
        Scans that are done → digest of what decided their results.
    output : Path
        The derivatives dataset.

    Returns
    -------
    pandas.DataFrame
        Columns :data:`KEYS` and :data:`SPACE_QC_COLUMNS`; empty if there are no such results.
    """
    columns = list(KEYS | SPACE_QC_COLUMNS)
    stems = sorted(fingerprints)
    found = read_many(lambda stem: _rows(stem, fingerprints[stem], output), stems)
    return concat([pd.DataFrame(columns=columns), *(row for rows in found for row in rows)])


def _rows(stem: str, fingerprint: str, output: Path) -> list[pd.DataFrame]:
    scan, rows = Scan.from_stem(stem), []
    keys = dict(zip(KEYS, scan_keys(stem), strict=True))
    for space in spaces_of(scan, output):
        path = space_paths(scan, space, output)["qc"]
        try:
            if load_json(sidecar_path(path))["ScanFingerprint"] != fingerprint:
                raise ValueError
            row = read_table(path).to_dict("records")[0]
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            label = space.label
            row = {"space": label, "status": "stale", "reason": _STALE.format(space=label)}
        rows.append(pd.DataFrame([{**row, **keys}]))
    return rows
