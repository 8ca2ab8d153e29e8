"""Networks that PyTorch computes: on a GPU, or on a CPU that OpenVINO does not suit."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hyps_bids.networks.checkpoints import load_merged, load_network
from hyps_bids.segmentation.devices import (
    avoid_threads_of_parent,
    prepare_process,
    supports_bfloat16,
)

_LOG = logging.getLogger("hyps_bids")
_MEMORY = "The memory of the GPU is exhausted"


class TorchNetwork:
    """A network of PyTorch, frozen, in evaluation mode.

    Parameters
    ----------
    model : torch.nn.Module
        From volumes, shape ``(n, 1, x, y, z)``, to logits.
    labels : sequence of str
        Names of the classes.
    device : str
        Where to compute: ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
    """

    def __init__(self, model: nn.Module, labels: list[str], device: str) -> None:
        self.labels = tuple(labels)
        self._model, self._device = model.requires_grad_(False), torch.device(device)
        # The number of threads may have been set before PyTorch was imported.
        prepare_process()

    @classmethod
    def of_network(cls, path: Path, device: str) -> TorchNetwork:
        """Load a whole network."""
        model, card = load_network(path)
        return cls(model, card["labels"], device)

    @classmethod
    def of_adapter(cls, adapter: Path, base: Path, device: str) -> TorchNetwork:
        """Load an adapter on its base, merged."""
        model, card = load_merged(adapter, base)
        return cls(model, card["labels"], device)

    @torch.inference_mode()
    def predict(self, batch: np.ndarray) -> tuple[np.ndarray, str]:
        """Compute class probabilities; see :class:`.inference.Network`.

        When the memory of a GPU is exhausted, the batch is halved, down to single volumes, and then
        computed on the CPU. So is everything once a GPU of Apple lacks one of the operations.
        """
        volumes = torch.from_numpy(batch)
        size = 0 if self._device.type == "cpu" else len(volumes)
        while size:
            try:
                parts = [self._forward(part, self._device) for part in torch.split(volumes, size)]
                return torch.cat(parts).numpy(), str(self._device)
            except RuntimeError as error:
                problem = self._problem(error)
                size = size // 2 if problem == _MEMORY else 0
            # Only here is the memory free: in the handler, the traceback keeps activations alive.
            (torch.mps if self._device.type == "mps" else torch.cuda).empty_cache()
            if not size:
                _LOG.warning("%s; computing on the CPU.", problem)
        return self._forward(volumes, torch.device("cpu")).numpy(), "cpu (PyTorch)"

    def _problem(self, error: RuntimeError) -> str:
        """Say what the GPU lacks; other errors are raised again."""
        if isinstance(error, torch.cuda.OutOfMemoryError):
            return _MEMORY
        if self._device.type != "mps":
            raise error
        if "out of memory" in str(error):
            return _MEMORY
        # It would fail again for each batch.
        self._device = torch.device("cpu")
        return f"This GPU cannot compute the network ({str(error).splitlines()[0]})"

    def _forward(self, batch: torch.Tensor, device: torch.device) -> torch.Tensor:
        self._model.to(device)
        if device.type == "cpu":
            avoid_threads_of_parent()
        with torch.autocast(device.type, torch.bfloat16, enabled=supports_bfloat16(device)):
            logits: torch.Tensor = self._model(batch.to(device))
        return logits.float().softmax(dim=1).cpu()
