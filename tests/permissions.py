"""Run the app as a user whom permissions bind, also where tests run as root, as in containers."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

_PR_CAPBSET_DROP = 24
_CAPABILITIES = {"CAP_DAC_OVERRIDE": 1, "CAP_DAC_READ_SEARCH": 2}


def _bind() -> None:
    """Give up the right of root to read and write everything; it takes effect at exec."""
    if os.getuid() == 0:
        libc = ctypes.CDLL(None)
        for capability in _CAPABILITIES.values():
            libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)


def run_bound_by_permissions(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the app without the rights of root."""
    return subprocess.run(
        [sys.executable, "-m", "hyps_bids", *map(str, arguments)],
        capture_output=True,
        text=True,
        preexec_fn=_bind,
    )
