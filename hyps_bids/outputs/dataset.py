"""The files that describe the derivatives dataset as a whole."""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
from pathlib import Path
from typing import Any

import pandas as pd

from hyps_bids import __version__
from hyps_bids.errors import UsageError, cannot_write
from hyps_bids.outputs.reading import read_table
from hyps_bids.outputs.writing import remove_stale, write_json, write_table, write_text
from hyps_bids.resources import is_on_root
from hyps_bids.settings import Settings

__all__ = ["check_output", "write_dataset_files"]

_LOG = logging.getLogger("hyps_bids")
_BIDS_VERSION = "1.10.0"
_URL = "https://arxiv.org/abs/2409.00884"

#: folders of a dataset that hold no raw data
_INNER = ("derivatives", "sourcedata", "code")

_BIDSIGNORE = """\
.bidsignore
work
logs
figures
models
*.html
group_*
*_morph.tsv
*_morph.json
*_qc.tsv
*_qc.json
"""

_README = """\
# HyPS-BIDS derivatives

Hippocampus segmentations of T1-weighted MRI, made by HyPS-BIDS {version}.

| file | content |
|---|---|
| `*_seg-hippocampus_dseg.nii.gz` | labels on the grid of the input; `seg-hippocampus_dseg.tsv` names them |
| `*_seg-hippocampus_probseg.nii.gz` | probability of each label, fourth axis in the order of `LabelMap` |
| `*_label-ICV_mask.nii.gz` | intracranial volume, from the localizer network at 2.5 mm |
| `*_seg-hippocampus_morph.tsv` | volumes; `.json` defines the columns |
| `*_seg-hippocampus_qc.tsv` | quality figures and flags; `.json` gives their bounds |
| `group_*.tsv` | the same over all scans, derived measures and statistics |
| `models/` | adapters and classifiers trained on this dataset, each with its card |
| `logs/` | settings, log and tracebacks of each run |

`volume_mm3` counts voxels; `volume_soft_mm3` sums probabilities and is less sensitive to the voxel
size. A hippocampus outside the field of view is n/a and flagged `missing`, never 0. Look at every
scan with a flag. Not a medical device: for research only.
"""  # noqa: E501

_DSEG_COLUMNS = {
    "index": "Label in the segmentation.",
    "name": "Name of the structure.",
    "hemi": "Hemisphere: L left, R right.",
    "part": "Part of the hippocampus.",
    "color": "Color for display, RGB in hexadecimal.",
}


def check_output(settings: Settings) -> None:
    """Check that the output folder can be made and written and is in a safe place.

    Raises
    ------
    UsageError
        If it is the input, contains it, or lies in it anywhere but below ``derivatives``; if the
        work folder is the input, or cleaning it would remove the input or the output.
    CannotCreateOutput
        If it cannot be made or written; :class:`~hyps_bids.errors.WriteFailed` on a full disk.
    """
    source, output = settings.bids_dir.absolute(), settings.output_dir.absolute()
    real_source, real_output = source.resolve(), output.resolve()
    if real_source == real_output:
        raise UsageError(f"{output}: is BIDS_DIR itself; use {source / 'derivatives' / 'hyps'}")
    if real_output in real_source.parents:
        raise UsageError(f"{output}: contains BIDS_DIR; choose a folder beside it")
    if real_source in real_output.parents:
        inner = real_output.relative_to(real_source).parts[0]
        if inner not in _INNER:
            raise UsageError(
                f"{output}: inside BIDS_DIR it would be taken for raw data; "
                f"use {source / 'derivatives' / 'hyps'}"
            )
    _check_work(settings, real_source, real_output)
    # made by whoever has something to write: a run that fails at once leaves no empty folder
    try:
        there = next(folder for folder in (output, *output.parents) if folder.exists())
        probe = there / f".{secrets.token_hex(4)}.probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise cannot_write(output, error) from error
    if _container() and is_on_root(output):
        _LOG.warning(
            "%s: is inside the container, which may be removed with all that is in it; bind a "
            "folder of yours there (-v or -B)",
            output,
        )


def _check_work(settings: Settings, source: Path, output: Path) -> None:
    if settings.work_dir is None:
        return
    work = settings.work_dir.resolve()
    if work == source:
        raise UsageError(f"{settings.work_dir}: is BIDS_DIR; choose another work folder")
    if source in work.parents and work.relative_to(source).parts[0] not in _INNER:
        raise UsageError(
            f"{settings.work_dir}: inside BIDS_DIR, among the raw data; choose another work folder"
        )
    if not settings.clean_workdir:
        return
    for folder in (source, output):
        if work == folder or work in folder.parents:
            raise UsageError(f"{settings.work_dir}: cleaning it would remove {folder}")
    if source in work.parents and output not in work.parents:
        raise UsageError(f"{settings.work_dir}: inside BIDS_DIR, so it is not cleaned")
    if output in work.parents and work.relative_to(output).parts[0] != "work":
        raise UsageError(
            f"{settings.work_dir}: cleaning it may remove results; use {settings.output_dir}/work"
        )


def write_dataset_files(settings: Settings, *, labels: pd.DataFrame | None = None) -> None:
    """Write what describes the dataset; a second time gives the same files.

    Parameters
    ----------
    settings : Settings
        Where from and where to.
    labels : pandas.DataFrame, optional
        From :func:`hyps_bids.outputs.labels.label_table`; without, the table stays as it is.

    Raises
    ------
    UsageError
        If the folder holds segmentations whose labels mean something else.
    """
    output = settings.output_dir
    table = output / "seg-hippocampus_dseg.tsv"
    if labels is not None and table.is_file():
        before = read_table(table)["name"].tolist()
        if before != labels["name"].tolist():
            raise UsageError(
                f"{output}: holds segmentations with the labels {', '.join(before)}; those of this "
                f"adapter are {', '.join(labels['name'])}: use another output folder"
            )
    remove_stale(output)
    write_json(output / "dataset_description.json", _description(settings))
    write_text(output / "README.md", _README.format(version=__version__))
    write_text(output / ".bidsignore", _BIDSIGNORE)
    if labels is None:
        return
    write_table(table, labels)
    columns = {name: {"Description": text} for name, text in _DSEG_COLUMNS.items()}
    write_json(table.with_suffix(".json"), columns)


def _description(settings: Settings) -> dict[str, Any]:
    try:
        raw = json.loads(
            (settings.bids_dir / "dataset_description.json").read_text(encoding="utf-8-sig")
        )
    except (OSError, ValueError):
        # allowed with --skip-bids-validation
        raw = {}
    if not isinstance(raw, dict):
        raw = {}
    generated: dict[str, Any] = {"Name": "hyps-bids", "Version": __version__, "CodeURL": _URL}
    container = _container()
    if container:
        generated["Container"] = container
    # absolute, because "." has no name
    name = settings.bids_dir.absolute().name
    source: dict[str, str] = {}
    if raw.get("DatasetDOI"):
        # written as a bare DOI, a URI or a link
        prefix = r"(?i)^\s*(https?://(dx\.)?doi\.org/|doi:\s*)"
        doi = re.sub(prefix, "", str(raw["DatasetDOI"])).strip()
        source["DOI"] = f"doi:{doi}"
    relative = os.path.relpath(settings.bids_dir.absolute(), settings.output_dir.absolute())
    return {
        "Name": f"HyPS-BIDS hippocampus segmentations of {raw.get('Name') or name}",
        "BIDSVersion": _BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [generated],
        "SourceDatasets": [source or {"URL": Path(relative).as_posix()}],
        "DatasetLinks": {"raw": Path(relative).as_posix()},
    }


def _container() -> dict[str, str]:
    """Name the container we run in, as far as its environment tells."""
    for variable in ("APPTAINER_CONTAINER", "SINGULARITY_CONTAINER"):
        if os.environ.get(variable):
            return {"Type": "singularity", "Tag": Path(os.environ[variable]).name}
    if os.environ.get("HYPS_BIDS_CONTAINER"):
        # set by our image; podman tells its name, Docker and Kubernetes tell nothing
        engine = "podman" if os.environ.get("container") == "podman" else "docker"  # noqa: SIM112
        return {"Type": engine, "Tag": os.environ["HYPS_BIDS_CONTAINER"]}
    return {}
