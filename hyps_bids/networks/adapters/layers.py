"""The equations: one class per method, each in place of a linear or convolutional layer.

``W`` is the layer's frozen weight as a matrix (m outputs, n inputs; a convolution's kernel counts
as inputs), ``b`` its bias, ``r`` the rank, ``d`` the bottleneck, ``s`` the scale. Every adapter
starts as exactly the pre-trained layer.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from hyps_bids.networks.adapters.config import AdapterConfig

__all__ = [
    "ADAPTERS",
    "AdapterLayer",
    "CpsLayer",
    "DoraLayer",
    "HypsLayer",
    "LoraLayer",
    "ParallelLayer",
    "PissaLayer",
    "SerialLayer",
]


class AdapterLayer(nn.Module, ABC):
    """A layer with an adapter; the common interface of all methods.

    What is frozen is held in buffers, what trains in parameters. `frozen` is the weight that a
    forward pass uses: the base's, or what the adapter leaves of it.

    Parameters
    ----------
    layer : torch.nn.Linear or torch.nn.Conv3d
        The pre-trained layer.
    config : AdapterConfig
        The settings.
    """

    #: buffers that belong to the adapter, not to the base, and so are saved with it
    saved_buffers: ClassVar[tuple[str, ...]] = ()
    weight: torch.Tensor
    frozen: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, layer: nn.Linear | nn.Conv3d, config: AdapterConfig) -> None:
        super().__init__()
        weight = layer.weight.detach()
        self.conv: dict[str, Any] | None = (
            {"stride": layer.stride, "padding": layer.padding}
            if isinstance(layer, nn.Conv3d)
            else None
        )
        self.rank = min(config.rank, *weight.flatten(1).shape)
        self.scale = config.scale
        self.dropout = nn.Dropout(config.dropout)
        self.merged = False
        self.register_buffer("weight", weight.clone(), persistent=False)
        self.register_buffer("frozen", weight.clone(), persistent=False)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())

    @abstractmethod
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the adapted layer: ``(..., n)`` to ``(..., m)``, or volumes to volumes."""

    def rebase(self) -> None:
        """Recompute what is frozen after `saved_buffers` were loaded; undo a merge."""
        self.frozen = self.weight.clone()
        self.merged = False

    def merge(self) -> None:
        """Fold the mergeable part into `frozen`: same outputs, fewer operations."""
        update = self.merged_update()
        if update is not None and not self.merged:
            self.frozen = self.frozen + update.detach()
            self.merged = True

    def merged_update(self) -> torch.Tensor | None:
        """Return what merging adds to `frozen`, of its shape; None if nothing can be merged."""
        return None

    def base(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the frozen weight and the bias."""
        return self.apply_weight(x, self.frozen, self.bias)

    def apply_weight(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Apply a weight of the layer's kind: its kernel, stride and padding."""
        if self.conv is None:
            return F.linear(x, weight, bias)
        return F.conv3d(x, weight, bias, **self.conv)

    def mix(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Apply a matrix to the channels of the layer's outputs."""
        if self.conv is None:
            return F.linear(x, weight, bias)
        return F.conv3d(x, weight[:, :, None, None, None], bias)

    def shaped(self, matrix: torch.Tensor) -> torch.Tensor:
        """Give a matrix of n columns the shape of the layer's weights."""
        return matrix.reshape(-1, *self.weight.shape[1:])


class _LowRank(AdapterLayer):
    """Adds ``B A`` to the frozen weight, through the narrow middle."""

    def _add_factors(self, a: torch.Tensor, b: torch.Tensor, factor: float = 1.0) -> None:
        self.lora_A = nn.Parameter(a)
        self.lora_B = nn.Parameter(b)
        self.factor = factor

    def _random_factors(self, config: AdapterConfig) -> None:
        """Start as LoRA does: A random, B zero, counted α/r times."""
        m, n = self.weight.flatten(1).shape
        a, b = self.weight.new_empty(self.rank, n), self.weight.new_zeros(m, self.rank)
        nn.init.kaiming_uniform_(a, a=math.sqrt(5))
        self._add_factors(a, b, 1.0 if config.alpha is None else config.alpha / self.rank)

    def low_rank(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``(α/r) B A x``."""
        narrow = self.apply_weight(self.dropout(x), self.shaped(self.lora_A))
        return self.mix(narrow, self.lora_B) * self.factor

    def merged_update(self) -> torch.Tensor:
        """Return ``(α/r) B A``."""
        return self.shaped(self.lora_B @ self.lora_A) * self.factor

    def parallel_part(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the frozen weight, the bias and, unless merged, the low-rank part."""
        h = self.base(x)
        return h if self.merged else h + self.low_rank(x)


class _Principal(_LowRank):
    """The principal part of ``W`` trains, the residual is frozen.

    The residual follows from the base's ``W`` and the saved initial factors, without a second
    SVD, and hence alike on every machine.
    """

    saved_buffers: ClassVar[tuple[str, ...]] = ("lora_A_init", "lora_B_init")
    lora_A_init: torch.Tensor
    lora_B_init: torch.Tensor

    def __init__(self, layer: nn.Linear | nn.Conv3d, config: AdapterConfig) -> None:
        super().__init__(layer, config)
        # on CPU in double precision: the same start whatever the device
        matrix = self.weight.flatten(1).cpu().double()
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        root = s[: self.rank].sqrt()
        b = (u[:, : self.rank] * root).to(self.weight)
        a = (root[:, None] * vh[: self.rank]).to(self.weight)
        self.register_buffer("lora_A_init", a.clone())
        self.register_buffer("lora_B_init", b.clone())
        self._add_factors(a, b)
        self.rebase()

    def rebase(self) -> None:
        """Set the residual to the base's weight less the saved initial factors."""
        super().rebase()
        self.frozen = self.weight - self.shaped(self.lora_B_init @ self.lora_A_init)


class _Bottlenecks(AdapterLayer):
    """Adds bottlenecks ``s Up(ReLU(Down(·)))``, `Up` zero at the start."""

    def _bottleneck(self, inputs: int, width: int) -> tuple[nn.Linear, nn.Linear]:
        down, up = nn.Linear(inputs, width), nn.Linear(width, len(self.weight))
        nn.init.zeros_(up.weight)
        nn.init.zeros_(up.bias)
        return down.to(self.weight), up.to(self.weight)

    def _add_serial(self, config: AdapterConfig) -> None:
        self.down, self.up = self._bottleneck(len(self.weight), config.bottleneck)

    def serial(self, h: torch.Tensor) -> torch.Tensor:
        """Return ``s Up(ReLU(Down(h)))`` of the layer's outputs."""
        narrow = F.relu(self.mix(self.dropout(h), self.down.weight, self.down.bias))
        return self.scale * self.mix(narrow, self.up.weight, self.up.bias)


class _Beside(_Bottlenecks):
    """A bottleneck beside the layer; in a convolution, `Down` has the layer's own kernel."""

    def _add_parallel(self, config: AdapterConfig) -> None:
        inputs = self.weight.flatten(1).shape[1]
        self.down_parallel, self.up_parallel = self._bottleneck(inputs, config.bottleneck)

    def parallel(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``s Up(ReLU(Down(x)))`` of the layer's inputs."""
        weight = self.shaped(self.down_parallel.weight)
        narrow = F.relu(self.apply_weight(self.dropout(x), weight, self.down_parallel.bias))
        return self.scale * self.mix(narrow, self.up_parallel.weight, self.up_parallel.bias)


class LoraLayer(_LowRank):
    r"""LoRA: ``W x + (α/r) B A x + b``, A random, B zero.

    References
    ----------
    Hu et al. 2022, arXiv:2106.09685.
    """

    def __init__(self, layer: nn.Linear | nn.Conv3d, config: AdapterConfig) -> None:
        super().__init__(layer, config)
        self._random_factors(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the adapted layer."""
        return self.parallel_part(x)


class DoraLayer(_LowRank):
    r"""DoRA: ``magnitude · V / |V|``, ``V = W + (α/r) B A``, norms by row.

    The norm counts as a constant in the gradient, as the paper proposes (section 4.3).

    References
    ----------
    Liu et al. 2024, arXiv:2402.09353.
    """

    def __init__(self, layer: nn.Linear | nn.Conv3d, config: AdapterConfig) -> None:
        super().__init__(layer, config)
        self._random_factors(config)
        self.magnitude = nn.Parameter(self.weight.flatten(1).norm(dim=1))

    def _ratio(self) -> torch.Tensor:
        direction = self.weight + self.merged_low_rank()
        norm = direction.flatten(1).norm(dim=1).clamp(min=torch.finfo(direction.dtype).tiny)
        return self.magnitude / norm.detach()

    def merged_low_rank(self) -> torch.Tensor:
        """Return ``(α/r) B A``."""
        return super().merged_update()

    def merged_update(self) -> torch.Tensor:
        """Return the adapted weight less the base's."""
        ratio = self._ratio().view(-1, *[1] * (self.weight.ndim - 1))
        return ratio * (self.weight + self.merged_low_rank()) - self.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the adapted layer."""
        if self.merged:
            return self.base(x)
        ratio = self._ratio()
        bias = self.bias
        if self.conv is not None:
            ratio = ratio[:, None, None, None]
            bias = None if bias is None else bias[:, None, None, None]
        out = ratio * (self.apply_weight(x, self.frozen) + self.low_rank(x))
        return out if bias is None else out + bias


class PissaLayer(_Principal):
    """PiSSA: ``R x + B A x + b``; ``B A`` starts as the principal part of ``W``, R is frozen.

    References
    ----------
    Meng et al. 2024, arXiv:2404.02948.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the adapted layer."""
        return self.parallel_part(x)


class ParallelLayer(_Beside):
    """Parallel adapter: ``h + s Up(ReLU(Down(x)))``, ``h = W x + b``.

    References
    ----------
    He et al. 2022, arXiv:2110.04366.
    """

    def __init__(self, layer: nn.Linear | nn.Conv3d, config: AdapterConfig) -> None:
        super().__init__(layer, config)
        self._add_parallel(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the adapted layer."""
        return self.base(x) + self.parallel(x)


class SerialLayer(_Bottlenecks):
    """Serial adapter: ``h + s Up(ReLU(Down(h)))``, ``h = W x + b``.

    References
    ----------
    Houlsby et al. 2019, arXiv:1902.00751.
    """

    def __init__(self, layer: nn.Linear | nn.Conv3d, config: AdapterConfig) -> None:
        super().__init__(layer, config)
        self._add_serial(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the adapted layer."""
        h = self.base(x)
        return h + self.serial(h)


class CpsLayer(_Beside):
    """Parallel and serial bottlenecks side by side on a frozen ``W``: ``h + P(x) + S(h)``."""

    def __init__(self, layer: nn.Linear | nn.Conv3d, config: AdapterConfig) -> None:
        super().__init__(layer, config)
        self._add_parallel(config)
        self._add_serial(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the adapted layer."""
        h = self.base(x)
        return h + self.parallel(x) + self.serial(h)


class HypsLayer(_Principal, _Bottlenecks):
    r"""Hybrid parallel-serial adapter: ``y = h + s Up(ReLU(Down(h)))``, ``h = R x + B A x + b``.

    ``B A`` starts as the rank-r principal part of ``W`` and trains; the residual ``R`` is frozen.

    References
    ----------
    arXiv:2409.00884, section 3.2.

    Examples
    --------
    >>> linear = nn.Linear(12, 5)
    >>> x = torch.randn(3, 12)
    >>> adapted = HypsLayer(linear, AdapterConfig(rank=2, bottleneck=2))
    >>> torch.allclose(adapted(x), linear(x), atol=1e-6)
    True
    """

    def __init__(self, layer: nn.Linear | nn.Conv3d, config: AdapterConfig) -> None:
        super().__init__(layer, config)
        self._add_serial(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the adapted layer."""
        h = self.parallel_part(x)
        return h + self.serial(h)


#: method that replaces layers → class
ADAPTERS: dict[str, type[AdapterLayer]] = {
    "lora": LoraLayer,
    "dora": DoraLayer,
    "pissa": PissaLayer,
    "parallel": ParallelLayer,
    "serial": SerialLayer,
    "cps": CpsLayer,
    "hyps": HypsLayer,
}
