"""Parameter-efficient adapters: one interface, one class per method.

An adapter takes the place of a linear layer of the Swin encoder. :func:`add_adapters` puts the
adapters of one method into a network and decides what trains; :func:`adapter_state` is all that
has to be saved next to the name of the base model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

__all__ = [
    "ADAPTERS",
    "AdapterConfig",
    "AdapterLinear",
    "HypsLinear",
    "adapter_state",
    "add_adapters",
    "load_adapter_state",
    "merge_adapters",
    "parameter_counts",
]


@dataclass(frozen=True)
class AdapterConfig:
    """What to adapt, and how.

    Attributes
    ----------
    method : str
        A name in :data:`ADAPTERS`.
    rank : int
        Rank r of low-rank parts; layers smaller than that use their full rank.
    bottleneck : int
        Width d of bottleneck parts.
    scale : float
        Factor s of bottleneck parts.
    targets : str
        Prefix of the module names whose linear layers are adapted.
    trainable : tuple of str
        Prefixes of the modules that train besides the adapters and the encoder's norms.
    """

    method: str = "hyps"
    rank: int = 8
    bottleneck: int = 8
    scale: float = 1.0
    targets: str = "swinViT"
    trainable: tuple[str, ...] = ("decoder", "out")

    def __post_init__(self) -> None:
        if self.method not in ADAPTERS:
            raise ValueError(
                f"unknown adapter method {self.method!r}: choose from {sorted(ADAPTERS)}"
            )
        if self.rank < 1 or self.bottleneck < 1:
            raise ValueError("rank and bottleneck must be at least 1")


class AdapterLinear(nn.Module, ABC):
    """A linear layer with an adapter; the common interface of all methods.

    Subclasses start as the pre-trained layer, hold what is frozen in buffers and what trains in
    parameters, and know how to fold what can be folded into one weight.

    Parameters
    ----------
    linear : torch.nn.Linear
        The pre-trained layer, ``m`` outputs and ``n`` inputs.
    config : AdapterConfig
        The settings.
    """

    #: buffers that belong to the adapter, not to the base, and so are saved with it
    saved_buffers: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def __init__(self, linear: nn.Linear, config: AdapterConfig) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(..., n)`` to ``(..., m)``."""

    @abstractmethod
    def rebase(self) -> None:
        """Recompute frozen buffers from the base weight after `saved_buffers` were loaded."""

    @abstractmethod
    def merge(self) -> None:
        """Fold the mergeable part into the frozen weight: same outputs, fewer operations."""


class HypsLinear(AdapterLinear):
    r"""Hybrid parallel-serial adapter of a linear layer ``y = W x + b``.

    ``h = R x + B A x + b`` and ``y = h + s Up(ReLU(Down(h)))``, where ``B A`` starts as the rank-r
    principal part of ``W`` and ``R = W - B A`` at the start is frozen. ``Up`` starts at zero, so
    that the layer starts as the pre-trained one.

    `residual` is a buffer, but never saved: it follows from the base's ``W`` and the saved initial
    factors, without a second SVD, and hence alike on every machine.

    References
    ----------
    arXiv:2409.00884, section 3.2; PiSSA, arXiv:2404.02948.

    Examples
    --------
    >>> linear = nn.Linear(12, 5)
    >>> x = torch.randn(3, 12)
    >>> adapted = HypsLinear(linear, AdapterConfig(rank=2, bottleneck=2))
    >>> torch.allclose(adapted(x), linear(x), atol=1e-6)
    True
    """

    saved_buffers: ClassVar[tuple[str, ...]] = ("lora_A_init", "lora_B_init")
    weight: torch.Tensor
    residual: torch.Tensor
    bias: torch.Tensor | None
    lora_A_init: torch.Tensor
    lora_B_init: torch.Tensor

    def __init__(self, linear: nn.Linear, config: AdapterConfig) -> None:
        super().__init__(linear, config)
        weight = linear.weight.detach()
        m, n = weight.shape
        r = min(config.rank, m, n)
        # on CPU in double precision: the same start whatever the device
        u, s, vh = torch.linalg.svd(weight.cpu().double(), full_matrices=False)
        root = s[:r].sqrt()
        lora_b = (u[:, :r] * root).to(weight)
        lora_a = (root[:, None] * vh[:r]).to(weight)
        self.scale = config.scale
        self.register_buffer("weight", weight.clone(), persistent=False)
        self.register_buffer("residual", torch.empty_like(weight), persistent=False)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())
        self.register_buffer("lora_A_init", lora_a.clone())
        self.register_buffer("lora_B_init", lora_b.clone())
        self.lora_A = nn.Parameter(lora_a)
        self.lora_B = nn.Parameter(lora_b)
        self.down = nn.Linear(m, config.bottleneck, device=weight.device, dtype=weight.dtype)
        self.up = nn.Linear(config.bottleneck, m, device=weight.device, dtype=weight.dtype)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.rebase()

    def rebase(self) -> None:
        """Set the residual to the base weight less the saved initial factors; undo a merge."""
        self.merged = False
        self.residual = self.weight - self.lora_B_init @ self.lora_A_init

    def merge(self) -> None:
        """Add the trained principal part to the residual."""
        if not self.merged:
            self.residual = self.residual + (self.lora_B @ self.lora_A).detach()
            self.merged = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(..., n)`` to ``(..., m)``."""
        h = F.linear(x, self.residual, self.bias)
        if not self.merged:
            h = h + F.linear(F.linear(x, self.lora_A), self.lora_B)
        return h + self.scale * self.up(F.relu(self.down(h)))


#: method name → class
ADAPTERS: dict[str, type[AdapterLinear]] = {"hyps": HypsLinear}


def add_adapters(model: nn.Module, config: AdapterConfig) -> None:
    """Adapt a pre-trained network in place and freeze all that does not train.

    Parameters
    ----------
    model : torch.nn.Module
        The network with its pre-trained weights loaded.
    config : AdapterConfig
        Which layers, which method.

    Raises
    ------
    ValueError
        If no linear layer lies below ``config.targets``.
    """
    linears = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(config.targets)
    ]
    if not linears:
        raise ValueError(f"no linear layer below {config.targets!r} in {type(model).__name__}")
    model.requires_grad_(False)
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm) or name.startswith(config.trainable):
            module.requires_grad_(True)
    for name, linear in linears:
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, ADAPTERS[config.method](linear, config))


def adapter_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Collect what distinguishes an adapted network from its base.

    Returns
    -------
    dict of str to torch.Tensor
        Trainable parameters and the adapters' own buffers, detached, by state-dict name.
    """
    state = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    for name, module in model.named_modules():
        if isinstance(module, AdapterLinear):
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
            f"adapter does not fit the network: {len(wrong)} tensors, first {wrong[0]}"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])
    for module in model.modules():
        if isinstance(module, AdapterLinear):
            module.rebase()


def merge_adapters(model: nn.Module) -> None:
    """Merge every adapter of `model` in place, for inference."""
    for module in model.modules():
        if isinstance(module, AdapterLinear):
            module.merge()


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """Count trainable parameters and those of the pre-trained network.

    Returns
    -------
    trainable, total : int
        `total` counts trainable ones and the frozen base, adapters' residuals included once.
    """
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    for module in model.modules():
        if isinstance(module, AdapterLinear):
            frozen += sum(
                b.numel()
                for name, b in module.named_buffers(recurse=False)
                if name in ("residual", "bias")
            )
    return trainable, trainable + frozen
