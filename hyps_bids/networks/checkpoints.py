"""Weights on disk: safetensors only, strict loading, bases named by their sha256.

The header of each file is a JSON *card* under the key ``hyps``: architecture, class names, the
grid the network expects and, for an adapter, its settings and its base.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import BasicUNet
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from hyps_bids.errors import BadData, CannotCreateOutput, MissingInput, UsageError
from hyps_bids.networks.adapters import (
    AdapterConfig,
    adapter_state,
    add_adapters,
    load_adapter_state,
)
from hyps_bids.networks.swin_unetr import HippocampusSwinUNETR
from hyps_bids.outputs.digests import sha256

__all__ = [
    "ADAPTER",
    "BASE",
    "GRID",
    "LOCALIZER",
    "build_network",
    "load_adapted",
    "load_network",
    "read_card",
    "replace_head",
    "save_adapter",
    "save_network",
    "shipped_weights",
]

#: shape of the box around a hippocampus that segmentation networks see, 1 mm voxels
GRID = (40, 56, 40)
#: shipped weights, by name
LOCALIZER = "localizer-synthetic"
BASE = "base-synthetic"
ADAPTER = "adapter-anteriorposterior"

_ARCHITECTURES: dict[str, type[nn.Module]] = {
    "BasicUNet": BasicUNet,
    "HippocampusSwinUNETR": HippocampusSwinUNETR,
}


def shipped_weights(name: str) -> Path:
    """Return the path of weights that come with the package."""
    return Path(str(files("hyps_bids") / "data" / "weights" / f"{name}.safetensors"))


def read_card(path: Path) -> dict[str, Any]:
    """Read the card in the header of a weights file.

    Raises
    ------
    MissingInput
        If there is no such file.
    BadData
        If it is not a safetensors file, or not one of ours.
    """
    if not path.is_file():
        raise MissingInput(f"{path}: no such weights file")
    try:
        with safe_open(path, "pt") as weights:
            metadata = weights.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise BadData(f"{path}: not a complete safetensors file ({error})") from error
    if "hyps" not in metadata:
        raise BadData(
            f"{path}: a safetensors file without a HyPS card; "
            "convert it with 'hyps-tools import-base'"
        )
    card = json.loads(metadata["hyps"])
    if not {"kind", "labels"} <= card.keys():
        raise BadData(f"{path}: its card is incomplete; it needs a kind and labels")
    return card


def build_network(architecture: dict[str, Any]) -> nn.Module:
    """Build an untrained network from the ``architecture`` of a card.

    Examples
    --------
    >>> kwargs = {"in_channels": 1, "out_channels": 3, "feature_size": 12}
    >>> network = build_network({"name": "HippocampusSwinUNETR", "kwargs": kwargs})
    """
    return _ARCHITECTURES[architecture["name"]](**architecture["kwargs"])


def save_network(
    path: Path, model: nn.Module, card: dict[str, Any], *, dtype: torch.dtype = torch.float32
) -> None:
    """Write all weights of a network with its card."""
    _save(path, model.state_dict(), card | {"kind": "network"}, dtype)


def load_network(path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Load a network in float32 on the CPU, in evaluation mode.

    Returns
    -------
    model : torch.nn.Module
        The network.
    card : dict
        Its card.
    """
    card = read_card(path)
    if card["kind"] != "network":
        raise UsageError(f"{path}: holds an adapter, not a whole network")
    model = build_network(card["architecture"])
    try:
        model.load_state_dict(_tensors(path))
    except RuntimeError as error:
        raise BadData(f"{path}: weights do not fit their architecture: {error}") from error
    return model.eval(), card


def save_adapter(
    path: Path,
    model: nn.Module,
    config: AdapterConfig,
    base: Path,
    card: dict[str, Any],
    *,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write the adapter of an adapted network: the trained tensors, not the base.

    Parameters
    ----------
    path : Path
        The file to write.
    model : torch.nn.Module
        The adapted network.
    config : AdapterConfig
        How it was adapted.
    base : Path
        Its base; recorded by name and sha256.
    card : dict
        At least ``labels`` (list of str) and ``grid``.
    dtype : torch.dtype
        Storage type of the tensors.
    """
    card = card | {
        "kind": "adapter",
        "adapter": asdict(config),
        "base": {"name": base.stem, "sha256": sha256(base)},
    }
    _save(path, adapter_state(model), card, dtype)


def load_adapted(path: Path, base: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Load an adapter onto its base, unmerged, float32, CPU, evaluation mode.

    Raises
    ------
    MissingInput
        If one of the files is not there.
    UsageError
        If the adapter was trained on another base, or one file is given as the other.
    BadData
        If its tensors do not fit.
    """
    card = read_card(path)
    if card["kind"] != "adapter":
        raise UsageError(f"{path}: holds a whole network, not an adapter")
    if read_card(base)["kind"] != "network":
        raise UsageError(f"{base}: holds an adapter, not the whole network that a base is")
    if card["base"]["sha256"] != sha256(base):
        raise UsageError(
            f"{path}: was trained on base {card['base']['name']} (sha256 "
            f"{card['base']['sha256'][:12]}…), not on {base.name} ({sha256(base)[:12]}…); "
            "give its own base with --base-model"
        )
    model, base_card = load_network(base)
    replace_head(model, base_card["labels"], {name: [] for name in card["labels"]})
    try:
        add_adapters(model, AdapterConfig.from_card(card["adapter"]))
        load_adapter_state(model, _tensors(path))
    except ValueError as error:
        raise BadData(f"{path}: {error}") from error
    return model.eval(), card


def replace_head(model: nn.Module, base_labels: list[str], labels: dict[str, list[str]]) -> None:
    """Give a SwinUNETR a new output head.

    Parameters
    ----------
    model : torch.nn.Module
        SwinUNETR with ``len(base_labels)`` outputs; changed in place.
    base_labels : list of str
        What the base's outputs mean, background first.
    labels : dict of str to list of str
        New output → base outputs whose mean it starts from. Without any it starts at zero.
        The background is added as output 0 and starts from the mean of all that are left over.
    """
    block = model.get_submodule("out.conv")
    old = block.get_submodule("conv")
    assert isinstance(old, nn.Conv3d)
    assert old.bias is not None
    used = {name for sources in labels.values() for name in sources}
    rows = [[name for name in base_labels if name not in used], *labels.values()]
    weight = torch.zeros(len(rows), *old.weight.shape[1:])
    bias = torch.zeros(len(rows))
    for i, names in enumerate(rows):
        chosen = [base_labels.index(name) for name in names]
        if chosen:
            weight[i] = old.weight.detach()[chosen].mean(0)
            bias[i] = old.bias.detach()[chosen].mean()
    new = nn.Conv3d(old.in_channels, len(rows), kernel_size=1)
    new.load_state_dict({"weight": weight, "bias": bias})
    block.conv = new


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, "pt") as weights:
        return {name: weights.get_tensor(name).float() for name in weights.keys()}  # noqa: SIM118


def _save(
    path: Path, state: dict[str, torch.Tensor], card: dict[str, Any], dtype: torch.dtype
) -> None:
    tensors = {name: t.detach().to("cpu", dtype).contiguous() for name, t in state.items()}
    partial = path.with_suffix(".partial")
    try:
        save_file(tensors, partial, metadata={"hyps": json.dumps(card, sort_keys=True)})
        partial.replace(path)
    # safetensors words a full disk in its own error
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise CannotCreateOutput(
            f"{path}: the weights cannot be written ({error}); what was there before is kept"
        ) from error
