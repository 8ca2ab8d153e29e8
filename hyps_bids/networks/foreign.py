"""Bring SwinUNETR checkpoints from elsewhere, such as MONAI's BraTS21 model, into our format."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from hyps_bids.errors import BadData, MissingInput
from hyps_bids.networks.checkpoints import build_network, replace_head, save_network

__all__ = ["import_swin_unetr"]

_WRAPPERS = ("state_dict", "model", "net", "weights")
_FIRST = "encoder1.layer.conv1.conv.weight"


def import_swin_unetr(source: Path, target: Path) -> dict[str, Any]:
    """Convert a MONAI SwinUNETR checkpoint to a base network with one input channel.

    The kernels of several input channels are summed, which is what the network computes if all
    of them show the same image. The head is dropped: :func:`hyps_bids.training.adapt.adapt`
    gives the network a new one.

    Parameters
    ----------
    source : Path
        A PyTorch file (read without executing code) or a safetensors file.
    target : Path
        The safetensors file to write.

    Returns
    -------
    dict
        The card of the new file.

    Raises
    ------
    MissingInput
        If there is no such file.
    BadData
        If it cannot be read safely, or is not a SwinUNETR (version 1) of MONAI.
    """
    state = {name.removeprefix("module."): tensor.float() for name, tensor in _read(source).items()}
    if _FIRST not in state:
        raise BadData(f"{source}: has no {_FIRST}; it is not a SwinUNETR of MONAI")
    state = {k: v for k, v in state.items() if not k.endswith("relative_position_index")}
    feature_size, channels = state[_FIRST].shape[:2]
    if channels > 1:
        for name, tensor in state.items():
            if tensor.ndim == 5 and tensor.shape[1] == channels and _sees_image(name):
                state[name] = tensor.sum(dim=1, keepdim=True)
    outputs = state["out.conv.conv.weight"].shape[0]
    kwargs = {"in_channels": 1, "out_channels": outputs, "feature_size": feature_size}
    architecture = {"name": "HippocampusSwinUNETR", "kwargs": kwargs}
    model = build_network(architecture)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise BadData(f"{source}: does not fit MONAI's SwinUNETR: {error}") from error
    replace_head(model, [], {})
    architecture["kwargs"] = kwargs | {"out_channels": 1}
    card = {
        "architecture": architecture,
        "labels": ["background"],
        "license": f"that of {source.name}",
    }
    save_network(target, model, card)
    return card


def _sees_image(name: str) -> bool:
    return name.startswith(("encoder1.layer.conv1", "encoder1.layer.conv3", "swinViT.patch_embed"))


def _read(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise MissingInput(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise BadData(f"{path}: not weights that can be read safely ({error})") from error
    for key in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if isinstance(content, nn.Module) or not isinstance(content, dict):
        raise BadData(f"{path}: holds no state dict")
    return {k: v for k, v in content.items() if isinstance(v, torch.Tensor)}
