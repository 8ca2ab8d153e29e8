"""Errors that a user can act on. Each carries the exit code of the BIDS App execution draft."""

from __future__ import annotations

import errno
from pathlib import Path

__all__ = [
    "DISK_ERRORS",
    "BadData",
    "CannotCreateOutput",
    "HypsError",
    "InvalidBids",
    "MissingInput",
    "NotEnoughMemory",
    "NothingMatches",
    "Terminated",
    "UsageError",
    "WriteFailed",
    "cannot_write",
]

#: the disk is full or broken, whatever the folder
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


class HypsError(Exception):
    """Base of all errors that end a run with a message instead of a traceback."""

    exit_code = 1


class InvalidBids(HypsError):
    """The input folder is not a BIDS dataset."""

    exit_code = 16


class NothingMatches(HypsError):
    """The dataset has scans, but none passes the filters."""

    exit_code = 18


class UsageError(HypsError):
    """Contradictory or impossible options."""

    exit_code = 64


class BadData(HypsError):
    """A file is there, but its content cannot be used."""

    exit_code = 65


class MissingInput(HypsError):
    """A file or folder that was asked for is not there."""

    exit_code = 66


class CannotCreateOutput(HypsError):
    """The output or work folder cannot be written."""

    exit_code = 73


class WriteFailed(CannotCreateOutput):
    """The disk is full, or does not work."""

    exit_code = 74


class NotEnoughMemory(HypsError):
    """The job has too little memory; with more it would succeed."""

    exit_code = 75


class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM): by a scheduler, ``docker stop`` or a shutdown."""

    exit_code = 143


def cannot_write(path: Path, error: OSError) -> CannotCreateOutput:
    """Make the error of a file or folder that cannot be written: of its disk, or of itself."""
    kind = WriteFailed if error.errno in DISK_ERRORS else CannotCreateOutput
    return kind(f"{path}: cannot be written ({error.strerror})")
