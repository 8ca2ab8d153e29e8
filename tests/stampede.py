"""Run many processes of the app at once, kill them at random and start them again.

This is a script, because a process that forks must not have computed with threads before. Its
argument is the path of a JSON file::

    {"jobs": [[argument, …], …], "kills": 12, "pause": 2, "seed": 0, "log": "stampede.log"}

It prints, as JSON, the exit codes of all jobs (of the run that was not killed), the number of
processes that were killed, and how many ran at a time at most.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

#: Seconds after which the script gives up.
_LIMIT_S = 240


def stampede(
    jobs: list[list[str]], kills: int, pause: float, seed: int, log: str
) -> dict[str, Any]:
    """Start all jobs at once; about every `pause` seconds kill one and start it again."""
    chance = random.Random(seed)
    began = time.monotonic()
    codes: dict[int, int] = {}
    killed = 0
    running = {_start(arguments, log): i for i, arguments in enumerate(jobs)}
    most = len(running)
    while running:
        time.sleep(chance.uniform(0, 2 * pause))
        for pid in list(running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                codes[running.pop(pid)] = os.waitstatus_to_exitcode(status)
        if running and time.monotonic() - began > _LIMIT_S:
            for pid in running:
                os.kill(pid, signal.SIGKILL)
            raise TimeoutError(f"still running: {[jobs[i] for i in running.values()]}")
        if running and killed < kills:
            pid = chance.choice(sorted(running))
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            job = running.pop(pid)
            if os.waitstatus_to_exitcode(status) == -signal.SIGKILL:
                killed += 1
                running[_start(jobs[job], log)] = job
            else:
                codes[job] = os.waitstatus_to_exitcode(status)
    return {"codes": [codes[i] for i in range(len(jobs))], "killed": killed, "most": most}


def _start(arguments: list[str], log: str) -> int:
    """Fork a process that runs the app and nothing else."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        code = main(arguments)
    except BaseException:
        # No error may make the child run the parent's code.
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    # Import once for all processes, because this takes longer than their work.
    for name in ("cohort.tables", "workflows.execution", "workflows.participant"):
        importlib.import_module(f"hyps_bids.{name}")
    from hyps_bids.cli import main
    from hyps_bids.networks.cards import BASE, LOCALIZER, shipped_weights
    from hyps_bids.segmentation.devices import prepare_process
    from hyps_bids.segmentation.inference import cached_adapted, cached_network

    prepare_process(threads=1)
    cached_network(shipped_weights(LOCALIZER), "cpu")
    cached_adapted(shipped_weights("adapter-anteriorposterior"), shipped_weights(BASE), "cpu")
    task = json.loads(Path(sys.argv[1]).read_text())
    print(json.dumps(stampede(**task)))
