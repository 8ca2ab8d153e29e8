r"""The equations of the adapters: one class per method, each replacing a linear or Conv3d layer.

All methods but DoRA choose among the parts of one equation pair::

    h = F x + b + (α/r) B A x                                    low-rank part
    y = h + s Up_p(ReLU(Down_p(x))) + s Up(ReLU(Down(h)))        parallel and serial bottleneck

``W`` is the weight of the pre-trained layer as a matrix (m outputs, n inputs; the kernel of a
convolution counts as inputs), ``b`` its bias, ``F`` the frozen weight, ``A`` (r × n) and ``B``
(m × r) the low-rank factors, ``Down`` and ``Up`` linear maps to a width d and back, and ``s`` a
scale. ``F = W``, except that the principal part of ``W`` is moved to ``B A`` in PiSSA and HyPS.

The classes below name the start of ``A`` and ``B`` and the bottlenecks of each method.
Every adapter starts as exactly the pre-trained layer.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import nn

from hyps_bids.networks.adapters.config import AdapterConfig


class AdapterLayer(nn.Module):
    """A pre-trained linear layer or convolution with the parts that a method adds to it.

    Frozen tensors are buffers (`weight` is ``W``, `frozen` is ``F``), trained ones parameters.
    """

    #: How the low-rank factors start; None if the method has no low-rank part.
    low_rank_start: ClassVar[Literal["random", "principal"] | None] = None
    has_parallel: ClassVar[bool] = False
    has_serial: ClassVar[bool] = False

    weight: torch.Tensor
    frozen: torch.Tensor
    bias: torch.Tensor | None
    lora_A_init: torch.Tensor
    lora_B_init: torch.Tensor

    def __init__(self, layer: nn.Linear | nn.Conv3d, config: AdapterConfig) -> None:
        super().__init__()
        weight = layer.weight.detach()
        self.conv: dict[str, Any] | None = (
            {"stride": layer.stride, "padding": layer.padding}
            if isinstance(layer, nn.Conv3d)
            else None
        )
        m, n = weight.flatten(1).shape
        self.rank = min(config.rank, m, n)
        self.scale = config.scale
        self.factor = 1.0
        self.dropout = nn.Dropout(config.dropout)
        self.register_buffer("weight", weight.clone(), persistent=False)
        self.register_buffer("frozen", weight.clone(), persistent=False)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())
        if self.low_rank_start == "random":
            self._start_random(config.alpha)
        elif self.low_rank_start == "principal":
            self._start_principal()
        if self.has_parallel:
            self.down_parallel, self.up_parallel = self._bottleneck(n, config.bottleneck)
        if self.has_serial:
            self.down, self.up = self._bottleneck(m, config.bottleneck)
        self.rebase()

    @property
    def saved_buffers(self) -> tuple[str, ...]:
        """Buffers that belong to the adapter, not to the base, and so are saved with it."""
        return ("lora_A_init", "lora_B_init") if self.low_rank_start == "principal" else ()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the adapted layer: ``(..., n)`` to ``(..., m)``, or volumes to volumes."""
        h = self.apply_weight(x, self.frozen, self.bias)
        if self.low_rank_start and not self.merged:
            h = h + self.low_rank(x)
        y = h
        if self.has_parallel:
            y = y + self.parallel(x)
        if self.has_serial:
            y = y + self.serial(h)
        return y

    def low_rank(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``(α/r) B A x``."""
        narrow = self.apply_weight(self.dropout(x), self.shaped(self.lora_A))
        return self.mix(narrow, self.lora_B) * self.factor

    def parallel(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``s Up_p(ReLU(Down_p(x)))``; in a convolution `Down_p` has the layer's kernel."""
        down = self.shaped(self.down_parallel.weight)
        narrow = F.relu(self.apply_weight(self.dropout(x), down, self.down_parallel.bias))
        return self.scale * self.mix(narrow, self.up_parallel.weight, self.up_parallel.bias)

    def serial(self, h: torch.Tensor) -> torch.Tensor:
        """Return ``s Up(ReLU(Down(h)))``."""
        narrow = F.relu(self.mix(self.dropout(h), self.down.weight, self.down.bias))
        return self.scale * self.mix(narrow, self.up.weight, self.up.bias)

    def rebase(self) -> None:
        """Recompute `frozen`, after `saved_buffers` were loaded or to undo a merge.

        For a principal start the residual follows from ``W`` and the saved initial factors, not
        from a second SVD, so that it is the same on every machine.
        """
        self.frozen = self.weight.clone()
        if self.low_rank_start == "principal":
            self.frozen = self.weight - self.shaped(self.lora_B_init @ self.lora_A_init)
        self.merged = False

    def merge(self) -> None:
        """Add the low-rank part to `frozen`: same outputs, fewer operations."""
        update = self.merged_update()
        if update is not None and not self.merged:
            self.frozen = self.frozen + update.detach()
            self.merged = True

    def merged_update(self) -> torch.Tensor | None:
        """Return what merging adds to `frozen`; None if the method has no low-rank part."""
        return self.low_rank_product() if self.low_rank_start else None

    def low_rank_product(self) -> torch.Tensor:
        """Return ``(α/r) B A`` in the shape of the layer's weight."""
        return self.shaped(self.lora_B @ self.lora_A) * self.factor

    def apply_weight(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Apply a weight of the layer's kind, with its kernel, stride and padding."""
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
        """Give a matrix of n columns the shape of the layer's weight."""
        return matrix.reshape(-1, *self.weight.shape[1:])

    def _start_random(self, alpha: float | None) -> None:
        m, n = self.weight.flatten(1).shape
        a, b = self.weight.new_empty(self.rank, n), self.weight.new_zeros(m, self.rank)
        nn.init.kaiming_uniform_(a, a=math.sqrt(5))
        self.lora_A, self.lora_B = nn.Parameter(a), nn.Parameter(b)
        if alpha is not None:
            self.factor = alpha / self.rank

    def _start_principal(self) -> None:
        """Start with ``B = U S^½`` and ``A = S^½ Vᵀ``, of the r largest singular values of W."""
        # The SVD runs on the CPU in double precision: the same start whatever the device.
        u, s, vh = torch.linalg.svd(self.weight.flatten(1).cpu().double(), full_matrices=False)
        root = s[: self.rank].sqrt()
        b = (u[:, : self.rank] * root).to(self.weight)
        a = (root[:, None] * vh[: self.rank]).to(self.weight)
        self.register_buffer("lora_A_init", a.clone())
        self.register_buffer("lora_B_init", b.clone())
        self.lora_A, self.lora_B = nn.Parameter(a), nn.Parameter(b)

    def _bottleneck(self, inputs: int, width: int) -> tuple[nn.Linear, nn.Linear]:
        """Make `Down`, random, and `Up`, zero."""
        down, up = nn.Linear(inputs, width), nn.Linear(width, len(self.weight))
        nn.init.zeros_(up.weight)
        nn.init.zeros_(up.bias)
        return down.to(self.weight), up.to(self.weight)


class LoraLayer(AdapterLayer):
    r"""LoRA: ``y = W x + b + (α/r) B A x``, with A random and B zero (arXiv:2106.09685, eq. 3)."""

    low_rank_start = "random"


class PissaLayer(AdapterLayer):
    """PiSSA: ``y = R x + b + B A x``, with ``R = W - B A`` at the start (arXiv:2404.02948)."""

    low_rank_start = "principal"


class ParallelLayer(AdapterLayer):
    """Parallel adapter: ``y = h + s Up(ReLU(Down(x)))``, ``h = W x + b`` (arXiv:2110.04366)."""

    has_parallel = True


class SerialLayer(AdapterLayer):
    """Serial adapter: ``y = h + s Up(ReLU(Down(h)))``, ``h = W x + b`` (arXiv:1902.00751)."""

    has_serial = True


class CpsLayer(AdapterLayer):
    """Both bottlenecks: ``y = h + s Up_p(ReLU(Down_p(x))) + s Up(ReLU(Down(h)))``."""

    has_parallel = True
    has_serial = True


class HypsLayer(AdapterLayer):
    r"""Hybrid parallel-serial adapter: ``y = h + s Up(ReLU(Down(h)))``, ``h = R x + b + B A x``.

    As in PiSSA, ``B A`` starts as the rank-r principal part of ``W`` and trains, while the residual
    ``R`` is frozen (arXiv:2409.00884, section 3.2).

    Examples
    --------
    >>> linear = nn.Linear(12, 5)
    >>> x = torch.randn(3, 12)
    >>> adapted = HypsLayer(linear, AdapterConfig(rank=2, bottleneck=2))
    >>> torch.allclose(adapted(x), linear(x), atol=1e-6)
    True
    """

    low_rank_start = "principal"
    has_serial = True


class DoraLayer(AdapterLayer):
    r"""DoRA: ``y = magnitude · V x / |V| + b``, ``V = W + (α/r) B A``, with norms by row.

    See arXiv:2402.09353, eq. 5. The norm counts as a constant in the gradient (section 4.3).
    """

    low_rank_start = "random"

    def __init__(self, layer: nn.Linear | nn.Conv3d, config: AdapterConfig) -> None:
        super().__init__(layer, config)
        self.magnitude = nn.Parameter(self.weight.flatten(1).norm(dim=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the adapted layer."""
        if self.merged:
            return self.apply_weight(x, self.frozen, self.bias)
        ratio, bias = self._ratio(), self.bias
        if self.conv is not None:
            ratio = ratio[:, None, None, None]
            bias = None if bias is None else bias[:, None, None, None]
        out = ratio * (self.apply_weight(x, self.frozen) + self.low_rank(x))
        return out if bias is None else out + bias

    def merged_update(self) -> torch.Tensor:
        """Return the adapted weight minus the base's."""
        ratio = self._ratio().view(-1, *[1] * (self.weight.ndim - 1))
        return ratio * (self.weight + self.low_rank_product()) - self.weight

    def _ratio(self) -> torch.Tensor:
        """Return ``magnitude / |V|``, shape ``(m,)``."""
        direction = self.weight + self.low_rank_product()
        norm = direction.flatten(1).norm(dim=1).clamp(min=torch.finfo(direction.dtype).tiny)
        return self.magnitude / norm.detach()


#: Methods that replace layers.
ADAPTERS: dict[str, type[AdapterLayer]] = {
    "lora": LoraLayer,
    "dora": DoraLayer,
    "pissa": PissaLayer,
    "parallel": ParallelLayer,
    "serial": SerialLayer,
    "cps": CpsLayer,
    "hyps": HypsLayer,
}
