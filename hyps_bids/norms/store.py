"""Keep the models of several measures in one file, without pickles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hyps_bids.norms.norm import Norm


def save_norms(path: Path, norms: Mapping[str, Norm]) -> None:
    """Write the models of measures to one file in the format of safetensors."""
    raise NotImplementedError


def load_norms(path: Path) -> dict[str, Norm]:
    """Read models.

    Raises
    ------
    MissingInput
        ``norms-missing``: there is no such file.
    BadData
        ``norms-damaged`` or ``norms-version``.
    """
    raise NotImplementedError
