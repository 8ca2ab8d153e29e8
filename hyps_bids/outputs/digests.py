"""SHA-256 sums of files, by which weights and images are recognized again.

To read all images of a large dataset takes many minutes, so sums are remembered. As in git's index,
a file is taken to be unchanged while its size, its times of modification and change, and its inode
are the same. The time of change tells even of a file whose time of modification was set back. Where
a disk keeps no such time, as some network disks do not, that one case stays unseen.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from hyps_bids.errors import CannotCreateOutput
from hyps_bids.outputs.writing import remove_stale, write_text

_LOG = logging.getLogger("hyps_bids")
#: A sum is not remembered if the file had changed within so many nanoseconds: it may change again
#: within the resolution of its times, clocks of disks on a network are not exact, and what is
#: written through a memory map gets its time half a minute later.
_RECENT_NS = 60 * 10**9


class Digests:
    """SHA-256 sums of files, remembered while the files are unchanged.

    The memory is a cache: if it is lost, damaged or cannot be written, files are read again. It has
    many small files, so that jobs with one participant each read and write a small part of it and
    seldom write the same file at once. If they do, the last one wins.

    Parameters
    ----------
    folder : Path, optional
        Where the sums are kept between runs; without it, they are kept in this process only.
    root : Path
        The dataset. Names in the memory begin below it, because it may be mounted elsewhere later.
    """

    def __init__(self, folder: Path | None = None, root: Path | None = None) -> None:
        self._folder = folder
        self._root = "" if root is None else os.path.join(root, "")
        #: Name of a file of the memory → name of a file → what it looked like, and its sum.
        self._known: dict[str, dict[str, list[Any]]] = {}
        self._new: dict[str, dict[str, list[Any]]] = {}

    def sha256(self, path: Path) -> str:
        """Return the hexadecimal sum of a file.

        Raises
        ------
        OSError
            If it cannot be read.
        """
        name = os.fspath(path).removeprefix(self._root)
        part = self._part_of(name)
        if part not in self._known:
            self._known.setdefault(part, self._load(part))
        known = self._known[part].get(name)
        if known is not None and known[:-1] == _look(os.stat(path)):
            return str(known[-1])
        began = time.time_ns()
        with open(path, "rb") as stream:
            look = _look(os.fstat(stream.fileno()))
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            unchanged = look == _look(os.fstat(stream.fileno()))
        _, modified, changed, _ = look
        if unchanged and max(modified, changed) < began - _RECENT_NS:
            entry = {name: [*look, digest]}
            self._known[part].update(entry)
            self._new.setdefault(part, {}).update(entry)
        return digest

    def save(self) -> None:
        """Keep what is new for later runs, if that is possible.

        Only the main process of a run calls this.
        """
        if self._folder is None or not self._new:
            return
        try:
            for part, entries in self._new.items():
                # Another job may have written meanwhile.
                content = json.dumps(self._load(part) | entries)
                write_text(self._folder / part, f"{_sum(content)}\n{content}")
        except CannotCreateOutput as error:
            _LOG.debug("Sums of images are not kept: %s", error)
        self._new.clear()
        remove_stale(self._folder)

    def _part_of(self, name: str) -> str:
        """Name the file of the memory that has all images of a participant."""
        if self._folder is None:
            return ""
        return f"{_sum(name.partition('/')[0])[:2]}.txt"

    def _load(self, part: str) -> dict[str, list[Any]]:
        """Read a file of the memory; empty unless it is exactly what was written."""
        if self._folder is None:
            return {}
        try:
            checksum, _, content = (self._folder / part).read_text(encoding="utf-8").partition("\n")
        except (OSError, UnicodeDecodeError):
            return {}
        entries: dict[str, list[Any]] = json.loads(content) if checksum == _sum(content) else {}
        return entries


_OF_THIS_PROCESS = Digests()


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 sum of a file, remembered while this process lives."""
    return _OF_THIS_PROCESS.sha256(path)


def _look(status: os.stat_result) -> list[int]:
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _sum(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
