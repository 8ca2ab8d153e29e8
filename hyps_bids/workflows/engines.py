"""nipype's engines, made fit for long runs: killed workers, busy schedulers."""

from __future__ import annotations

import ctypes
import gc
import logging
import multiprocessing
import os
import secrets
import shutil
import signal
import subprocess
import time
import tomllib
from collections.abc import Mapping
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from traceback import format_exception
from typing import Any

import numpy as np
import yaml
from nipype import config
from nipype.pipeline import plugins
from nipype.pipeline.plugins import multiproc, slurmgraph

from hyps_bids.errors import HypsError, MissingInput, UsageError
from hyps_bids.outputs.writing import discard_partials

__all__ = ["MultiProcPlugin", "SLURMGraphPlugin", "engine", "read_plugin"]

_LOG = logging.getLogger("hyps_bids")
#: they submit all jobs and return at once: the run would end before its scans are done
_LEAVE_AT_ONCE = ("CondorDAGMan", "PBSGraph", "SGEGraph", "SomaFlow")
#: they run in this process and its children
_LOCAL = ("Linear", "Debug", "MultiProc", "LegacyMultiProc")
#: what they run to submit jobs and to ask for them
_COMMANDS = {
    "SLURM": ("sbatch", "squeue"),
    "SLURMGraph": ("sbatch", "squeue"),
    "SGE": ("qsub", "qstat"),
    "PBS": ("qsub", "qstat"),
    "LSF": ("bsub", "bjobs"),
    "OAR": ("oarsub", "oarstat"),
}
#: seconds between questions to a scheduler, and for which a finished job's files may stay unseen
_POLL_S, _UNSEEN_S = 5, 60
#: of prctl(2): the signal to get when the parent dies
_PR_SET_PDEATHSIG = 1
_KILLED_TWICE = (
    "the process was killed twice, the second time with no other beside it: most likely memory "
    "ran out (see --mem-gb, and the limit of the job or container)"
)


def read_plugin(path: Path) -> dict[str, Any]:
    """Read which of nipype's plugins to use.

    Parameters
    ----------
    path : Path
        YAML, or TOML if it is called so, with ``plugin`` and perhaps ``plugin_args``.

    Returns
    -------
    dict
        Arguments of :func:`engine`.

    Raises
    ------
    MissingInput
        If the file cannot be read.
    UsageError
        If its content is not valid, or the plugin cannot be used here.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
    except OSError as error:
        raise MissingInput(f"{path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, yaml.YAMLError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: not valid ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get("plugin"), str):
        raise UsageError(f"{path}: must name a nipype 'plugin', and may give its 'plugin_args'")
    name, args = content["plugin"], content.get("plugin_args") or {}
    if unknown := sorted(map(str, set(content) - {"plugin", "plugin_args"})):
        raise UsageError(f"{path}: unknown {', '.join(unknown)}; known: plugin, plugin_args")
    if not isinstance(args, dict):
        raise UsageError(f"{path}: 'plugin_args' must be a table of options, not {args!r}")
    known = sorted(
        each.removesuffix("Plugin")
        for each in vars(plugins)
        if each.endswith("Plugin") and each.removesuffix("Plugin") not in _LEAVE_AT_ONCE
    )
    if name in _LEAVE_AT_ONCE:
        raise UsageError(f"{path}: plugin {name} does not wait for its jobs; use one that does")
    if name not in known:
        raise UsageError(f"{path}: nipype has no plugin '{name}'; known: {', '.join(known)}")
    for command in _COMMANDS.get(name, ()):
        if shutil.which(command) is None:
            raise UsageError(
                f"{path}: plugin {name} needs the command '{command}', which is not here; submit "
                "from a node, or a container, that has the scheduler"
            )
    return {"plugin": name, "plugin_args": args}


def engine(plugin: str, plugin_args: Mapping[str, Any]) -> dict[str, Any]:
    """Choose the engine of a workflow.

    Call it after nipype is configured: engines of clusters set how often nipype asks them.

    Parameters
    ----------
    plugin : str
        nipype's name of it.
    plugin_args : mapping
        What nipype's documentation says of it.

    Returns
    -------
    dict
        Arguments of ``Workflow.run``.
    """
    if plugin == "MultiProc":
        return {"plugin": MultiProcPlugin(plugin_args)}
    if plugin not in _LOCAL:
        config.set("execution", "poll_sleep_duration", str(_POLL_S))
        config.set("execution", "job_finished_timeout", str(_UNSEEN_S))
        # nipype names jobs with it, and batch jobs may lack it
        os.environ.setdefault("LOGNAME", os.environ.get("USER", f"uid{os.getuid()}"))
    if plugin == "SLURMGraph":
        return {"plugin": SLURMGraphPlugin(plugin_args)}
    return {"plugin": plugin, "plugin_args": dict(plugin_args)}


class MultiProcPlugin(multiproc.MultiProcPlugin):
    """Run nodes in a pool of processes, whatever happens to the processes.

    The kernel kills a process when memory runs out, and nipype's own plugin then hangs or ends
    the run. Here the nodes that were in flight run again, one at a time. A node whose worker is
    killed again, although it had all the memory, has failed, as if it had raised an error. If none
    is, too many ran at a time: half as many go on.

    Chains of nodes that are begun are finished before others begin, and few are under way: the
    intermediate files of a thousand scans need no more room than those of some.

    Parameters
    ----------
    plugin_args : mapping
        As of nipype's plugin.
    """

    def __init__(self, plugin_args: Mapping[str, Any]) -> None:
        super().__init__(plugin_args=dict(plugin_args))
        self._nodes: dict[int, tuple[Any, bool]] = {}
        self.processors: int
        self.pool.shutdown()
        self.pool: ProcessPoolExecutor = self._new_pool()

    def run(self, graph: Any, config: Any, updatehash: bool = False) -> None:
        """Run the nodes of a graph, as nipype's plugin does."""
        # nipype collects garbage at each step, here and in workers that share this memory: what
        # is loaded by now is none, and to look through it again takes as long as a network
        gc.collect()
        gc.freeze()
        try:
            super().run(graph, config, updatehash=updatehash)
        except Exception:
            # the run stops at a failure: what is under way ends before anybody looks what is there
            self.pool.shutdown(cancel_futures=True)
            raise
        finally:
            gc.unfreeze()

    def _generate_dependency_list(self, graph: Any) -> None:
        super()._generate_dependency_list(graph)
        self._firsts = np.flatnonzero(self.depidx.sum(axis=0) == 0)
        self._lasts = np.flatnonzero(self.depidx.sum(axis=1) == 0)

    def _sort_jobs(self, jobids: np.ndarray, scheduler: str | None = None) -> np.ndarray:
        new = np.isin(jobids, self._firsts)
        ended = self.proc_done & ~self.proc_pending
        under_way = self.proc_done[self._firsts].sum() - ended[self._lasts].sum()
        room = max(0, 2 * self.processors - under_way)
        return np.concatenate([jobids[~new], jobids[new][:room]])

    def _new_pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            max_workers=self.processors,
            mp_context=multiprocessing.get_context(self.plugin_args.get("mp_context")),
            initializer=_start_worker,
            initargs=(self._cwd, _log_settings()),
        )

    def _submit_job(self, node: Any, updatehash: bool = False) -> int:
        self._taskid += 1
        self._nodes[self._taskid] = (node, updatehash)
        self._task_obj[self._taskid] = self._start(self._taskid)
        return self._taskid

    def _start(self, taskid: int) -> Future[dict[str, Any]]:
        node, updatehash = self._nodes[taskid]
        try:
            return self.pool.submit(multiproc.run_node, node, updatehash, taskid)
        except BrokenProcessPool as error:
            return _failed(error)

    def _get_result(self, taskid: int) -> dict[str, Any] | None:
        if not self._task_obj[taskid].done():
            return None
        if _was_killed(self._task_obj[taskid]):
            self._run_again()
        try:
            return self._task_obj[taskid].result()
        except Exception as error:
            # not of the node itself, whose errors are part of its result
            return {"result": None, "traceback": format_exception(error), "taskid": taskid}

    def _clear_task(self, taskid: int) -> None:
        super()._clear_task(taskid)
        del self._nodes[taskid]

    def _run_again(self) -> None:
        """Run the nodes of a broken pool one at a time."""
        wait(self._task_obj.values())
        killed = [taskid for taskid, future in self._task_obj.items() if _was_killed(future)]
        _LOG.warning(
            "a process was killed, most likely because memory ran out; "
            "what was under way (steps: %d) runs again, one step at a time",
            len(killed),
        )
        self._renew_pool()
        at_fault = False
        for taskid in killed:
            self._task_obj[taskid] = self._start(taskid)
            wait([self._task_obj[taskid]])
            if _was_killed(self._task_obj[taskid]):
                at_fault = True
                self._task_obj[taskid] = _failed(HypsError(_KILLED_TWICE))
                self._renew_pool()
        if not at_fault and len(killed) > 1:
            self.processors = max(1, self.processors // 2)
            _LOG.warning("from now on with --nprocs %d", self.processors)

    def _renew_pool(self) -> None:
        self.pool.shutdown()
        self.pool = self._new_pool()


class SLURMGraphPlugin(slurmgraph.SLURMGraphPlugin):
    """Submit all jobs at once, as nipype's plugin does, and wait for them.

    Parameters
    ----------
    plugin_args : mapping
        As of nipype's plugin.
    """

    def __init__(self, plugin_args: Mapping[str, Any]) -> None:
        super().__init__(plugin_args=dict(plugin_args))
        self._token = f"hyps-{secrets.token_hex(6)}"
        # a job whose predecessor failed would stay in the queue for ever
        self._sbatch_args += f" --comment={self._token} --kill-on-invalid-dep=yes"

    def _submit_graph(self, pyfiles: Any, dependencies: Any, nodes: Any) -> None:
        super()._submit_graph(pyfiles, dependencies, nodes)
        while self._in_queue():
            time.sleep(_POLL_S)

    def _in_queue(self) -> bool:
        asked = subprocess.run(
            ["squeue", "--noheader", "--me", "--format=%k"],
            capture_output=True,
            text=True,
            check=False,
        )
        if asked.returncode:
            _LOG.warning("squeue: %s; asking again", asked.stderr.strip())
            return True
        return self._token in asked.stdout.split()


def _failed(error: Exception) -> Future[dict[str, Any]]:
    future: Future[dict[str, Any]] = Future()
    future.set_exception(error)
    return future


def _was_killed(future: Future[dict[str, Any]]) -> bool:
    return future.done() and isinstance(future.exception(), BrokenProcessPool)


def _log_settings() -> dict[str, Any]:
    """Describe the log, for workers that do not inherit it: those that are not forked."""
    return {
        "levels": {
            name: logging.getLogger(name).level
            for name in list(logging.root.manager.loggerDict)
            if name.split(".")[0] in ("hyps_bids", "nipype")
        },
        "handlers": [
            (getattr(handler, "baseFilename", None), handler.level, handler.formatter)
            for handler in _LOG.handlers
        ],
    }


def _take_over_log(settings: Mapping[str, Any]) -> None:
    if _LOG.handlers:
        # inherited by a fork
        return
    for name, level in settings["levels"].items():
        logging.getLogger(name).setLevel(level)
    for path, level, formatter in settings["handlers"]:
        handler = logging.StreamHandler() if path is None else logging.FileHandler(path)
        handler.setLevel(level)
        handler.setFormatter(formatter)
        _LOG.addHandler(handler)


def _start_worker(folder: str, log: Mapping[str, Any]) -> None:
    _take_over_log(log)
    if hasattr(libc := ctypes.CDLL(None), "prctl"):
        # Linux: end with the run, should that be killed; workers would wait for ever
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # ends workers of a run that is terminated, and the rest of a broken pool: the handler that a
    # fork inherits would raise, and the pool would take that for an error of the node
    signal.signal(signal.SIGTERM, _end_worker)
    multiproc.process_initializer(folder)


def _end_worker(number: int, frame: object) -> None:
    discard_partials()
    os._exit(128 + number)
