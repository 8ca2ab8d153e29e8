"""Spread independent tasks over processes, report progress, and end quietly when interrupted."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from joblib import Parallel

from hyps_bids.progress import Progress
from hyps_bids.system import ending_signals_blocked


@dataclass(frozen=True)
class Computing:
    """Seed of folds, shuffles and classifiers; processes; and what the progress is called."""

    seed: int = 0
    nprocs: int = 1
    #: Contrast to name where progress is shown; without it, none is.
    title: str | None = None


#: The default: one process, without reports of progress.
ONE_PROCESS = Computing()


def run_tasks(tasks: Sequence[Any], unit: str, computing: Computing) -> list[Any]:
    """Run delayed calls in some processes and report their progress.

    A signal that ends the run ends the processes as well, without a word from them.
    """
    results = []
    workers = min(computing.nprocs, max(1, len(tasks)))
    with (
        _only_we_end_the_run(),
        Progress(
            {unit: len(tasks)},
            computing.title or "",
            workers=workers,
            is_shown=computing.title is not None,
        ) as progress,
    ):
        pool = Parallel(n_jobs=workers, return_as="generator")
        # The start of the processes. A signal to the whole group would end them before us, with
        # tracebacks of theirs and of joblib, so they inherit that it is blocked.
        with ending_signals_blocked():
            found = pool(tasks)
        try:
            for result in found:
                results.append(result)
                progress.advance(unit)
        finally:
            found.close()
    return results


@contextmanager
def _only_we_end_the_run() -> Iterator[None]:
    """Silence what joblib and its helpers say about tasks and files that an interruption leaves."""
    # The process that cleans up is started with these options.
    option = "ignore:resource_tracker:UserWarning"
    if option not in sys.warnoptions:
        sys.warnoptions.append(option)
    before = threading.excepthook

    def report(problem: threading.ExceptHookArgs) -> None:
        # The thread that hands out tasks may look for one that was taken back.
        name = problem.thread.name if problem.thread else ""
        if not (name == "ExecutorManagerThread" and problem.exc_type is KeyError):
            before(problem)

    threading.excepthook = report
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*tasks which were still being processed")
            yield
    finally:
        threading.excepthook = before
