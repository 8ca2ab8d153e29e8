"""What the folders of a dataset hold: its images, and files that look like one but are not.

Folders are listed anew in every run, because an index of pybids may be older than the dataset.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hyps_bids.messages import is_unicode, join_alternatives
from hyps_bids.outputs.scan import IMAGE_NAME, Scan
from hyps_bids.resources import read_many

#: Labels may have any letters.
_LABELS = re.compile(r"(?:sub|ses)-[^_]*")
#: Suffix → what names of files have that may show this contrast.
_LIKE = {
    "T1w": "t1|mp2?rage|spgr",
    "T2w": "t2",
    "FLAIR": "flair|tirm",
    "UNIT1": "uni|t1|mp2rage",
    "PDw": "pd",
}
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
        Images of all contrasts in ``anat`` folders.
    others : list of str
        All else in the ``anat`` folders.
    unreadable : dict of str to str
        Folder that could not be listed → reason.
    """

    label: str
    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)

    def images_of(self, suffixes: Collection[str]) -> list[str]:
        """Return the images with one of these suffixes."""
        return [path for path in self.images if suffix_of(path) in suffixes]

    def misspelled(self, suffixes: Collection[str]) -> list[str]:
        """Return the files that are such images but for the spelling of their names."""
        pattern = _misspelled(suffixes)
        return [path for path in self.others if pattern.fullmatch(os.path.basename(path))]


def suffix_of(path: str) -> str:
    """Return the BIDS suffix of an image."""
    return Scan.from_path(Path(path)).suffix


def in_sessions(path: str, sessions: Collection[str]) -> bool:
    """Tell by its folder whether an image is of one of these sessions; without any, it is."""
    folder = path.split("/")[1]
    return not sessions or (folder.startswith("ses-") and folder[4:] in sessions)


def _misspelled(suffixes: Iterable[str]) -> re.Pattern[str]:
    """Match images but for upper and lower case, a dot in the name, or white space at its end."""
    pattern = rf"[^.].*(?:{'|'.join(suffixes)})\.nii(?:\.gz)?\s*"
    return re.compile(pattern, re.IGNORECASE | re.DOTALL)


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
    """List the images of participants, of all contrasts, and all else that is beside them."""
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
            is_image = IMAGE_NAME.fullmatch(name) and is_unicode(parent + name)
            (found.images if is_image else found.others).append(f"{parent}/anat/{name}")
    return found


def near_misses(
    root: Path | None, participant: Participant, suffixes: Sequence[str]
) -> list[tuple[str, str]]:
    """Find what a participant has that looks like a wanted image, but is none.

    Parameters
    ----------
    root : Path or None
        The dataset, to search all folders of the participant; only ``anat`` if None.
    participant : Participant
        What the ``anat`` folders hold.
    suffixes : sequence of str
        The wanted contrasts.

    Returns
    -------
    list of (str, str)
        Path relative to the dataset, and why it is not such an image; the nearest first.
    """
    misspelled = _misspelled(suffixes)
    like = re.compile("|".join(_LIKE[suffix] for suffix in suffixes), re.IGNORECASE)
    wanted = join_alternatives(suffixes)
    found = []
    elsewhere = _files_below(root, f"sub-{participant.label}") if root else ()
    for path in {*participant.others, *elsewhere}.difference(participant.images):
        folder, name = os.path.split(path)
        if name.startswith(".") or name.casefold().endswith(_NO_IMAGE):
            continue
        if misspelled.fullmatch(name):
            found.append((0, path, _why_misspelled(folder, name, suffixes)))
        elif like.search(_LABELS.sub("", name)):
            is_nifti = name.casefold().endswith((".nii", ".nii.gz"))
            end = name.split(".")[0].rpartition("_")[2] or name
            why = (
                f"it is {end}, not {wanted}"
                if is_nifti
                else "it is not a NIfTI file (.nii, .nii.gz)"
            )
            found.append((1 if is_nifti else 2, path, why))
    return [(path, why) for _, path, why in sorted(found)]


def _why_misspelled(folder: str, name: str, suffixes: Sequence[str]) -> str:
    if not is_unicode(name):
        return "its name is not UTF-8 text"
    if name != name.strip():
        return "its name ends with white space"
    if not re.search(rf"_(?:{'|'.join(suffixes)})\.nii(\.gz)?$", name):
        end = name.casefold().rpartition(".nii")[0]
        meant = next(each for each in suffixes if end.endswith(each.casefold()))
        return (
            f"its name must end with _{meant}.nii.gz or _{meant}.nii; upper and lower case matter"
        )
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
