"""Read from nipype's crash files which scans failed, and why."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["crash_reasons"]

_NODE = re.compile(r"^Node: \w+?\.(?P<scan>\w+)\.\w+$", re.MULTILINE)
# The error follows the frames, which are indented more than the first line of the traceback.
_ERROR = re.compile(
    r"^(?P<indent>[ \t]*)Traceback \(most recent call last\):\n"
    r"(?:(?P=indent)[ ].*\n)*"
    r"(?P=indent)(?P<kind>[\w.]+)(?:: (?P<text>.*(?:\n.+)*))?$",
    re.MULTILINE,
)
_OURS = "hyps_bids.errors."


def crash_reasons(folder: Path) -> dict[str, str]:
    """Collect the last error of each scan's crash file.

    Parameters
    ----------
    folder : Path
        nipype's ``crashdump_dir``, with crash files in text format.

    Returns
    -------
    dict of str to str
        Workflow name of the scan → message, and the file that holds the traceback.
    """
    reasons = {}
    for path in sorted(folder.glob("crash-*.txt")):
        text = path.read_text(encoding="utf-8", errors="replace")
        node = _NODE.search(text)
        errors = list(_ERROR.finditer(text))
        if node:
            # nipype puts the node's own traceback into its message, so the last one is innermost.
            reason = _reason(errors[-1]) if errors else "no error in the crash file"
            reasons[node["scan"]] = f"{reason} (traceback in logs/{folder.name}/{path.name})"
    return reasons


def _reason(error: re.Match[str]) -> str:
    message = " ".join((error["text"] or "").split())
    if not message:
        return error["kind"]
    # Our messages explain themselves; other errors are hard to understand without their kind.
    return message if error["kind"].startswith(_OURS) else f"{error['kind']}: {message}"
