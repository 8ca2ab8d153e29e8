"""Find the images of templates in TemplateFlow's folder, and what the registration needs of them.

Files are found by their names, which TemplateFlow defines. Its client is not asked: importing it
fills an empty folder with 2,600 files, listing them takes seconds, and it may fetch what is not
there.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from hyps_bids.errors import BadData, HypsError, MissingInput
from hyps_bids.imaging.conform import ConformedImage, conform
from hyps_bids.imaging.registration import Head
from hyps_bids.messages import join_names
from hyps_bids.outputs.digests import sha256
from hyps_bids.outputs.space_files import TemplateRecord
from hyps_bids.outputs.spaces import Space
from hyps_bids.segmentation.devices import prepare_process
from hyps_bids.segmentation.localize import localize

#: Where the files of templates come from; the names below it are those in TemplateFlow's folder.
_SOURCE = "https://templateflow.s3.amazonaws.com"


@dataclass(frozen=True)
class Template:
    """A template that scans can be registered with.

    Attributes
    ----------
    file : TemplateRecord
        Its image.
    image : ConformedImage
        Its image, and the grid of its file.
    head : Head
        The same with its intracranial space and hippocampi.
    """

    file: TemplateRecord
    image: ConformedImage
    head: Head


def templateflow_home() -> Path:
    """Return TemplateFlow's folder: TEMPLATEFLOW_HOME, or that of its client for this user."""
    given = os.environ.get("TEMPLATEFLOW_HOME")
    if given:
        return Path(given).expanduser().absolute()
    home = Path.home()
    caches = {"darwin": home / "Library/Caches", "win32": home / "AppData/Local/templateflow"}
    default = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    folder = caches.get(sys.platform, default) / "templateflow"
    return folder / "Cache" if sys.platform == "win32" else folder


def find_templates(spaces: Sequence[Space]) -> list[TemplateRecord]:
    """Find the T1w images of templates; nothing is fetched.

    Raises
    ------
    MissingInput
        If one is not there; the message says how to fetch it.
    """
    return [_find(space, templateflow_home()) for space in spaces]


def _find(space: Space, home: Path) -> TemplateRecord:
    number = int(space.resolution or "1")
    name = f"tpl-{space.template}"
    found = _images(home / name)
    # Templates with a single grid have no resolution in their names.
    for resolution in (number,) if space.resolution else (number, None):
        if resolution in found:
            path = found[resolution]
            return TemplateRecord(space, path, f"{_SOURCE}/{name}/{path.name}", sha256(path))
    plain = f"{name}_res-{number:02d}_T1w.nii.gz"
    there = join_names(path.name for path in found.values())
    raise MissingInput(
        f"--output-spaces {space.label}: {home / name / plain} is not here"
        + (f" (but {there}; write :res- and its number to use it)" if there else "")
        + ", and HyPS-BIDS never fetches anything by itself. On a computer with internet access, "
        "run\n"
        "    pip install templateflow\n"
        f'    TEMPLATEFLOW_HOME={home} python -c "from templateflow.api import get; '
        f"get('{space.template}', resolution={number}, suffix='T1w', desc=None)\"\n"
        "or set TEMPLATEFLOW_HOME to the folder where it is. In a container, bind that folder and "
        "set the variable inside (hyps-docker does both).",
        code="template-missing",
    )


def _images(folder: Path) -> dict[int | None, Path]:
    """Return the T1w images of a template by their resolution; None stands for none."""
    pattern = re.compile(rf"{re.escape(folder.name)}(?:_res-(\d+))?_T1w\.nii\.gz")
    found: dict[int | None, Path] = {}
    for path in sorted(folder.glob("*_T1w.nii.gz")):
        match = pattern.fullmatch(path.name)
        try:
            # The client keeps files that were not fetched as empty ones, and DataLad as links.
            if match and path.stat().st_size:
                found.setdefault(int(match[1]) if match[1] else None, path)
        except OSError:
            continue
    return found


@cache
def load_template(file: TemplateRecord, localizer: Path) -> Template:
    """Read a template and find its intracranial space and hippocampi, once per process.

    Parameters
    ----------
    file : TemplateRecord
        The template.
    localizer : Path
        Weights of the localizer.

    Raises
    ------
    BadData
        If the image cannot be used.
    """
    try:
        image = conform(file.path)
    except HypsError as error:
        raise BadData(
            f"{error} This is the template of --output-spaces {file.space.label}: remove the file "
            "and fetch it again.",
            code="template-unusable",
        ) from error
    found = localize(image, localizer)
    if None in found.hippocampi.values() or not (found.intracranial > 0.5).any():
        raise BadData(
            f"{file.path}: no brain with two hippocampi was found in this template, so no scan can "
            "be registered with it. Choose another one in --output-spaces.",
            code="template-unusable",
        )
    head = Head(image.data, image.affine, found.intracranial, found.hippocampus, found.affine)
    return Template(file, image, head)


def load_templates(files: Sequence[TemplateRecord], localizer: Path) -> None:
    """Load templates in this process, as workers that are forked later share their memory."""
    # Forked workers would hang on a pool of threads that stayed in this process.
    prepare_process(threads=1)
    for file in files:
        load_template(file, localizer)
