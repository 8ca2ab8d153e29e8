"""Read nipype's crash files: which scan, and why."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["crash_reasons"]

_NODE = re.compile(r"^Node: \w+?\.(?P<scan>\w+)\.\w+$", re.MULTILINE)
# after the frames, which are indented more than the traceback's first line
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
        nipype's ``crashdump_dir``; text crash files.

    Returns
    -------
    dict of str to str
        Workflow name of the scan → message, with the file that holds the traceback.
    """
    reasons = {}
    for path in sorted(folder.glob("crash-*.txt")):
        text = path.read_text(encoding="utf-8", errors="replace")
        node = _NODE.search(text)
        errors = list(_ERROR.finditer(text))
        if node:
            # the last traceback is the innermost: nipype puts the node's own into its message
            reason = _reason(errors[-1]) if errors else "no error in the crash file"
            reasons[node["scan"]] = f"{reason} (traceback in logs/{folder.name}/{path.name})"
    return reasons


def _reason(error: re.Match[str]) -> str:
    message = " ".join((error["text"] or "").split())
    if not message:
        return error["kind"]
    # ours say what is wrong; the kind of others is half of what they say
    return message if error["kind"].startswith(_OURS) else f"{error['kind']}: {message}"
