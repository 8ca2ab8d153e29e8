"""Commands that open a scan with its labels in other viewers, from the folder of the report."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from hyps_bids.outputs.labels import HEMISPHERES
from hyps_bids.outputs.names import scan_paths, surface_path
from hyps_bids.outputs.scan import Scan


def viewer_commands(bids_dir: Path, output_dir: Path, scan: Scan) -> dict[str, str]:
    """Return program → command, with paths relative to the output folder.

    Examples
    --------
    >>> scan = Scan.from_stem("sub-01")
    >>> viewer_commands(Path("data"), Path("data/derivatives/hyps"), scan)["ITK-SNAP"]
    'itksnap -g ../../sub-01/anat/sub-01_T1w.nii.gz -s
    sub-01/anat/sub-01_seg-hippocampus_dseg.nii.gz'
    """
    folder = bids_dir / scan.folder
    names = [name for name in scan.image_names if (folder / name).exists()]
    image = _relative(folder / (names or scan.image_names)[0], output_dir)
    labels = _relative(scan_paths(scan, output_dir)["dseg"], output_dir)
    there = [surface_path(scan, output_dir, hemi) for hemi in HEMISPHERES]
    surfaces = [_relative(path, output_dir) for path in there if path.is_file()]
    commands = {
        "ITK-SNAP": f"itksnap -g {image} -s {labels}",
        "FSLeyes": f"fsleyes {image} {labels} --overlayType label --outline",
        "freeview": f"freeview -v {image} {labels}:colormap=lut:opacity=0.4",
    }
    if surfaces:
        commands["freeview"] += "".join(f" -f {surface}" for surface in surfaces)
        commands["Workbench"] = f"wb_view {' '.join(surfaces)} {image}"
    return commands


def _relative(path: Path, start: Path) -> str:
    return shlex.quote(Path(os.path.relpath(path.absolute(), start.absolute())).as_posix())
