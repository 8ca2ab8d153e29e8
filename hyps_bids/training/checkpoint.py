"""Checkpoints of training runs, each bound to the data and settings that it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import torch

from hyps_bids.errors import UsageError
from hyps_bids.outputs.writing import write_with

Tensors = dict[str, torch.Tensor]

#: Entries of an identity in which a run may differ from its checkpoint: another device may need
#: batches of another size.
_FREE = ("batch size",)


class Best(TypedDict):
    """The best validation of a run: mean of the metrics, step, metrics and averaged weights."""

    score: float
    step: int
    figures: dict[str, float]
    average: Tensors


class Part(TypedDict):
    """Some steps of a run that were taken on one device with batches of one size."""

    hardware: str
    batch_size: int | None
    steps: int


class Checkpoint(TypedDict):
    """Content of a checkpoint; the keys are those of files on disk."""

    step: int
    weights: Tensors
    average: Tensors
    optimizer: dict[str, Any]
    figures: dict[str, float]
    best: Best | None
    since_best: int
    identity: NotRequired[dict[str, Any]]
    #: Who took the steps so far; not in checkpoints of version 0.1.
    parts: NotRequired[list[Part]]


def write_checkpoint(path: Path, content: Checkpoint) -> None:
    """Replace a checkpoint; the previous one is kept if this fails."""

    def save(partial: Path) -> None:
        try:
            torch.save(content, partial)
        except RuntimeError as error:
            # The message of torch is about its archive format, not about the disk.
            raise OSError("is the disk full?") from error

    kept = "the previous checkpoint is kept; " if path.is_file() else ""
    write_with(path, save, hint=f"{kept}make room and run the same command again to continue")


def read_checkpoint(
    path: Path, identity: Mapping[str, Any], device: torch.device | None = None
) -> Checkpoint:
    """Read a checkpoint; one of another run is an error, but for the size of its batches."""
    content = cast(Checkpoint, torch.load(path, map_location=device, weights_only=True))
    # The first checkpoints recorded their settings only.
    before = content.get("identity", {"settings": content.get("settings")})
    before, identity = ({k: v for k, v in d.items() if k not in _FREE} for d in (before, identity))
    if before != identity:
        raise UsageError(
            f"{path}: this checkpoint belongs to a run with other "
            f"{differences(before, identity)}; give another folder, or remove the checkpoint to "
            "start anew",
            code="checkpoint-other-run",
        )
    return content


def read_unfinished(path: Path) -> Checkpoint:
    """Read a checkpoint of any run, onto the CPU."""
    return cast(Checkpoint, torch.load(path, map_location="cpu", weights_only=True))


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Name the entries in which the identities of two runs differ, and entries one level below.

    Examples
    --------
    >>> differences({"settings": {"steps": 1, "seed": 0}}, {"settings": {"steps": 2, "seed": 0}})
    'settings (steps)'
    >>> differences({"data": "a"}, {"data": "b"})
    'data'
    """
    names = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            keys = [k for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)]
            names.append(f"{name} ({', '.join(keys)})")
        else:
            names.append(name)
    return ", ".join(names)
