"""The folders of one run: its log, and the work folder with the caches of libraries."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from hyps_bids.errors import cannot_write
from hyps_bids.outputs.writing import write_text
from hyps_bids.settings import Settings, settings_to_toml
from hyps_bids.system import user_name
from hyps_bids.workers import Workers

_LOG = logging.getLogger("hyps_bids")
#: How often to try to make a folder whose parents other jobs may be removing.
_ATTEMPTS = 20
_CACHE_VARIABLES = (
    "NIPYPE_CONFIG_DIR",
    "MPLCONFIGDIR",
    "XDG_CACHE_HOME",
    "JOBLIB_TEMP_FOLDER",
)


@dataclass(frozen=True)
class Run:
    """A run of the participant level.

    Attributes
    ----------
    settings : Settings
        What the user asked for.
    log_dir, work_dir : Path
        Folders of its log and crash files, and of its intermediate files.
    workers : Workers
        Its processes.
    """

    settings: Settings
    log_dir: Path
    work_dir: Path
    workers: Workers


def name_run() -> str:
    """Make a name for a run from the time and a random part.

    Jobs may start in the same second, and in containers even their process numbers are the same.
    """
    return f"{datetime.now():%Y%m%dT%H%M%S}_{secrets.token_hex(6)}"


def start_log_file(folder: Path, settings: Settings) -> None:
    """Record the settings and the log of a run in a folder."""
    write_text(folder / "settings.toml", settings_to_toml(settings))
    path = folder / "hyps-bids.log"
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    _LOG.addHandler(handler)


@contextmanager
def work_folder(settings: Settings, run_name: str) -> Iterator[Path]:
    """Make the folder of intermediate files, and remove it at the end, whatever happens.

    Only a folder that the user named for the participant level stays, because a later run finds
    its intermediate files there.

    Raises
    ------
    CannotCreateOutput
        If the folder cannot be made or emptied.
    """
    parent = settings.work_dir or settings.output_dir / "work"
    keep = settings.work_dir is not None and settings.analysis_level == "participant"
    folder = parent if keep else parent / run_name
    is_new = not settings.output_dir.exists()
    if keep and settings.clean_workdir and folder.exists():
        try:
            # Empty the folder that a symbolic link leads to, and keep the link.
            shutil.rmtree(folder.resolve())
        except OSError as error:
            raise cannot_write(folder, error) from error
    try:
        with _caches_in(folder, run_name):
            yield folder
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
        if settings.work_dir is None:
            _remove_if_empty(parent)
        if is_new:
            _remove_if_empty(settings.output_dir)


@contextmanager
def _caches_in(work_dir: Path, run_name: str) -> Iterator[None]:
    """Let libraries write their caches to the work folder: HOME may be missing or read-only."""
    # The folder is removed at the end, so it must belong to this run only.
    caches = work_dir / f"caches_{run_name}"
    try:
        _make_folder(caches)
    except OSError as error:
        raise cannot_write(work_dir, error) from error
    unset = [name for name in _CACHE_VARIABLES if name not in os.environ]
    os.environ.update(dict.fromkeys(unset, str(caches.absolute())))
    # Switch off the telemetry of nipype.
    os.environ["NO_ET"] = os.environ["NIPYPE_NO_ET"] = "1"
    # MONAI asks for the user's name, and a container may have none.
    os.environ.setdefault("LOGNAME", user_name())
    try:
        yield
    finally:
        # What runs later in this process must not make the folder again.
        for name in unset:
            os.environ.pop(name, None)
        shutil.rmtree(caches, ignore_errors=True)


def _make_folder(folder: Path) -> None:
    """Make a folder and its parents, which another job may remove while they are empty."""
    for _ in range(_ATTEMPTS):
        try:
            return folder.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError:
            continue
    folder.mkdir(parents=True, exist_ok=True)


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        _LOG.debug("%s: kept because it is not empty", folder)
