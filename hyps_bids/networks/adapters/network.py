"""Adapters in a whole network: add, count, save, load, merge."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from hyps_bids.networks.adapters.config import LAYERS, AdapterConfig
from hyps_bids.networks.adapters.layers import ADAPTERS, AdapterLayer


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters: in the adapters, of all that trains, and with the frozen ones."""

    adapters: int
    trainable: int
    total: int


def add_adapters(model: nn.Module, config: AdapterConfig) -> None:
    """Adapt a SwinUNETR with pre-trained weights in place and freeze all that does not train.

    A ValueError says that the network has no layer of a kind that is to be adapted.
    """
    found = dict(_layers(model, config)) if config.method in ADAPTERS else {}
    bitfit = config.method == "bitfit"
    trainable = ("out",) if bitfit else config.trainable
    model.requires_grad_(config.method == "full")
    for name, module in model.named_modules():
        bias = getattr(module, "bias", None)
        if bitfit and isinstance(bias, nn.Parameter):
            bias.requires_grad_(True)
        if isinstance(module, nn.LayerNorm) or name.startswith(trainable):
            module.requires_grad_(True)
    for name, layer in found.items():
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, ADAPTERS[config.method](layer, config))


def adapter_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Collect the trained parameters and the adapters' own buffers, by state-dict name."""
    state = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    for name, module in _adapters(model):
        state |= {f"{name}.{key}": getattr(module, key) for key in module.saved_buffers}
    return state


def load_adapter_state(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Load what :func:`adapter_state` collected; a ValueError names what does not fit."""
    own = adapter_state(model)
    wrong = sorted(own.keys() ^ state.keys()) or sorted(
        name for name in own if own[name].shape != state[name].shape
    )
    if wrong:
        raise ValueError(
            f"the adapter does not fit the network: {len(wrong)} tensors, first {wrong[0]}"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])
    for _, module in _adapters(model):
        module.rebase()


def merge_adapters(model: nn.Module) -> None:
    """Merge every adapter of `model` in place, for inference."""
    for _, module in _adapters(model):
        module.merge()


def parameter_counts(model: nn.Module) -> ParameterCounts:
    """Count the parameters of an adapted network."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    added = 0
    for _, module in _adapters(model):
        added += sum(p.numel() for p in module.parameters())
        # The weight and the bias of the base have become buffers, which parameters() leaves out.
        total += module.weight.numel() + (0 if module.bias is None else module.bias.numel())
    return ParameterCounts(added, trainable, total)


def _layers(model: nn.Module, config: AdapterConfig) -> Iterator[tuple[str, nn.Linear | nn.Conv3d]]:
    """Find the layers of the encoder that the settings name."""
    for kind in config.layers:
        found = [pair for pair in model.named_modules() if _is_of_kind(kind, *pair)]
        if not found:
            raise ValueError(f"the network {type(model).__name__} has no {kind} layer to adapt")
        yield from found


def _is_of_kind(kind: str, name: str, module: nn.Module) -> bool:
    if kind == "convolutions":
        return isinstance(module, nn.Conv3d) and name.startswith(LAYERS[kind])
    return isinstance(module, nn.Linear) and name.endswith(LAYERS[kind])


def _adapters(model: nn.Module) -> Iterator[tuple[str, AdapterLayer]]:
    for name, module in model.named_modules():
        if isinstance(module, AdapterLayer):
            yield name, module
