"""The weights that come with the package, and the cards in the headers of weights files.

A card is JSON under the key ``hyps``: architecture, class names, the grid that the network
expects and, for an adapter, its settings and the name and sha256 of its base.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, cast

from safetensors import SafetensorError, safe_open

from hyps_bids.errors import BadData, MissingInput, UsageError
from hyps_bids.outputs.digests import sha256

#: Shape of the box around a hippocampus that segmentation networks see, 1 mm voxels.
GRID = (40, 56, 40)

# Names of the weights that come with the package.
LOCALIZER = "localizer-synthetic"
BASE = "base-synthetic"
ADAPTER = "adapter-anteriorposterior"


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
        with safe_open(path, "np") as weights:
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


def read_network_card(path: Path) -> NetworkCard:
    """Read the card of a whole network.

    Raises
    ------
    MissingInput, BadData, UsageError
        As :func:`read_card`, and if the file holds an adapter.
    """
    card = read_card(path)
    if card["kind"] != "network":
        message = f"{path}: holds an adapter, but a whole network is needed here"
        raise UsageError(message, code="adapter-not-network")
    return card


def read_adapter_card(path: Path, base: Path) -> AdapterCard:
    """Read the card of an adapter, and check that it was trained on this base.

    Raises
    ------
    MissingInput, BadData, UsageError
        As :func:`read_card`, and if the file holds a whole network or belongs to another base.
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
