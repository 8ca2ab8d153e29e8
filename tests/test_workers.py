"""The processes of a run where some of what they need is missing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from hyps_bids.workers import Workers

_RUN_TWO = """
import logging, os
from hyps_bids.workers import Workers

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
ours = os.getpid()

class Node:
    def run(self, updatehash):
        print("here" if os.getpid() == ours else "elsewhere", flush=True)
        raise ValueError("an ordinary failure")

with Workers() as workers:
    workers.start(2)
    for taskid in (1, 2):
        print(workers.run(Node(), False, taskid).result()["traceback"][-1])
"""


@pytest.mark.parametrize("shared_memory", [True, False])
def test_without_shared_memory_nodes_run_in_the_same_process(shared_memory: bool) -> None:
    # Mount a folder that nobody can write to, in a namespace of its own.
    space = ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*space, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine offers no namespace in which to hide /dev/shm")
    mount = "true" if shared_memory else "mount -t tmpfs -o ro tmpfs /dev/shm"
    done = subprocess.run(
        [*space, "bash", "-c", f'{mount} && exec "$0" -c "$1"', sys.executable, _RUN_TWO],
        capture_output=True,
        text=True,
        check=True,
    )
    where = "elsewhere" if shared_memory else "here"
    assert done.stdout.split("\n") == [where, "ValueError: an ordinary failure", ""] * 2 + [""]
    assert ("/dev/shm" in done.stderr) != shared_memory
    assert "Traceback" not in done.stderr


def test_more_processes_start_for_more_nodes_but_not_after_memory_ran_out() -> None:
    with Workers() as workers:
        for count, expected in ((1, 1), (3, 3), (2, 3)):
            workers.start(count)
            assert workers.count == expected
        workers.renew(2)
        assert workers.count == 2
        workers.start(4)
        assert workers.count == 2
