"""Which BIDS names the outputs of files of any name get."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from hyps_bids.imaging.sources import NIFTI_EXTENSIONS
from hyps_bids.outputs.scan import DEFAULT_SUFFIX, Scan
from hyps_bids.settings import SUFFIXES

#: Entities that images of heads may have in BIDS; names with others are not those of BIDS.
_ENTITIES = (
    *("ses", "sample", "task", "acq", "ce", "trc", "stain", "rec", "dir", "run", "mod", "echo"),
    *("flip", "inv", "mt", "part", "proc", "space", "split", "chunk", "res", "den", "desc"),
)
_ENTITY = rf"_(?:{'|'.join(_ENTITIES)})-[A-Za-z0-9+]+"
_SUFFIX = re.compile(rf"(.+)_({'|'.join(SUFFIXES)})")
_BIDS = re.compile(rf"sub-[A-Za-z0-9+]+(?:{_ENTITY})*")
_EXTENSIONS = (*NIFTI_EXTENSIONS, ".mgz", ".mgh", ".hdr", ".img", ".dcm", ".ima")
#: Most characters of a label, as names of files are limited.
_LONGEST = 60


def name_scan(name: str, suffix: str | None = None, *, before: str = "") -> Scan:
    """Make the BIDS name of an image.

    A name that follows BIDS already keeps its entities and, unless another one is given, its
    suffix. Letters and digits of other names become the label of a participant.

    Parameters
    ----------
    name : str
        Name of the file or folder.
    suffix : str, optional
        BIDS suffix of the image; by default the one that the name ends with, or else T1w.
    before : str
        Put before the label, to tell images of the same name apart.

    Examples
    --------
    >>> names = ["sub-01_ses-2_T2w.nii.gz", "Müller, head 1.nii", "p3_FLAIR.mgz", "脳.nii"]
    >>> [name_scan(name).path.name for name in names[:2]]
    ['sub-01_ses-2_T2w.nii.gz', 'sub-Mullerhead1_T1w.nii.gz']
    >>> [name_scan(name).path.name for name in names[2:]]
    ['sub-p3_FLAIR.nii.gz', 'sub-image_T1w.nii.gz']
    """
    end = next((e for e in _EXTENSIONS if name.casefold().endswith(e)), "")
    stem = name[: len(name) - len(end)]
    found = _SUFFIX.fullmatch(stem)
    if found:
        stem = found[1]
    suffix = suffix or (found[2] if found else DEFAULT_SUFFIX)
    keys = [part.partition("-")[0] for part in stem.split("_")]
    if _BIDS.fullmatch(stem) and len(set(keys)) == len(keys):
        stem = stem.replace("sub-", f"sub-{_label(before)}", 1)
    else:
        stem = f"sub-{_label(f'{before}{stem}') or 'image'}"
    return Scan.from_path(Path(f"{stem}_{suffix}.nii.gz"))


def name_scans(paths: Sequence[Path], suffix: str | None = None) -> list[Scan]:
    """Name images that are saved together; where names are the same, folders tell them apart.

    Examples
    --------
    >>> paths = [Path("a/T1.nii"), Path("b/T1.nii"), Path("b/x.nii")]
    >>> [scan.subject for scan in name_scans(paths)]
    ['aT1', 'bT1', 'x']
    """
    names = [path.absolute().name for path in paths]
    plain = [name_scan(name, suffix) for name in names]
    parents = [path.absolute().parts[1:-1] for path in paths]
    scans = []
    for i, scan in enumerate(plain):
        same = [k for k, other in enumerate(plain) if other.stem == scan.stem and k != i]
        depth = min(len(same), 1)
        while (
            same
            and depth < len(parents[i])
            and any(parents[k][-depth:] == parents[i][-depth:] for k in same)
        ):
            depth += 1
        before = "".join(parents[i][-depth:]) if depth else ""
        scans.append(name_scan(names[i], suffix, before=before))
    return scans


def _label(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text)
    return "".join(c for c in plain if c.isascii() and c.isalnum())[:_LONGEST]
