"""Load networks once per process, and run them on a batch, however much memory there is."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path

import torch
from torch import nn

from hyps_bids.networks.adapters import merge_adapters
from hyps_bids.networks.checkpoints import AdapterCard, NetworkCard, load_adapted, load_network
from hyps_bids.segmentation.devices import supports_bfloat16

_LOG = logging.getLogger("hyps_bids")


@cache
def cached_network(path: Path) -> tuple[nn.Module, NetworkCard]:
    """Load a network once per process, ready for inference on the CPU."""
    model, card = load_network(path)
    return model.requires_grad_(False), card


@cache
def cached_adapted(path: Path, base: Path) -> tuple[nn.Module, AdapterCard]:
    """Load an adapter on its base once per process, merged, ready for inference on the CPU."""
    model, card = load_adapted(path, base)
    merge_adapters(model)
    return model.requires_grad_(False), card


@torch.inference_mode()
def predict(
    model: nn.Module, batch: torch.Tensor, device: torch.device
) -> tuple[torch.Tensor, str]:
    """Compute the class probabilities of a batch.

    When the memory of a GPU is exhausted, the batch is halved, down to single volumes, and then
    computed on the CPU.

    Parameters
    ----------
    model : torch.nn.Module
        Network; moved to `device` and left there.
    batch : torch.Tensor
        Inputs, shape ``(n, 1, x, y, z)``.
    device : torch.device
        Where to compute.

    Returns
    -------
    probabilities : torch.Tensor
        float32 on the CPU, shape ``(n, classes, x, y, z)``, sum 1.
    used : str
        Where it was computed in the end.
    """
    size = len(batch) if device.type == "cuda" else 0
    while size:
        try:
            parts = [_forward(model, part, device) for part in torch.split(batch, size)]
            return torch.cat(parts), str(device)
        except torch.cuda.OutOfMemoryError:
            size //= 2
        # Only here is the memory free: in the handler, the traceback keeps the activations alive.
        torch.cuda.empty_cache()
        if not size:
            _LOG.warning("The memory of the GPU is exhausted; computing on the CPU.")
    return _forward(model, batch, torch.device("cpu")), "cpu"


def _forward(model: nn.Module, batch: torch.Tensor, device: torch.device) -> torch.Tensor:
    model.to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=supports_bfloat16(device)):
        logits: torch.Tensor = model(batch.to(device))
    return logits.float().softmax(dim=1).cpu()
