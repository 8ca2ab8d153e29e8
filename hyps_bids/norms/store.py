"""Keep the models of several measures in one file, without pickles.

The file is in the format of safetensors: arrays by the name ``MEASURE/ARRAY``, and all else as JSON
in the metadata. Numbers are stored exactly.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from hyps_bids.errors import BadData, MissingInput
from hyps_bids.norms.norm import Norm
from hyps_bids.outputs.writing import write_bytes

#: Version of the format; a file of another version is refused.
VERSION = 1
_KIND = "hyps-bids norms"


def save_norms(path: Path, norms: Mapping[str, Norm]) -> None:
    """Write the models of measures, by name, to one file."""
    facts: dict[str, Any] = {}
    tensors: dict[str, np.ndarray] = {}
    for name, norm in norms.items():
        facts[name], arrays = norm.to_arrays()
        tensors |= {f"{name}/{key}": np.ascontiguousarray(x) for key, x in arrays.items()}
    described = {"kind": _KIND, "version": str(VERSION), "norms": json.dumps(facts)}
    write_bytes(path, save(tensors, metadata=described))


def load_norms(path: Path) -> dict[str, Norm]:
    """Read models.

    Raises
    ------
    MissingInput
        ``norms-missing``: there is no such file.
    BadData
        ``norms-damaged``: it is not a complete file of norms; ``norms-version``: it is of another
        version of the format.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise MissingInput(
            f"{path}: cannot be read ({error.strerror}); name a folder models/norms-…",
            code="norms-missing",
        ) from error
    try:
        size = int.from_bytes(content[:8], "little")
        described = json.loads(content[8 : 8 + size])["__metadata__"]
        if described["kind"] != _KIND:
            raise ValueError("the file holds something else")
        version = int(described["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error
    if version != VERSION:
        raise BadData(
            f"{path}: norms of format version {version}, and this is version {VERSION}; fit them "
            "again with this version of the software.",
            code="norms-version",
        )
    try:
        tensors = load(content)
        found = {}
        for name, facts in json.loads(described["norms"]).items():
            start = f"{name}/"
            mine = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
            found[name] = Norm.from_arrays(facts, mine)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error
    return found


def _damaged(path: Path, error: Exception) -> BadData:
    return BadData(f"{path}: not a complete file of norms ({error})", code="norms-damaged")
