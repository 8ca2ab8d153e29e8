"""Bring SwinUNETR checkpoints from elsewhere, such as MONAI's BraTS21 model, into our format."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from hyps_bids.errors import BadData, MissingInput, UsageError
from hyps_bids.networks.checkpoints import build_network, replace_head, save_network
from hyps_bids.outputs.digests import sha256

__all__ = ["describe_import", "import_swin_unetr", "reduce_channels"]

State = dict[str, torch.Tensor]

_WRAPPERS = ("state_dict", "model", "net", "weights")
_FIRST = "encoder1.layer.conv1.conv.weight"
_HEAD = "out.conv.conv."
#: tables that follow from the window size, which MONAI saves and we compute
_TABLES = "relative_position_index"
#: what sees the image itself, and so has kernels for each input channel
_STEMS = ("encoder1.layer.conv1", "encoder1.layer.conv3", "swinViT.patch_embed")
#: modules of SwinUNETR, by the start of their names
_MODULES = ("swinViT.", "encoder", "decoder", "out.")
#: residual convolutions before each stage, which only version 2 has
_VERSION_2 = tuple(f"swinViT.layers{i}c." for i in range(1, 5))
#: numbers beside the weights, such as the best score; harmless, but torch asks
_SCALARS: list[Any] = [
    np.dtype,
    np.dtypes.Float32DType,
    np.dtypes.Float64DType,
    np.dtypes.Int64DType,
    np._core.multiarray.scalar,  # type: ignore[attr-defined]
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),  # type: ignore[attr-defined]
]


def import_swin_unetr(source: Path, target: Path, channels: str = "sum") -> dict[str, Any]:
    """Convert a MONAI SwinUNETR checkpoint to a base network with one input channel.

    The head is dropped, because its classes are not ours: the base has the class background only,
    at zero, and gets its classes when it is adapted.

    Parameters
    ----------
    source : Path
        A PyTorch file (read without executing code) or a safetensors file. The weights may lie
        under ``state_dict``, ``model``, ``net`` or ``weights``, their names may have a prefix such
        as ``module.``.
    target : Path
        The safetensors file to write.
    channels : str
        How the kernels of several input channels become those of one, see
        :func:`reduce_channels`.

    Returns
    -------
    dict
        The card of the new file. ``imported`` says where from and what became of every tensor;
        :func:`describe_import` words it.

    Raises
    ------
    MissingInput
        If there is no such file.
    BadData
        If it cannot be read safely, or is not a SwinUNETR (version 1) of MONAI.
    UsageError
        If `channels` names no rule, or a channel that the checkpoint has not.
    """
    state, ignored = _own_tensors(_read(source), source)
    recomputed = sorted(name for name in state if name.endswith(_TABLES))
    head = sorted(name for name in state if name.startswith(_HEAD))
    outputs = len(state[head[0]]) if head else 0
    state = {k: v for k, v in state.items() if k not in recomputed and k not in head}

    feature_size, inputs = state[_FIRST].shape[:2]
    reduced = []
    if inputs > 1:
        reduced = sorted(name for name in state if name.startswith(_STEMS) and state[name].ndim > 1)
    elif channels not in ("sum", "mean", "0"):
        raise UsageError(f"--channels {channels}: {source} has a single input channel")
    for name in reduced:
        state[name] = reduce_channels(state[name], channels)

    kwargs = {"in_channels": 1, "out_channels": 1, "feature_size": feature_size}
    architecture = {"name": "HippocampusSwinUNETR", "kwargs": kwargs}
    try:
        model = build_network(architecture)
    except ValueError as error:
        raise BadData(f"{source}: {_FIRST} has {feature_size} outputs: {error}") from error
    _fill(model, state, source)
    card = {
        "architecture": architecture,
        "labels": ["background"],
        "license": f"that of {source.name}",
        "imported": {
            "file": source.name,
            "sha256": sha256(source),
            "input channels": inputs,
            "output channels": outputs,
            "channels": channels if inputs > 1 else "as they are",
            "taken": len(state) - len(reduced),
            "reduced": reduced,
            "re-initialized": [f"{_HEAD}weight", f"{_HEAD}bias"],
            "recomputed": len(recomputed),
            "ignored": ignored,
        },
    }
    save_network(target, model, card)
    return card


def reduce_channels(weight: torch.Tensor, rule: str) -> torch.Tensor:
    """Make kernels of several input channels those of a single one.

    ``sum`` is what the network computes when every channel shows the same image. It keeps the
    responses about as large as they were in pre-training, since z-scored channels of one head are
    positively correlated, and it keeps all that the kernels have learnt of edges and textures.
    ``mean`` makes responses smaller by the number of channels: the convolutional encoder does not
    notice, as an instance norm follows, but in the patch embedding they are then too small beside
    its bias and the attention's residuals. The number of a channel keeps the kernels that have
    seen that contrast and leaves the others out, as if those images were zero everywhere.

    Parameters
    ----------
    weight : torch.Tensor
        Kernels, shape ``(outputs, channels, x, y, z)``.
    rule : str
        ``sum``, ``mean``, or the number of a channel, from 0.

    Returns
    -------
    torch.Tensor
        Shape ``(outputs, 1, x, y, z)``.

    Raises
    ------
    UsageError
        If there is no such rule or channel.

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
            f"--channels {rule}: give sum, mean or a number from 0 to {weight.shape[1] - 1}"
        )
    return weight[:, int(rule) : int(rule) + 1].clone()


def describe_import(card: dict[str, Any]) -> str:
    """Say in words what became of the tensors of an imported checkpoint.

    Parameters
    ----------
    card : dict
        From :func:`import_swin_unetr`.

    Returns
    -------
    str
        A line for each kind.
    """
    facts = card["imported"]
    lines = [
        f"taken as they are: {facts['taken']} tensors",
        f"reduced from {facts['input channels']} input channels to 1 ({facts['channels']}): "
        + (", ".join(facts["reduced"]) or "none"),
        f"re-initialized, for the classes of the adapter: {', '.join(facts['re-initialized'])} "
        f"(had {facts['output channels']} outputs)",
        f"computed anew: {facts['recomputed']} {_TABLES} tables",
        f"ignored: {', '.join(facts['ignored']) or 'none'}",
    ]
    return "\n".join(lines)


def _own_tensors(found: State, source: Path) -> tuple[State, list[str]]:
    """Take the network's tensors under MONAI's names; the names of all others come second."""
    anchors = [name for name in found if name.endswith(_FIRST)]
    if not anchors:
        raise BadData(f"{source}: has no {_FIRST}; it is not a SwinUNETR of MONAI")
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
            f"{source}: a SwinUNETR version 2 (use_v2=True): it has convolutions before each "
            f"stage ({version_2[0]}) for which our network has no place; only version 1 can be "
            "imported"
        )
    return state, sorted(ignored)


def _fill(model: nn.Module, state: State, source: Path) -> None:
    """Load everything but the head, which starts at zero; say what does not fit."""
    expected = {k: v for k, v in model.state_dict().items() if not k.startswith(_HEAD)}
    wrong = [
        f"{name} should have the shape {tuple(tensor.shape)}, "
        + (f"found {tuple(state[name].shape)}" if name in state else "but is missing")
        for name, tensor in expected.items()
        if name not in state or state[name].shape != tensor.shape
    ]
    wrong += [
        f"{name} of the shape {tuple(state[name].shape)} has no place"
        for name in sorted(state.keys() - expected.keys())
    ]
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise BadData(
            f"{source}: does not fit MONAI's 3-D SwinUNETR with its default depths, heads and "
            f"window: {'; '.join(wrong[:3])}{more}"
        )
    model.load_state_dict(state, strict=False)
    replace_head(model, [], {})


def _read(path: Path) -> State:
    if not path.is_file():
        raise MissingInput(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # torch's own hints tell the user to run code from the file: not shown
        with torch.serialization.safe_globals(_SCALARS), warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise BadData(
            f"{path}: not weights that can be read without running code from the file "
            f"({type(error).__name__}); save its state_dict alone with torch.save"
        ) from error
    for key in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise BadData(f"{path}: holds no state dict")
    return {k: v for k, v in content.items() if isinstance(v, torch.Tensor)}
