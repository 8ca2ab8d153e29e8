"""What was not found: participants without images, and labels that nobody has."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from hyps_bids.bids.folders import Participant, in_sessions, near_misses, suffix_of
from hyps_bids.errors import NothingMatches
from hyps_bids.messages import format_count, join_alternatives, join_names, printable
from hyps_bids.outputs.scan import Scan
from hyps_bids.settings import SUFFIXES, Settings

_LOG = logging.getLogger("hyps_bids")
#: Participant → path of an image that was left out, and the reason.
LeftOut = dict[str, list[tuple[str, str]]]
#: Most participants whose folders are searched: a dataset may have thousands without images.
_SEARCHED = 1000


def sorted_suffixes(settings: Settings) -> list[str]:
    """Return the wanted contrasts, each once, in the order of their declaration."""
    return [suffix for suffix in SUFFIXES if suffix in settings.suffix]


class Found(NamedTuple):
    """What a dataset has of what was asked for.

    Attributes
    ----------
    settings : Settings
        Labels, contrasts and filters.
    participants : sequence of Participant
        Everybody who was asked for.
    nearly : sequence of str
        Folders that look like participants.
    scans, passed : sequence of Scan
        The images before and after the filter file.
    left_out : dict of str to list of (str, str)
        Images that were left out, with reasons.
    """

    settings: Settings
    participants: Sequence[Participant]
    nearly: Sequence[str]
    scans: Sequence[Scan]
    passed: Sequence[Scan]
    left_out: LeftOut


def refuse_nothing(found: Found) -> None:
    """Refuse if nobody has a selected image.

    Raises
    ------
    NothingMatches
        If no image was found, or none passes the filters.
    """
    if found.passed:
        return
    settings = found.settings
    suffixes = sorted_suffixes(settings)
    wanted = join_alternatives(suffixes)
    if found.scans:
        raise NothingMatches(
            f"{settings.bids_filter_file}: passes none of {len(found.scans)} {wanted} images.",
            code="no-images-selected",
        )
    names = _describe_absent(found, found.participants, suffixes, ())
    sessions = f", session {join_names(settings.session_label)}" if settings.session_label else ""
    people = join_names(each.label for each in found.participants)
    raise NothingMatches(
        f"{settings.bids_dir}: there is no {wanted} image of participant {people}{sessions}. What "
        f"there is instead: {join_names([names, *found.nearly])}.",
        code="no-images-selected",
    )


def name_absent(found: Found) -> None:
    """Name the participants without a selected image of any contrast, or without one of them."""
    settings, nearly = found.settings, found.nearly
    suffixes = sorted_suffixes(settings)
    shown = found.passed if settings.participant_label else found.scans
    selected = {scan.subject for scan in shown}
    named: set[str] = set()
    # First those who have no image at all, then those who have images of other contrasts only.
    for wanted in [suffixes, *([suffix] for suffix in suffixes if len(suffixes) > 1)]:
        before = {scan.subject for scan in found.scans if scan.suffix in wanted}
        after = {scan.subject for scan in found.passed if scan.suffix in wanted}
        # A filter file excludes participants on purpose, unless their labels were given as well.
        there = named | (after if settings.participant_label else before | after)
        absent = [each for each in found.participants if each.label not in there]
        if not absent:
            continue
        _LOG.warning(
            "%s without a selected %s image: %s",
            format_count(len(absent), "participant"),
            join_alternatives(wanted),
            _describe_absent(found, absent, wanted, before - after),
        )
        if wanted is suffixes:
            named = {each.label for each in absent}
    files = [
        path
        for each in found.participants
        if each.label in selected
        for path in each.misspelled(suffixes)
    ]
    if files:
        _LOG.warning("These files are not taken because of their names: %s", join_names(files))
    if nearly and not settings.participant_label:
        _LOG.warning("These folders are not taken for participants: %s", join_names(nearly))


def _describe_absent(
    found: Found,
    absent: Sequence[Participant],
    suffixes: Sequence[str],
    filtered: Collection[str],
) -> str:
    """Name participants without images of these contrasts, and what they have instead.

    The telling ones come first. `filtered` are those of whom the filter file passes no such image.
    """
    # Participants with a selected image of another contrast are no reason to search all folders.
    searched = _SEARCHED if set(suffixes) == set(found.settings.suffix) else 0
    ranked = []
    for number, participant in enumerate(absent):
        root = found.settings.bids_dir if number < searched else None
        rank, text = _instead(found, root, participant, suffixes, filtered)
        ranked.append((rank, f"{participant.label} ({text})"))
    return join_names(text for _, text in sorted(ranked))


def _instead(
    found: Found,
    root: Path | None,
    participant: Participant,
    suffixes: Sequence[str],
    filtered: Collection[str],
) -> tuple[int, str]:
    settings = found.settings
    meant = [
        each for each in found.left_out.get(participant.label, ()) if suffix_of(each[0]) in suffixes
    ]
    near = [*meant, *near_misses(root, participant, suffixes)]
    if participant.unreadable:
        return 0, "a folder cannot be read"
    if near:
        path, why = near[0]
        more = f"; {format_count(len(near) - 1, 'more file')}" if len(near) > 1 else ""
        return 0, f"{path}: {why}{more}"
    if participant.label in filtered:
        return 1, "the filter file passes none of its images"
    if elsewhere := participant.images_of(suffixes):
        return 2, f"only in other sessions, such as {elsewhere[0]}"
    images = [path for path in participant.images if in_sessions(path, settings.session_label)]
    files = [*images, *participant.images, *participant.others]
    if not files:
        return 3, "no files in a folder anat"
    text = f"no {join_alternatives(suffixes)} image beside {Path(files[0]).name}"
    if others := {suffix_of(path) for path in images}.difference(settings.suffix):
        option = " ".join(suffix for suffix in SUFFIXES if suffix in others)
        text += f"; --suffix {option} selects what is there"
    return 2, text


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
