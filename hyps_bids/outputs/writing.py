"""Names of derivatives, and writers that never leave half a file."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import pandas as pd

from hyps_bids.errors import cannot_write

__all__ = [
    "discard_partials",
    "remove_stale",
    "write_bytes",
    "write_json",
    "write_nifti",
    "write_table",
    "write_text",
]

#: hidden names of files that are being written
_PARTIAL = re.compile(r"\.[0-9a-f]{8}\..+")
#: those of this process
_UNDER_WAY: set[Path] = set()
#: seconds after which nobody writes them any more, whatever the clocks of other machines say
_STALE_S = 24 * 3600


def write_text(path: Path, text: str) -> None:
    """Write a text file at once; one that has this text already stays as it is.

    Thousands of jobs that share a dataset thus write its common files once.
    """
    content = text.encode()
    with contextlib.suppress(OSError):
        if path.read_bytes() == content:
            return
    write_bytes(path, content)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file of any kind at once."""
    _write(path, lambda partial: partial.write_bytes(content))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file at once."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """Write a TSV file at once.

    Missing values are n/a. Numbers have six significant digits or two decimals, whichever is
    more, and no zeros at the end: a count that became a float is a count again.
    """
    text = frame.to_csv(sep="\t", index=False, na_rep="n/a", float_format=_number)
    write_text(path, text)


def write_nifti(path: Path, image: nib.Nifti1Image) -> None:
    """Write a NIfTI file at once, compressed fast if the name ends with ``.gz``."""
    _write(path, lambda partial: nib.save(image, partial))


def discard_partials() -> None:
    """Remove what this process has not written to its end; for handlers of signals."""
    for partial in list(_UNDER_WAY):
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def remove_stale(folder: Path) -> None:
    """Remove the hidden files that killed writers have left in a folder.

    Those of writers at work stay: only files older than a day go.
    """
    # of another user, or removed by another job at this moment: not ours to worry about
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            path = folder / name
            if _PARTIAL.fullmatch(name) and time.time() - path.stat().st_mtime > _STALE_S:
                path.unlink(missing_ok=True)


def _number(value: float) -> str:
    if 1e3 <= abs(value) < 1e15:
        return f"{value:.2f}".rstrip("0").rstrip(".")
    # no minus zero
    return f"{value + 0.0:.6g}" if math.isfinite(value) else str(float(value))


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Write to a hidden name in the same folder, then rename: readers never see half a file."""
    # random: jobs in containers or on other nodes may have the same process number
    partial = path.with_name(f".{secrets.token_hex(4)}.{path.name}")
    _UNDER_WAY.add(partial)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        partial.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        # an interruption leaves nothing either; after the rename there is nothing to remove
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        _UNDER_WAY.discard(partial)
