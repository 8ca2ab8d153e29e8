"""What not every operating system has, each with what we do without it.

Nothing else in the package may use these functions of the system, which a test checks.
"""

from __future__ import annotations

import importlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any


def _optional(module: str) -> Any:
    """Return a module, or None where this system has none, such as Windows."""
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


fcntl, resource = _optional("fcntl"), _optional("resource")
#: Option of prctl(2) that sets the signal to get when the parent dies.
_PR_SET_PDEATHSIG = 1
#: Options of mallopt(3), as in glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
#: GB of memory that are assumed where the system does not tell.
_ASSUMED_GB = 8.0


def ending_signals() -> tuple[signal.Signals, ...]:
    """List the signals that end a run besides control-C: SIGTERM, and SIGHUP if there is one."""
    found = (getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP"))
    return tuple(number for number in found if number is not None)


@contextmanager
def ending_signals_blocked() -> Iterator[None]:
    """Let processes that are started here ignore the signals that end a run, control-C included.

    Without signal masks, they get these signals and may complain when they end.
    """
    change_mask = getattr(signal, "pthread_sigmask", None)
    if change_mask is None:
        yield
        return
    # The start of this process of the standard library would unblock the signals again.
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()
    before = change_mask(signal.SIG_BLOCK, (signal.SIGINT, *ending_signals()))
    try:
        yield
    finally:
        change_mask(signal.SIG_SETMASK, before)


def is_closed_pipe(number: int) -> bool:
    """Tell whether nobody reads what is written to a file descriptor; yes where it is unknown."""
    if not hasattr(select, "poll"):
        return True
    output = select.poll()
    output.register(number, 0)
    return any(events & select.POLLERR for _, events in output.poll(0))


def start_method(wanted: str) -> str:
    """Return the wanted way to start processes, or ``spawn`` where it does not work.

    Windows has neither ``fork`` nor ``forkserver``, and libraries of macOS crash after a fork.

    Examples
    --------
    >>> start_method("spawn")
    'spawn'
    """
    # Imported here, because it is not needed for --help.
    import multiprocessing

    known = wanted in multiprocessing.get_all_start_methods()
    return wanted if known and sys.platform != "darwin" else "spawn"


def call_at_forks(before: Callable[[], Any], after: Callable[[], Any] = lambda: None) -> None:
    """Call functions before Python forks this process, and afterwards in both processes."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=before, after_in_parent=after, after_in_child=after)


def end_with_parent() -> None:
    """Make this process end when its parent is killed; otherwise it would wait for ever."""
    prctl = _c_function("prctl")
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        return
    from multiprocessing import parent_process

    parent = parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for reuse instead of giving it back to the system.

    Otherwise each large tensor is mapped anew and faulted in page by page, which costs up to half
    of a network's CPU time on virtual machines. Without glibc this does nothing.
    """
    mallopt = _c_function("mallopt")
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _c_function(name: str) -> Any:
    """Return a function of the C library of Linux, or None."""
    if not sys.platform.startswith("linux"):
        return None
    # Imported here, because few commands need it.
    import ctypes

    return getattr(ctypes.CDLL(None), name, None)


def lock_file(stream: IO[str]) -> bool:
    """Lock an open file for this process; False if another process has locked it.

    Without locks of files the answer is yes, so two processes may do the same work.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def allowed_cpus() -> int:
    """Count the CPUs that this process may use, or all of the machine if that is unknown."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def memory_gb() -> float:
    """Return the memory of the machine in GB; 8 where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3
    except (AttributeError, ValueError, OSError):
        return _ASSUMED_GB


def peak_memory_gb() -> float:
    """Return the most memory that this process has used, in GB; NaN if that is unknown."""
    if resource is None:
        return float("nan")
    peak: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Bytes on macOS, kilobytes elsewhere.
    return peak / (1e9 if sys.platform == "darwin" else 1e6)


def user_name() -> str:
    """Name the user for libraries that want to know, also where the user has no name."""
    return f"uid{os.getuid()}" if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
