"""Where the outputs and the intermediate files may be written."""

from __future__ import annotations

import logging
import secrets
from pathlib import Path

from hyps_bids.errors import UsageError, cannot_write
from hyps_bids.messages import join_names
from hyps_bids.outputs.container import running_container
from hyps_bids.outputs.ownership import find_foreign, unknown_entries
from hyps_bids.resources import is_on_root
from hyps_bids.settings import Settings

_LOG = logging.getLogger("hyps_bids")
#: Folders inside a dataset that hold no raw data.
_NOT_RAW = ("derivatives", "sourcedata", "code")
#: Folder of a derivatives dataset that may hold its raw dataset, as BIDS recommends.
_SOURCES = "sourcedata"
#: Names in a work folder of ours: workflows, caches, adapters in training, and runs.
_OF_WORK = (
    "(participant|series|spaces|reports)_wf",
    r"caches\w*",
    "adapter-.+",
    r"\d{8}T\d{6}_[0-9a-f]{12}",
)
#: Names in the folder of an adapter in training.
_OF_TRAINING = ("crops", "fits", r"run\.json")


def check_output(settings: Settings) -> None:
    """Check that the output folder is in a safe place and can be made and written.

    Nothing is created, so that a run that fails later leaves no empty folder behind.

    Raises
    ------
    UsageError
        If the output folder is the input, contains it, or lies inside it anywhere but below
        ``derivatives``, ``sourcedata`` or ``code``; if it holds files of another origin; if the
        work folder is the input, or if cleaning the work folder would remove the input, the output
        or files that are not ours.
    CannotCreateOutput
        If it cannot be made or written; :class:`~hyps_bids.errors.WriteFailed` on a full disk.
    """
    source, output = settings.bids_dir.absolute(), settings.output_dir.absolute()
    real_source, real_output = source.resolve(), output.resolve()
    advice = f"Use {source / 'derivatives' / 'hyps'} instead."
    if real_source == real_output:
        raise UsageError(f"{output}: OUT_DIR is BIDS_DIR itself. {advice}", code="output-is-input")
    if real_output in real_source.parents and _SOURCES not in _inside(real_source, real_output):
        raise UsageError(
            f"{output}: OUT_DIR contains BIDS_DIR. Choose a folder beside the dataset.",
            code="output-contains-input",
        )
    if _is_among_raw_data(real_output, real_source):
        raise UsageError(
            f"{output}: inside BIDS_DIR, the outputs would be taken for raw data. {advice}",
            code="output-in-raw-data",
        )
    if owner := find_owner(output):
        raise UsageError(
            f"{output}: OUT_DIR holds {owner}, and outputs of HyPS-BIDS would be mixed with them. "
            f"Choose another folder, such as {output.with_name('hyps-bids')}.",
            code="output-not-ours",
        )
    _check_work_folder(settings, real_source, real_output)
    try:
        existing = next(folder for folder in (output, *output.parents) if folder.exists())
        probe = existing / f".{secrets.token_hex(4)}.probe"
        probe.touch()
        probe.unlink()
    except (OSError, UnicodeError) as error:
        raise cannot_write(output, error) from error
    if running_container() and is_on_root(output):
        _LOG.warning(
            "%s is inside the container and will be lost when the container is removed. Bind a "
            "folder of the host to this path (-v or -B).",
            output,
        )


def _inside(path: Path, folder: Path) -> tuple[str, ...]:
    """Return the first part of a path below a folder."""
    return path.relative_to(folder).parts[:1]


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
    if settings.clean_workdir:
        _check_cleaning(settings, work, source, output)
    _check_origin_of_work(settings, work)


def _check_cleaning(settings: Settings, work: Path, source: Path, output: Path) -> None:
    given = settings.work_dir
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


def find_owner(output: Path) -> str | None:
    """Say whose files an output folder holds; see :func:`.ownership.find_foreign`."""
    try:
        return find_foreign(output)
    except OSError as error:
        raise cannot_write(output, error) from error


def _check_origin_of_work(settings: Settings, work: Path) -> None:
    """Refuse to remove files that are no intermediate files of ours."""
    known: tuple[str, ...]
    if settings.train_adapter is not None and settings.analysis_level == "group":
        work, known = work / f"adapter-{settings.train_adapter}", _OF_TRAINING
    elif settings.clean_workdir:
        known = _OF_WORK
    else:
        return
    try:
        unknown = unknown_entries(work, known)
    except OSError as error:
        raise cannot_write(work, error) from error
    if unknown:
        raise UsageError(
            f"{work}: the work folder holds files that are no intermediate files of HyPS-BIDS "
            f"({join_names(unknown)}) and that might be removed. Choose another work folder.",
            code="work-not-ours",
        )


def _is_among_raw_data(folder: Path, dataset: Path) -> bool:
    return dataset in folder.parents and folder.relative_to(dataset).parts[0] not in _NOT_RAW
