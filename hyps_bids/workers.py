"""The processes of a run on this machine."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from traceback import format_exception
from typing import Any, Self

from hyps_bids.outputs.writing import discard_partials
from hyps_bids.progress import ConsoleHandler
from hyps_bids.system import end_with_parent, start_method

_LOG = logging.getLogger("hyps_bids")
#: Seconds that all workers get to stop by themselves before they are killed.
_GRACE_S = 2

Result = dict[str, Any]


class Workers:
    """Processes that run the nodes of one workflow after the other, and stay warm between them.

    Attributes
    ----------
    context : str
        How processes start where the system can do it, as in
        :func:`multiprocessing.get_context`. Forked processes need not import what is imported
        here. Once this process uses a GPU, new ones must not be forked: locks that threads of the
        GPU's driver hold would stay locked in them.
    """

    def __init__(self) -> None:
        self.context = "fork"
        self._count = 1
        self._most: int | None = None
        self._pool: Executor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Interrupted runs have killed them, and nobody else would stop waiting for them.
        if kind is None or issubclass(kind, Exception):
            self.close()

    def start(self, count: int) -> None:
        """Start some processes, all at once, unless as many are running."""
        count = min(count, self._most or count)
        if self._pool is not None and count <= self._count:
            return
        self.close()
        self._count = count
        # Each collection of garbage in forked processes would search, and copy, all that is loaded
        # by now.
        gc.collect()
        gc.freeze()
        self._pool = _make_pool(count, self.context)
        self._pool.submit(os.getpid)
        gc.unfreeze()

    @property
    def count(self) -> int:
        """Number of processes."""
        return self._count

    def run(self, node: Any, updatehash: bool, taskid: int) -> Future[Result]:
        """Let a worker run a node; the future fails if the worker is killed."""
        self.start(self._count)
        assert self._pool is not None
        try:
            return self._pool.submit(_run_node, node, updatehash, taskid, log_settings())
        except BrokenProcessPool as error:
            return failed(error)

    def renew(self, most: int | None = None) -> None:
        """Replace all processes, of which some were killed; from now on, start `most` at most."""
        self._most = most or self._most
        self.close()
        self._count = min(self._count, self._most or self._count)
        self.start(self._count)

    def close(self) -> None:
        """End the processes when their nodes are done."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


class _InThisProcess(Executor):
    """Runs tasks at once where no processes can be started."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*args, **kwargs))
        return future


def _make_pool(count: int, context: str) -> Executor:
    try:
        return ProcessPoolExecutor(
            max_workers=count,
            mp_context=multiprocessing.get_context(start_method(context)),
            initializer=start_worker,
            initargs=(os.getcwd(),),
        )
    except (OSError, ImportError, NotImplementedError) as error:
        # The semaphores of multiprocessing need /dev/shm, which some containers lack.
        _LOG.info(
            "Processes cannot work together here (%s; is /dev/shm missing?), so everything runs "
            "in one process.",
            error,
        )
        return _InThisProcess()


def kill_workers() -> None:
    """End the children of this process, also in the middle of their work."""
    workers = multiprocessing.active_children()
    for worker in workers:
        worker.terminate()
    end = time.monotonic() + _GRACE_S
    for worker in workers:
        worker.join(max(0, end - time.monotonic()))
        worker.kill()


def failed(error: Exception) -> Future[Result]:
    """Make a future that has failed."""
    future: Future[Result] = Future()
    future.set_exception(error)
    return future


def was_killed(future: Future[Result]) -> bool:
    """Tell whether a node has no result because its process was killed."""
    return (
        future.done()
        and not future.cancelled()
        and isinstance(future.exception(), BrokenProcessPool)
    )


def _run_node(node: Any, updatehash: bool, taskid: int, log: Mapping[str, Any]) -> Result:
    """Run a node and return what nipype's function of this name returns."""
    _set_up_log(log)
    result: Result = {"result": None, "traceback": None, "taskid": taskid}
    try:
        # The results stay in files, where nipype finds them.
        node.run(updatehash=updatehash)
    except Exception as error:
        result["traceback"] = format_exception(error)
    return result


def log_settings() -> dict[str, Any]:
    """Describe levels and handlers of the log, for workers that lack them."""
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


def start_worker(folder: str) -> None:
    """Set up a worker process: its folder and its signals."""
    os.chdir(folder)
    end_with_parent()
    # SIGTERM ends the workers of a terminated run and of a broken pool. The handler that a fork
    # inherits would raise, and the pool would take that for an error of the node. Ctrl-C reaches
    # all processes of a terminal, and the run then ends its workers by SIGTERM.
    signal.signal(signal.SIGTERM, _end_worker)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _set_up_log(log: Mapping[str, Any]) -> None:
    """Give the log the levels and handlers of the run, unless a fork has inherited them."""
    for name, level in log["levels"].items():
        logging.getLogger(name).setLevel(level)
    there = [getattr(handler, "baseFilename", None) for handler in _LOG.handlers]
    for path, level, formatter in log["handlers"]:
        if path in there:
            continue
        handler = (
            ConsoleHandler()
            if path is None
            else logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
        )
        handler.setLevel(level)
        handler.setFormatter(formatter)
        _LOG.addHandler(handler)


def _end_worker(number: int, frame: object) -> None:
    discard_partials()
    os._exit(128 + number)
