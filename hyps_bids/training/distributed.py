"""Several processes train one network: torchrun starts them, each takes a share of every batch.

Gradients are summed with one plain all-reduce per step. Every process makes the whole batch from
the step's seed and keeps its own part, so that the result equals that of one process but for
rounding.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from hyps_bids.errors import UsageError

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """The processes that train together; a single one by default."""

    #: Number of this process, from 0; process 0 is the main process.
    rank: int = 0
    #: Number of processes.
    size: int = 1

    @property
    def is_main_process(self) -> bool:
        """Whether this is the only process that writes files and shows progress."""
        return self.rank == 0

    def share(self, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Cut this process's part out of inputs and targets that all processes made alike.

        Examples
        --------
        >>> x = torch.arange(5)
        >>> [Processes(rank, 2).share((x, x))[0].tolist() for rank in (0, 1)]
        [[0, 1, 2], [3, 4]]
        """
        if self.size == 1:
            return batch
        inputs, targets = batch
        if len(inputs) < self.size:
            raise UsageError(
                f"{self.size} processes cannot share a batch of {len(inputs)}; raise "
                "--batch-size, or start fewer processes",
                code="batch-too-small",
            )
        return inputs.tensor_split(self.size)[self.rank], targets.tensor_split(self.size)[self.rank]

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up the gradients of all processes, in place."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        parts = flat.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """Return the sum of a detached tensor over all processes."""
        total = value.detach().clone()
        if self.size > 1:
            dist.all_reduce(total)
        return total

    def from_first(self, value: T) -> T:
        """Return the value that process 0 has."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Let process 0 run a block before the others, so that they find its cached results."""
        if self.size > 1 and not self.is_main_process:
            dist.barrier()
        yield
        # After an error this is not reached, and the launcher ends the waiting processes.
        if self.size > 1 and self.is_main_process:
            dist.barrier()


@contextmanager
def join_processes(device: torch.device) -> Iterator[tuple[Processes, torch.device]]:
    """Join the other processes if torchrun started this one; yield them and the device to use.

    Without torchrun there is a single process, with the given device. Under torchrun each process
    of a node takes a GPU of its own.

    Raises
    ------
    UsageError
        If a node has fewer GPUs than processes.

    Examples
    --------
    >>> with join_processes(torch.device("cpu")) as (processes, device):
    ...     processes
    Processes(rank=0, size=1)
    """
    if not dist.is_torchelastic_launched():
        yield Processes(), device
        return
    if device.type == "cuda":
        local, available = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= available:
            raise UsageError(
                f"torchrun started {os.environ['LOCAL_WORLD_SIZE']} processes on a node with "
                f"{available} GPU(s); lower --nproc-per-node",
                code="too-few-gpus",
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    # The timeout is long because the other processes wait while process 0 validates.
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(hours=2))
    try:
        yield Processes(dist.get_rank(), dist.get_world_size()), device
    finally:
        dist.destroy_process_group()
