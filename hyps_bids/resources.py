"""Find out how many CPUs and how much memory this process may use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from hyps_bids.system import allowed_cpus, memory_gb

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

#: Threads that read files, and how many items each takes at a time.
_READERS, _BATCH = 8, 100
_CGROUP = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_MOUNTS = Path("/proc/self/mountinfo")


def available_cpus(cgroup: Path = _CGROUP, membership: Path = _MEMBERSHIP) -> int:
    """Count the CPUs that the affinity of this process and its control groups allow.

    Parameters
    ----------
    cgroup : Path
        The folder where the control groups are mounted.
    membership : Path
        The kernel's list of the groups of this process.
    """
    count = allowed_cpus()
    for folder in _groups("cpu", cgroup, membership):
        # The files of control groups version 2, then those of version 1.
        quota = _read(folder / "cpu.max").split() or [
            _read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")
        ]
        if len(quota) == 2 and quota[0].isdigit() and quota[1].isdigit():
            count = min(count, max(1, int(quota[0]) // int(quota[1])))
    return count


def available_memory_gb(cgroup: Path = _CGROUP, membership: Path = _MEMBERSHIP) -> float:
    """Return the memory in GB that the machine and the control groups of this process allow.

    The parameters are those of :func:`available_cpus`.
    """
    total = memory_gb()
    for folder in _groups("memory", cgroup, membership):
        # The files of control groups version 2, then those of version 1.
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = _read(folder / name).strip()
            if limit.isdigit():
                total = min(total, int(limit) / 1024**3)
    return total


def is_on_root(path: Path, mounts: Path = _MOUNTS) -> bool:
    """Tell whether a path is on the root's own file system, which goes with a container.

    Parameters
    ----------
    path : Path
        A path that need not exist.
    mounts : Path
        The kernel's list of mounts; if it is missing, the answer is no.
    """
    # The kernel writes spaces in octal.
    points = {Path(line.split()[4].replace("\\040", " ")) for line in _read(mounts).splitlines()}
    path = path.resolve()
    return bool(points) and points.isdisjoint([path, *path.parents][:-1])


def read_many(read: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
    """Call a function that reads files for each item, in threads; results are in the same order.

    Files may be on a network: waiting for one must not hold up the others.

    Examples
    --------
    >>> read_many(abs, [-1, 2, -3])
    [1, 2, 3]
    """
    batches = [items[first : first + _BATCH] for first in range(0, len(items), _BATCH)]
    with ThreadPoolExecutor(_READERS) as pool:
        results = pool.map(lambda batch: [read(item) for item in batch], batches)
        return [result for of_batch in results for result in of_batch]


def _groups(controller: str, cgroup: Path, membership: Path) -> Iterator[Path]:
    """List the folders of our control groups and their parents; any of them may have a limit."""
    # In a container the root may be our own group.
    yield cgroup
    yield cgroup / controller
    for line in _read(membership).splitlines():
        _, controllers, name = line.split(":", 2)
        # Version 2 has one tree for all controllers.
        if controllers and controller not in controllers.split(","):
            continue
        folder = cgroup / controller if controllers else cgroup
        for part in Path(name).parts[1:]:
            folder /= part
            yield folder


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
