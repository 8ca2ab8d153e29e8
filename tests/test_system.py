"""Tests of :mod:`hyps_bids.system`: what we do on systems that lack something."""

from __future__ import annotations

import ast
import multiprocessing
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import hyps_bids
from hyps_bids import system

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="about Linux")
#: What Python has on some systems only, by the module that has it.
NOT_EVERYWHERE = {
    "os": "fork getuid geteuid getgid getegid getgroups getpgid setsid sysconf statvfs chown "
    "lchown fchown fchmod killpg mkfifo nice pread pwrite posix_fadvise sync sched_getaffinity "
    "uname wait waitpid WNOHANG O_DIRECTORY O_NOFOLLOW O_CLOEXEC O_NONBLOCK getloadavg sendfile "
    "memfd_create getxattr setxattr",
    "signal": "SIGHUP SIGKILL SIGUSR1 SIGUSR2 SIGALRM SIGCHLD SIGPIPE SIGCONT SIGSTOP SIGQUIT "
    "alarm setitimer pthread_sigmask pthread_kill pause",
    "select": "poll epoll kqueue",
    "ctypes": "CDLL",
    "time": "tzset",
}
MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "posix"}

ANY = re.compile(rf"\b({'|'.join([*MODULES, *' '.join(NOT_EVERYWHERE.values()).split()])})\b")


def uses(path: Path) -> set[str]:
    """Name what a file uses that only some systems have."""
    found: set[str] = set()
    text = path.read_text(encoding="utf-8")
    # Parsing all files would take seconds.
    if not ANY.search(text):
        return found
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= MODULES & {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {each.name for each in node.names}
            found |= MODULES & {str(node.module)}
            found |= names & set(NOT_EVERYWHERE.get(str(node.module), "").split())
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found |= {node.attr} & set(NOT_EVERYWHERE.get(node.value.id, "").split())
    return found


def test_only_one_module_uses_what_some_systems_lack() -> None:
    package = Path(hyps_bids.__file__).parent
    found = {path.relative_to(package).as_posix(): uses(path) for path in package.rglob("*.py")}
    assert {"SIGKILL", "sysconf"} <= found.pop("system.py")
    assert {path: names for path, names in found.items() if names} == {}


def test_texts_are_read_and_written_as_utf_8_on_every_system(root: Path) -> None:
    """On Windows the default is another encoding."""
    command = ["ruff", "check", "--preview", "--isolated", "--select", "PLW1514", "hyps_bids"]
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_without_sighup(monkeypatch: pytest.MonkeyPatch) -> None:
    if hasattr(signal, "SIGHUP"):
        assert system.ending_signals() == (signal.SIGTERM, signal.SIGHUP)
        monkeypatch.delattr(signal, "SIGHUP")
    assert system.ending_signals() == (signal.SIGTERM,)


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="no signal masks here")
def test_without_signal_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    with system.ending_signals_blocked():
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert {signal.SIGINT, signal.SIGTERM, signal.SIGHUP} <= blocked
    get_mask = signal.pthread_sigmask
    monkeypatch.delattr(signal, "pthread_sigmask")
    with system.ending_signals_blocked():
        assert get_mask(signal.SIG_BLOCK, ()) == set()


@pytest.mark.skipif(not hasattr(select, "poll"), reason="no poll here")
def test_without_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    assert not system.is_closed_pipe(writer)
    os.close(reader)
    assert system.is_closed_pipe(writer)
    monkeypatch.delattr(select, "poll")
    assert system.is_closed_pipe(writer)
    os.close(writer)


@pytest.mark.parametrize("wanted", ["fork", "forkserver"])
def test_without_fork(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform.startswith("linux"):
        assert system.start_method(wanted) == wanted
    with monkeypatch.context() as patch:
        patch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
        assert system.start_method(wanted) == "spawn"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert system.start_method(wanted) == "spawn"


#: A parent with one worker, which ends with it, on a system with or without prctl.
ORPHAN = """
import multiprocessing, os, sys, time
from hyps_bids import system

def work(queue):
    if sys.argv[1] == "without":
        system._c_function = lambda name: None
    system.end_with_parent()
    queue.put(os.getpid())
    time.sleep(60)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    context.Process(target=work, args=(queue,)).start()
    print(queue.get(), flush=True)
    os.kill(os.getpid(), 9)
"""


@LINUX
@pytest.mark.parametrize("prctl", ["with", "without"])
def test_worker_ends_when_its_parent_is_killed(prctl: str, tmp_path: Path) -> None:
    program = tmp_path / "orphan.py"
    program.write_text(ORPHAN, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(program), prctl], stdout=subprocess.PIPE, text=True, check=False
    )
    worker = int(done.stdout)
    end = time.monotonic() + 20
    # Nobody may have collected its exit code, so the process may be there as a zombie.
    while is_running(worker) and time.monotonic() < end:
        time.sleep(0.05)
    assert not is_running(worker)


def is_running(number: int) -> bool:
    try:
        state = Path(f"/proc/{number}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state[0] != "Z"


def test_without_the_c_library_of_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert system._c_function("mallopt") is None
    system.keep_freed_memory()
    # The main process has no parent to wait for.
    system.end_with_parent()


@pytest.mark.skipif(system.fcntl is None, reason="no locks here")
def test_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / ".lock"
    with open(path, "w") as first, open(path, "w") as second:
        assert system.lock_file(first)
        assert not system.lock_file(second)
        monkeypatch.setattr(system, "fcntl", None)
        assert system.lock_file(second)


def test_without_affinity_and_memory_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= system.allowed_cpus() <= (os.cpu_count() or 1)
    assert system.memory_gb() > 0.5
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delattr(os, "sysconf", raising=False)
    assert system.allowed_cpus() == (os.cpu_count() or 1)
    assert system.memory_gb() == 8


@LINUX
def test_peak_memory_in_all_units(monkeypatch: pytest.MonkeyPatch) -> None:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    peak = system.peak_memory_gb()
    assert peak == pytest.approx(int(line.split()[1]) / 1e6, rel=0.1)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "darwin")
        assert system.peak_memory_gb() == pytest.approx(peak / 1000, rel=0.1)
    monkeypatch.setattr(system, "resource", None)
    assert system.peak_memory_gb() != system.peak_memory_gb()


def test_without_numbers_of_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "getuid", raising=False)
    monkeypatch.setenv("USERNAME", "Jane Doe")
    assert system.user_name() == "Jane Doe"
    monkeypatch.delenv("USERNAME")
    assert system.user_name() == "user"
