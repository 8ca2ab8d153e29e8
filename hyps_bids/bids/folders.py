"""What the folders of a dataset hold: its T1w images, and files that look like one but are not.

Folders are listed anew in every run, because an index of pybids may be older than the dataset.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hyps_bids.messages import is_unicode
from hyps_bids.resources import read_many

_T1W = re.compile(r"[^./][^.]*_T1w\.nii(?:\.gz)?")
#: A T1w image but for upper and lower case, a dot within the name, or white space at its end.
_MISSPELLED = re.compile(r"[^.].*T1w\.nii(?:\.gz)?\s*", re.IGNORECASE | re.DOTALL)
#: Labels may have any letters.
_LABELS = re.compile(r"(?:sub|ses)-[^_]*")
_T1_LIKE = re.compile(r"t1|unit1|mp2?rage|spgr", re.IGNORECASE)
_NO_IMAGE = (".json", ".tsv", ".txt", ".html", ".svg", ".gii", ".h5", ".mat", ".xfm")
_SUBJECT_LIKE = re.compile(r"sub[-_ ]?\w.*", re.IGNORECASE)
#: Deepest folder below a participant's in which near misses are searched.
_DEPTH = 3


@dataclass(frozen=True)
class Participant:
    """What the folder of one participant holds; all paths are relative to the dataset.

    Attributes
    ----------
    label : str
        Label without ``sub-``.
    images : list of str
        T1w images in ``anat`` folders.
    others : list of str
        All else in the ``anat`` folders.
    unreadable : dict of str to str
        Folder that could not be listed → reason.
    """

    label: str
    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)

    @property
    def misspelled(self) -> list[str]:
        """Files that are T1w images but for the spelling of their names."""
        return [path for path in self.others if _MISSPELLED.fullmatch(os.path.basename(path))]


def find_participants(root: Path) -> tuple[list[str], list[str]]:
    """Return the labels of a dataset's participants, and folders that look like participants."""
    labels: list[str] = []
    nearly: list[str] = []
    with os.scandir(root) as entries:
        for entry in entries:
            if entry.name.startswith("sub-"):
                # A link to nowhere is a subdataset or a folder that is not here.
                (labels if os.path.isdir(entry.path) else nearly).append(entry.name)
            elif _SUBJECT_LIKE.fullmatch(entry.name) and os.path.isdir(entry.path):
                nearly.append(entry.name)
    nearly = [name for name in nearly if "." not in name]
    return sorted(label[4:] for label in labels), sorted(nearly)


def list_images(root: Path, labels: Sequence[str]) -> list[Participant]:
    """List the T1w images of participants, and all else that is beside them."""
    return read_many(lambda label: _list(str(root), label), labels)


def _list(root: str, label: str) -> Participant:
    found = Participant(label)

    def names(folder: str) -> list[str]:
        try:
            return os.listdir(f"{root}/{folder}")
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            found.unreadable[folder] = error.strerror or str(error)
            return []

    subject = f"sub-{label}"
    top = names(subject)
    parents = {subject: top}
    for name in top:
        if name.startswith("ses-"):
            parents[f"{subject}/{name}"] = names(f"{subject}/{name}")
    for parent, inside in parents.items():
        for name in names(f"{parent}/anat") if "anat" in inside else ():
            is_image = _T1W.fullmatch(name) and is_unicode(parent + name)
            (found.images if is_image else found.others).append(f"{parent}/anat/{name}")
    return found


def near_misses(root: Path | None, participant: Participant) -> list[tuple[str, str]]:
    """Find what a participant has that looks like a T1w image, but is none.

    Parameters
    ----------
    root : Path or None
        The dataset, to search all folders of the participant; only ``anat`` if None.
    participant : Participant
        What the ``anat`` folders hold.

    Returns
    -------
    list of (str, str)
        Path relative to the dataset, and why it is not a T1w image; the nearest first.
    """
    found = []
    elsewhere = _files_below(root, f"sub-{participant.label}") if root else ()
    for path in {*participant.others, *elsewhere}.difference(participant.images):
        folder, name = os.path.split(path)
        if name.startswith(".") or name.casefold().endswith(_NO_IMAGE):
            continue
        if _MISSPELLED.fullmatch(name):
            found.append((0, path, _why_misspelled(folder, name)))
        elif _T1_LIKE.search(_LABELS.sub("", name)):
            is_nifti = name.casefold().endswith((".nii", ".nii.gz"))
            end = name.split(".")[0].rpartition("_")[2] or name
            why = f"it is {end}, not T1w" if is_nifti else "it is not a NIfTI file (.nii, .nii.gz)"
            found.append((1 if is_nifti else 2, path, why))
    return [(path, why) for _, path, why in sorted(found)]


def _why_misspelled(folder: str, name: str) -> str:
    if not is_unicode(name):
        return "its name is not UTF-8 text"
    if name != name.strip():
        return "its name ends with white space"
    if not re.search(r"_T1w\.nii(\.gz)?$", name):
        return "its name must end with _T1w.nii.gz or _T1w.nii; upper and lower case matter"
    if "." in re.sub(r"\.nii(\.gz)?$", "", name):
        return "the parts of a name may not have dots"
    parent = os.path.basename(folder)
    return f"its folder is {parent}, not anat"


def _files_below(root: Path, folder: str) -> Iterator[str]:
    for above, folders, files in os.walk(root / folder):
        inside = os.path.relpath(above, root)
        if inside.count("/") >= _DEPTH:
            folders.clear()
        yield from (f"{inside}/{name}" for name in files)
