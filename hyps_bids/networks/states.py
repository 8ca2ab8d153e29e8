"""The weights of networks as NumPy arrays, with adapters merged: what graphs are built from.

The equations are those of :mod:`hyps_bids.networks.adapters.layers`; tests hold both to the same
outputs for every method.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors import safe_open

from hyps_bids.errors import BadData
from hyps_bids.networks.adapters.config import LAYERS, AdapterConfig
from hyps_bids.networks.cards import (
    AdapterCard,
    Architecture,
    NetworkCard,
    read_adapter_card,
    read_network_card,
)

#: Tensors by their names in PyTorch's modules.
State = dict[str, np.ndarray]

#: Tensors that each method adds to a layer.
_LOW_RANK = ("lora_A", "lora_B")
_PRINCIPAL = (*_LOW_RANK, "lora_A_init", "lora_B_init")
_SERIAL = ("down.weight", "down.bias", "up.weight", "up.bias")
_PARALLEL = tuple(name.replace(".", "_parallel.") for name in _SERIAL)
_PARTS = {
    "lora": _LOW_RANK,
    "dora": (*_LOW_RANK, "magnitude"),
    "pissa": _PRINCIPAL,
    "parallel": _PARALLEL,
    "serial": _SERIAL,
    "cps": (*_PARALLEL, *_SERIAL),
    "hyps": (*_PRINCIPAL, *_SERIAL),
}


def network_state(path: Path) -> tuple[State, NetworkCard]:
    """Read the weights of a network, float32, with its card.

    Raises
    ------
    MissingInput, UsageError, BadData
        If there is no such file, it cannot be read, or it holds an adapter.
    """
    card = read_network_card(path)
    return _tensors(path), card


def adapted_state(path: Path, base: Path) -> tuple[State, Architecture, AdapterCard]:
    """Read an adapter on its base, and merge what can be merged.

    Low-rank parts are added to the weights. Bottlenecks remain, as ``NAME.down``, ``NAME.up``
    (serial) and ``NAME.down_parallel``, ``NAME.up_parallel`` beside the layer ``NAME``; their scale
    is part of the weights of ``up``, and those of a convolution have a kernel.

    Returns
    -------
    state, architecture, card : dict, Architecture, AdapterCard
        Weights, float32; the base's architecture with the adapter's classes; the adapter's card.

    Raises
    ------
    MissingInput, UsageError, BadData
        If one of the files is not there, the adapter was trained on another base, one file is given
        as the other, or tensors do not fit.
    """
    card = read_adapter_card(path, base)
    state, base_card = network_state(base)
    adapter = _tensors(path)
    kwargs = base_card["architecture"]["kwargs"] | {"out_channels": len(card["labels"]) + 1}
    architecture: Architecture = {"name": base_card["architecture"]["name"], "kwargs": kwargs}
    try:
        config = AdapterConfig.from_card(card["adapter"])
        merged = _merge(state, adapter, config)
    except ValueError as error:
        raise BadData(f"{path}: {error}", code="adapter-misfit") from error
    return merged, architecture, card


def _merge(state: State, adapter: State, config: AdapterConfig) -> State:
    layers = list(_layers(state, config)) if config.method in _PARTS else []
    parts = {f"{layer}.{part}" for layer in layers for part in _PARTS[config.method]}
    replaced = {name for name in state if _trains(name, config)} - {
        f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")
    }
    if wrong := sorted((parts | replaced) ^ adapter.keys()):
        raise ValueError(
            f"the adapter does not fit the network: {len(wrong)} tensors, first {wrong[0]}"
        )
    merged = state | {name: adapter[name] for name in replaced}
    for layer in layers:
        added = {part: adapter[f"{layer}.{part}"] for part in _PARTS[config.method]}
        merged |= {f"{layer}.{k}": v for k, v in _merge_layer(state, layer, added, config).items()}
    return merged


def _layers(state: State, config: AdapterConfig) -> Iterator[str]:
    """Find the layers of the encoder that the settings name."""
    for kind in config.layers:
        dimensions = 5 if kind == "convolutions" else 2
        for name, tensor in state.items():
            layer, _, part = name.rpartition(".")
            matches = layer.startswith if kind == "convolutions" else layer.endswith
            if part == "weight" and tensor.ndim == dimensions and matches(LAYERS[kind]):
                yield layer


def _trains(name: str, config: AdapterConfig) -> bool:
    """Tell whether a tensor of the base trains along with the adapter."""
    if config.method == "full":
        return True
    bitfit = config.method == "bitfit"
    is_norm = name.rpartition(".")[0].endswith(("norm", "norm1", "norm2"))
    is_bias = bitfit and name.endswith(".bias")
    return is_bias or is_norm or name.startswith(("out",) if bitfit else config.trainable)


def _merge_layer(
    state: State, layer: str, added: Mapping[str, np.ndarray], config: AdapterConfig
) -> State:
    """Return the weight and the bottlenecks of one adapted layer."""
    weight = state[f"{layer}.weight"]
    kernel = weight.shape[2:]
    if "lora_A" in added:
        rank = len(added["lora_A"])
        factor = 1.0 if config.alpha is None or "lora_A_init" in added else config.alpha / rank
        update = (added["lora_B"] @ added["lora_A"]).reshape(weight.shape) * np.float32(factor)
        if "lora_A_init" in added:
            update -= (added["lora_B_init"] @ added["lora_A_init"]).reshape(weight.shape)
        weight = weight + update
    if "magnitude" in added:
        norm = np.linalg.norm(weight.reshape(len(weight), -1), axis=1)
        ratio = added["magnitude"] / np.maximum(norm, np.finfo(np.float32).tiny)
        weight = ratio.reshape(-1, *[1] * (weight.ndim - 1)) * weight
    merged = {"weight": weight}
    for name, tensor in added.items():
        if "." not in name:
            continue
        if name.startswith("up"):
            tensor = tensor * np.float32(config.scale)
        if kernel and name.endswith(".weight"):
            shape = kernel if name.startswith("down_parallel") else (1, 1, 1)
            tensor = tensor.reshape(len(tensor), -1, *shape)
        merged[name] = tensor
    return merged


def _tensors(path: Path) -> State:
    with safe_open(path, "np") as weights:
        return {name: weights.get_tensor(name).astype(np.float32) for name in weights.keys()}  # noqa: SIM118
