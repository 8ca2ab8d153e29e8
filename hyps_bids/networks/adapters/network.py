"""Adapters in a whole network: add, count, save, load, merge."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from hyps_bids.networks.adapters.config import LAYERS, AdapterConfig
from hyps_bids.networks.adapters.layers import ADAPTERS, AdapterLayer

__all__ = [
    "ParameterCounts",
    "adapter_state",
    "add_adapters",
    "load_adapter_state",
    "merge_adapters",
    "parameter_counts",
]


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters.

    `adapters` are those that the adapters add to the encoder, `trainable` includes norms, decoder
    and head, and `total` also the frozen parameters of the pre-trained network.
    """

    adapters: int
    trainable: int
    total: int


def add_adapters(model: nn.Module, config: AdapterConfig) -> None:
    """Adapt a SwinUNETR with pre-trained weights in place and freeze all that does not train.

    Raises
    ------
    ValueError
        If the network has no layer of a kind that is to be adapted.
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
    """Collect what distinguishes an adapted network from its base, by state-dict name.

    These are the trainable parameters and the adapters' own buffers, detached.
    """
    state = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    for name, module in _adapters(model):
        state |= {f"{name}.{key}": getattr(module, key) for key in module.saved_buffers}
    return state


def load_adapter_state(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Load what :func:`adapter_state` collected, strictly.

    Raises
    ------
    ValueError
        If a tensor is missing, unexpected or of another shape.
    """
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
        count = 0
        for name, module in model.named_modules():
            if kind == "convolutions":
                fits = isinstance(module, nn.Conv3d) and name.startswith(LAYERS[kind])
            else:
                fits = isinstance(module, nn.Linear) and name.endswith(LAYERS[kind])
            if fits:
                count += 1
                yield name, module
        if not count:
            raise ValueError(f"the network {type(model).__name__} has no {kind} layer to adapt")


def _adapters(model: nn.Module) -> Iterator[tuple[str, AdapterLayer]]:
    for name, module in model.named_modules():
        if isinstance(module, AdapterLayer):
            yield name, module
