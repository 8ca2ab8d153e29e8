"""nipype's engines, made fit for long runs with killed workers and busy schedulers.

Everything that repairs what nipype's plugins do wrong is in this file; tests prove each need.
"""

from __future__ import annotations

import gc
import logging
import os
import re
import secrets
import shutil
import subprocess
import time
import tomllib
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from traceback import format_exception
from typing import Any, TypedDict

import numpy as np
import yaml
from nipype import config
from nipype.pipeline import plugins
from nipype.pipeline.plugins import multiproc, slurmgraph
from nipype.pipeline.plugins.base import DistributedPluginBase

from hyps_bids.errors import HypsError, MissingInput, UsageError
from hyps_bids.resources import available_cpus, available_memory_gb
from hyps_bids.system import user_name
from hyps_bids.workers import Workers, failed, was_killed
from hyps_bids.workflows.crash_files import Failures
from hyps_bids.workflows.watch import Watch

_LOG = logging.getLogger("hyps_bids")
#: Plugins that submit all jobs and return, so that the run would end before its scans are done.
_LEAVE_AT_ONCE = ("CondorDAGMan", "PBSGraph", "SGEGraph", "SomaFlow")
#: Plugins that run nodes in this process and its children.
_LOCAL = ("Linear", "Debug", "MultiProc", "LegacyMultiProc")
#: Paths that shells and configuration files take as they are.
_SAFE_PATH = re.compile(r"[\w./@:,+=-]*")
#: Commands by which plugins submit jobs and ask about them.
_COMMANDS = {
    "SLURM": ("sbatch", "squeue"),
    "SLURMGraph": ("sbatch", "squeue"),
    "SGE": ("qsub", "qstat"),
    "PBS": ("qsub", "qstat"),
    "LSF": ("bsub", "bjobs"),
    "OAR": ("oarsub", "oarstat"),
}
#: Seconds between two questions to a scheduler.
_POLL_S = 5
#: Seconds after which a line of progress is drawn again while no node ends.
_TICK_S = 1
#: Seconds for which the files of a finished job may stay invisible on a shared disk.
_UNSEEN_S = 60


class PluginSettings(TypedDict):
    """Content of a plugin file: name and arguments of one of nipype's plugins."""

    plugin: str
    plugin_args: dict[str, Any]


def read_plugin(path: Path) -> PluginSettings:
    """Read and check the plugin file of ``--use-plugin``.

    Parameters
    ----------
    path : Path
        YAML (or TOML, by its extension) with ``plugin`` and, optionally, ``plugin_args``.

    Returns
    -------
    PluginSettings
        Arguments of :func:`engine`.

    Raises
    ------
    MissingInput
        If the file cannot be read.
    UsageError
        If its content is not valid, nipype has no such plugin, or it cannot be used here.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
    except OSError as error:
        raise MissingInput(
            f"{path}: the plugin file cannot be read ({error.strerror})",
            code="plugin-file-unreadable",
        ) from error
    except (UnicodeDecodeError, yaml.YAMLError, tomllib.TOMLDecodeError) as error:
        raise UsageError(
            f"{path}: is neither valid YAML nor valid TOML ({error})", code="plugin-file-invalid"
        ) from error
    valid = (
        isinstance(content, dict)
        and content.keys() <= {"plugin", "plugin_args"}
        and isinstance(content.get("plugin"), str)
        and isinstance(content.get("plugin_args") or {}, dict)
    )
    if not valid:
        raise UsageError(
            f"{path}: must name a nipype 'plugin', and may give its 'plugin_args', a table of "
            f"options, but nothing else; it holds {content!r}",
            code="plugin-keys-wrong",
        )
    _check_plugin(content["plugin"], path)
    return {"plugin": content["plugin"], "plugin_args": content.get("plugin_args") or {}}


def _check_plugin(name: str, path: Path) -> None:
    """Check that nipype has a plugin, and that it can be used here."""
    if name in _LEAVE_AT_ONCE:
        raise UsageError(
            f"{path}: the plugin {name} does not wait for its jobs; use one that does",
            code="plugin-does-not-wait",
        )
    classes = [each for each in vars(plugins) if each.endswith("Plugin")]
    known = sorted({each.removesuffix("Plugin") for each in classes} - set(_LEAVE_AT_ONCE))
    if name not in known:
        raise UsageError(
            f"{path}: nipype has no plugin '{name}'; known are {', '.join(known)}",
            code="plugin-unknown",
        )
    for command in _COMMANDS.get(name, ()):
        if shutil.which(command) is None:
            raise UsageError(
                f"{path}: the plugin {name} needs the command '{command}', which is not here; "
                "submit from a node, or a container, that has the scheduler",
                code="scheduler-command-missing",
            )


def is_local(plugin: str) -> bool:
    """Tell whether a plugin runs nodes on this machine."""
    return plugin in _LOCAL


def check_paths(plugin: str, *folders: Path) -> None:
    """Check that a plugin can use folders: nipype writes paths into scripts without quoting them.

    Raises
    ------
    UsageError
        If a scheduler would misunderstand a path.
    """
    for folder in folders:
        if not is_local(plugin) and not _SAFE_PATH.fullmatch(str(folder.absolute())):
            raise UsageError(
                f"{folder}: the plugin {plugin} cannot use this folder, because its path has a "
                "space or a special character. Use another folder, or a link to it.",
                code="path-unfit-for-scheduler",
            )


def engine(
    plugin: str,
    plugin_args: Mapping[str, Any],
    failures: Failures | None = None,
    workers: Workers | None = None,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Choose the engine of a workflow.

    Call this after nipype is configured, because cluster engines change how often nipype polls.

    Parameters
    ----------
    plugin : str
        nipype's name of the plugin.
    plugin_args : mapping
        Arguments from nipype's documentation of the plugin.
    failures : Failures, optional
        Is told of each failure as soon as the plugin knows of it.
    workers : Workers, optional
        Processes of the plugin MultiProc.
    watch : Watch, optional
        Is told of each node that has ended.

    Returns
    -------
    dict
        Arguments of ``Workflow.run``.
    """
    watched = dict(plugin_args) | ({} if watch is None else {"status_callback": watch})
    if plugin == "MultiProc":
        return {"plugin": _observed(MultiProcPlugin(watched, workers), failures, watch)}
    if not is_local(plugin):
        config.set("execution", "poll_sleep_duration", str(_POLL_S))
        config.set("execution", "job_finished_timeout", str(_UNSEEN_S))
        # nipype uses LOGNAME in the names of jobs, and batch jobs may lack it.
        os.environ.setdefault("LOGNAME", os.environ.get("USER", user_name()))
    if plugin == "SLURMGraph":
        return {"plugin": _observed(SLURMGraphPlugin(plugin_args), failures, watch)}
    known = getattr(plugins, f"{plugin}Plugin")
    if failures is not None and issubclass(known, DistributedPluginBase):
        reporting = type(known.__name__, (_ReportsFailures, known), {})
        return {"plugin": _observed(reporting(plugin_args=watched), failures, watch)}
    more = {"status_callback": _looking(failures, watch)}
    return {"plugin": plugin, "plugin_args": dict(plugin_args) | more}


def _observed(plugin: Any, failures: Failures | None, watch: Watch | None) -> Any:
    plugin.failures, plugin.watch = failures, watch
    return plugin


def _looking(failures: Failures | None, watch: Watch | None) -> Callable[[Any, str], None]:
    def look(node: Any, status: str) -> None:
        if status == "exception" and failures is not None:
            failures.look()
        if watch is not None:
            watch(node, status)

    return look


class _ReportsFailures:
    """Tells of failures when they happen; a crash file that cannot be written does not matter."""

    failures: Failures | None = None
    watch: Watch | None = None

    def _send_procs_to_workers(self, updatehash: bool = False, graph: Any = None) -> None:
        # nipype calls this again and again while it waits for nodes.
        if self.watch is not None:
            self.watch.progress.tick()
        super()._send_procs_to_workers(updatehash=updatehash, graph=graph)  # type: ignore[misc]

    def _report_crash(self, node: Any, result: Mapping[str, Any] | None = None) -> str:
        try:
            path: str = super()._report_crash(node, result=result)  # type: ignore[misc]
        except Exception as error:
            _LOG.debug("There is no crash file.", exc_info=error)
            if self.failures is not None:
                traceback = "".join((result or {}).get("traceback") or format_exception(error))
                self.failures.note(node.fullname, traceback)
            return ""
        if self.failures is not None:
            self.failures.note_file(Path(path))
        return path


class MultiProcPlugin(_ReportsFailures, multiproc.MultiProcPlugin):
    """Run nodes in a pool of processes, even if some of these are killed.

    The kernel kills a process when memory runs out, and nipype's own plugin then hangs or ends
    the run. Here the interrupted nodes run again, one at a time. A node whose worker is killed
    again, although it had all the memory, counts as failed. If no node fails so, too many were
    running at a time, and the run goes on with half as many processes.

    Inner workflows that have begun are finished before others begin, so that the intermediate
    files of a thousand scans need no more room than those of a few. Nodes that run in this process
    (``run_without_submitting``) do so one after the other, while workers are busy.

    Parameters
    ----------
    plugin_args : mapping
        Arguments of nipype's plugin.
    workers : Workers, optional
        The processes; by default, ones of this workflow only.
    """

    def __init__(self, plugin_args: Mapping[str, Any], workers: Workers | None = None) -> None:
        # nipype's own plugin would make a pool and count the GPUs.
        DistributedPluginBase.__init__(self, plugin_args=dict(plugin_args))
        self.processors: int = plugin_args.get("n_procs") or available_cpus()
        self.memory_gb = plugin_args.get("memory_gb") or available_memory_gb() * 0.9
        self.raise_insufficient = plugin_args.get("raise_insufficient", True)
        self.n_gpu_procs = plugin_args.get("n_gpu_procs", 0)
        self._keeps_workers = workers is not None
        self.workers = workers or Workers()
        self.depidx: Any = None
        self._taskid = 0
        self._nodes: dict[int, tuple[Any, bool]] = {}
        self._task_obj: dict[int, Future[dict[str, Any]]] = {}
        self._stats = None
        self.workers.context = plugin_args.get("mp_context") or self.workers.context
        self.workers.start(self.processors)

    def run(self, graph: Any, config: Any, updatehash: bool = False) -> None:
        """Run the nodes of a graph, as nipype's plugin does."""
        # This plugin waits for the end of a node, and nipype need not sleep.
        config["execution"]["poll_sleep_duration"] = 0
        # nipype collects garbage at each step. To search all nodes takes most of its time, so what
        # is there now is exempted.
        gc.collect()
        gc.freeze()
        try:
            super().run(graph, config, updatehash=updatehash)
        except Exception:
            # The run stops at a failure. Nodes under way end before anyone looks at the outputs.
            for future in self._task_obj.values():
                future.cancel()
            wait(self._task_obj.values())
            self._postrun_check()
            raise
        finally:
            gc.unfreeze()

    def _postrun_check(self) -> None:
        if not self._keeps_workers:
            self.workers.close()

    def _generate_dependency_list(self, graph: Any) -> None:
        super()._generate_dependency_list(graph)
        self._here = np.array([node.run_without_submitting for node in self.procs], dtype=bool)
        names = [node._hierarchy or "" for node in self.procs]
        self._workflow = np.unique(names, return_inverse=True)[1]
        self._sizes = np.bincount(self._workflow)
        # The time that nipype's matrix takes at each step grows with the number of nodes. Counts
        # of the nodes to wait for answer the same questions.
        self._followers = self.depidx.tocsr()
        self.depidx = self.depidx.sum(axis=0)
        self._first = np.asarray(self.depidx).ravel() == 0

    def _task_finished_cb(self, jobid: int, cached: bool = False) -> None:
        if self._status_callback:
            self._status_callback(self.procs[jobid], "end")
        self.proc_pending[jobid] = False
        self.depidx[0, self._followers[[jobid]].indices] -= 1

    def _sort_jobs(self, jobids: np.ndarray, scheduler: str | None = None) -> np.ndarray:
        begun = self._count(self.proc_done) > 0
        under_way = (begun & (self._count(self.proc_done & ~self.proc_pending) < self._sizes)).sum()
        jobids = jobids[~self._here[jobids]]
        # What follows other nodes, such as a report after its scans, is no beginning either.
        new = self._first[jobids] & ~begun[self._workflow[jobids]]
        room = max(0, 2 * self.processors - under_way)
        return np.concatenate([jobids[~new], jobids[new][:room]])

    def _count(self, nodes: np.ndarray) -> np.ndarray:
        """Count the nodes of each inner workflow that are marked."""
        return np.bincount(self._workflow, weights=nodes)

    def _send_procs_to_workers(self, updatehash: bool = False, graph: Any = None) -> None:
        super()._send_procs_to_workers(updatehash=updatehash, graph=graph)
        ready = np.asarray(self.depidx).ravel() == 0
        here = np.flatnonzero(~self.proc_done & ready & self._here)
        if len(here):
            self._run_here(here[0], graph)
        else:
            wait(self._task_obj.values(), timeout=_TICK_S, return_when=FIRST_COMPLETED)

    def _run_here(self, jobid: int, graph: Any) -> None:
        """Run a node in this process."""
        self.proc_done[jobid] = self.proc_pending[jobid] = True
        try:
            self.procs[jobid].run()
        except Exception as error:
            traceback = format_exception(error)
            self._run_errors.append("".join(traceback))
            self._clean_queue(jobid, graph, result={"result": None, "traceback": traceback})
        self._task_finished_cb(jobid)

    def _submit_job(self, node: Any, updatehash: bool = False) -> int:
        self._taskid += 1
        self._nodes[self._taskid] = (node, updatehash)
        self._task_obj[self._taskid] = self._start(self._taskid)
        return self._taskid

    def _start(self, taskid: int) -> Future[dict[str, Any]]:
        return self.workers.run(*self._nodes[taskid], taskid)

    def _get_result(self, taskid: int) -> dict[str, Any] | None:
        if not self._task_obj[taskid].done():
            return None
        if was_killed(self._task_obj[taskid]):
            self._run_again()
        try:
            return self._task_obj[taskid].result()
        except Exception as error:
            # This is no error of the node itself, which would be part of its result.
            return {"result": None, "traceback": format_exception(error), "taskid": taskid}

    def _clear_task(self, taskid: int) -> None:
        super()._clear_task(taskid)
        del self._nodes[taskid]

    def _run_again(self) -> None:
        """Run the nodes of a broken pool one at a time."""
        wait(self._task_obj.values())
        killed = [taskid for taskid, future in self._task_obj.items() if was_killed(future)]
        _LOG.warning(
            "A process was killed, most likely because memory ran out. The interrupted steps "
            "(%d) run again, one at a time.",
            len(killed),
        )
        self.workers.renew()
        at_fault = False
        for taskid in killed:
            self._task_obj[taskid] = self._start(taskid)
            wait([self._task_obj[taskid]])
            if was_killed(self._task_obj[taskid]):
                at_fault = True
                self._task_obj[taskid] = failed(_killed_twice())
                self.workers.renew()
        if not at_fault and len(killed) > 1:
            self.processors = max(1, self.processors // 2)
            self.workers.renew(self.processors)
            _LOG.warning("The run goes on with --nprocs %d.", self.processors)


class SLURMGraphPlugin(slurmgraph.SLURMGraphPlugin):
    """Submit all jobs at once, as nipype's plugin does, and wait for them."""

    failures: Failures | None = None
    watch: Watch | None = None

    def __init__(self, plugin_args: Mapping[str, Any]) -> None:
        super().__init__(plugin_args=dict(plugin_args))
        self._token = f"hyps-{secrets.token_hex(6)}"
        # Without this, a job whose predecessor failed would stay in the queue for ever.
        self._sbatch_args += f" --comment={self._token} --kill-on-invalid-dep=yes"

    def _submit_graph(self, pyfiles: Any, dependencies: Any, nodes: Any) -> None:
        super()._submit_graph(pyfiles, dependencies, nodes)
        while self._in_queue():
            if self.failures is not None:
                self.failures.look()
            if self.watch is not None:
                for name in self.failures.reasons if self.failures is not None else ():
                    self.watch.note_failure(name)
                self.watch.look(nodes)
            time.sleep(_POLL_S)

    def _in_queue(self) -> bool:
        asked = subprocess.run(
            ["squeue", "--noheader", "--me", "--format=%k"],
            capture_output=True,
            text=True,
            check=False,
        )
        if asked.returncode:
            _LOG.warning("squeue failed and is asked again: %s", asked.stderr.strip())
            return True
        return self._token in asked.stdout.split()


def _killed_twice() -> HypsError:
    return HypsError(
        "The process was killed twice, the second time while running alone. Most likely memory ran "
        "out; see --mem-gb and the memory limit of the job or container.",
        code="worker-killed-twice",
    )
