"""Files between nodes: arrays and plain facts in one uncompressed ``.npz``, no pickles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["load", "save"]

_FACTS = "facts"


def save(path: Path, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> Path:
    """Write arrays and JSON-serializable facts.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.npz"
    >>> arrays, facts = load(save(path, {"x": np.eye(2)}, {"side": "L"}))
    >>> arrays["x"].shape, facts
    ((2, 2), {'side': 'L'})
    """
    stored: dict[str, Any] = {**arrays, _FACTS: np.array(json.dumps(dict(facts)))}
    np.savez(path, **stored)
    return path


def load(path: Path | str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what :func:`save` wrote."""
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files if name != _FACTS}
        return arrays, json.loads(str(stored[_FACTS]))
