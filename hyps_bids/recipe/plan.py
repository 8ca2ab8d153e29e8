"""A recipe: the stages that lead from data to weights, read from a TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from hyps_bids.errors import BadData, MissingInput
from hyps_bids.networks.adapters.config import AdapterConfig
from hyps_bids.training.contrasts import ContrastSettings
from hyps_bids.training.loop import LoopSettings

#: The stages in their order.
STAGES = ("localizer", "base", "adapter", "soup")

_LOOP_KEYS = {field.name for field in fields(LoopSettings)}


@dataclass(frozen=True)
class DataPlan:
    """Folders below the data folder; every n-th subject that is not in the test set validates."""

    labelmaps: str
    images: str
    labels: str
    validation: int


@dataclass(frozen=True)
class NetworkPlan:
    """How a whole network is trained."""

    start: str
    loop: LoopSettings
    #: Type of device → images per step
    batch_size: Mapping[str, int]


@dataclass(frozen=True)
class AdapterPlan:
    """How adapters are trained, one for each seed; `loop` is that of the first seed."""

    start: str
    loop: LoopSettings
    #: The loop where the start does not belong to the base, so that the base is the start.
    loop_of_new_base: LoopSettings
    batch_size: Mapping[str, int]
    seeds: tuple[int, ...]
    classes: tuple[str, ...]
    start_from: tuple[str, ...]
    config: AdapterConfig
    contrasts: ContrastSettings | None
    #: Texts of the model card
    title: str
    license: str
    data: str
    notes: str


@dataclass(frozen=True)
class RecipePlan:
    """The whole recipe; see ``data/recipe.toml``."""

    data: DataPlan
    networks: Mapping[str, NetworkPlan]
    adapter: AdapterPlan
    #: Shares of new adapters in mixtures with the one before.
    mixtures: tuple[float, ...]
    #: How much lower the Dice of better weights on the crops as they are may be.
    largest_loss: float


def read_recipe(path: Path | None = None) -> RecipePlan:
    """Read a recipe; by default the one that comes with the package.

    Raises
    ------
    MissingInput, BadData
        If there is no such file, it is no TOML, or an entry is missing, unknown or impossible.
    """
    path = path or Path(str(files("hyps_bids") / "data" / "recipe.toml"))
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MissingInput(f"{path}: there is no such recipe", code="no-recipe") from error
    except ValueError as error:
        raise BadData(f"{path}: is not valid TOML ({error})", code="recipe-unreadable") from error
    try:
        return RecipePlan(
            DataPlan(**content["data"]),
            {name: _network(content[name]) for name in ("localizer", "base")},
            _adapter(content["adapter"]),
            tuple(content["soup"]["mixtures"]),
            float(content["soup"]["largest_loss"]),
        )
    except KeyError as error:
        raise BadData(f"{path}: the entry {error} is missing", code="recipe-entry") from error
    except (TypeError, ValueError) as error:
        raise BadData(f"{path}: has an impossible entry: {error}", code="recipe-entry") from error


def _network(table: Mapping[str, Any]) -> NetworkPlan:
    rest = {key: value for key, value in table.items() if key not in _LOOP_KEYS}
    return NetworkPlan(loop=_loop(table), **rest)


def _adapter(table: Mapping[str, Any]) -> AdapterPlan:
    rest = {key: value for key, value in table.items() if key not in _LOOP_KEYS}
    new_base = rest.pop("new_base", {})
    seeds = tuple(rest.pop("seeds"))
    table = {**table, "seed": seeds[0]}
    contrasts = rest.pop("contrasts", None)
    config = {name: rest.pop(name) for name in ("method", "rank", "bottleneck", "scale")}
    classes, start_from = tuple(rest.pop("classes")), tuple(rest.pop("start_from"))
    return AdapterPlan(
        loop=_loop(table),
        loop_of_new_base=_loop({**table, **new_base}),
        seeds=seeds,
        classes=classes,
        start_from=start_from,
        config=AdapterConfig(**config),
        contrasts=ContrastSettings(**contrasts) if contrasts else None,
        **rest,
    )


def _loop(table: Mapping[str, Any]) -> LoopSettings:
    return LoopSettings(**{key: value for key, value in table.items() if key in _LOOP_KEYS})
