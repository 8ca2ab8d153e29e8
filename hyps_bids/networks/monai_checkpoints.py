"""Convert SwinUNETR checkpoints of MONAI, such as its BraTS21 model, into base networks."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from textwrap import shorten
from typing import Any, TypedDict

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from hyps_bids.errors import BadData, MissingInput, UsageError
from hyps_bids.networks.cards import Architecture
from hyps_bids.networks.checkpoints import build_network, save_network
from hyps_bids.outputs.digests import sha256

State = dict[str, torch.Tensor]

#: What became of the tensors of an imported checkpoint; entry ``imported`` of the new card.
ImportRecord = TypedDict(
    "ImportRecord",
    {
        "file": str,
        "sha256": str,
        "input channels": int,
        "output channels": int,
        "channels": str,
        "taken": int,
        "reduced": list[str],
        "re-initialized": list[str],
        "recomputed": int,
        "ignored": list[str],
    },
)

#: Keys under which training scripts store the weights.
_WRAPPERS = ("state_dict", "model", "net", "weights")
_FIRST = "encoder1.layer.conv1.conv.weight"
_HEAD = "out.conv.conv."
#: Index tables that follow from the window size; MONAI saves them, our network computes them.
_TABLES = "relative_position_index"
#: Modules that see the image itself, and so have kernels for each input channel.
_STEMS = ("encoder1.layer.conv1", "encoder1.layer.conv3", "swinViT.patch_embed")
#: Beginnings of the names of SwinUNETR's modules.
_MODULES = ("swinViT.", "encoder", "decoder", "out.")
#: Residual convolutions before each stage, which only version 2 has.
_VERSION_2 = tuple(f"swinViT.layers{i}c." for i in range(1, 5))
#: NumPy scalars, such as the best score, are harmless, but torch loads only the types it is told.
_SCALARS: list[Any] = [
    np.dtype,
    np.dtypes.Float32DType,
    np.dtypes.Float64DType,
    np.dtypes.Int64DType,
    np._core.multiarray.scalar,  # type: ignore[attr-defined]
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),  # type: ignore[attr-defined]
]


def import_swin_unetr(source: Path, target: Path, channels: str = "sum") -> ImportRecord:
    """Convert a MONAI SwinUNETR checkpoint to a base network with one input channel.

    The head is dropped, because its classes are not ours. The base has only the class background,
    at zero, and gets its classes when it is adapted.

    Parameters
    ----------
    source : Path
        A PyTorch file, which is read without executing code, or a safetensors file. The weights may
        be stored under a key such as ``state_dict``, and their names may begin with ``module.``.
    target : Path
        The safetensors file to write.
    channels : str
        How to combine the kernels of several input channels, see :func:`reduce_channels`.

    The record says what became of every tensor; it is also in the card of `target`.

    Raises
    ------
    MissingInput, BadData, UsageError
        If there is no such file, it cannot be read safely, it is not a SwinUNETR (version 1) of
        MONAI, or `channels` is not possible.
    """
    state, ignored = _own_tensors(_read(source), source)
    recomputed = [name for name in state if name.endswith(_TABLES)]
    head = sorted(name for name in state if name.startswith(_HEAD))
    outputs = len(state[head[0]]) if head else 0
    for name in (*recomputed, *head):
        del state[name]
    feature_size, inputs = state[_FIRST].shape[:2]
    reduced = _reduce_stems(state, channels, source)
    architecture: Architecture = {
        "name": "HippocampusSwinUNETR",
        "kwargs": {"in_channels": 1, "out_channels": 1, "feature_size": feature_size},
    }
    new_head = {
        f"{_HEAD}weight": torch.zeros(1, feature_size, 1, 1, 1),
        f"{_HEAD}bias": torch.zeros(1),
    }
    try:
        model = build_network(architecture)
        model.load_state_dict(state | new_head)
    except (ValueError, RuntimeError) as error:
        raise BadData(
            f"{source}: does not fit MONAI's 3-D SwinUNETR with its default depths, heads and "
            f"window: {shorten(str(error), 500)}",
            code="checkpoint-misfit",
        ) from error
    record: ImportRecord = {
        "file": source.name,
        "sha256": sha256(source),
        "input channels": inputs,
        "output channels": outputs,
        "channels": channels if inputs > 1 else "as they are",
        "taken": len(state) - len(reduced),
        "reduced": reduced,
        "re-initialized": list(new_head),
        "recomputed": len(recomputed),
        "ignored": ignored,
    }
    card = {
        "architecture": architecture,
        "labels": ["background"],
        "license": f"that of {source.name}",
        "imported": record,
    }
    save_network(target, model, card)
    return record


def reduce_channels(weight: torch.Tensor, rule: str) -> torch.Tensor:
    """Combine the kernels of several input channels into those of a single one.

    ``sum`` is what the network computes when every channel shows the same image. It keeps the
    responses about as large as in pre-training, since z-scored channels of one head are positively
    correlated, and it keeps everything that the kernels have learned about edges and textures.
    ``mean`` divides the responses by the number of channels. This makes no difference to the
    convolutional encoder, where an instance norm follows, but in the patch embedding they become
    too small in comparison with its bias and the attention's residuals. The number of a channel
    keeps the kernels that have seen that contrast, as if the other images were zero everywhere.

    `rule` is ``sum``, ``mean`` or the number of a channel, from 0. The kernels have shape
    ``(outputs, channels, x, y, z)``; the result has one channel.

    Examples
    --------
    >>> kernels = torch.tensor([1.0, 2.0, 3.0, 6.0]).reshape(1, 4, 1, 1, 1)
    >>> [reduce_channels(kernels, rule).item() for rule in ("sum", "mean", "2")]
    [12.0, 3.0, 3.0]
    """
    if rule == "sum":
        return weight.sum(dim=1, keepdim=True)
    if rule == "mean":
        return weight.mean(dim=1, keepdim=True)
    if not (rule.isascii() and rule.isdigit() and int(rule) < weight.shape[1]):
        raise UsageError(
            f"--channels {rule}: give sum, mean or a number from 0 to {weight.shape[1] - 1}",
            code="channels-unknown",
        )
    return weight[:, int(rule) : int(rule) + 1].clone()


def describe_import(record: ImportRecord) -> str:
    """Describe what became of the tensors of an imported checkpoint, in a few lines of text."""
    lines = [
        f"taken as they are: {record['taken']} tensors",
        f"reduced from {record['input channels']} input channels to 1 ({record['channels']}): "
        + (", ".join(record["reduced"]) or "none"),
        f"re-initialized, for the classes of the adapter: {', '.join(record['re-initialized'])} "
        f"(had {record['output channels']} outputs)",
        f"computed anew: {record['recomputed']} {_TABLES} tables",
        f"ignored: {', '.join(record['ignored']) or 'none'}",
    ]
    return "\n".join(lines)


def _reduce_stems(state: State, channels: str, source: Path) -> list[str]:
    """Give the network a single input channel, in place; return the names of changed tensors."""
    if state[_FIRST].shape[1] == 1:
        if channels not in ("sum", "mean", "0"):
            raise UsageError(
                f"--channels {channels}: {source} has a single input channel",
                code="channels-single",
            )
        return []
    reduced = sorted(name for name in state if name.startswith(_STEMS) and state[name].ndim > 1)
    for name in reduced:
        state[name] = reduce_channels(state[name], channels)
    return reduced


def _own_tensors(found: State, source: Path) -> tuple[State, list[str]]:
    """Return the network's tensors under MONAI's names, and the names of all other tensors."""
    anchors = [name for name in found if name.endswith(_FIRST)]
    if not anchors:
        raise BadData(
            f"{source}: has no {_FIRST}; it is not a SwinUNETR of MONAI",
            code="checkpoint-not-swinunetr",
        )
    prefix = min(anchors, key=len).removesuffix(_FIRST)
    state, ignored = {}, []
    for name, tensor in found.items():
        own = name.removeprefix(prefix)
        if name.startswith(prefix) and own.startswith(_MODULES):
            state[own] = tensor.float()
        else:
            ignored.append(name)
    version_2 = [name for name in state if name.startswith(_VERSION_2)]
    if version_2:
        raise BadData(
            f"{source}: a SwinUNETR version 2 (use_v2=True), with convolutions before each stage "
            f"({version_2[0]}) for which our network has no place; only version 1 can be imported",
            code="checkpoint-version-2",
        )
    return state, sorted(ignored)


def _read(path: Path) -> State:
    if not path.is_file():
        raise MissingInput(f"{path}: no such checkpoint file", code="checkpoint-missing")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Hide torch's warnings, which tell the user to allow code in the file.
        with torch.serialization.safe_globals(_SCALARS), warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise BadData(
            f"{path}: these weights cannot be read without running code from the file "
            f"({type(error).__name__}); save only the state_dict with torch.save",
            code="checkpoint-unreadable",
        ) from error
    for key in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise BadData(f"{path}: holds no state dict", code="checkpoint-no-state")
    return {k: v for k, v in content.items() if isinstance(v, torch.Tensor)}
