"""The files that describe the derivatives dataset as a whole."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hyps_bids import __version__
from hyps_bids.errors import BadData, UsageError
from hyps_bids.outputs.columns import described
from hyps_bids.outputs.container import running_container
from hyps_bids.outputs.labels import LABEL_COLUMNS, label_rows
from hyps_bids.outputs.names import SEG_PREFIX, sidecar_path
from hyps_bids.outputs.reading import read_json_object
from hyps_bids.outputs.writing import remove_stale, write_json, write_text
from hyps_bids.settings import Settings

#: Version of BIDS that the datasets we write follow.
BIDS_VERSION = "1.10.0"
_METHOD = "SwinUNETR with hybrid parallel-serial adapters (HyPS), arXiv:2409.00884"

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
*_xfm.txt
*_xfm.json
*_norms.tsv
*_norms.json
*_mesh.surf.gii
*_mesh.json
"""

_README = """\
# HyPS-BIDS derivatives

Hippocampus segmentations of MRI, made by HyPS-BIDS {version}.

| file | content |
|---|---|
| `*_seg-hippocampus_dseg.nii.gz` | labels on the grid of the input; `seg-hippocampus_dseg.tsv` names them |
| `*_seg-hippocampus_probseg.nii.gz` | probability of each label, fourth axis in the order of `LabelMap` |
| `*_label-ICV_mask.nii.gz` | intracranial volume, from the localizer network at 2.5 mm |
| `*_seg-hippocampus_morph.tsv` | volumes; `.json` defines the columns |
| `*_seg-hippocampus_qc.tsv` | quality measures, and which scans to review; `.json` gives their bounds |
| `*_hemi-*_seg-hippocampus_mesh.surf.gii` | surface of each hippocampus in the world of the scan (`--surfaces`) |
| `*_desc-longitudinal_morph.tsv`, `*_desc-annualchange_morph.tsv` | change over time of a participant with several scans, in `sub-*/anat` |
| `*_desc-longitudinal_qc.tsv` | which of these scans were used or refused, and which to review |
| `*_desc-longitudinal_dseg.nii.gz` | labels of each of these scans; with `space-midway`, in the space midway between them |
| `*_to-midway_mode-image_xfm.txt` | transform from a scan to that space, in the format of ITK |
| `*_space-TEMPLATE_*_desc-affine_dseg.nii.gz`, `*_probseg.nii.gz` | labels and probabilities in the space of a template (`--output-spaces`), by an affine transform: no volumes from here |
| `*_to-TEMPLATE_mode-image_xfm.txt`, `*_from-TEMPLATE_to-*_xfm.txt` | these transforms, in the format of ITK |
| `*_space-TEMPLATE_*_desc-affine_qc.tsv` | how well the scan fits the template |
| `*_seg-hippocampus_norms.tsv` | centiles among the controls of a norm (`--apply-norms`); `.json` has the curves |
| `group_*.tsv` | the same tables over all scans, derived measures and statistics; names with `space-` are of other contrasts than T1w |
| `models/` | adapters, classifiers and norms made on this dataset, each with its card |
| `logs/` | settings, log and tracebacks of each run |

Names of files are those of the images, without the suffix if that is T1w. Images of other contrasts
have it in the entity `space`: `sub-01_space-T2w_…` are the results of `sub-01_T2w`, on its grid, and
`sub-01_space-T1wT2w_…` those of `sub-01_space-T1w_T2w`. The column `suffix` of the tables states the
contrast. Volumes of different contrasts are not comparable without a check.

`volume_mm3` counts voxels; `volume_soft_mm3` sums probabilities and is less sensitive to the voxel
size. A hippocampus outside the field of view is n/a and flagged `missing`, never 0. Look at every
scan that has a flag. This is a research tool, not a medical device.
"""  # noqa: E501


def write_dataset_files(settings: Settings, *, labels: Sequence[str] | None = None) -> None:
    """Write the files that describe the dataset. Writing them again gives the same files.

    Parameters
    ----------
    settings : Settings
        The input dataset and the output folder.
    labels : sequence of str, optional
        The adapter's classes in order, background left out. If they are left out, the table of
        labels that is there stays.

    Raises
    ------
    UsageError
        If the folder holds segmentations whose labels mean something else.
    """
    output = settings.output_dir
    table = output / f"{SEG_PREFIX}_dseg.tsv"
    rows = [] if labels is None else label_rows(labels)
    if rows and table.is_file():
        with table.open(encoding="utf-8", newline="") as stream:
            before = [row.get("name") or "n/a" for row in csv.DictReader(stream, delimiter="\t")]
        now = [name for _, name, *_ in rows]
        if before != now:
            raise UsageError(
                f"{output}: this folder holds segmentations with the labels {', '.join(before)}, "
                f"but this adapter has the labels {', '.join(now)}. Use another output folder.",
                code="other-labels-in-output",
            )
    remove_stale(output)
    write_json(output / "dataset_description.json", _description(settings))
    write_text(output / "README.md", _README.format(version=__version__))
    write_text(output / ".bidsignore", _BIDSIGNORE)
    if rows:
        # A run with nothing to do writes this table too, and need not wait for pandas.
        text = io.StringIO()
        csv.writer(text, delimiter="\t", lineterminator="\n").writerows([LABEL_COLUMNS, *rows])
        write_text(table, text.getvalue())
        write_json(sidecar_path(table), described(LABEL_COLUMNS))


def _description(settings: Settings) -> dict[str, Any]:
    raw = read_description(settings.bids_dir)
    generated: dict[str, Any] = {"Name": "hyps-bids", "Version": __version__}
    generated["Description"] = _METHOD
    if container := running_container():
        generated["Container"] = container
    name = dataset_name(settings.bids_dir)
    # Both ends are resolved, because ".." leads out of the folder behind a symbolic link.
    link = os.path.relpath(settings.bids_dir.resolve(), settings.output_dir.resolve())
    url = Path(link).as_posix()
    source = {"URL": url}
    if raw.get("DatasetDOI"):
        # Datasets write it as a bare DOI, as a URI or as a link.
        prefix = r"(?i)^\s*(https?://(dx\.)?doi\.org/|doi:\s*)"
        source = {"DOI": "doi:" + re.sub(prefix, "", str(raw["DatasetDOI"])).strip()}
    return {
        "Name": f"HyPS-BIDS hippocampus segmentations of {name}",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [generated],
        "SourceDatasets": [source],
        "DatasetLinks": {"raw": url},
    }


def dataset_name(dataset: Path) -> str:
    """Return the name that a dataset's description gives it, or else that of its folder."""
    # The path is made absolute because "." has no name.
    return str(read_description(dataset).get("Name") or dataset.absolute().name)


def read_description(dataset: Path) -> dict[str, Any]:
    """Read the description of a dataset; --skip-bids-validation allows a missing or bad one."""
    try:
        return read_json_object(dataset / "dataset_description.json")
    except BadData:
        return {}
