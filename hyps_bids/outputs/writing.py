"""Writers that never leave half a file, whatever happens to the process."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyps_bids.errors import CannotCreateOutput, cannot_write
from hyps_bids.outputs.compression import compressor

if TYPE_CHECKING:
    import nibabel as nib
    import numpy as np
    import pandas as pd

#: Hidden names of files that are being written.
_PARTIAL = re.compile(r"\.[0-9a-f]{8}\..+")
#: Hidden files that this process is writing now.
_UNDER_WAY: set[Path] = set()
#: Age in seconds beyond which a hidden file has been abandoned, even if clocks differ.
_STALE_S = 24 * 3600


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, unless it has this text already.

    Thousands of jobs that share a dataset thus write its common files only once. Bytes of file
    names that are not valid UTF-8 are escaped, in a way that JSON can read.
    """
    content = text.encode("utf-8", "backslashreplace")
    with contextlib.suppress(OSError):
        if path.read_bytes() == content:
            return
    write_bytes(path, content)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a binary file atomically."""
    write_with(path, lambda partial: partial.write_bytes(content))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_template(path: Path, package: str, name: str, values: Mapping[str, Any]) -> None:
    """Write a text file atomically from a Jinja template that lies in a package of ours."""
    # Jinja takes long to import, and few commands need it.
    import jinja2

    template = jinja2.Template(
        (files(package) / name).read_text(encoding="utf-8"),
        trim_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    write_text(path, template.render(values))


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """Write a TSV file atomically.

    Missing values are written as ``n/a``. Numbers have six significant digits or two decimals,
    whichever is more, and no trailing zeros, so that a count stored as float is a count again.
    """
    text = frame.to_csv(sep="\t", index=False, na_rep="n/a", float_format=_number)
    write_text(path, text)


def write_nifti(path: Path, image: nib.Nifti1Image) -> None:
    """Write a NIfTI file atomically, compressed if its name ends with ``.gz``."""
    write_with(path, image.to_filename)


def write_volumes(path: Path, header: nib.Nifti1Header, volumes: Iterable[np.ndarray]) -> None:
    """Write a compressed NIfTI file atomically, one volume at a time.

    Parameters
    ----------
    path : Path
        The file, with the extension ``.nii.gz``.
    header : nibabel.Nifti1Header
        Complete header.
    volumes : iterable of numpy.ndarray
        What the header describes, in its data type, each of shape ``(x, y, z)``.
    """
    with atomic_path(path) as partial, partial.open("wb") as file, compressor(file) as stream:
        header.write_to(stream)
        for volume in volumes:
            # The first axis is the fastest in the file.
            stream.write(volume.ravel(order="F").data)


def write_with(
    path: Path,
    write: Callable[[Path], object],
    *,
    failures: tuple[type[Exception], ...] = (),
    hint: str = "",
) -> None:
    """Write a file with a function that takes the path to write to; see :func:`atomic_path`."""
    with atomic_path(path, failures=failures, hint=hint) as partial:
        write(partial)


@contextlib.contextmanager
def atomic_path(
    path: Path, *, failures: tuple[type[Exception], ...] = (), hint: str = ""
) -> Iterator[Path]:
    """Give a hidden path to write to, which becomes `path` when the body has ended.

    Readers never see half a file, and a failed or interrupted body leaves what was there before.

    Parameters
    ----------
    path : Path
        The file or folder to write. Its parent folder is made; an existing file is replaced.
    failures : tuple of exception types
        Exceptions of the body, besides ``OSError``, that mean that writing has failed: some
        libraries report a full disk with an exception of their own.
    hint : str
        What the user can do, added to the message of the error.

    Yields
    ------
    Path
        A path in the same folder with the same extension, at which nothing exists yet.

    Raises
    ------
    CannotCreateOutput
        If writing fails; :class:`~hyps_bids.errors.WriteFailed` if the disk is full or broken.
    """
    # The name is random because jobs in containers or on other nodes may share a process number.
    # A name that is just short enough must not become too long.
    partial = path.with_name(f".{secrets.token_hex(4)}.{path.name[-200:]}")
    failed: tuple[type[Exception], ...] = (OSError, *failures)
    _UNDER_WAY.add(partial)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except failed as error:
        raise cannot_write(path, error, hint) from error
    finally:
        _remove(partial)
        _UNDER_WAY.discard(partial)


def discard_partials() -> None:
    """Remove the files that this process has not finished writing; for signal handlers."""
    for partial in list(_UNDER_WAY):
        _remove(partial)


def is_partial(name: str) -> bool:
    """Tell whether a file is one that is being written, or that a killed process has left."""
    return _PARTIAL.fullmatch(name) is not None


def remove_file(path: Path) -> None:
    """Remove a file, if there is one.

    Raises
    ------
    CannotCreateOutput
        If it cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        # There can be no such file.
        if error.errno not in (errno.ENOTDIR, errno.ENAMETOOLONG):
            raise cannot_write(path, error) from error


def remove_files(paths: Iterable[Path]) -> None:
    """Remove files in this order, those after one that cannot be removed as well.

    Raises
    ------
    CannotCreateOutput
        The first problem, after all files were tried.
    """
    problems = []
    for path in paths:
        try:
            remove_file(path)
        except CannotCreateOutput as problem:
            problems.append(problem)
    if problems:
        raise problems[0]


def remove_stale(folder: Path) -> None:
    """Remove the hidden files, older than a day, that killed processes have left in a folder."""
    # A file may belong to another user, or another job may be removing it: neither matters here.
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            path = folder / name
            if is_partial(name) and time.time() - path.stat().st_mtime > _STALE_S:
                path.unlink(missing_ok=True)


def _number(value: float) -> str:
    if 1e3 <= abs(value) < 1e15:
        return f"{value:.2f}".rstrip("0").rstrip(".")
    # Adding zero turns -0.0 into 0.0.
    return f"{value + 0.0:.6g}" if math.isfinite(value) else str(float(value))


def _remove(partial: Path) -> None:
    if os.path.isdir(partial):
        shutil.rmtree(partial, ignore_errors=True)
    with contextlib.suppress(OSError):
        partial.unlink(missing_ok=True)
