"""Volumes and QC of all scans in one table each."""

from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd

from hyps_bids.bids.derivatives import read_table, write_json, write_table
from hyps_bids.bids.index import find_scans
from hyps_bids.errors import MissingInput
from hyps_bids.settings import Settings
from hyps_bids.workflows.outputs import MORPH_COLUMNS, qc_columns

__all__ = ["gather", "write_group_tables"]

_LOG = logging.getLogger("hyps_bids")

_KEYS = {
    "participant_id": "Subject, as in participants.tsv.",
    "session_id": "Session; n/a without sessions.",
    "scan": "Name of the T1w image without its suffix.",
}


def write_group_tables(settings: Settings) -> None:
    """Gather the tables of all scans into OUT_DIR.

    Scans of BIDS_DIR without outputs get a row with the status ``missing`` in the QC table.

    Raises
    ------
    MissingInput
        If the participant level has left nothing to gather.
    """
    output = settings.output_dir
    tables = {kind: gather(output, kind) for kind in ("morph", "qc")}
    if tables["qc"].empty:
        raise MissingInput(f"{output}: no scan's tables; run the participant level first")
    known = set(tables["qc"]["scan"])
    missing = [scan for scan in find_scans(settings, need_content=False) if scan.stem not in known]
    rows = [
        {
            "participant_id": f"sub-{scan.subject}",
            "session_id": f"ses-{scan.session}" if scan.session else None,
            "scan": scan.stem,
            "status": "missing",
        }
        for scan in missing
    ]
    tables["qc"] = pd.concat([tables["qc"], pd.DataFrame(rows)], ignore_index=True)
    for kind, table in tables.items():
        path = output / f"group_seg-hippocampus_{kind}.tsv"
        write_table(path, table.sort_values("scan", kind="stable"))
        columns = _columns(kind)
        write_json(
            path.with_suffix(".json"),
            {name: {"Description": text} for name, text in columns.items()},
        )
    status = tables["qc"]["status"].value_counts()
    _LOG.warning("group tables of %d scans: %s", len(tables["qc"]), status.to_dict())
    for stem in [scan.stem for scan in missing]:
        _LOG.warning("%s: no outputs yet", stem)


def gather(output: Path, kind: str) -> pd.DataFrame:
    """Stack one kind of table over all scans.

    Parameters
    ----------
    output : Path
        The derivatives dataset.
    kind : {"morph", "qc"}
        Suffix of the tables.

    Returns
    -------
    pandas.DataFrame
        The tables with participant_id, session_id and scan in front; empty if there are none.
    """
    pattern = f"*_seg-hippocampus_{kind}.tsv"
    paths = sorted(
        [*output.glob(f"sub-*/anat/{pattern}"), *output.glob(f"sub-*/ses-*/anat/{pattern}")]
    )
    frames = []
    for path in paths:
        folders = path.relative_to(output).parts
        frame = read_table(path)
        session = folders[1] if folders[1].startswith("ses-") else None
        stem = path.name.removesuffix(pattern.removeprefix("*"))
        for position, value in enumerate((folders[0], session, stem)):
            frame.insert(position, list(_KEYS)[position], value)
        frames.append(frame)
    if not frames:
        return pd.DataFrame(columns=list(_columns(kind)))
    return pd.concat(frames, ignore_index=True)


def _columns(kind: str) -> dict[str, str]:
    return _KEYS | (MORPH_COLUMNS if kind == "morph" else qc_columns())
