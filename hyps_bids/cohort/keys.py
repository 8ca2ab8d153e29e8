"""Find the participants and sessions that the keys of a table mean, however they are written."""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import pandas as pd

from hyps_bids.messages import join_names

_LOG = logging.getLogger("hyps_bids")
#: Key column → prefix of its values
PREFIXES = {"participant_id": "sub-", "session_id": "ses-"}
_PARTICIPANT, _SESSION = PREFIXES
#: The nearest label is looked up for so many labels only, because each takes milliseconds.
_SHOWN = 20
#: Number of known labels up to which it is looked up for more than one label.
_FEW_LABELS = 1000


def match_labels(written: Iterable[str], known: Collection[str]) -> dict[str, str]:
    """Find the labels of the dataset that written labels mean.

    A label means itself if the dataset has it. Otherwise it means the only label that differs in
    nothing but case, repeated prefixes, separators, zeros in front or a decimal zero, unless
    another written label means that one too.

    Parameters
    ----------
    written : iterable of str
        Labels with their prefix.
    known : collection of str
        Labels of the dataset, with the same prefix.

    Returns
    -------
    dict of str to str
        Written label → label of the dataset, without the labels that mean none.

    Examples
    --------
    >>> match_labels(["ses-1", "ses-2.0", "ses-Ses_m3", "ses-4"], ["ses-01", "ses-2", "ses-M03"])
    {'ses-1': 'ses-01', 'ses-2.0': 'ses-2', 'ses-Ses_m3': 'ses-M03'}
    >>> match_labels(["sub-1", "sub-7", "sub-007"], ["sub-01", "sub-001", "sub-07"])
    {}
    """
    every = set(known)
    values = list(dict.fromkeys(written))
    found = {value: value for value in values if value in every}
    others = [value for value in values if value not in every]
    if not others:
        return found
    by_form = defaultdict(list)
    for label in sorted(every):
        by_form[plain_label(label)].append(label)
    claims = defaultdict(list)
    for value in others:
        if len(labels := by_form.get(plain_label(value), [])) == 1:
            claims[labels[0]].append(value)
    sure = {v[0]: label for label, v in claims.items() if len(v) == 1 and label not in found}
    return found | sure


def plain_label(label: str) -> str:
    """Reduce a label to what different spellings of it have in common.

    Examples
    --------
    >>> plain_label("sub-01"), plain_label("1"), plain_label("ses-Ses_m3")
    ('1', '1', 'm3')
    """
    text = re.sub(r"^(?:sub[-_ ]?|ses[-_ ]?)+(?=.)", "", label.casefold().strip())
    text = re.sub(r"(?<=\d)\.0+$", "", text)
    # A sign in front is kept: session -1 is not session 1.
    text = re.sub(r"(?<=[^\W_])[-_\s]+(?=[^\W_])", "", text)
    return re.sub(r"(?<!\d)0+(?=\d)", "", text)


def with_nearest(labels: Iterable[str], known: Collection[str]) -> str:
    """List labels for a message, each with the nearest of the known labels.

    Examples
    --------
    >>> with_nearest(["sub-O1"], ["sub-01", "sub-02"]), with_nearest(["sub-1"], [])
    ('sub-O1 (nearest: sub-01)', 'sub-1')
    """
    names = []
    for number, label in enumerate(labels):
        # The search takes long among many labels, so it is cut short there.
        search = number < (_SHOWN if len(known) <= _FEW_LABELS else 1)
        close = difflib.get_close_matches(label, known, n=1, cutoff=0.0) if search else []
        names.append(f"{label} (nearest: {close[0]})" if close else label)
    return join_names(names)


class KeyMatcher:
    """Brings the keys of tables in line with the participants and sessions of a dataset.

    Parameters
    ----------
    root : Path
        The raw dataset, whose folders tell which labels exist beside those of the scans.
    scans : pandas.DataFrame
        participant_id and session_id of the scans to describe.
    """

    def __init__(self, root: Path, scans: pd.DataFrame) -> None:
        self._root = root
        self._sessions: dict[str, set[str | None]] = defaultdict(set)
        sessions = scans[_SESSION].astype("object").where(scans[_SESSION].notna(), None)
        for participant, session in zip(scans[_PARTICIPANT], sessions, strict=True):
            self._sessions[participant].add(session)
        self._folders: dict[str, set[str]] = {}

    @cached_property
    def participants(self) -> set[str]:
        """All participants of the scans and of the dataset, whether selected or not."""
        return {*self._sessions, *label_folders(self._root, "sub-")}

    def match(
        self, table: pd.DataFrame, where: object, *, name_participants: bool = True
    ) -> pd.DataFrame:
        """Return a table with the dataset's own labels as keys.

        Sessions of participants whose scans have none become missing. The log names labels that
        were taken for others, and rows that match nothing in the dataset.

        Parameters
        ----------
        table : pandas.DataFrame
            participant_id and perhaps session_id, with prefixes, and other columns.
        where : object
            The file or files, for messages.
        name_participants : bool
            Whether to name participants that the dataset does not have.
        """
        taken: dict[str, str] = {}
        matched = match_labels(table[_PARTICIPANT], self.participants)
        taken |= {a: b for a, b in matched.items() if a != b}
        table = table.assign(
            **{_PARTICIPANT: table[_PARTICIPANT].map(lambda label: matched.get(label, label))}
        )
        if _SESSION in table:
            table = self._match_sessions(table, taken, where)
        if taken:
            _LOG.warning(
                "%s: these labels are not written as in the dataset and were taken for those that "
                "differ only in zeros, case or separators: %s. Please correct the file.",
                where,
                join_names(f"{a} for {b}" for a, b in taken.items()),
            )
        others = set(table[_PARTICIPANT]) - self.participants if name_participants else set()
        report_unmatched(others, set(self._sessions) - set(table[_PARTICIPANT]), where)
        if _SESSION in table:
            self._report_sessions(table, where)
        return table

    def _match_sessions(
        self, table: pd.DataFrame, taken: dict[str, str], where: object
    ) -> pd.DataFrame:
        sessions: list[str | None] = []
        written, odd = defaultdict(list), defaultdict(list)
        whole = set()
        keys = zip(table[_PARTICIPANT], table[_SESSION], table[_SESSION].notna(), strict=True)
        for row, (participant, session, given) in enumerate(keys):
            there = self._sessions.get(participant)
            sessions.append(session if given else None)
            if given:
                written[participant].append(session)
            if not given or there is None or session in there:
                continue
            if there == {None} and not self._sessions_of(participant):
                # The scans have no sessions, so that the row can only be about the participant.
                sessions[-1] = None
                whole.add(participant)
            else:
                odd[participant].append(row)
        if whole:
            _LOG.info(
                "%s: the scans of these participants have no sessions, so the rows about their "
                "sessions were taken for the participant: %s",
                where,
                join_names(sorted(whole)),
            )
        for participant, rows in odd.items():
            matched = match_labels(written[participant], self._sessions_of(participant))
            for row in rows:
                if (label := matched.get(str(sessions[row]))) and label != sessions[row]:
                    taken[f"{participant} {sessions[row]}"] = label
                    sessions[row] = label
        return table.assign(**{_SESSION: pd.Series(sessions, table.index, dtype="str")})

    def _sessions_of(self, participant: str) -> set[str]:
        """Return the sessions of a participant's scans and folders."""
        if participant not in self._folders:
            self._folders[participant] = label_folders(self._root / participant, "ses-")
        scanned = {session for session in self._sessions[participant] if session}
        return scanned | self._folders[participant]

    def _report_sessions(self, table: pd.DataFrame, where: object) -> None:
        """Name the rows about sessions of which their participant has neither scans nor a folder.

        Rows of sessions with a folder, but without a T1w image, are as they should be.
        """
        keys = table[table[_SESSION].notna()]
        pairs = set(zip(keys[_PARTICIPANT], keys[_SESSION], strict=True))
        whole = set(table.loc[table[_SESSION].isna(), _PARTICIPANT])
        odd = sorted(
            (participant, session)
            for participant, session in pairs
            if participant in self._sessions
            and session not in self._sessions[participant]
            and session not in self._sessions_of(participant)
        )
        without = {
            f"{participant} {session}"
            for participant in {*(p for p, _ in odd)} - whole
            for session in self._sessions[participant]
            if session and (participant, session) not in pairs
        }
        if odd:
            _LOG.warning(
                "%s: these sessions are not in the dataset, so their rows are not used; nothing is "
                "wrong if they are visits without images: %s",
                where,
                with_nearest([f"{p} {s}" for p, s in odd], sorted(without)),
            )


def report_unmatched(unmatched: Collection[str], without: Collection[str], where: object) -> None:
    """Log the keys of a table that match nothing, each with the nearest of those without a row."""
    if not unmatched:
        return
    # Where everything has its row, the other rows are about visits without a scan.
    _LOG.log(
        logging.WARNING if without else logging.INFO,
        "%s: these keys match nothing in the dataset, so their rows are not used: %s",
        where,
        with_nearest(sorted(unmatched), sorted(without)),
    )


def label_folders(parent: Path, prefix: str) -> set[str]:
    """Name the folders in a folder whose names start so; none if it cannot be read."""
    names = set()
    with suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            with suppress(OSError):
                if entry.name.startswith(prefix) and entry.is_dir():
                    names.add(entry.name)
    return names
