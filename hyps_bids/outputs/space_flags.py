"""What the codes in the QC table of a scan in the space of a template mean."""

from __future__ import annotations

from hyps_bids.outputs.flags import Note
from hyps_bids.outputs.labels import SIDE_NAMES

#: Code → its words: {space} is the template, and {side} that of a code such as unlike_L.
_NOTES = {
    "no-brain": Note(
        "no brain",
        "No intracranial space was found in the scan, so it was not registered with {space}.",
        "Look at the image, and at the report of the scan.",
    ),
    "no-hippocampus": Note(
        "no hippocampus",
        "No hippocampus was segmented, so there is nothing to bring to {space}.",
        "Look at the image, and at the report of the scan.",
    ),
    "not-aligned": Note(
        "not aligned",
        "The registration with {space} failed: the heads do not lie on each other.",
        "Large lesions or artifacts, or parts of the head that are missing, may be why. The "
        "results on the scan's own grid are not affected.",
    ),
    "sides-swapped": Note(
        "left and right swapped",
        "After the registration with {space}, the left hippocampus lies on the right one.",
        "Check the orientation in the header of the image: if left and right are swapped in it, "
        "the volumes of the two sides are swapped as well.",
    ),
    "absurd-size": Note(
        "absurd size",
        "The registration with {space} would stretch the head by factors that no head needs.",
        "Check the size of voxels in the header, or whether much of the head is missing.",
    ),
    "little-overlap": Note(
        "little overlap",
        "The intracranial spaces of the scan and of {space} overlap less than usual.",
        "Look at the outlines in the report.",
    ),
    "unusual-size": Note(
        "unusual size",
        "The registration with {space} changes the size or the shape of the head much.",
        "That is right for small children; otherwise, look at the outlines in the report.",
    ),
    "cut-off": Note(
        "head cut off",
        "The field of view covers less than nine tenths of the head of {space}.",
        "The registration rests on the rest of the head; look at it near the hippocampi.",
    ),
    "dissimilar": Note(
        "unlike the template",
        "The intensities of the scan have little in common with those of {space}.",
        "Noise, strong artifacts, or labels of another image may be why, and the registration may "
        "be wrong. Look at the outlines in the report.",
    ),
    "unlike": Note(
        "other place, {side}",
        "The {side} hippocampus lies beside that of {space}, or has another shape.",
        "Look at the outlines in the report: if the head fits, the hippocampus differs, which an "
        "affine transform cannot correct; if it does not, the registration is wrong.",
    ),
    "missing": Note(
        "not segmented, {side}",
        "No {side} hippocampus was segmented, so the registration with {space} rests on the other "
        "one.",
        "Look at the report of the scan, and at the outlines.",
    ),
}


def describe_space_flag(flag: str, space: str) -> Note:
    """Put a flag of the QC table of a scan in the space of a template into words.

    Examples
    --------
    >>> describe_space_flag("unlike_L", "MNI152Lin").finding
    'The left hippocampus lies beside that of MNI152Lin, or has another shape.'
    """
    code, _, hemi = flag.partition("_")
    note = _NOTES.get(code, Note(flag, f"The reason has the code {flag}."))
    return Note(*(text.format(space=space, side=SIDE_NAMES.get(hemi, "")) for text in note))
