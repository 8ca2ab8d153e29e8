"""Files of weights: safetensors only, loaded strictly, each with a card in its header.

The card is JSON under the key ``hyps``: architecture, class names, the grid that the network
expects and, for an adapter, its settings and the name and sha256 of its base.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, cast

import torch
from monai.networks.nets import BasicUNet
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from hyps_bids.errors import BadData, MissingInput, UsageError
from hyps_bids.networks.adapters import (
    AdapterConfig,
    adapter_state,
    add_adapters,
    load_adapter_state,
)
from hyps_bids.networks.swin_unetr import HippocampusSwinUNETR
from hyps_bids.outputs.digests import sha256
from hyps_bids.outputs.writing import write_with

#: Shape of the box around a hippocampus that segmentation networks see, 1 mm voxels.
GRID = (40, 56, 40)

# Names of the weights that come with the package.
LOCALIZER = "localizer-synthetic"
BASE = "base-synthetic"
ADAPTER = "adapter-anteriorposterior"

_ARCHITECTURES: dict[str, type[nn.Module]] = {
    architecture.__name__: architecture for architecture in (BasicUNet, HippocampusSwinUNETR)
}


class Architecture(TypedDict):
    """A network's class, by name, and the arguments it is built with."""

    name: str
    kwargs: dict[str, Any]


class Card(TypedDict):
    """Entries of every card."""

    #: Names of the classes; a network's begin with the background, an adapter's leave it out.
    labels: list[str]
    #: Shape of the boxes that the network sees, voxels.
    grid: NotRequired[list[int]]
    license: NotRequired[str]
    #: Name of an adapter that ``--train-adapter`` made.
    name: NotRequired[str]
    #: Facts about the training, and the metrics of the ``validation``
    training: NotRequired[dict[str, Any]]


class NetworkCard(Card):
    """Card of a whole network; ``imported`` tells what a conversion did to its tensors."""

    kind: Literal["network"]
    architecture: Architecture
    imported: NotRequired[Mapping[str, Any]]


class AdapterCard(Card):
    """Card of an adapter, with the fields of its config, and the name and sha256 of its base."""

    kind: Literal["adapter"]
    adapter: dict[str, Any]
    base: dict[str, str]


def shipped_weights(name: str) -> Path:
    """Return the path of weights that come with the package."""
    return Path(str(files("hyps_bids") / "data" / "weights" / f"{name}.safetensors"))


def read_card(path: Path) -> NetworkCard | AdapterCard:
    """Read the card in the header of a weights file.

    Raises
    ------
    MissingInput, BadData
        If there is no such file, it is no safetensors file, or it has no complete card.
    """
    if not path.is_file():
        raise MissingInput(f"{path}: no such weights file", code="weights-missing")
    try:
        with safe_open(path, "pt") as weights:
            metadata = weights.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise BadData(
            f"{path}: not a complete safetensors file ({error}); copy or download it again",
            code="weights-unreadable",
        ) from error
    if "hyps" not in metadata:
        raise BadData(
            f"{path}: a safetensors file without a HyPS card; "
            "convert it with 'hyps-tools import-base'",
            code="card-missing",
        )
    card = json.loads(metadata["hyps"])
    if not {"kind", "labels"} <= card.keys():
        raise BadData(
            f"{path}: its card is incomplete; it needs a kind and labels", code="card-incomplete"
        )
    return cast(NetworkCard | AdapterCard, card)


def read_adapter_card(path: Path, base: Path) -> AdapterCard:
    """Read the card of an adapter, and check that it belongs to a base.

    Raises
    ------
    MissingInput, UsageError, BadData
        If one of the files is not there, the adapter was trained on another base, or one file is
        given as the other.
    """
    card = read_card(path)
    if card["kind"] != "adapter":
        message = f"{path}: holds a whole network, but an adapter is needed here"
        raise UsageError(message, code="network-not-adapter")
    if read_card(base)["kind"] == "network" and card["base"]["sha256"] != sha256(base):
        raise UsageError(
            f"{path}: was trained on base {card['base']['name']} (sha256 "
            f"{card['base']['sha256'][:12]}…), not on {base.name} ({sha256(base)[:12]}…); "
            "give its own base with --base-model",
            code="adapter-other-base",
        )
    return card


def build_network(architecture: Architecture) -> nn.Module:
    """Build an untrained network from the ``architecture`` of a card.

    Examples
    --------
    >>> kwargs = {"in_channels": 1, "out_channels": 3, "feature_size": 12}
    >>> network = build_network({"name": "HippocampusSwinUNETR", "kwargs": kwargs})
    """
    return _ARCHITECTURES[architecture["name"]](**architecture["kwargs"])


def save_network(
    path: Path, model: nn.Module, card: Mapping[str, Any], *, dtype: torch.dtype = torch.float32
) -> None:
    """Write all weights of a network with its card, a :class:`NetworkCard` but for the kind."""
    _save(path, model.state_dict(), {**card, "kind": "network"}, dtype)


def load_network(path: Path) -> tuple[nn.Module, NetworkCard]:
    """Load a network in float32 on the CPU, in evaluation mode, with its card.

    Raises
    ------
    MissingInput, UsageError, BadData
        If there is no such file, it holds an adapter, or its tensors do not fit its architecture.
    """
    card = read_card(path)
    if card["kind"] != "network":
        message = f"{path}: holds an adapter, but a whole network is needed here"
        raise UsageError(message, code="adapter-not-network")
    model = build_network(card["architecture"])
    try:
        model.load_state_dict(_tensors(path))
    except RuntimeError as error:
        raise BadData(
            f"{path}: the weights do not fit their architecture: {error}", code="weights-misfit"
        ) from error
    return model.eval(), card


def save_adapter(
    path: Path,
    model: nn.Module,
    config: AdapterConfig,
    base: Path,
    card: Mapping[str, Any],
    *,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write the adapter of an adapted network: the trained tensors, not the base.

    The base is recorded by name and sha256; `card` has at least ``labels``, see :class:`Card`.
    """
    record = {"name": base.stem, "sha256": sha256(base)}
    complete = {**card, "kind": "adapter", "adapter": asdict(config), "base": record}
    _save(path, adapter_state(model), complete, dtype)


def load_adapted(path: Path, base: Path) -> tuple[nn.Module, AdapterCard]:
    """Load an adapter onto its base, unmerged, float32, CPU, evaluation mode, with its card.

    Raises
    ------
    MissingInput, UsageError, BadData
        If one of the files is not there, the adapter was trained on another base, one file is given
        as the other, or tensors do not fit.
    """
    card = read_adapter_card(path, base)
    model, base_card = load_network(base)
    replace_head(model, base_card["labels"], {name: [] for name in card["labels"]})
    try:
        add_adapters(model, AdapterConfig.from_card(card["adapter"]))
        load_adapter_state(model, _tensors(path))
    except ValueError as error:
        raise BadData(f"{path}: {error}", code="adapter-misfit") from error
    return model.eval(), card


def replace_head(model: nn.Module, base_labels: list[str], labels: dict[str, list[str]]) -> None:
    """Give a SwinUNETR a new output head, in place.

    `base_labels` names its present outputs, background first. `labels` maps each new output to the
    base outputs from whose mean it starts; an output without any starts at zero. The background is
    added as output 0 and starts from the mean of all remaining ones.
    """
    block = model.get_submodule("out.conv")
    old = block.get_submodule("conv")
    assert isinstance(old, nn.Conv3d)
    assert old.bias is not None
    used = {name for sources in labels.values() for name in sources}
    rows = [[name for name in base_labels if name not in used], *labels.values()]
    weight = torch.zeros(len(rows), *old.weight.shape[1:])
    bias = torch.zeros(len(rows))
    for i, names in enumerate(rows):
        chosen = [base_labels.index(name) for name in names]
        if chosen:
            weight[i] = old.weight.detach()[chosen].mean(0)
            bias[i] = old.bias.detach()[chosen].mean()
    new = nn.Conv3d(old.in_channels, len(rows), kernel_size=1)
    new.load_state_dict({"weight": weight, "bias": bias})
    block.conv = new


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, "pt") as weights:
        return {name: weights.get_tensor(name).float() for name in weights.keys()}  # noqa: SIM118


def _save(
    path: Path, state: dict[str, torch.Tensor], card: Mapping[str, Any], dtype: torch.dtype
) -> None:
    tensors = {name: t.detach().to("cpu", dtype).contiguous() for name, t in state.items()}
    metadata = {"hyps": json.dumps(card, sort_keys=True)}
    write_with(
        path,
        lambda partial: save_file(tensors, partial, metadata=metadata),
        # Safetensors reports a full disk with an error of its own.
        failures=(SafetensorError,),
        hint="weights that were there before are kept",
    )
