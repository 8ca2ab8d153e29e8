"""Where the outputs and the intermediate files may be written."""

from __future__ import annotations

import logging
import secrets
from pathlib import Path

from hyps_bids.errors import UsageError, cannot_write
from hyps_bids.outputs.container import running_container
from hyps_bids.resources import is_on_root
from hyps_bids.settings import Settings

__all__ = ["check_output"]

_LOG = logging.getLogger("hyps_bids")
#: Folders inside a dataset that hold no raw data.
_NOT_RAW = ("derivatives", "sourcedata", "code")


def check_output(settings: Settings) -> None:
    """Check that the output folder is in a safe place and can be made and written.

    Nothing is created, so that a run that fails later leaves no empty folder behind.

    Raises
    ------
    UsageError
        If the output folder is the input, contains it, or lies inside it anywhere but below
        ``derivatives``, ``sourcedata`` or ``code``; if the work folder is the input, or if
        cleaning the work folder would remove the input or the output.
    CannotCreateOutput
        If it cannot be made or written; :class:`~hyps_bids.errors.WriteFailed` on a full disk.
    """
    source, output = settings.bids_dir.absolute(), settings.output_dir.absolute()
    real_source, real_output = source.resolve(), output.resolve()
    advice = f"Use {source / 'derivatives' / 'hyps'} instead."
    if real_source == real_output:
        raise UsageError(f"{output}: OUT_DIR is BIDS_DIR itself. {advice}", code="output-is-input")
    if real_output in real_source.parents:
        raise UsageError(
            f"{output}: OUT_DIR contains BIDS_DIR. Choose a folder beside the dataset.",
            code="output-contains-input",
        )
    if _is_among_raw_data(real_output, real_source):
        raise UsageError(
            f"{output}: inside BIDS_DIR, the outputs would be taken for raw data. {advice}",
            code="output-in-raw-data",
        )
    _check_work_folder(settings, real_source, real_output)
    try:
        existing = next(folder for folder in (output, *output.parents) if folder.exists())
        probe = existing / f".{secrets.token_hex(4)}.probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise cannot_write(output, error) from error
    if running_container() and is_on_root(output):
        _LOG.warning(
            "%s is inside the container and will be lost when the container is removed. Bind a "
            "folder of the host to this path (-v or -B).",
            output,
        )


def _check_work_folder(settings: Settings, source: Path, output: Path) -> None:
    if settings.work_dir is None:
        return
    given, work = settings.work_dir, settings.work_dir.resolve()
    if work == source:
        raise UsageError(
            f"{given}: the work folder is BIDS_DIR. Choose another work folder.",
            code="work-is-input",
        )
    if _is_among_raw_data(work, source):
        raise UsageError(
            f"{given}: the work folder lies inside BIDS_DIR, among the raw data. Choose another "
            "work folder.",
            code="work-in-raw-data",
        )
    if not settings.clean_workdir:
        return
    for folder in (source, output):
        if work == folder or work in folder.parents:
            raise UsageError(
                f"{given}: cleaning the work folder would remove {folder}. Choose another work "
                "folder, or leave out --clean-workdir.",
                code="cleaning-removes-data",
            )
    if source in work.parents and output not in work.parents:
        raise UsageError(
            f"{given}: the work folder lies inside BIDS_DIR, so it is not cleaned. Choose another "
            "work folder, or leave out --clean-workdir.",
            code="cleaning-in-input",
        )
    if output in work.parents and work.relative_to(output).parts[0] != "work":
        raise UsageError(
            f"{given}: cleaning the work folder may remove results. Use "
            f"{settings.output_dir}/work instead.",
            code="cleaning-removes-results",
        )


def _is_among_raw_data(folder: Path, dataset: Path) -> bool:
    return dataset in folder.parents and folder.relative_to(dataset).parts[0] not in _NOT_RAW
