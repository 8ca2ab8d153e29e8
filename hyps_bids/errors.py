"""Errors that a user can act on, each with the exit code of the BIDS App execution draft."""

from __future__ import annotations

import errno
from functools import partial
from pathlib import Path
from typing import Any

#: Values of ``errno`` that mean that the disk is full or broken, whatever the folder.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


class HypsError(Exception):
    """Base of all errors that end a run with a message instead of a traceback.

    Parameters
    ----------
    message : str
        What is wrong, in which file, and what to do about it.
    code : str
        Short stable name of the error, such as ``label-value-unknown``, for tests and for the
        documentation; messages may be reworded, codes may not.

    Attributes
    ----------
    exit_code : int
        Exit code of the process, from the BIDS App execution draft.
    """

    exit_code = 1

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        # Unpickling, in another process, must pass the keyword as well.
        return partial(type(self), code=self.code), self.args


class InvalidBids(HypsError):
    """The input folder is not a BIDS dataset."""

    exit_code = 16


class NothingMatches(HypsError):
    """The dataset has scans, but none passes the filters."""

    exit_code = 18


class UsageError(HypsError):
    """The options contradict each other or are impossible."""

    exit_code = 64


class BadData(HypsError):
    """A file exists, but its content cannot be used."""

    exit_code = 65


class MissingInput(HypsError):
    """A file or folder that was asked for does not exist."""

    exit_code = 66


class CannotCreateOutput(HypsError):
    """The output or work folder cannot be written."""

    exit_code = 73


class WriteFailed(CannotCreateOutput):
    """The disk is full or broken."""

    exit_code = 74


class NotEnoughMemory(HypsError):
    """The job has too little memory, and would succeed with more."""

    exit_code = 75


class NotFinished(HypsError):
    """The time that the run was given is over; the same command goes on."""

    exit_code = 75


class Terminated(KeyboardInterrupt):
    """A scheduler, ``docker stop`` or a shutdown has asked the process to end (SIGTERM)."""

    exit_code = 143


def cannot_write(path: Path, error: Exception, hint: str = "") -> CannotCreateOutput:
    """Make the error for a file or folder that cannot be written.

    Parameters
    ----------
    path : Path
        The file or folder.
    error : Exception
        Why it cannot be written; usually an ``OSError``.
    hint : str
        What the user can do, added to the message.

    Returns
    -------
    CannotCreateOutput
        A :class:`WriteFailed` if the disk is full or broken.
    """
    reason = getattr(error, "strerror", None) or str(error)
    message = f"{path}: cannot be written ({reason})" + (f"; {hint}" if hint else "")
    if getattr(error, "errno", None) in DISK_ERRORS:
        return WriteFailed(message, code="disk-failure")
    return CannotCreateOutput(message, code="not-writable")
