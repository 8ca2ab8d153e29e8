"""Spaces of templates: how users name them, and the names of a scan's files there.

The names end with ``desc-affine``, after what tells the scan from others of its participant. The
outputs of a scan on its own grid never do (:attr:`Scan.derived_entities`).
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hyps_bids.errors import UsageError
from hyps_bids.outputs.names import SEG_PREFIX, sidecar_path
from hyps_bids.outputs.scan import AFFINE, OWN_SPACES, Scan
from hyps_bids.outputs.writing import remove_files

_REQUEST = re.compile(r"([A-Za-z0-9]+)(?::res-0*([1-9][0-9]*))?")
_MARK = re.compile(rf"_space-([A-Za-z0-9]+)_{SEG_PREFIX}_(?:res-(\d+)_)?desc-(\w*){AFFINE}_qc\.tsv")


@dataclass(frozen=True, order=True)
class Space:
    """The space of a template.

    Attributes
    ----------
    template : str
        Name in TemplateFlow.
    resolution : str
        Number of the template's grid in TemplateFlow, as asked for; empty if nothing was said.

    Examples
    --------
    >>> Space("MNI152NLin2009cAsym", "2").label, Space("MNI152NLin6Asym").label
    ('MNI152NLin2009cAsym:res-2', 'MNI152NLin6Asym')
    """

    template: str
    resolution: str = ""

    @property
    def label(self) -> str:
        """The words by which a user asks for it."""
        return self.template + (f":res-{self.resolution}" if self.resolution else "")


def parse_spaces(requests: Sequence[str]) -> list[Space]:
    """Read ``--output-spaces``; the scan's own space, which is always there, is left out.

    Raises
    ------
    UsageError
        If a word names no space.

    Examples
    --------
    >>> parse_spaces(["T1w", "MNI152NLin2009cAsym", "MNI152NLin6Asym:res-02"])
    [Space(template='MNI152NLin2009cAsym', resolution=''),
     Space(template='MNI152NLin6Asym', resolution='2')]
    """
    found = []
    for request in requests:
        if request in OWN_SPACES:
            continue
        match = _REQUEST.fullmatch(request)
        if match is None:
            raise UsageError(
                f"--output-spaces {request}: write T1w for the scan's own space, or the name of a "
                "template in TemplateFlow, such as MNI152NLin2009cAsym or "
                "MNI152NLin2009cAsym:res-2. Cohorts of templates cannot be chosen.",
                code="space-unknown",
            )
        found.append(Space(match[1], match[2] or ""))
    found = list(dict.fromkeys(found))
    twice = [name for name, count in Counter(s.template for s in found).items() if count > 1]
    if twice:
        raise UsageError(
            f"--output-spaces: choose one resolution of {twice[0]}, as both would have the same "
            "transform.",
            code="space-twice",
        )
    return found


def space_paths(scan: Scan, space: Space, output_dir: Path) -> dict[str, Path]:
    """Return the files of a scan in the space of a template, without their sidecars.

    Returns
    -------
    dict of str to Path
        ``dseg`` and ``probseg``: labels and probabilities on the grid of the template; ``to`` and
        ``back``: transforms to the template and from it; ``qc``: the table of its quality;
        ``picture``: outlines on the template, for the report.

    Examples
    --------
    >>> scan = Scan.from_stem("sub-01_ses-1_desc-preproc_space-T2w")
    >>> paths = space_paths(scan, Space("MNI152NLin6Asym", "2"), Path())
    >>> print(*(path.name for path in paths.values()), sep=chr(10))
    sub-01_ses-1_space-MNI152NLin6Asym_seg-hippocampus_res-2_desc-preprocT2waffine_dseg.nii.gz
    sub-01_ses-1_space-MNI152NLin6Asym_seg-hippocampus_res-2_desc-preprocT2waffine_probseg.nii.gz
    sub-01_ses-1_from-T2w_to-MNI152NLin6Asym_mode-image_desc-preproc_xfm.txt
    sub-01_ses-1_from-MNI152NLin6Asym_to-T2w_mode-image_desc-preproc_xfm.txt
    sub-01_ses-1_space-MNI152NLin6Asym_seg-hippocampus_res-2_desc-preprocT2waffine_qc.tsv
    sub-01_ses-1_space-MNI152NLin6Asym_seg-hippocampus_res-2_desc-preprocT2waffine_dseg.svg
    """
    late = scan.derived_entities
    desc = "".join([*late.values(), scan.space, AFFINE])
    there = [*scan.entities_in(space.template), SEG_PREFIX]
    there += [f"res-{space.resolution}"] if space.resolution else []
    images = "_".join([*there, f"desc-{desc}"])
    own = "_".join(f"{key}-{value}" for key, value in scan.entities if key not in late)
    end = "_".join(["mode-image", *(f"{key}-{value}" for key, value in late.items()), "xfm.txt"])
    names = {
        "dseg": f"{images}_dseg.nii.gz",
        "probseg": f"{images}_probseg.nii.gz",
        "to": f"{own}_from-{scan.suffix}_to-{space.template}_{end}",
        "back": f"{own}_from-{space.template}_to-{scan.suffix}_{end}",
        "qc": f"{images}_qc.tsv",
    }
    paths = {kind: output_dir / scan.folder / name for kind, name in names.items()}
    picture = output_dir / f"sub-{scan.subject}" / "figures" / f"{images}_dseg.svg"
    return paths | {"picture": picture}


def spaces_of(scan: Scan, output_dir: Path) -> list[Space]:
    """Find the spaces in which a scan has a table of quality or its sidecar, sorted."""
    try:
        names = os.listdir(output_dir / scan.folder)
    except OSError:
        return []
    tables = {name.removesuffix(".json").removesuffix(".tsv") + ".tsv" for name in names}
    found = set()
    for name in tables:
        if match := _MARK.search(name):
            space = Space(match[1], match[2] or "")
            if space_paths(scan, space, output_dir)["qc"].name == name:
                found.add(space)
    return sorted(found)


def space_files(scan: Scan, space: Space, output_dir: Path) -> list[Path]:
    """Return all files of a scan in the space of a template; the mark that they are done is first.

    The transforms, which do not depend on the resolution, are among them.
    """
    paths = space_paths(scan, space, output_dir)
    table = paths.pop("qc")
    sidecars = [sidecar_path(path) for kind, path in paths.items() if kind != "picture"]
    return [sidecar_path(table), *sidecars, *paths.values(), table]


def remove_space(scan: Scan, space: Space, output_dir: Path) -> None:
    """Remove the results of a scan in the space of a template.

    Raises
    ------
    CannotCreateOutput
        If a file cannot be removed.
    """
    remove_files(space_files(scan, space, output_dir))


def remove_spaces(scan: Scan, output_dir: Path) -> None:
    """Remove the results of a scan in all such spaces, which are those of earlier results.

    Raises
    ------
    CannotCreateOutput
        If a file cannot be removed.
    """
    for space in spaces_of(scan, output_dir):
        remove_space(scan, space, output_dir)
