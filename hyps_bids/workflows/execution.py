"""Run the workflows with nipype, and find out what happened to each scan and report.

Import this module only after the work folder is set up, because nipype reads the path of its
configuration folder from the environment when it is imported.
"""

from __future__ import annotations

import errno
import importlib
import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from nipype import config
from nipype import logging as nipype_logging
from nipype.pipeline import engine as pe

from hyps_bids.errors import DISK_ERRORS, HypsError, WriteFailed
from hyps_bids.messages import format_count, join_names
from hyps_bids.outputs.completion import is_complete, is_of_present_image, is_readable
from hyps_bids.outputs.scan import Scan
from hyps_bids.outputs.scan_files import write_failure
from hyps_bids.outputs.series import Series
from hyps_bids.outputs.series_files import write_series_failure
from hyps_bids.outputs.series_state import find_members
from hyps_bids.progress import Progress
from hyps_bids.reports.scan_facts import find_scans_of
from hyps_bids.resources import available_cpus, available_memory_gb
from hyps_bids.segmentation.faster_device import faster_device
from hyps_bids.series.choose import series_title
from hyps_bids.settings import SHOWN_SETTINGS, Settings, settings_to_toml
from hyps_bids.workers import kill_workers
from hyps_bids.workflows.crash_files import Failures
from hyps_bids.workflows.engines import PluginSettings, engine, is_local, read_plugin
from hyps_bids.workflows.reports import SCAN_GB, ReportPlan, init_reports_wf, subject_name
from hyps_bids.workflows.watch import Piece, Watch
from hyps_bids.workspace import Run

if TYPE_CHECKING:
    from hyps_bids.segmentation.pipeline import Pipeline
    from hyps_bids.segmentation.setup import Setup
    from hyps_bids.series.follow import SeriesPlan
    from hyps_bids.spaces.place import SpacePlan

_LOG = logging.getLogger("hyps_bids")
_Key = TypeVar("_Key")

#: Largest number of scans in one workflow: nipype's time for each step grows with their number.
_MAX_SCANS = 1000
#: Free bytes on a disk below which it is taken to be full.
_NO_SPACE = 1_000_000
_CONTINUE = "finished results are kept; run the command again to continue"
#: What is counted.
_SCANS, _SERIES = "scans", "series over time"
_NOT_REACHED = "not reached: the run stopped at the first failure"


class Outcome(NamedTuple):
    """What failed.

    Attributes
    ----------
    failed : dict of Scan to str
        Scans that failed or were not reached, each with its reason.
    unreported : list of str
        Subjects whose report could not be built.
    lost : list of Series
        Series that failed.
    """

    failed: dict[Scan, str]
    unreported: list[str]
    lost: list[Series]


def load_networks(run: Run, setup: Setup, scans: int) -> Pipeline:
    """Choose the device for some scans and load the networks.

    Workers that are forked later share the memory of the loaded networks. With a GPU, they are
    forked before: they only read and write, and this process alone uses the GPU.

    Raises
    ------
    UsageError
        If there is no such device.
    BadData
        If a file of weights cannot be used.
    """
    # Imported here, because reports need no networks.
    from hyps_bids.segmentation.devices import choose_device, prepare_process
    from hyps_bids.segmentation.inference import cached_adapted, cached_network
    from hyps_bids.segmentation.pipeline import Pipeline

    settings = run.settings
    plugin = _choose_plugin(settings)
    is_here = is_local(plugin["plugin"])
    name = settings.device
    if name == "auto":
        # Elsewhere each scan is a job of its own, which would have to start the GPU.
        name = faster_device(scans if is_here else 1, _cpus(settings))
    if name != "cpu" and is_here:
        # What the workers need is imported before they are forked.
        importlib.import_module("hyps_bids.workflows.participant")
        _start_workers(run, plugin, scans)
        run.workers.context = "forkserver"
    device = choose_device(name)
    # Forked workers would hang on a pool of threads that stayed in this process.
    prepare_process(threads=1)
    cached_network(setup.localizer, device)
    cached_adapted(setup.adapter, setup.base, device)
    return Pipeline(setup.localizer, setup.base, setup.adapter, device, setup.n4)


def process_scans(
    run: Run,
    setup: Setup,
    pipeline: Pipeline,
    scans: Sequence[Scan],
    series: Mapping[Series, SeriesPlan],
) -> Outcome:
    """Process scans in batches.

    As soon as the scans of a subject are done, its series follow, and then its report.

    Raises
    ------
    WriteFailed
        If the disk is full or broken.
    HypsError
        If nipype stops although no scan has failed.
    """
    began = time.monotonic()
    failed: dict[Scan, str] = {}
    unreported: list[str] = []
    lost: list[Series] = []
    batches = _make_batches(scans)
    with _scans_progress(run, scans, series) as progress:
        while batches:
            outcome = _process_batch(run, setup, pipeline, batches.pop(0), series, progress)
            failed |= outcome.failed
            unreported += outcome.unreported
            lost += outcome.lost
            if failed and run.settings.stop_on_first_crash:
                rest = [scan for batch in batches for scan in batch]
                failed |= dict.fromkeys(rest, _NOT_REACHED)
                if rest:
                    _LOG.error("%s more: %s", format_count(len(rest), "scan"), _NOT_REACHED)
                break
    _LOG.info(
        "%d of %s done now%s, in %.0f s; the outputs are in %s",
        len(scans) - len(failed),
        format_count(len(scans), "scan"),
        f", {len(failed)} failed" if failed else "",
        time.monotonic() - began,
        run.settings.output_dir,
    )
    return Outcome(failed, unreported, lost)


def _scans_progress(
    run: Run, scans: Sequence[Scan], series: Mapping[Series, SeriesPlan]
) -> Progress:
    """Count the scans, and the series that follow them."""
    # The run that stops at the first failure follows series at its end.
    stop = run.settings.stop_on_first_crash
    begun = {Series.of(scan) for scan in scans}
    followed = [] if stop else [each for each in series if each in begun]
    stems = next(iter(series.values())).times if followed else {}
    points = Counter(Series.of(Scan.from_stem(stem)) for stem in stems)
    # A time point of a series takes about as long as a scan.
    weight = sum(points[each] for each in followed) / max(1, len(followed))
    return _progress(
        run, {_SCANS: len(scans), _SERIES: len(followed)}, weights={_SERIES: max(1.0, weight)}
    )


def _progress(
    run: Run, totals: Mapping[str, int], weights: Mapping[str, float] | None = None
) -> Progress:
    """Count what nodes do; nipype's own messages would tear a line on a terminal."""
    local = _choose_plugin(run.settings)["plugin"] == "MultiProc"
    return Progress(
        totals,
        workers=run.workers.count if local else 1,
        weights=weights,
        may_draw=run.settings.verbose < 2,
    )


def follow_series(run: Run, plans: Mapping[Series, SeriesPlan]) -> list[Series]:
    """Bring series up to date whose scans are all done or have failed; return those that failed.

    Raises
    ------
    WriteFailed
        If the disk is full or broken.
    HypsError
        If nipype stops although no series has failed.
    """
    from hyps_bids.segmentation.devices import prepare_process
    from hyps_bids.segmentation.inference import cached_adapted
    from hyps_bids.workflows.participant import init_series_wf

    settings = run.settings
    failures = Failures(run.log_dir, _series_titles(plans))
    if is_local(_choose_plugin(settings)["plugin"]):
        # Workers that are forked later share the memory of the network.
        prepare_process(threads=1)
        pipeline = next(iter(plans.values())).pipeline
        cached_adapted(pipeline.adapter, pipeline.base, "cpu")
    stop = settings.stop_on_first_crash
    pieces = {each.workflow_name: Piece(_SERIES, "follow") for each in plans}
    watch = Watch(_progress(run, {_SERIES: len(plans)}), pieces)
    engine_arguments = _configure_nipype(run, failures, len(plans), watch, stop_on_first_crash=stop)
    threads = _threads(settings, len(plans))
    workflow = pe.Workflow(name="series_wf", base_dir=str(run.work_dir.absolute()))
    workflow.add_nodes([init_series_wf(series, plan, threads) for series, plan in plans.items()])
    with watch.progress:
        error = _run_workflow(workflow, engine_arguments)
    failures.look(is_last=True)
    lost = _record_lost(settings, plans, failures.reasons)
    if error is not None and not lost:
        raise _explain_early_end(settings, error)
    return lost


def _record_lost(
    settings: Settings, plans: Mapping[Series, SeriesPlan], crashes: Mapping[str, str]
) -> list[Series]:
    """Replace the results of the series that failed by a record of the reason.

    They stay if the disk failed, or an image could not be read: it may be fetched again.
    """
    reasons = {s: crashes[s.workflow_name] for s in plans if s.workflow_name in crashes}
    on_disk = _disk_failures(settings, reasons)
    for series, reason in reasons.items():
        found = find_scans_of(settings.output_dir, series.subject)
        scans = [scan for scan in found if Series.of(scan) == series]
        members = find_members(scans, settings.bids_dir, settings.output_dir)
        if series in on_disk or not all(is_readable(member.scan) for member in members):
            continue
        try:
            write_series_failure(series, scans, settings.output_dir, reason)
        except HypsError as problem:
            _LOG.error("%s: the failure is not recorded: %s", series_title(series), problem)
    return list(reasons)


def place_scans(run: Run, scans: Sequence[Scan], plan: SpacePlan) -> list[Scan]:
    """Bring scans that are done to the spaces of templates; log and return those that failed.

    Raises
    ------
    WriteFailed
        If the disk is full or broken.
    HypsError
        If nipype stops although no scan has failed.
    """
    from hyps_bids.workflows.participant import init_place_wf

    settings = run.settings
    names = {f"place_{scan.workflow_name}": scan for scan in scans}
    titles = {
        name: f"{each.stem} in the space of a template: failed" for name, each in names.items()
    }
    failures = Failures(run.log_dir, titles)
    pieces = {name: Piece("scans in templates", "place") for name in names}
    watch = Watch(_progress(run, {"scans in templates": len(scans)}), pieces)
    stop = settings.stop_on_first_crash
    engine_arguments = _configure_nipype(run, failures, len(scans), watch, stop_on_first_crash=stop)
    workflow = pe.Workflow(name="spaces_wf", base_dir=str(run.work_dir.absolute()))
    workflow.add_nodes([init_place_wf(scan, plan) for scan in scans])
    with watch.progress:
        error = _run_workflow(workflow, engine_arguments)
    failures.look(is_last=True)
    crashes = failures.reasons
    failed = {scan: crashes[name] for name, scan in names.items() if name in crashes}
    _disk_failures(settings, failed)
    if error is not None and not failed:
        raise _explain_early_end(settings, error)
    return list(failed)


def _make_batches(scans: Sequence[Scan]) -> list[list[Scan]]:
    """Divide scans into batches that keep the scans of a subject together."""
    batches: list[list[Scan]] = []
    of_subject: dict[str, list[Scan]] = {}
    for scan in scans:
        of_subject.setdefault(scan.subject, []).append(scan)
    for group in of_subject.values():
        if not batches or len(batches[-1]) + len(group) > _MAX_SCANS:
            batches.append([])
        batches[-1] += group
    return batches


def _process_batch(
    run: Run,
    setup: Setup,
    pipeline: Pipeline,
    scans: Sequence[Scan],
    series: Mapping[Series, SeriesPlan],
    progress: Progress,
) -> Outcome:
    """Run one workflow; log and return what is not done."""
    from hyps_bids.workflows.participant import ParticipantPlan, init_participant_wf

    settings, stop = run.settings, run.settings.stop_on_first_crash
    # The run stops at the first scan that fails, but not at a report, so these come later then.
    subjects = [] if stop else list(dict.fromkeys(scan.subject for scan in scans))
    own = {each: plan for each, plan in series.items() if each.subject in subjects}
    # Reports that will show norms or templates also come later: both are done at the end.
    reported = subjects if settings.apply_norms is None and not settings.output_spaces else []
    titles = {scan.workflow_name: f"{scan.stem}: failed" for scan in scans}
    titles |= _series_titles(own) | _report_titles(reported)
    failures = Failures(run.log_dir, titles)
    watch = Watch(progress, _pieces(scans, own))
    engine_arguments = _configure_nipype(run, failures, len(scans), watch, stop_on_first_crash=stop)
    plan = ParticipantPlan(
        pipeline=pipeline,
        output_dir=settings.output_dir.absolute(),
        provenance=setup.provenance,
        omp_nthreads=_threads(settings, len(scans)),
        edits=setup.edits,
        networks_here=is_local(_choose_plugin(settings)["plugin"]) and pipeline.device != "cpu",
        series_threads=_threads(settings, max(1, len(own))),
        surfaces=settings.surfaces,
    )
    workflow = init_participant_wf(
        scans, plan, run.work_dir.absolute(), _plan_reports(settings) if reported else None, own
    )
    error = _run_workflow(workflow, engine_arguments)
    if settings.work_dir is None:
        # Failed scans leave intermediate files, and the next batch may need the space.
        shutil.rmtree(run.work_dir / workflow.name, ignore_errors=True)
    undone = setup.find_undone(scans, settings)
    failures.look(is_last=True)
    crashes = failures.reasons
    reasons = {s: crashes[s.workflow_name] for s in undone if s.workflow_name in crashes}
    unreported = {s: crashes[subject_name(s)] for s in subjects if subject_name(s) in crashes}
    lost = {s: crashes[s.workflow_name] for s in own if s.workflow_name in crashes}
    if error is not None and not reasons and not unreported and not lost:
        raise _explain_early_end(settings, error)
    on_disk = _disk_failures(settings, {**reasons, **unreported, **lost})
    # Edits of earlier runs are nowhere but in the outputs, and those of this run may be wrong.
    edited = [scan for scan in undone if scan.stem in setup.edits]
    if settings.edits:
        edited = [scan for scan in edited if is_of_present_image(scan, settings.output_dir)]
    kept = [scan for scan in edited if scan in reasons]
    if kept:
        _LOG.warning("The earlier outputs are kept: %s", join_names(scan.stem for scan in kept))
    failed = _record_failures(settings, undone, reasons, {*on_disk, *kept}, error)
    return Outcome(failed, list(unreported), _record_lost(settings, own, crashes))


def _record_failures(
    settings: Settings,
    undone: Sequence[Scan],
    reasons: Mapping[Scan, str],
    on_disk: Collection[Scan | str],
    error: Exception | None,
) -> dict[Scan, str]:
    """Replace the outputs of the scans that failed by a record of the reason.

    Failures of nodes have been logged before; the others are logged here. Earlier outputs stay if
    the disk failed, the image could not be read, or the scan was not reached.
    """
    failed = {}
    for scan in undone:
        if scan in reasons:
            reason, keep_outputs = reasons[scan], scan in on_disk
            if not is_readable(scan) and is_complete(scan, settings.output_dir):
                # The image may be fetched again, or readable to others: its results are still good.
                reason, keep_outputs = f"{reason}; its earlier outputs are kept", True
        elif settings.stop_on_first_crash and reasons:
            failed[scan] = _NOT_REACHED
            _LOG.error("%s: %s", scan.stem, _NOT_REACHED)
            continue
        else:
            reason = f"not processed: {error}" if error else "not processed; see the log"
            _LOG.error("%s: failed: %s", scan.stem, reason)
            keep_outputs = is_complete(scan, settings.output_dir)
        failed[scan] = f"failed: {reason}"
        if not keep_outputs:
            try:
                write_failure(scan, settings.output_dir, reason)
            except HypsError as problem:
                # Where outputs cannot be written, the record of the failure cannot be either.
                _LOG.error("%s: the failure is not recorded in full: %s", scan.stem, problem)
    return failed


def build_reports(run: Run, subjects: Sequence[str]) -> list[str]:
    """Build the reports of subjects; log and return the subjects whose report failed.

    Raises
    ------
    WriteFailed
        If the disk is full or broken.
    HypsError
        If nipype stops although no report has failed.
    """
    settings = run.settings
    failures = Failures(run.log_dir, _report_titles(subjects))
    pieces = {subject_name(subject): Piece("reports", "report") for subject in subjects}
    watch = Watch(_progress(run, {"reports": len(subjects)}), pieces)
    engine_arguments = _configure_nipype(
        run, failures, len(subjects), watch, stop_on_first_crash=False
    )
    workflow = init_reports_wf(subjects, _plan_reports(settings), run.work_dir.absolute())
    with watch.progress:
        error = _run_workflow(workflow, engine_arguments)
    failures.look(is_last=True)
    crashes = failures.reasons
    failed = {s: crashes[subject_name(s)] for s in subjects if subject_name(s) in crashes}
    _disk_failures(settings, failed)
    if error is not None and not failed:
        raise _explain_early_end(settings, error)
    return list(failed)


def _pieces(scans: Sequence[Scan], series: Collection[Series]) -> dict[str, Piece]:
    """Name what the inner workflows of scans and series complete."""
    followed = {each: each.workflow_name for each in series}
    pieces = {
        scan.workflow_name: Piece(_SCANS, "write", followed.get(Series.of(scan), ""))
        for scan in scans
    }
    return pieces | {name: Piece(_SERIES, "follow") for name in followed.values()}


def _report_titles(subjects: Sequence[str]) -> dict[str, str]:
    return {subject_name(subject): f"sub-{subject}: no report" for subject in subjects}


def _series_titles(series: Iterable[Series]) -> dict[str, str]:
    return {each.workflow_name: f"{series_title(each)}: failed" for each in series}


def _plan_reports(settings: Settings) -> ReportPlan:
    text = settings_to_toml(settings, SHOWN_SETTINGS) or "# all are the defaults\n"
    return ReportPlan(
        bids_dir=settings.bids_dir.absolute(),
        output_dir=settings.output_dir.absolute(),
        # A run that only builds reports does not know the settings that made the results.
        settings_text="" if settings.reports_only else text,
    )


def _explain_early_end(settings: Settings, error: Exception) -> HypsError:
    """Explain why a run ended although no scan failed: the plugin or its scheduler failed."""
    if isinstance(error, HypsError):
        return error
    _LOG.debug("The run ended early.", exc_info=error)
    return _disk_failure(settings, str(error)) or HypsError(
        f"nipype cannot continue ({' '.join(str(error).split())}); {_CONTINUE}.",
        code="nipype-failed",
    )


def _disk_failures(settings: Settings, reasons: Mapping[_Key, str]) -> set[_Key]:
    """Return which failures the disk caused; raise its error if it caused all of them."""
    found = {key: _disk_failure(settings, text) for key, text in reasons.items()}
    errors = {key: error for key, error in found.items() if error is not None}
    if errors and len(errors) == len(reasons):
        raise next(iter(errors.values()))
    return set(errors)


def _disk_failure(settings: Settings, reason: str) -> WriteFailed | None:
    """Recognize a full or broken disk by the reason of a failure, or by the free space."""
    # nipype gives no reason when the result of a node does not fit on the disk.
    for folder in (settings.output_dir, settings.work_dir or settings.output_dir):
        if shutil.disk_usage(folder).free < _NO_SPACE:
            message = f"{folder}: {os.strerror(errno.ENOSPC)}; {_CONTINUE}."
            return WriteFailed(message, code="disk-failure")
    for text in map(os.strerror, DISK_ERRORS):
        if text in reason:
            message = f"{settings.output_dir} or the work folder: {text}; {_CONTINUE}."
            return WriteFailed(message, code="disk-failure")
    return None


def _configure_nipype(
    run: Run, failures: Failures, tasks: int, watch: Watch, *, stop_on_first_crash: bool
) -> dict[str, Any]:
    """Configure nipype and return the arguments of ``Workflow.run``.

    Do it before workflows are made, because they remember the configuration.
    """
    config.update_config(
        {
            "execution": {
                "crashdump_dir": str(run.log_dir),
                "crashfile_format": "txt",
                "stop_on_first_crash": str(stop_on_first_crash).lower(),
                "poll_sleep_duration": "0.05",
                "remove_unnecessary_outputs": "false",
                "remove_node_directories": "false",
                "hash_method": "timestamp",
                "check_version": "false",
                "create_report": "false",
            },
            "logging": {"log_to_file": "false"},
        }
    )
    nipype_logging.update_logging(config)
    for name in ("nipype", "nipype.workflow", "nipype.interface", "nipype.utils"):
        level = logging.INFO if run.settings.verbose > 1 else logging.CRITICAL
        logging.getLogger(name).setLevel(level)
    plugin = _choose_plugin(run.settings)
    _start_workers(run, plugin, tasks)
    return engine(**plugin, failures=failures, workers=run.workers, watch=watch)


def _choose_plugin(settings: Settings) -> PluginSettings:
    if settings.use_plugin is not None:
        return read_plugin(settings.use_plugin)
    return {
        "plugin": "MultiProc",
        "plugin_args": {
            "n_procs": _cpus(settings),
            "memory_gb": settings.mem_gb or available_memory_gb() * 0.9,
            "raise_insufficient": False,
        },
    }


def _threads(settings: Settings, tasks: int) -> int:
    """Return the number of threads of a task: if there are fewer tasks than CPUs, several."""
    return settings.omp_nthreads or max(1, min(8, _cpus(settings) // tasks))


def _cpus(settings: Settings) -> int:
    return settings.nprocs or available_cpus()


def _start_workers(run: Run, plugin: PluginSettings, tasks: int) -> None:
    """Start the processes of nipype's MultiProc, no more than there are tasks or room for."""
    if plugin["plugin"] == "MultiProc":
        arguments = plugin["plugin_args"]
        memory = arguments.get("memory_gb") or available_memory_gb() * 0.9
        cpus = arguments.get("n_procs") or available_cpus()
        run.workers.start(max(1, min(tasks, cpus, int(memory / SCAN_GB))))


def _run_workflow(workflow: Any, engine_arguments: Mapping[str, Any]) -> Exception | None:
    """Run a workflow to its end; return what nipype raised because nodes failed."""
    try:
        workflow.run(**engine_arguments)
    except KeyboardInterrupt:
        # Stop the workers before their work folder is removed.
        kill_workers()
        raise
    except Exception as error:
        # nipype raises after all other scans have run; the crash files tell what failed.
        return error
    return None
