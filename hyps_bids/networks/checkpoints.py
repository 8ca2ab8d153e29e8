"""Networks of PyTorch from files of weights: safetensors only, loaded strictly, with a card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import BasicUNet
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from hyps_bids.errors import BadData
from hyps_bids.networks.adapters.config import AdapterConfig
from hyps_bids.networks.adapters.network import (
    adapter_state,
    add_adapters,
    load_adapter_state,
    merge_adapters,
)
from hyps_bids.networks.cards import (
    AdapterCard,
    Architecture,
    NetworkCard,
    read_adapter_card,
    read_network_card,
)
from hyps_bids.networks.swin_unetr import HippocampusSwinUNETR
from hyps_bids.outputs.digests import sha256
from hyps_bids.outputs.writing import write_with

_ARCHITECTURES: dict[str, type[nn.Module]] = {
    architecture.__name__: architecture for architecture in (BasicUNet, HippocampusSwinUNETR)
}


def build_network(architecture: Architecture) -> nn.Module:
    """Build an untrained network from the ``architecture`` of a card.

    Examples
    --------
    >>> kwargs = {"in_channels": 1, "out_channels": 3, "feature_size": 12}
    >>> network = build_network({"name": "HippocampusSwinUNETR", "kwargs": kwargs})
    """
    return _ARCHITECTURES[architecture["name"]](**architecture["kwargs"])


def save_network(
    path: Path, model: nn.Module, card: Mapping[str, Any], *, dtype: torch.dtype = torch.float32
) -> None:
    """Write all weights of a network with its card, a :class:`NetworkCard` but for the kind."""
    _save(path, model.state_dict(), {**card, "kind": "network"}, dtype)


def load_network(path: Path) -> tuple[nn.Module, NetworkCard]:
    """Load a network in float32 on the CPU, in evaluation mode, with its card.

    Raises
    ------
    MissingInput, UsageError, BadData
        If there is no such file, it holds an adapter, or its tensors do not fit its architecture.
    """
    card = read_network_card(path)
    model = build_network(card["architecture"])
    try:
        model.load_state_dict(_tensors(path))
    except RuntimeError as error:
        raise BadData(
            f"{path}: the weights do not fit their architecture: {error}", code="weights-misfit"
        ) from error
    return model.eval(), card


def save_adapter(
    path: Path,
    model: nn.Module,
    config: AdapterConfig,
    base: Path,
    card: Mapping[str, Any],
    *,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write the adapter of an adapted network: the trained tensors, not the base.

    The base is recorded by name and sha256; `card` has at least ``labels``, see :class:`Card`.
    """
    record = {"name": base.stem, "sha256": sha256(base)}
    complete = {**card, "kind": "adapter", "adapter": asdict(config), "base": record}
    _save(path, adapter_state(model), complete, dtype)


def load_adapted(path: Path, base: Path) -> tuple[nn.Module, AdapterCard]:
    """Load an adapter onto its base, unmerged, float32, CPU, evaluation mode, with its card.

    Raises
    ------
    MissingInput, UsageError, BadData
        If one of the files is not there, the adapter was trained on another base, one file is given
        as the other, or tensors do not fit.
    """
    card = read_adapter_card(path, base)
    model, base_card = load_network(base)
    replace_head(model, base_card["labels"], {name: [] for name in card["labels"]})
    try:
        add_adapters(model, AdapterConfig.from_card(card["adapter"]))
        load_adapter_state(model, _tensors(path))
    except ValueError as error:
        raise BadData(f"{path}: {error}", code="adapter-misfit") from error
    return model.eval(), card


def load_merged(path: Path, base: Path) -> tuple[nn.Module, AdapterCard]:
    """Load an adapter as :func:`load_adapted` does, merged and frozen for inference."""
    model, card = load_adapted(path, base)
    merge_adapters(model)
    return model.requires_grad_(False), card


def replace_head(model: nn.Module, base_labels: list[str], labels: dict[str, list[str]]) -> None:
    """Give a SwinUNETR a new output head, in place.

    `base_labels` names its present outputs, background first. `labels` maps each new output to the
    base outputs from whose mean it starts; an output without any starts at zero. The background is
    added as output 0 and starts from the mean of all remaining ones.
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
    new = type(old)(old.in_channels, len(rows), kernel_size=1)
    new.load_state_dict({"weight": weight, "bias": bias})
    block.conv = new


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, "pt") as weights:
        return {name: weights.get_tensor(name).float() for name in weights.keys()}  # noqa: SIM118


def _save(
    path: Path, state: dict[str, torch.Tensor], card: Mapping[str, Any], dtype: torch.dtype
) -> None:
    tensors = {name: t.detach().to("cpu", dtype).contiguous() for name, t in state.items()}
    metadata = {"hyps": json.dumps(card, sort_keys=True)}
    write_with(
        path,
        lambda partial: save_file(tensors, partial, metadata=metadata),
        # Safetensors reports a full disk with an error of its own.
        failures=(SafetensorError,),
        hint="weights that were there before are kept",
    )
