"""SHA-256 sums of files, by which weights and images are recognized again."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 sum of a file, remembered while the file is unchanged."""
    status = path.stat()
    return _sha256(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=256)
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
