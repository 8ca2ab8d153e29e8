"""Words for what was not found: participants without images, and labels that nobody has."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from hyps_bids.bids.folders import Participant, near_misses
from hyps_bids.messages import format_count, join_names, printable

#: Participant → path of an image that was left out, and the reason.
LeftOut = dict[str, list[tuple[str, str]]]
#: Most participants whose folders are searched: a dataset may have thousands without T1w images.
_SEARCHED = 1000


def describe_absent(
    root: Path, absent: Sequence[Participant], left_out: LeftOut, filtered: Collection[str]
) -> str:
    """Name participants and what they have instead of a selected image, the telling ones first."""
    ranked = []
    for number, participant in enumerate(absent):
        rank, text = _instead(root if number < _SEARCHED else None, participant, left_out, filtered)
        ranked.append((rank, f"{participant.label} ({text})"))
    return join_names(text for _, text in sorted(ranked))


def _instead(
    root: Path | None, participant: Participant, left_out: LeftOut, filtered: Collection[str]
) -> tuple[int, str]:
    near = [*left_out.get(participant.label, ()), *near_misses(root, participant)]
    if participant.unreadable:
        return 0, "a folder cannot be read"
    if near:
        path, why = near[0]
        more = f"; {format_count(len(near) - 1, 'more file')}" if len(near) > 1 else ""
        return 0, f"{path}: {why}{more}"
    if participant.label in filtered:
        return 1, "the filter file passes none of its images"
    if participant.images:
        return 2, f"only in other sessions, such as {participant.images[0]}"
    if participant.others:
        return 2, f"no T1w image beside {Path(participant.others[0]).name}"
    return 3, "no files in a folder anat"


def explain_labels(
    unknown: Sequence[str], known: Collection[str], nearly: Sequence[str] = ()
) -> str:
    """Give a hint what is wrong with labels that nobody has; it begins with a space."""
    hints = []
    if any("," in label or ";" in label for label in unknown):
        hints.append("Labels are separated by spaces, not by commas.")
    strange = [label for label in unknown if not label.isprintable() or label != label.strip()]
    if strange:
        hints.append(
            f"'{printable(strange[0])}' has characters that are not seen; a list from Windows may "
            "have brought them."
        )
    folded = {_folded(label): label for label in known}
    meant = [folded[_folded(label)] for label in unknown if _folded(label) in folded]
    if meant:
        hints.append(f"Perhaps {join_names(meant)} is meant.")
    looks = {_folded(name[3:]): name for name in nearly}
    folders = [looks[_folded(label)] for label in unknown if _folded(label) in looks]
    if folders:
        hints.append(f"The folder {join_names(folders)} must be renamed to sub-LABEL.")
    return "".join(f" {hint}" for hint in hints)


def _folded(label: str) -> str:
    """Make labels equal that differ in padding, case, prefix and characters that are not seen."""
    kept = "".join(character for character in label.casefold() if character.isalnum())
    return kept.removeprefix("sub").removeprefix("ses").lstrip("0")
