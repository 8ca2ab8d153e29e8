"""Run what the settings ask for, and turn what happened into an exit code."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from hyps_bids import __version__
from hyps_bids.bids.index import find_scans
from hyps_bids.cli import settings_to_toml
from hyps_bids.errors import (
    DISK_ERRORS,
    HypsError,
    MissingInput,
    NotEnoughMemory,
    UsageError,
    WriteFailed,
    cannot_write,
)
from hyps_bids.messages import counted, listed
from hyps_bids.outputs.dataset import write_dataset_files
from hyps_bids.outputs.location import check_output
from hyps_bids.outputs.provenance import Provenance
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.writing import write_text
from hyps_bids.reports.citation import bibtex, methods_markdown
from hyps_bids.resources import available_cpus, available_memory_gb
from hyps_bids.settings import Settings, of_group_level

__all__ = ["run"]

_LOG = logging.getLogger("hyps_bids")
#: GB in which one scan of 256³ voxels can be processed
_LEAST_MEMORY_GB = 1.4
#: bytes with which nothing can be written
_NO_ROOM = 1_000_000
_GO_ON = "what is done is kept, run again to go on"
#: how often a folder is made that others remove
_TRIES = 20
#: scans of one workflow: what nipype does at each step takes as long as there are steps
_MOST_SCANS = 1000
#: seconds that a worker has to stop
_PATIENCE_S = 2
_NOT_REACHED = "not reached: the run stopped at the first failure"
_CACHE_VARIABLES = (
    "NIPYPE_CONFIG_DIR",
    "MPLCONFIGDIR",
    "XDG_CACHE_HOME",
    "JOBLIB_TEMP_FOLDER",
)


def run(settings: Settings) -> int:
    """Run one analysis level.

    Parameters
    ----------
    settings : Settings
        What the user asked for.

    Returns
    -------
    int
        0, or 1 if a scan, a classifier or a report failed.

    Raises
    ------
    HypsError
        If nothing can be done at all; it carries the exit code.
    """
    return {"participant": _participant, "group": _group}[settings.analysis_level](settings)


def _participant(settings: Settings) -> int:
    if unused := of_group_level(settings):
        options = ", ".join(f"--{name.replace('_', '-')}" for name in unused)
        _LOG.warning("not used at the participant level: %s", options)
    check_output(settings)
    if settings.use_plugin is not None:
        # a wrong one ends the run before anything is touched
        from hyps_bids.workflows.engines import read_plugin

        read_plugin(settings.use_plugin)
    scans = find_scans(settings, need_content=not settings.reports_only)
    if settings.dry_run:
        return _list(scans)
    if settings.reports_only:
        scans = _with_outputs(settings, scans)
    else:
        _check_memory(settings)
    run_name = _run_name()
    folder = settings.output_dir / "logs" / run_name
    failed: Sequence[Scan] = []
    with _work_folder(settings, run_name) as work_dir:
        if settings.reports_only:
            _start_log(folder, settings)
        else:
            failed = _process(settings, scans, folder, work_dir)
        unreported = _report(settings, scans, folder, work_dir)
    return 1 if failed or unreported else 0


def _with_outputs(settings: Settings, scans: Sequence[Scan]) -> list[Scan]:
    """Leave out the scans of subjects of whom there is nothing to report."""
    from hyps_bids.reports.scan import find_scans_of

    subjects = sorted({scan.subject for scan in scans})
    without = [s for s in subjects if not find_scans_of(settings.output_dir, s)]
    if len(without) == len(subjects):
        raise MissingInput(
            f"{settings.output_dir}: no outputs of participant {listed(subjects)}; run the "
            "participant level without --reports-only"
        )
    if without:
        _LOG.warning("no outputs yet, and so no report, of participant %s", listed(without))
    return [scan for scan in scans if scan.subject not in without]


def _group(settings: Settings) -> int:
    _check_group(settings)
    check_output(settings)
    if settings.dry_run and settings.train_adapter is None:
        return _list(find_scans(settings, need_content=False))
    if settings.dry_run:
        return _analyze(settings)
    run_name = _run_name()
    work_dir = (settings.work_dir or settings.output_dir / "work") / run_name
    # of the processes that torchrun starts, the first one writes
    writes = os.environ.get("RANK", "0") == "0"
    if writes:
        write_dataset_files(settings)
        _start_log(settings.output_dir / "logs" / run_name, settings)
    try:
        with _caches(work_dir):
            return _analyze_and_report(settings, report=writes)
    finally:
        shutil.rmtree(work_dir, ignore_errors=True)
        if settings.work_dir is None:
            _remove_if_empty(work_dir.parent)


def _analyze_and_report(settings: Settings, *, report: bool) -> int:
    from hyps_bids.reports.group import write_group_report

    output = settings.output_dir
    failure, code = None, 0
    if not settings.reports_only:
        try:
            code = _analyze(settings)
        except HypsError as error:
            # what was done before it is reported all the same
            failure = error
    made = any(output.glob("group_*")) or any(output.glob("models/*"))
    if report and (made or settings.reports_only):
        try:
            _LOG.warning("report: %s", write_group_report(output))
        except HypsError as error:
            if failure is None:
                raise
            _LOG.error("no report: %s", error)
    if failure is not None:
        raise failure
    return code


def _analyze(settings: Settings) -> int:
    if settings.train_adapter is not None:
        from hyps_bids.adaptation.run import train_adapter

        train_adapter(settings)
        return 0
    from hyps_bids.cohort.tables import write_group_tables

    table = write_group_tables(settings)
    failed = []
    if settings.target is not None:
        from hyps_bids.classification.run import classify

        failed = classify(settings, table)
    if settings.apply_classifier is not None:
        from hyps_bids.classification.run import apply_classifier

        apply_classifier(settings, table)
    return 1 if failed else 0


def _list(scans: Sequence[Scan]) -> int:
    for scan in scans:
        print(scan.path)
    return 0


def _run_name() -> str:
    # random, for jobs that start in the same second: in containers process numbers are the same
    return f"{datetime.now():%Y%m%dT%H%M%S}_{secrets.token_hex(6)}"


def _check_group(settings: Settings) -> None:
    """Refuse options of the group level that would be ignored or contradict each other."""
    if bool(settings.labels) != (settings.train_adapter is not None):
        raise UsageError("--train-adapter NAME and --labels DERIVATIVES belong together")
    if settings.contrast and settings.target is None:
        raise UsageError("--contrast needs --target, the column that holds the levels")
    others = settings.model or settings.target or settings.apply_classifier
    if settings.train_adapter is not None and others:
        raise UsageError(
            "--train-adapter is a run of its own: leave --model, --target and "
            "--apply-classifier to another"
        )
    if settings.target is not None and settings.folds == 1:
        raise UsageError("--folds 1: cross-validation needs two folds at least")
    if settings.site is None and (settings.harmonize or settings.leave_one_site_out):
        raise UsageError("--harmonize and --leave-one-site-out need --site, the column of sites")


def _check_memory(settings: Settings) -> None:
    """End before the kernel would: a process that it kills cannot say why."""
    available = available_memory_gb()
    for limit, where in (
        (available, "this machine, job or container has"),
        (settings.mem_gb or available, "--mem-gb gives"),
    ):
        if limit < _LEAST_MEMORY_GB:
            raise NotEnoughMemory(
                f"{where} {limit:.1f} GB of memory; a scan needs {_LEAST_MEMORY_GB} GB"
            )


def _process(
    settings: Settings, scans: Sequence[Scan], folder: Path, work_dir: Path
) -> Sequence[Scan]:
    """Do what is to do; return the scans that failed."""
    # imported late: nipype reads its configuration folder from the environment
    from hyps_bids.networks.checkpoints import LOCALIZER, shipped_weights
    from hyps_bids.outputs.digests import sha256
    from hyps_bids.outputs.labels import label_table
    from hyps_bids.outputs.scan_files import fingerprint, is_done
    from hyps_bids.segmentation.devices import choose_device, prepare_process
    from hyps_bids.segmentation.inference import cached_adapted, cached_network
    from hyps_bids.workflows.participant import Models

    device = str(choose_device(settings.device))
    models = Models(
        localizer=shipped_weights(LOCALIZER), base=_base(settings), adapter=_adapter(settings)
    )
    # loaded before the workers fork: they share the memory, and a wrong adapter ends the run here
    # one thread: forked workers would hang on a thread pool that stayed behind
    prepare_process(threads=1)
    cached_network(models.localizer)
    _, card = cached_adapted(models.adapter, models.base)
    provenance: Provenance = {
        "SoftwareVersion": __version__,
        "Models": {
            "Localizer": {"Name": models.localizer.stem, "SHA256": sha256(models.localizer)},
            "Base": {"Name": models.base.stem, "SHA256": sha256(models.base)},
            "Adapter": {
                # the file of a trained one is always called adapter.safetensors
                "Name": f"adapter-{card['name']}" if "name" in card else models.adapter.stem,
                "SHA256": sha256(models.adapter),
                "License": card.get("license", "n/a"),
            },
        },
        "BiasFieldCorrection": "N4" if settings.n4 else "none",
    }
    table = label_table(card["labels"])
    write_dataset_files(settings, labels=table)
    write_text(settings.output_dir / "logs" / "CITATION.md", methods_markdown(provenance))
    write_text(settings.output_dir / "logs" / "CITATION.bib", bibtex())
    _start_log(folder, settings)
    todo = [s for s in scans if not is_done(s, settings.output_dir, fingerprint(s, provenance))]
    _LOG.warning(
        "%s: %d done before, %d to do, on %s",
        counted(len(scans), "scan"),
        len(scans) - len(todo),
        len(todo),
        device,
    )
    began = time.monotonic()
    failed: dict[Scan, str] = {}
    for first in range(0, len(todo), _MOST_SCANS):
        batch = todo[first : first + _MOST_SCANS]
        lost = _run_workflow(settings, batch, models, provenance, device, folder, work_dir)
        for scan, reason in lost.items():
            _LOG.error("%s: %s", scan.stem, reason)
        failed |= lost
        if failed and settings.stop_on_first_crash:
            rest = todo[first + _MOST_SCANS :]
            failed |= dict.fromkeys(rest, _NOT_REACHED)
            if rest:
                _LOG.error("%s more: %s", counted(len(rest), "scan"), _NOT_REACHED)
            break
    if todo:
        _LOG.warning(
            "%d of %s done now, in %.0f s; outputs in %s",
            len(todo) - len(failed),
            counted(len(todo), "scan"),
            time.monotonic() - began,
            settings.output_dir,
        )
    return list(failed)


def _report(
    settings: Settings, scans: Sequence[Scan], folder: Path, work_dir: Path
) -> Sequence[str]:
    """Build the reports that are older than the outputs; return the subjects without one."""
    from hyps_bids.reports.subject import is_current
    from hyps_bids.workflows.crashes import crash_reasons
    from hyps_bids.workflows.reports import init_reports_wf, report_name

    subjects = sorted({scan.subject for scan in scans})
    if not settings.reports_only:
        subjects = [
            s for s in subjects if not is_current(settings.bids_dir, settings.output_dir, s)
        ]
    if not subjects:
        return []
    # one that fails is no reason to leave out others
    engine = _engine(replace(settings, stop_on_first_crash=False), folder, device="cpu")
    workflow = init_reports_wf(
        subjects=subjects,
        bids_dir=settings.bids_dir.absolute(),
        output_dir=settings.output_dir.absolute(),
        work_dir=work_dir.absolute(),
        # not those that made the results
        settings_text="" if settings.reports_only else _shown(settings),
    )
    error = _run_nipype(workflow, engine)
    reasons = crash_reasons(folder)
    failed = [s for s in subjects if report_name(s) in reasons]
    _of_disk(settings, {s: reasons[report_name(s)] for s in failed})
    _LOG.warning("reports: %s", settings.output_dir / "sub-*.html")
    for subject in failed:
        _LOG.error("sub-%s: no report: %s", subject, reasons[report_name(subject)])
    if error is not None and not failed:
        raise _run_error(settings, error)
    return failed


def _shown(settings: Settings) -> str:
    """Write the settings that decide the results, for reports: those of all jobs are the same."""
    chosen = Settings(
        bids_dir=settings.bids_dir,
        output_dir=settings.output_dir,
        analysis_level=settings.analysis_level,
        adapter=settings.adapter,
        base_model=settings.base_model,
        device=settings.device,
        n4=settings.n4,
    )
    _, _, text = settings_to_toml(chosen).partition("\n")
    return text or "# all are the defaults\n"


def _run_workflow(
    settings: Settings,
    scans: Sequence[Scan],
    models: Any,
    provenance: Provenance,
    device: str,
    folder: Path,
    work_dir: Path,
) -> dict[Scan, str]:
    """Run the workflow and return the scans that are not done, each with its reason."""
    from hyps_bids.outputs.scan_files import fingerprint, is_complete, is_done, write_failure
    from hyps_bids.workflows.crashes import crash_reasons
    from hyps_bids.workflows.participant import init_participant_wf

    nprocs = settings.nprocs or available_cpus()
    # few scans: let each use more cores
    threads = settings.omp_nthreads or max(1, min(8, nprocs // len(scans)))
    engine = _engine(settings, folder, device)
    workflow = init_participant_wf(
        scans=scans,
        models=models,
        output_dir=settings.output_dir.absolute(),
        work_dir=work_dir.absolute(),
        provenance=provenance,
        device=device,
        n4=settings.n4,
        omp_nthreads=threads,
        # on a cluster each removal would be a job
        keep_intermediates=settings.work_dir is not None or settings.use_plugin is not None,
    )
    error = _run_nipype(workflow, engine)
    if settings.work_dir is None:
        # those of scans that failed; the next batch may need the room
        shutil.rmtree(work_dir / workflow.name, ignore_errors=True)
    crashes = crash_reasons(folder)
    undone = [
        scan
        for scan in scans
        if not is_done(scan, settings.output_dir, fingerprint(scan, provenance))
    ]
    reasons = {s: crashes[s.workflow_name] for s in undone if s.workflow_name in crashes}
    if error is not None and not reasons:
        # of the plugin or its scheduler
        raise _run_error(settings, error)
    of_disk = _of_disk(settings, reasons)
    failed = {}
    for scan in undone:
        if scan in reasons:
            text, keep = reasons[scan], scan in of_disk
        elif settings.stop_on_first_crash and reasons:
            failed[scan] = _NOT_REACHED
            continue
        else:
            text = f"not processed: {error}" if error else "not processed; see the log"
            keep = is_complete(scan, settings.output_dir)
        failed[scan] = f"failed: {text}"
        # what it had before stays, unless it is the scan that failed
        if not keep:
            write_failure(scan, settings.output_dir, text)
    return failed


def _run_error(settings: Settings, error: Exception) -> HypsError:
    """Say what ended a run although no scan failed."""
    if isinstance(error, HypsError):
        return error
    _LOG.debug("the run ended early", exc_info=error)
    return _disk_error(settings, str(error)) or HypsError(
        f"nipype cannot go on ({' '.join(str(error).split())}); {_GO_ON}"
    )


def _of_disk(settings: Settings, reasons: Mapping[Any, str]) -> set[Any]:
    """Find which failures are the disk's; raise its error if all are."""
    found = {key: _disk_error(settings, text) for key, text in reasons.items()}
    errors = {key: error for key, error in found.items() if error is not None}
    if errors and len(errors) == len(reasons):
        raise next(iter(errors.values()))
    return set(errors)


def _disk_error(settings: Settings, text: str) -> WriteFailed | None:
    """Recognize a full or broken disk by what a worker has left: a text, or no room."""
    told = [os.strerror(number) for number in DISK_ERRORS if os.strerror(number) in text]
    for folder in (settings.output_dir, settings.work_dir or settings.output_dir):
        # nipype says nothing when the result of a node does not fit
        if shutil.disk_usage(folder).free < _NO_ROOM:
            return WriteFailed(f"{folder}: {os.strerror(errno.ENOSPC)}; {_GO_ON}")
    if told:
        return WriteFailed(f"{settings.output_dir} or the work folder: {told[0]}; {_GO_ON}")
    return None


def _engine(settings: Settings, folder: Path, device: str) -> dict[str, Any]:
    """Configure nipype, which workflows remember when they are made, and choose its engine."""
    from nipype import config
    from nipype import logging as nipype_logging

    from hyps_bids.workflows.engines import engine

    plugin = _plugin(settings, device)
    config.update_config(
        {
            "execution": {
                "crashdump_dir": str(folder),
                "crashfile_format": "txt",
                "stop_on_first_crash": str(settings.stop_on_first_crash).lower(),
                "poll_sleep_duration": "0.05",
                "remove_unnecessary_outputs": "false",
                "hash_method": "timestamp",
                "check_version": "false",
                "create_report": "false",
            },
            "logging": {"log_to_file": "false"},
        }
    )
    nipype_logging.update_logging(config)
    for name in ("nipype", "nipype.workflow", "nipype.interface", "nipype.utils"):
        level = logging.INFO if settings.verbose > 1 else logging.CRITICAL
        logging.getLogger(name).setLevel(level)
    return engine(**plugin)


def _run_nipype(workflow: Any, engine: dict[str, Any]) -> Exception | None:
    """Run a workflow to its end; return what nipype raised for the nodes that failed."""
    try:
        workflow.run(**engine)
    except KeyboardInterrupt:
        # before their work folder goes; what is under way is discarded
        workers = multiprocessing.active_children()
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join(_PATIENCE_S)
            worker.kill()
        raise
    except Exception as error:
        # nipype raises after the other scans have run; what failed is in the crash files
        return error
    return None


def _plugin(settings: Settings, device: str) -> dict[str, Any]:
    from hyps_bids.workflows.engines import read_plugin

    if settings.use_plugin is not None:
        return read_plugin(settings.use_plugin)
    return {
        "plugin": "MultiProc",
        "plugin_args": {
            "n_procs": settings.nprocs or available_cpus(),
            "memory_gb": settings.mem_gb or available_memory_gb() * 0.9,
            "raise_insufficient": False,
            "n_gpu_procs": 1,
            # forked workers share the loaded networks; CUDA cannot be used after a fork
            "mp_context": "fork" if device == "cpu" else "forkserver",
        },
    }


def _base(settings: Settings) -> Path:
    from hyps_bids.networks.checkpoints import BASE, shipped_weights

    return (settings.base_model or shipped_weights(BASE)).absolute()


def _adapter(settings: Settings) -> Path:
    from hyps_bids.networks.checkpoints import shipped_weights

    path = Path(settings.adapter)
    if path.suffix == ".safetensors" or path.exists():
        if path.is_dir():
            path = path / "adapter.safetensors"
        if not path.is_file():
            raise MissingInput(f"{path}: no such adapter file")
        return path.absolute()
    shipped = shipped_weights(f"adapter-{settings.adapter}")
    if not shipped.is_file():
        names = sorted(
            p.stem.removeprefix("adapter-") for p in shipped.parent.glob("adapter-*.safetensors")
        )
        raise UsageError(
            f"--adapter {settings.adapter}: neither a file nor shipped; shipped: {', '.join(names)}"
        )
    return shipped


@contextmanager
def _work_folder(settings: Settings, run_name: str) -> Iterator[Path]:
    """Make the folder of intermediate files; a default one goes at the end, whatever happens."""
    work_dir = settings.work_dir or settings.output_dir / "work" / run_name
    is_new = not settings.output_dir.exists()
    if settings.clean_workdir and work_dir.exists():
        try:
            # a link is not removed, what it leads to is emptied
            shutil.rmtree(work_dir.resolve())
        except OSError as error:
            raise cannot_write(work_dir, error) from error
    try:
        with _caches(work_dir):
            yield work_dir
    finally:
        if settings.work_dir is None:
            shutil.rmtree(work_dir, ignore_errors=True)
            _remove_if_empty(work_dir.parent)
        if is_new:
            _remove_if_empty(settings.output_dir)


@contextmanager
def _caches(work_dir: Path) -> Iterator[None]:
    """Let libraries write their caches to the work folder: the home may be missing or read-only."""
    caches = work_dir / "caches"
    try:
        _make(caches)
    except OSError as error:
        raise cannot_write(work_dir, error) from error
    unset = [name for name in _CACHE_VARIABLES if name not in os.environ]
    os.environ.update(dict.fromkeys(unset, str(caches.absolute())))
    # no telemetry
    os.environ["NO_ET"] = os.environ["NIPYPE_NO_ET"] = "1"
    # MONAI asks for the user's name, and in a container there may be none
    os.environ.setdefault("LOGNAME", f"uid{os.getuid()}")
    try:
        yield
    finally:
        # whatever runs later in this process must not bring the folder back
        for name in unset:
            os.environ.pop(name, None)
        shutil.rmtree(caches, ignore_errors=True)


def _make(folder: Path) -> None:
    """Make a folder and its parents, one of which another job may remove when it is empty."""
    for _ in range(_TRIES):
        try:
            return folder.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError:
            continue
    folder.mkdir(parents=True, exist_ok=True)


def _start_log(folder: Path, settings: Settings) -> None:
    write_text(folder / "settings.toml", settings_to_toml(settings))
    handler = logging.FileHandler(folder / "hyps-bids.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    _LOG.addHandler(handler)


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        _LOG.debug("%s is kept: it is not empty", folder)
