"""Run a script in one process, or in several that train together."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path


def launch(script: str, *arguments: Path, folder: Path, count: int) -> None:
    """Write a script to a folder and run it with this interpreter, or in `count` processes."""
    path = folder / "train.py"
    path.write_text(script)
    torchrun = []
    if count > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        torchrun = ["-m", "torch.distributed.run", f"--nproc-per-node={count}"]
        torchrun += ["--master-addr=127.0.0.1", f"--master-port={port}"]
    result = subprocess.run(
        [sys.executable, *torchrun, str(path), *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr[-3000:]
