"""Files between nodes: the dataclasses of the pipeline in an uncompressed ``.npz``, no pickles."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hyps_bids.imaging.conform import ConformedImage
from hyps_bids.segmentation.localize import Localization, Location
from hyps_bids.segmentation.segment import Segmentation, SegmentedSide

#: Dataclasses that nodes exchange, by the names under which they are stored.
_TYPES: dict[str, Any] = {
    each.__name__: each
    for each in (ConformedImage, Localization, Location, SegmentedSide, Segmentation)
}
_STRUCTURE = "structure"


def save(path: Path, result: object) -> Path:
    """Write dataclasses, and dictionaries of them, that hold arrays and JSON values.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.npz"
    >>> load(save(path, {"L": Location((-25.0, -20.5, -15.0), 3000.0, 0.9)}))
    {'L': Location(center=(-25.0, -20.5, -15.0), volume_mm3=3000.0, confidence=0.9)}
    """
    arrays: dict[str, np.ndarray] = {}
    structure = json.dumps(_encode(result, arrays))
    np.savez(path, **arrays, **{_STRUCTURE: np.array(structure)})  # type: ignore[arg-type]
    return path


def load(path: Path | str) -> Any:
    """Read what :func:`save` wrote."""
    with np.load(path, allow_pickle=False) as stored:
        return _decode(json.loads(str(stored[_STRUCTURE])), stored)


def _encode(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Turn a value into JSON, in which arrays and other types are pairs of a kind and a content."""
    if isinstance(value, np.ndarray):
        name = f"array{len(arrays)}"
        arrays[name] = value
        return ["array", name]
    if isinstance(value, slice):
        return ["slice", [value.start, value.stop]]
    if isinstance(value, tuple | list):
        kind = "list" if isinstance(value, list) else "tuple"
        return [kind, [_encode(each, arrays) for each in value]]
    if isinstance(value, dict):
        return {name: _encode(each, arrays) for name, each in value.items()}
    if is_dataclass(value):
        content = {f.name: _encode(getattr(value, f.name), arrays) for f in fields(value)}
        return [type(value).__name__, content]
    return value


def _decode(value: Any, arrays: Any) -> Any:
    if isinstance(value, dict):
        return {name: _decode(each, arrays) for name, each in value.items()}
    if not isinstance(value, list):
        return value
    kind, content = value
    if kind == "array":
        return arrays[content]
    if kind == "slice":
        return slice(*content)
    if kind in ("list", "tuple"):
        found = [_decode(each, arrays) for each in content]
        return found if kind == "list" else tuple(found)
    return _TYPES[kind](**_decode(content, arrays))
