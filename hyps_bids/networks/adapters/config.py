"""The settings of an adapter: method, sizes, and which layers it adapts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

#: What trains under each method, in addition to :attr:`AdapterConfig.trainable`.
METHODS = {
    "full": "everything",
    "decoder": "nothing more; the encoder stays as it is",
    "bitfit": "every bias and the head, but not the rest of `trainable`",
    "lora": "W x + (α/r) B A x",
    "dora": "the lengths of the rows of W, and by LoRA their directions",
    "pissa": "the principal part of W; the residual is frozen",
    "parallel": "W x + s Up(ReLU(Down(x)))",
    "serial": "h + s Up(ReLU(Down(h))), h = W x + b",
    "cps": "parallel and serial side by side",
    "hyps": "pissa, followed by serial",
}

#: How the module names of each kind of layer end (linear layers) or begin (convolutions).
LAYERS = {
    "attention": (".attn.qkv", ".attn.proj"),
    "mlp": (".mlp.linear1", ".mlp.linear2"),
    "merging": (".downsample.reduction",),
    "convolutions": ("encoder",),
}

#: Named settings; "paper" has the values that arXiv:2409.00884 publishes.
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {"rank": 2, "bottleneck": 2, "scale": 1.0},
}


@dataclass(frozen=True)
class AdapterConfig:
    """Settings of an adapter; a ValueError says which value is unknown or out of range.

    Examples
    --------
    >>> AdapterConfig.preset("paper", "lora").rank
    2
    """

    #: A name in :data:`METHODS`
    method: str = "hyps"
    #: Rank r of low-rank parts; a layer with fewer inputs or outputs uses its full rank.
    rank: int = 8
    #: Width d of bottleneck parts.
    bottleneck: int = 8
    #: Factor s of bottleneck parts.
    scale: float = 1.0
    #: Alpha of LoRA and DoRA, whose low-rank part is multiplied by α/r; by 1 if None.
    alpha: float | None = None
    #: Probability that an input of the added parts is dropped in training, in [0, 1)
    dropout: float = 0.0
    #: Kinds of layers to adapt, from :data:`LAYERS`
    layers: tuple[str, ...] = ("attention", "mlp", "merging")
    #: Prefixes of further modules that train, in addition to the adapters and the encoder's norms;
    #: the head ``out`` must be among them, since its classes are new.
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
        # A head that does not train is not saved, and would be zero after loading.
        if "out" not in self.trainable:
            raise ValueError(f"trainable must contain 'out', the head, not only {self.trainable}")
        unknown = sorted(set(self.layers) - set(LAYERS))
        if unknown or not self.layers:
            raise ValueError(f"layers {unknown or 'missing'}: choose from {', '.join(LAYERS)}")

    @classmethod
    def preset(cls, name: str, method: str = "hyps", **changes: Any) -> AdapterConfig:
        """Make the settings of a preset from :data:`PRESETS`, with changes."""
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}: choose from {', '.join(PRESETS)}")
        return cls(**{"method": method} | PRESETS[name] | changes)

    @classmethod
    def from_card(cls, adapter: Mapping[str, Any]) -> AdapterConfig:
        """Read the settings from the ``adapter`` entry of a card, strictly."""
        known = {field.name for field in fields(cls)}
        # The first adapters also recorded the encoder, which is the same for all of them.
        unknown = sorted(adapter.keys() - known - {"targets"})
        if unknown:
            raise ValueError(
                f"the settings {', '.join(unknown)} are unknown; a newer version made the adapter"
            )
        values: dict[str, Any] = {name: adapter[name] for name in known & adapter.keys()}
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**values | lists)
