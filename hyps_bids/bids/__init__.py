"""Which images a BIDS dataset has. The only room that imports pybids."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def _without_settings() -> Iterator[None]:
    """Hide the user's settings of pybids, which reads them when it is imported."""
    hidden = {name: os.environ.pop(name, None) for name in ("HOME", "PYBIDS_CONFIG")}
    os.environ["HOME"] = os.devnull
    try:
        yield
    finally:
        del os.environ["HOME"]
        os.environ.update({name: value for name, value in hidden.items() if value is not None})


# Results must not depend on the user's settings, and a home that may not be read must not matter.
with _without_settings():
    from bids.config import reset_options

# Settings in the current folder must not matter either.
reset_options()
