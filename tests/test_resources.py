"""Limits of the machine and of control groups."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hyps_bids.resources import available_cpus, available_memory_gb, is_on_root

GIB = 1024**3


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """The root of control groups without any limit."""
    root = tmp_path / "cgroup"
    root.mkdir()
    return root


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def limit(resource: Callable[[Path, Path], float], root: Path, membership: str) -> float:
    """Ask for a resource in a process of the given control groups."""
    path = root.parent / "self"
    path.write_text(membership)
    return resource(root, path)


def test_this_machine() -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    assert 0 < available_memory_gb() <= total
    assert 1 <= available_cpus() <= len(os.sched_getaffinity(0))


def test_no_limit(machine: Path) -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    nowhere = machine / "nowhere"
    assert available_memory_gb(nowhere, nowhere) == total
    assert available_cpus(nowhere, nowhere) == len(os.sched_getaffinity(0))
    write(machine, {"memory.max": "max", "cpu.max": "max 100000"})
    assert limit(available_memory_gb, machine, "0::/\n") == total
    assert limit(available_cpus, machine, "0::/\n") == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("files", "membership"),
    [
        # In a container, its own group is the root.
        ({"memory.max": str(GIB // 2)}, "0::/\n"),
        ({"memory.max": str(GIB // 2)}, ""),
        # In a SLURM job, the limit is on a group above our own.
        (
            {
                "slurm/job_1/memory.max": str(GIB // 2),
                "slurm/job_1/step_0/memory.max": "max",
                "other/memory.max": "1",
            },
            "0::/slurm/job_1/step_0\n",
        ),
        # Version 1, in a container and outside.
        ({"memory/memory.limit_in_bytes": str(GIB // 2)}, "4:memory:/\n"),
        (
            {
                "memory/memory.limit_in_bytes": "9223372036854771712",
                "memory/slurm/job_1/memory.limit_in_bytes": str(GIB // 2),
            },
            "5:cpu,cpuacct:/\n4:memory:/slurm/job_1\n0::/\n",
        ),
    ],
)
def test_memory_limit(machine: Path, files: dict[str, str], membership: str) -> None:
    write(machine, files)
    assert limit(available_memory_gb, machine, membership) == 0.5


@pytest.mark.parametrize(
    ("files", "membership"),
    [
        ({"cpu.max": "100000 100000"}, "0::/\n"),
        # Less than one CPU counts as one.
        ({"cpu.max": "50000 100000"}, "0::/\n"),
        ({"job/cpu.max": "199999 100000"}, "0::/job/step\n"),
        (
            {
                "cpu/job/cpu.cfs_quota_us": "100000",
                "cpu/job/cpu.cfs_period_us": "100000",
                "cpu/cpu.cfs_quota_us": "-1",
                "cpu/cpu.cfs_period_us": "100000",
            },
            "1:cpu,cpuacct:/job\n",
        ),
    ],
)
def test_cpu_limit(machine: Path, files: dict[str, str], membership: str) -> None:
    write(machine, files)
    assert limit(available_cpus, machine, membership) == 1


def test_paths_on_mounts_of_their_own(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "1 0 0:1 / / rw - overlay overlay rw\n2 1 8:1 /x /my\\040out rw - ext4 /dev/sda rw\n"
    )
    assert is_on_root(Path("/out/new"), mounts)
    assert not is_on_root(Path("/my out"), mounts)
    assert not is_on_root(Path("/my out/new/one"), mounts)
    assert not is_on_root(Path("/out"), tmp_path / "none")
