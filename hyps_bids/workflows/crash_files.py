"""Which scans and reports failed, and why, as nipype's crash files tell."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path

_LOG = logging.getLogger("hyps_bids")
_NODE = re.compile(r"^Node: [\w.]+\.(?P<scan>\w+)\.\w+$", re.MULTILINE)
# The error follows the frames, which are indented more than the first line of the traceback.
_ERROR = re.compile(
    r"^(?P<indent>[ \t]*)Traceback \(most recent call last\):\n"
    r"(?:(?P=indent)[ ].*\n)*"
    r"(?P=indent)(?P<kind>[\w.]+)(?:: (?P<text>.*(?:\n.+)*))?$",
    re.MULTILINE,
)
_NO_ERROR = "no error in the crash file"
_OURS = "hyps_bids.errors."


class Failures:
    """The failures of a workflow, each logged when it is noticed.

    Parameters
    ----------
    folder : Path
        nipype's ``crashdump_dir``, with crash files in text format.
    titles : mapping of str to str
        Workflow name of a scan or report → what the log says before the reason.

    Attributes
    ----------
    reasons : dict of str to str
        Workflow name → why it failed.
    """

    def __init__(self, folder: Path, titles: Mapping[str, str]) -> None:
        self.folder = folder
        self.titles = titles
        self.reasons: dict[str, str] = {}
        self._seen: set[str] = set()

    def look(self, *, is_last: bool = False) -> None:
        """Note the failures in crash files that were not there at the last look."""
        for path in sorted(self.folder.glob("crash-*.txt")):
            if path.name not in self._seen:
                self.note_file(path, is_complete=is_last)

    def note_file(self, path: Path, *, is_complete: bool = False) -> None:
        """Note the failure in one crash file; one that may be incomplete is read again later."""
        for name, reason in read_crash_file(path).items():
            # nipype writes a crash file in several steps, and the error comes last.
            if is_complete or not reason.startswith(_NO_ERROR):
                self._seen.add(path.name)
                self._note(name, reason)

    def note(self, node: str, traceback: str) -> None:
        """Note the failure of a node, by its full name, that has no crash file."""
        text = f"Node: {node}\n{traceback}"
        if found := _NODE.search(text):
            self._note(found["scan"], _innermost(text))

    def _note(self, name: str, reason: str) -> None:
        if name in self.titles and name not in self.reasons:
            self.reasons[name] = reason
            _LOG.error("%s: %s", self.titles[name], reason)


def read_crash_file(path: Path) -> dict[str, str]:
    """Return the workflow name of the scan and the reason that a crash file gives, if any."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    node = _NODE.search(text)
    where = f"traceback in logs/{path.parent.name}/{path.name}"
    return {node["scan"]: f"{_innermost(text)} ({where})"} if node else {}


def _innermost(text: str) -> str:
    # nipype puts the node's own traceback into its message, so the last one is innermost.
    errors = list(_ERROR.finditer(text))
    return _reason(errors[-1]) if errors else _NO_ERROR


def _reason(error: re.Match[str]) -> str:
    message = " ".join((error["text"] or "").split())
    if not message:
        return error["kind"]
    # Our messages explain themselves; other errors are hard to understand without their kind.
    return message if error["kind"].startswith(_OURS) else f"{error['kind']}: {message}"
