"""What can be adapted, and how: the settings of an adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

__all__ = ["LAYERS", "METHODS", "PRESETS", "AdapterConfig"]

#: method → what trains, besides what :attr:`AdapterConfig.trainable` names
METHODS = {
    "full": "everything",
    "decoder": "nothing else: the encoder stays as it is",
    "bitfit": "every bias, and of `trainable` the head alone",
    "lora": "W x + (α/r) B A x",
    "dora": "LoRA of the directions of W's rows, and their lengths",
    "pissa": "the principal part of W; the residual is frozen",
    "parallel": "W x + s Up(ReLU(Down(x)))",
    "serial": "h + s Up(ReLU(Down(h))), h = W x + b",
    "cps": "parallel and serial side by side",
    "hyps": "pissa, followed by serial",
}

#: kind of layer → how the names of its modules end (linear) or begin (convolutions)
LAYERS = {
    "attention": (".attn.qkv", ".attn.proj"),
    "mlp": (".mlp.linear1", ".mlp.linear2"),
    "merging": (".downsample.reduction",),
    "convolutions": ("encoder",),
}

#: named settings; "paper" is what arXiv:2409.00884 publishes
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {"rank": 2, "bottleneck": 2, "scale": 1.0},
}


@dataclass(frozen=True)
class AdapterConfig:
    """What to adapt, and how.

    Attributes
    ----------
    method : str
        A name in :data:`METHODS`.
    rank : int
        Rank r of low-rank parts; layers smaller than that use their full rank.
    bottleneck : int
        Width d of bottleneck parts.
    scale : float
        Factor s of bottleneck parts.
    alpha : float or None
        LoRA's and DoRA's α: the low-rank part counts α/r times; once if None.
    dropout : float
        Probability with which inputs of the added parts are dropped in training, in [0, 1).
    layers : tuple of str
        Kinds of layers to adapt, from :data:`LAYERS`.
    trainable : tuple of str
        Prefixes of the modules that train besides the adapters and the encoder's norms; the head
        ``out`` must be among them, since its classes are new.

    Examples
    --------
    >>> AdapterConfig.preset("paper", "lora").rank
    2
    """

    method: str = "hyps"
    rank: int = 8
    bottleneck: int = 8
    scale: float = 1.0
    alpha: float | None = None
    dropout: float = 0.0
    layers: tuple[str, ...] = ("attention", "mlp", "merging")
    trainable: tuple[str, ...] = ("decoder", "out")

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(
                f"unknown adapter method {self.method!r}: choose from {', '.join(METHODS)}"
            )
        if self.rank < 1 or self.bottleneck < 1:
            raise ValueError("rank and bottleneck must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {self.dropout}")
        # a head that does not train is not saved, and would come back as zeros
        if "out" not in self.trainable:
            raise ValueError(f"trainable must hold 'out', the head, not {self.trainable}")
        unknown = sorted(set(self.layers) - set(LAYERS))
        if unknown or not self.layers:
            raise ValueError(f"layers {unknown or 'missing'}: choose from {', '.join(LAYERS)}")

    @classmethod
    def preset(cls, name: str, method: str = "hyps", **changes: Any) -> AdapterConfig:
        """Make the settings of a preset, with changes.

        Raises
        ------
        ValueError
            If there is no such preset.
        """
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}: choose from {', '.join(PRESETS)}")
        return cls(**{"method": method} | PRESETS[name] | changes)

    @classmethod
    def from_card(cls, adapter: Mapping[str, Any]) -> AdapterConfig:
        """Read the settings that an adapter file's card holds.

        Raises
        ------
        ValueError
            If the card has settings that this version does not know.
        """
        known = {field.name for field in fields(cls)}
        # the first adapters named the encoder that all of them adapt
        unknown = sorted(adapter.keys() - known - {"targets"})
        if unknown:
            raise ValueError(f"unknown settings {', '.join(unknown)}: made by a newer version")
        values: dict[str, Any] = {name: adapter[name] for name in known & adapter.keys()}
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**values | lists)
