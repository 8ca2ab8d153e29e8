"""Expensive pure functions compute the same thing once, for all tests and all processes."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any


def remembered(
    function: Callable[..., Any], folder: Path, key: Callable[..., Any]
) -> Callable[..., Any]:
    """Make a function that stores its results in files, which several processes may share.

    Parameters
    ----------
    function : callable
        Its result depends on nothing but its arguments, and can be pickled.
    folder : Path
        An empty folder, for the results of this function alone.
    key : callable
        What the result depends on, from the same arguments; it is pickled, too.
    """

    @wraps(function)
    def recall(*args: Any, **kwargs: Any) -> Any:
        digest = hashlib.sha256(pickle.dumps(key(*args, **kwargs))).hexdigest()
        path = folder / digest
        if path.exists():
            return pickle.loads(path.read_bytes())
        result = function(*args, **kwargs)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_bytes(pickle.dumps(result))
        partial.replace(path)
        return result

    return recall
